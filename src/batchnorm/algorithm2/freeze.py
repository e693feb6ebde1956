"""Freeze the statistics and the parameters of BN layers (Algorithm 2, line 7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from ..errors import BatchNormError
from ..graph.batches import check_module
from ..torch_private import AnyBatchNorm
from .results import count, format_table, shown

if TYPE_CHECKING:
    from typing_extensions import Self

FreezeOutcome = Literal["frozen", "partly", "free"]

_REQUIRES_GRAD = "requires_grad_before_freeze"


@dataclass(frozen=True)
class FreezeRow:
    """Tell what of one BN layer was frozen when the call returned.

    Arguments:
        name: the name of the layer in the network.
        outcome: "frozen" if all the layer has was frozen, "free" if nothing was, else "partly".
        reason: why there is nothing to freeze, or "".
        kind: the class of the layer.
        statistics: True if the running statistics were frozen, None if the layer has none.
        affine: True if gamma and beta were frozen, None if the layer has neither.
    """

    name: str
    outcome: FreezeOutcome
    reason: str
    kind: str
    statistics: bool | None
    affine: bool | None


@dataclass(frozen=True)
class FreezeResult:
    """Hold the model and one row per BN layer. As a context manager, restore the earlier state at the end.

    Arguments:
        model: the model that was given.
        rows: one row per BN layer, in the order of `named_modules`.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> with bn.freeze(model, affine=False) as result:
        ...     print(result)
        name  outcome  kind         statistics  affine  reason
        ----  -------  -----------  ----------  ------  ------
        1     partly   BatchNorm1d  frozen      free
        after freeze: 0 frozen, 1 partly, 0 free
        >>> result.partly
        1
        >>> model[1].training
        True
    """

    model: nn.Module
    rows: tuple[FreezeRow, ...]
    _call: Literal["freeze", "unfreeze"] = field(repr=False)
    _before: list[tuple[AnyBatchNorm, bool, bool]] = field(repr=False)

    @property
    def frozen(self) -> int:
        """Return the number of layers that were frozen whole."""
        return count(self.rows, "frozen")

    @property
    def partly(self) -> int:
        """Return the number of layers that were frozen in part."""
        return count(self.rows, "partly")

    @property
    def free(self) -> int:
        """Return the number of layers of which nothing was frozen."""
        return count(self.rows, "free")

    def __str__(self) -> str:
        words = {True: "frozen", False: "free", None: "none"}
        cells = [(shown(r.name), r.outcome, r.kind, words[r.statistics], words[r.affine], r.reason) for r in self.rows]
        table = format_table(("name", "outcome", "kind", "statistics", "affine", "reason"), cells)
        return f"{table}\nafter {self._call}: {self.frozen} frozen, {self.partly} partly, {self.free} free"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, statistics, affine in self._before:
            _set_statistics(layer, statistics)
            _set_affine(layer, affine)


def freeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> FreezeResult:
    """Freeze every BN layer of the network, in place, while the rest goes on training (Alg. 2, line 7).

    A frozen layer computes one constant affine map of its input:
    y = gamma / sqrt(Var + eps) * x + (beta - gamma * E / sqrt(Var + eps)).

    With frozen statistics, a layer stays in eval mode through every `.train()` of a parent. It normalizes by its
    running statistics and does not update them. A plain `.eval()` is undone by the next `.train()` of a parent, and
    `requires_grad=False` does not stop running statistics.

    With frozen parameters, `weight` and `bias` have `requires_grad=False` and no `.grad`, so no optimizer moves them.

    Both last through `deepcopy`, pickling, `load_state_dict` and DistributedDataParallel. Freeze before you wrap.
    The class of the layer and the keys of the `state_dict` do not change. `recalibrate` keeps frozen statistics.

    `with bn.freeze(model): ...` restores at the end what was frozen before.

    Arguments:
        model: any network with BN layers: 1d, 2d, 3d, Sync, lazy, and subclasses. InstanceNorm layers are not BN.
        statistics: freeze the running statistics.
        affine: freeze gamma and beta.

    Returns:
        The model and one row per BN layer. It prints as a table.

    Raises:
        BatchNormError: `model` is no network, or has no BN layer.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> bn.freeze(model).frozen
        1
        >>> model.train()[1].training
        False
    """
    return _set(model, True, statistics, affine)


def unfreeze(model: nn.Module, *, statistics: bool = True, affine: bool = True) -> FreezeResult:
    """Undo `freeze`, in place.

    Each layer gets the mode that its parents asked for last, and each parameter its earlier `requires_grad`.

    Arguments:
        model: any network with BN layers.
        statistics: unfreeze the running statistics.
        affine: unfreeze gamma and beta.

    Returns:
        The model and one row per BN layer. It prints as a table.

    Raises:
        BatchNormError: `model` is no network, or has no BN layer.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
        >>> _ = bn.freeze(model)
        >>> bn.unfreeze(model).free
        1
        >>> model[1].training
        True
    """
    return _set(model, False, statistics, affine)


def statistics_frozen(layer: nn.Module) -> bool:
    """Return True if the running statistics of the layer are frozen."""
    return isinstance(vars(layer).get("train"), _HeldInEval)


def affine_frozen(layer: nn.Module) -> bool:
    """Return True if gamma and beta of the layer are frozen."""
    return _REQUIRES_GRAD in vars(layer)


class _HeldInEval:
    """Replace `layer.train`: keep the layer in eval mode and remember the mode that was asked for.

    A plain object in the layer's own dict is copied and pickled with the layer.
    """

    def __init__(self, layer: AnyBatchNorm) -> None:
        self.layer = layer
        self.mode = layer.training

    def __call__(self, mode: bool = True) -> AnyBatchNorm:
        self.mode = mode
        for child in self.layer.children():  # an activation or Dropout inside a subclass is not frozen
            child.train(mode)
        return self.layer


def _set(model: nn.Module, frozen: bool, statistics: bool, affine: bool) -> FreezeResult:
    check_module(model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    call = "freeze" if frozen else "unfreeze"
    if not layers:
        raise BatchNormError(f"{type(model).__name__} has no BatchNorm layer to {call}")
    before = [(layer, statistics_frozen(layer), affine_frozen(layer)) for layer in layers.values()]
    for layer in layers.values():
        if statistics:
            _set_statistics(layer, frozen)
        if affine:
            _set_affine(layer, frozen)
    return FreezeResult(model, tuple(_row(name, layer) for name, layer in layers.items()), call, before)


def _row(name: str, layer: AnyBatchNorm) -> FreezeRow:
    statistics = None if layer.running_mean is None else statistics_frozen(layer)
    affine = None if not _affine_parameters(layer) else affine_frozen(layer)
    parts = {statistics, affine} - {None}
    outcome = "partly" if len(parts) == 2 else "frozen" if True in parts else "free"
    reason = "" if parts else "has no running statistics and no parameters"
    return FreezeRow(name, outcome, reason, type(layer).__name__, statistics, affine)


def _affine_parameters(layer: AnyBatchNorm) -> list[nn.Parameter]:
    return list(layer.parameters(recurse=False))


def _set_statistics(layer: AnyBatchNorm, frozen: bool) -> None:
    if frozen == statistics_frozen(layer) or layer.running_mean is None:
        return
    if frozen:
        vars(layer).update(train=_HeldInEval(layer), training=False)
    else:
        layer.training = cast(_HeldInEval, vars(layer).pop("train")).mode


def _set_affine(layer: AnyBatchNorm, frozen: bool) -> None:
    parameters = _affine_parameters(layer)
    if frozen == affine_frozen(layer) or not parameters:
        return
    if frozen:
        vars(layer)[_REQUIRES_GRAD] = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad = False
            parameter.grad = None
    else:
        for parameter, requires_grad in zip(parameters, vars(layer).pop(_REQUIRES_GRAD), strict=True):
            parameter.requires_grad = requires_grad
