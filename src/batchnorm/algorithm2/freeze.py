"""Algorithm 2, line 7: BN layers whose statistics and parameters stay what they are, until they are unfrozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import BatchNormError
from .results import format_table

if TYPE_CHECKING:
    from typing_extensions import Self


_BEFORE = "requires_grad_before_freeze"


@dataclass(frozen=True)
class FreezeRow:
    """What of one BN is frozen now: its statistics, its affine parameters; None for what it does not have."""

    layer: str
    kind: str
    statistics: bool | None
    affine: bool | None


@dataclass(frozen=True)
class FreezeResult:
    """What `freeze` or `unfreeze` did: the model and a row per BN. As a context manager, undone at the end."""

    model: nn.Module
    rows: tuple[FreezeRow, ...]
    _before: list[tuple[_BatchNorm, bool, bool]] = field(repr=False)

    def __str__(self) -> str:
        words = {True: "frozen", False: "free", None: "none"}
        cells = [(r.layer, r.kind, words[r.statistics], words[r.affine]) for r in self.rows]
        return format_table(("layer", "kind", "statistics", "affine"), cells)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, statistics, affine in self._before:
            _set_statistics(layer, statistics)
            _set_affine(layer, affine)


def freeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> FreezeResult:
    """Keep every BN of the network as it is while the rest goes on training, in place (Alg. 2, line 7).

    y = gamma / sqrt(Var + eps) * x + (beta - gamma * E / sqrt(Var + eps)), with all four constant.

    Statistics: the layer stays in eval, so it normalises by its running statistics and leaves them alone, whatever
    `.train()` a parent is given (which undoes a child's `.eval()`, while `requires_grad=False` does not stop running
    statistics at all). Affine: `weight` and `bias` ask for no gradient, and the one they have is dropped, so that no
    optimizer moves them. Either lasts through `deepcopy`, pickling, `load_state_dict` and DistributedDataParallel
    (freeze before you wrap), and changes neither the layer's class nor the keys of the `state_dict`; nothing is
    copied, so nothing shares storage. `recalibrate` leaves frozen statistics alone.

    As a context manager, `with bn.freeze(model): ...`, it ends with what was frozen before.

    Arguments:
        model: any network with BN layers: 1d, 2d, 3d, Sync, lazy, and subclasses. InstanceNorm is none.
        statistics: freeze the running statistics.
        affine: freeze gamma and beta.

    Returns:
        A row per BN, which prints as a table.

    Raises:
        BatchNormError: the network has no BN layer.
    """
    return _set(model, True, statistics, affine)


def unfreeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> FreezeResult:
    """Undo `freeze`, in place: the mode is again what the parents last asked for, `requires_grad` what it was.

    Arguments, Returns, Raises: as `freeze`.
    """
    return _set(model, False, statistics, affine)


class _Held:
    """Stands in for `layer.train`: remembers the mode that is asked for, and keeps the layer in eval.

    A plain object in the layer's own dict, so that it is copied and pickled with the layer.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer = layer
        self.mode = layer.training

    def __call__(self, mode: bool = True) -> _BatchNorm:
        self.mode = mode
        for child in self.layer.children():  # a subclass may hold an activation or Dropout, which are not frozen
            child.train(mode)
        return self.layer


def _set(model: nn.Module, frozen: bool, statistics: bool, affine: bool) -> FreezeResult:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    if not layers:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer to {'freeze' if frozen else 'unfreeze'}")
    before = [(layer, _statistics_frozen(layer), _affine_frozen(layer)) for layer in layers.values()]
    for layer in layers.values():
        if statistics:
            _set_statistics(layer, frozen)
        if affine:
            _set_affine(layer, frozen)
    return FreezeResult(model, tuple(_row(name, layer) for name, layer in layers.items()), before)


def _row(name: str, layer: _BatchNorm) -> FreezeRow:
    return FreezeRow(
        name,
        type(layer).__name__,
        None if layer.running_mean is None else _statistics_frozen(layer),
        None if not _affine_parameters(layer) else _affine_frozen(layer),
    )


def _statistics_frozen(layer: _BatchNorm) -> bool:
    return getattr(layer, "statistics_frozen", False)


def _affine_frozen(layer: _BatchNorm) -> bool:
    return _BEFORE in vars(layer)


def _affine_parameters(layer: _BatchNorm) -> list[nn.Parameter]:
    return list(layer.parameters(recurse=False))


def _set_statistics(layer: _BatchNorm, frozen: bool) -> None:
    if frozen == _statistics_frozen(layer) or layer.running_mean is None:
        return
    if frozen:
        vars(layer).update(train=_Held(layer), statistics_frozen=True, training=False)
    else:
        layer.training = vars(layer).pop("train").mode
        del vars(layer)["statistics_frozen"]


def _set_affine(layer: _BatchNorm, frozen: bool) -> None:
    parameters = _affine_parameters(layer)
    if frozen == _affine_frozen(layer) or not parameters:
        return
    if frozen:
        vars(layer)[_BEFORE] = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad = False
            parameter.grad = None
    else:
        for parameter, requires_grad in zip(parameters, vars(layer).pop(_BEFORE), strict=True):
            parameter.requires_grad = requires_grad
