"""Declare the bounds of a number at its field. Nothing here imports pydantic, so that help is fast and needs it not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value of a number, which neither NaN nor an infinity meets.

    Write it into the field's type, `Annotated[int, Bounds(1, 10)]`. pydantic reads it there, as a group of metadata.
    """

    least: float
    most: float
    __is_annotated_types_grouped_metadata__ = True  # the protocol of the package annotated-types

    def __iter__(self) -> Iterator[object]:
        """Yield both bounds in pydantic's form."""
        from annotated_types import Ge, Le  # pydantic needs it

        yield Ge(self.least)
        yield Le(self.most)

    def __str__(self) -> str:
        return f"from {_written(self.least)} to {_written(self.most)}"


def _written(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else f"{number:,}"


# Types of fields that several settings, rows or checkpoints share.
Count = Annotated[int, Bounds(1, 10**12)]
Step = Annotated[int, Bounds(0, 10**12)]
Seed = Annotated[int, Bounds(0, 2**63 - 1)]  # torch's generators take no more
Positive = Annotated[float, Bounds(1e-30, 1e30)]  # its square root and its products with widths stay in float32
Finite = Annotated[float, Bounds(-1e300, 1e300)]
Share = Annotated[float, Bounds(0, 1)]
Threads = Annotated[int, Bounds(1, 1024)]
Workers = Annotated[int, Bounds(0, 1024)]
