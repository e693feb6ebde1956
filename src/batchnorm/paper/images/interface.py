"""The interface of every source of labeled images."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Split = Literal["train", "val"]
VIRTUAL_SHARD = 1000  # images


class Images(Protocol):
    """The labeled images of one split, numbered from 0.

    Attributes:
        classes: the names of the labels.
        channels: channels of every image.
        in_memory: True if reading an image takes no time worth a process of its own.
        shards: the number of images in each shard. The first shard holds images 0 to shards[0] - 1, and so on.
    """

    classes: tuple[str, ...]
    channels: int
    in_memory: bool
    shards: list[int]

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """Return where an image comes from, for messages."""
        ...

    def label(self, number: int) -> int:
        """Return the label of an image."""
        ...

    def read(self, number: int) -> Tensor:
        """Return an image: (channels, H, W), uint8.

        Raises:
            DamagedImage: the image cannot be decoded.
        """
        ...


def virtual_shards(images: int) -> list[int]:
    """Return the sizes of virtual shards for images that come without shards: 1,000 each, the last one smaller."""
    return [min(VIRTUAL_SHARD, images - first) for first in range(0, images, VIRTUAL_SHARD)]
