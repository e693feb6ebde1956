"""The time that training waits for its images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class WaitTimer:
    """Measure the share of the time that a loop waits for its batches."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new measurement now."""
        self._start, self._waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches. Count the time spent waiting for them, not the time the consumer spends."""
        asked = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    @property
    def share(self) -> float:
        """The share of the time since `restart` that was spent waiting, 0 to 1."""
        return self._waited / (time.perf_counter() - self._start)
