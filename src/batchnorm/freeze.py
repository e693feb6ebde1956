"""Algorithm 2, line 7: BN layers whose statistics and parameters stay what they are, until they are unfrozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import BatchNormError
from .table import format_table


@dataclass(frozen=True)
class FrozenLayer:
    """What of one BN is frozen now: its statistics, its affine parameters; None for what it does not have."""

    layer: str
    kind: str
    statistics: bool | None
    affine: bool | None


@dataclass(frozen=True)
class Freezing:
    """What `freeze` or `unfreeze` did: the model and a row per BN; as a context manager it is undone at the end."""

    model: nn.Module
    rows: list[FrozenLayer]
    _changed: list[tuple[_BatchNorm, bool, tuple[bool, ...] | None]] = field(repr=False)
'''
