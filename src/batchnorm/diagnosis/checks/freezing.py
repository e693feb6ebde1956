"""Layers that are frozen by half."""

from __future__ import annotations

from collections.abc import Iterator

from ...torch_private import AnyBatchNorm
from ..examination import Examination
from ..finding import Finding


def half_frozen(e: Examination) -> Iterator[Finding]:
    """Find layers whose statistics and parameters are not frozen together, and freezes that do not last.

    Test: the modes as given, the modes after `.train()` on a copy, `requires_grad`, and what the optimizer holds. There
    is no threshold: these are facts. A layer in eval under a parent in training mode, which `.train()` would wake, is a
    warning. So are statistics that move under parameters that do not train while the rest of the network does. For a
    layer without parameters those of the module around it count.
    Parameters that train under statistics frozen for good, as by `bn.freeze(model, affine=False)`, are a note.
    """
    undone = tuple(name for name in e.layers if name in e.kept - e.held)
    if undone:
        evidence = f"{undone[0]}: in eval mode, while the network is in training mode"
        reason = "the next .train() of a parent undoes .eval(), and the statistics move again"
        yield Finding("half frozen", "warning", undone, evidence, reason, "bn.freeze(model), which lasts")
    trains = {name for name, layer in e.layers.items() if _parameters(layer) and _trains(e, name)}
    if not _trains(e, ""):
        return
    moving = tuple(
        n for n, layer in e.layers.items() if _moves(layer) and not _trains(e, _owner(e, n)) and n not in e.kept
    )
    if moving:
        owner = _owner(e, moving[0])
        whose = "gamma and beta" if owner == moving[0] else f"the parameters of {owner}"
        evidence = f"{moving[0]}: {whose} do not train, the running statistics move"
        reason = "requires_grad=False does not stop running statistics: a frozen network changes its outputs"
        yield Finding("half frozen", "warning", moving, evidence, reason, "bn.freeze(model), or of that part")
    partly = tuple(name for name in e.layers if name in e.held & trains)
    if partly:
        evidence = f"{partly[0]}: gamma and beta train under frozen statistics"
        reason = "that is usual in fine-tuning; if the layers should stay as they are, gamma and beta move them"
        yield Finding("half frozen", "note", partly, evidence, reason, "bn.freeze(model) freezes both")


def _parameters(layer: AnyBatchNorm) -> bool:
    return any(True for _ in layer.parameters(recurse=False))


def _moves(layer: AnyBatchNorm) -> bool:
    return layer.running_mean is not None and layer.momentum != 0


def _owner(e: Examination, name: str) -> str:
    """Return the layer, or the module around a layer without gamma and beta that has parameters."""
    while name and not any(True for _ in e.given.get_submodule(name).parameters()):
        name = name.rpartition(".")[0]
    return name


def _trains(e: Examination, name: str) -> bool:
    return any(p.requires_grad and _in_optimizer(e, id(p)) for p in e.given.get_submodule(name).parameters())


def _in_optimizer(e: Examination, parameter: int) -> bool:
    """Return True if the optimizer moves the parameter, or if no optimizer was given."""
    if e.optimizer is None:
        return True
    return any(parameter == id(p) for group in e.optimizer.param_groups for p in group["params"])
