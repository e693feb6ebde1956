"""Images that cannot be read: their error type, and the log that counts them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ...errors import BatchNormError

LOG = logging.getLogger(__name__)


class DamagedImage(Exception):
    """One image that cannot be read: its name and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # Both, since workers pickle the error.
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class DamageLog:
    """Log each damaged image once, by its name, and count them up to a limit.

    Arguments:
        limit: the number of damaged images to accept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._names: set[str] = set()

    def record(self, images: Iterable[DamagedImage]) -> None:
        """Log the damaged images whose names are new. A later epoch meets the same images again.

        Raises:
            BatchNormError: more than `limit` images are damaged.
        """
        for image in images:
            if image.name in self._names:
                continue
            self._names.add(image.name)
            LOG.warning("skipped a damaged image: %s", image)
            if len(self._names) > self.limit:
                raise BatchNormError(
                    f"more than --max-damaged {self.limit} images are damaged; the last one is {image}. "
                    "Repair them or raise the limit."
                )
