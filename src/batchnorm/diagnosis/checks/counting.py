"""Batches that are counted more than once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import first_line
from ...graph.compare import copied
from ..examination import Examination
from ..finding import Finding, Severity
from ..inputs import loss_of, numbers_in, run

MOST = 64  # forwards for one step of the optimizer
NEAR = 0.02  # how near a whole number the batches per step must be
LEAST = 4  # batches of the other layers, for a multiple that is no chance


class Step(NamedTuple):
    """Count the updates and the calls of each layer in one training step. `forward` are the calls before backward."""

    updates: dict[str, int]
    forward: Counter[str]
    calls: Counter[str]


def counted_twice(e: Examination) -> Iterator[Finding]:
    """Find layers that count a batch more than once.

    Test: a whole training step, forward and backward, on a copy. `num_batches_tracked` must grow by one. Checkpointing
    calls a layer again in the backward; a layer that the forward calls twice mixes the statistics of two places. Where
    the optimizer knows its steps (Adam and its kin), the counts so far are compared with them: a multiple, to within
    0.02, means micro-batches or other forwards in training mode. Any other ratio above 1 is a note, because a network
    that was trained before has one too. The layers are compared with each other: exact multiples are a warning.

    Limit: SGD keeps no count, and nothing else in a network tells micro-batches from batches. So they are seen under
    SGD only if the caller writes the steps into `optimizer.param_groups[0]["step"]`.
    """
    step = _step(e)
    if step is not None:
        again = tuple(name for name, n in step.updates.items() if n > 1 and step.calls[name] > step.forward[name])
        several = tuple(name for name, n in step.updates.items() if n > 1 and name not in again)
        if again:
            evidence = f"{again[0]}: one step counts {step.updates[again[0]]} batches, as the backward calls it again"
            reason = "checkpointing runs the forward twice, and the running statistics move twice as fast"
            remedy = "bn.BatchNorm2d and its kin, which count once (bn.fuse puts them in), or BN outside the checkpoint"
            yield Finding("counted twice", "warning", again, evidence, reason, remedy)
        if several:
            evidence = f"{several[0]}: one forward calls it {step.updates[several[0]]} times"
            reason = "its running statistics are those of no single place: each call has another distribution"
            remedy = "a BN layer of its own for each call; the other weights may be shared"
            yield Finding("counted twice", "warning", several, evidence, reason, remedy)
    yield from _against_optimizer(e)
    yield from _against_each_other(e, step)


def _step(e: Examination) -> Step | None:
    """Run one training step on a copy. The random numbers of the caller stay as they were."""
    if not e.training.held or not any(map(_counts, e.layers.values())):
        return None
    model = copied(e.model).train()
    layers = {name: model.get_submodule(name) for name in e.layers}
    before = {name: _count(layer) for name, layer in layers.items()}
    calls: Counter[str] = Counter()
    for name, layer in layers.items():
        layer.register_forward_pre_hook(partial(_called, calls, name))  # checkpointing may stop inside the last layer
    try:
        with torch.random.fork_rng(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = run(model, e.training.held[0])
            forward = calls.copy()
            _scalar(e, output).backward()
    except Exception as error:
        e.unexamined.append(f"A training step was not examined: {first_line(error)}")
        return None
    return Step({name: _count(layer) - before[name] for name, layer in layers.items()}, forward, calls)


def _called(calls: Counter[str], name: str, *_: object) -> None:
    calls[name] += 1


def _scalar(e: Examination, output: Any) -> torch.Tensor:
    if e.loss is not None:
        return loss_of(e.loss, e.training.held[0], output)
    return torch.stack([x.float().square().mean() for x in numbers_in(output) if x.requires_grad]).sum()


def _counts(layer: nn.Module) -> bool:
    return getattr(layer, "num_batches_tracked", None) is not None


def _count(layer: nn.Module) -> int:
    return int(layer.get_buffer("num_batches_tracked")) if _counts(layer) else 0


def _against_optimizer(e: Examination) -> Iterator[Finding]:
    if e.optimizer is None:
        return
    known = [*e.optimizer.state.values(), *e.optimizer.param_groups]
    steps = max((int(each["step"]) for each in known if each.get("step") is not None), default=0)
    if not steps:
        name = type(e.optimizer).__name__
        e.unexamined.append(
            f"Batches per step were not examined: {name} does not count its steps, or has made none. Write them into "
            'it: optimizer.param_groups[0]["step"] = steps'
        )
        return
    counted = {name: _count(layer) / steps for name, layer in e.layers.items() if name not in e.kept}
    more = {name: ratio for name, ratio in counted.items() if ratio > 1 + NEAR}
    whole = {name: ratio for name, ratio in more.items() if ratio <= MOST and abs(ratio - round(ratio)) <= NEAR}
    other = {name: ratio for name, ratio in more.items() if name not in whole}
    levels: tuple[tuple[Severity, dict[str, float], str], ...] = (
        ("warning", whole, "micro-batches, checkpointing or other forwards in training mode move the statistics too"),
        ("note", other, "forwards in training mode without a step move the statistics; or an earlier training did"),
    )
    for severity, found, reason in levels:
        if found:
            name, ratio = next(iter(found.items()))
            evidence = f"{name}: {_count(e.layers[name])} batches for {steps} steps of the optimizer, {ratio:.3g} each"
            remedy = (
                "with bn.accumulate(model): around the micro-batches of a step, with bn.hold_statistics(model): around "
                "other forwards; then bn.recalibrate(model, batches)"
            )
            yield Finding("counted twice", severity, tuple(found), evidence, reason, remedy)


def _against_each_other(e: Examination, step: Step | None) -> Iterator[Finding]:
    """Compare the counts of the layers, per call in a forward."""
    calls = dict.fromkeys(e.layers, 1) if step is None else step.forward
    counts = {
        n: _count(layer) / max(calls[n], 1) for n, layer in e.layers.items() if _counts(layer) and n not in e.kept
    }
    least = min((count for count in counts.values() if count), default=0)
    found = tuple(n for n, c in counts.items() if least >= LEAST and least < c <= MOST * least and not c % least)
    if found:
        evidence = f"{found[0]}: {_count(e.layers[found[0]])} batches, where other layers count {least:g}"
        reason = "some forwards reach these layers and not the others, or checkpointing repeats them"
        remedy = "with bn.hold_statistics(model): around other forwards; then bn.recalibrate(model, batches)"
        yield Finding("counted twice", "warning", found, evidence, reason, remedy)
