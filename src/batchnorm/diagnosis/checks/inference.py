"""Inference that depends on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from ...errors import BatchNormError, first_line
from ...graph.compare import copied, largest_error
from ..examination import Examination
from ..finding import Finding
from ..inputs import inputs_of, numbers_in, run, with_inputs

EXAMPLES = 7  # of the first batch: an axis of another tensor seldom has this size
SAME = 1e-4  # relative: the others' outputs are computed by the same calls on the same values


def batch_statistics(e: Examination) -> Iterator[Finding]:
    """Find layers that normalize by the batch at inference.

    Test: a layer without running statistics, or in training mode while the network is in eval mode. There is no
    threshold. What they do to the outputs is `leak`'s to measure.
    """
    without = tuple(name for name, layer in e.layers.items() if layer.running_mean is None)
    if without:
        evidence = f"{without[0]}: track_running_stats=False, or no running statistics"
        reason = "every output depends on the batch that it is in, at inference too; a batch of one gives beta"
        remedy = "make the layers with track_running_stats=True, then bn.recalibrate(model, batches)"
        yield Finding("batch statistics", "error", without, evidence, reason, remedy)
    training = tuple(
        n for n, layer in e.layers.items() if layer.training and not e.model.training and layer.running_mean is not None
    )
    if training:
        evidence = f"{training[0]}: in training mode, while the network is in eval mode"
        reason = "it normalizes by the batch, and its running statistics move at inference"
        remedy = "model.eval() after everything that sets a mode; see train() methods of your own"
        yield Finding("batch statistics", "error", training, evidence, reason, remedy)


def leak(e: Examination) -> Iterator[Finding]:
    """Find examples that change the outputs of others at inference.

    Test: in eval mode, or in the modes given if the network is in eval mode, change the first example of a batch and
    compare the outputs of the others, with the same random numbers. Threshold: 1e-4 of the largest output; the same
    calls on the same values round alike. The first module whose output changes is named.

    Sequences of the shape (length, N, ...) have no examples on axis 0. So a BN layer must get as many examples as axis
    0 has, or else the outputs must follow when the examples change places.
    """
    found = _try(e)
    if found is None or not found[0] > SAME:
        return
    error, name = found
    where = (name,) if name else ()
    evidence = (
        f"another first example changes the outputs of the others by {error:.2g}, first at {name or 'the output'}"
    )
    reason = "what a network says of an example must not depend on its neighbors in the batch"
    module = e.model.get_submodule(name) if name else None
    remedy = "running statistics at inference: model.eval(), track_running_stats=True"
    if not isinstance(module, _BatchNorm):
        remedy = "see the forward of that module: F.batch_norm(..., training=self.training), no mean over axis 0"
    yield Finding("leak", "error", where, evidence, reason, remedy)


def _try(e: Examination) -> tuple[float, str] | None:
    """Return by how much the other outputs change, and the first module where they do."""
    if not e.training.held:
        return None
    try:
        return _change(e, e.training.held[0])
    except Exception as error:
        e.unexamined.append(f"Leaks between examples were not examined: {first_line(error)}")
        return None


def _change(e: Examination, batch: Any) -> tuple[float, str]:
    model = copied(e.model)
    for layer in model.modules():
        if e.model.training:
            layer.training = False
    examples, one, two = _pair(inputs_of(batch))
    seen: list[tuple[str, list[Tensor]]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) or not any(layer.children()):
            layer.register_forward_hook(partial(_keep, seen, name, examples))
    first = _others(_run(model, with_inputs(batch, one)), examples)
    kept, seen[:] = list(seen), []
    second = _others(_run(model, with_inputs(batch, two)), examples)
    changed = [n for (n, a), (m, b) in zip(kept, seen, strict=False) if n == m and largest_error(b, a) > SAME]
    if not any(name in e.layers and found for name, found in kept) and not _follows(model, batch, one, examples):
        raise BatchNormError("axis 0 of the input does not hold examples")
    return largest_error(second, first), (changed or [""])[0]


@torch.no_grad()
def _run(model: nn.Module, batch: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run(model, batch)


def _follows(model: nn.Module, batch: Any, inputs: Any, examples: int) -> bool:
    """Return True if the outputs change places as the examples do."""
    turned = pytree.tree_map_only(Tensor, lambda x: x.flip(0) if _holds(x, examples) else x, inputs)
    before, after = (_of(_run(model, with_inputs(batch, each)), examples) for each in (inputs, turned))
    return not largest_error([x.flip(0) for x in after], before) > SAME


def _pair(inputs: Any) -> tuple[int, Any, Any]:
    """Return the number of examples, the inputs cut to `EXAMPLES`, and the same with another first example."""
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    total = len(max(tensors, key=Tensor.numel, default=torch.empty(0)))
    if isinstance(inputs, list | tuple) or total < 2:
        raise BatchNormError("it takes a batch of tensors with two examples or more")
    examples = min(total, EXAMPLES)
    one = pytree.tree_map_only(Tensor, lambda x: x[:examples] if _holds(x, total) else x, inputs)
    two = pytree.tree_map_only(Tensor, lambda x: _with_another_first(x) if _holds(x, examples) else x, one)
    return examples, one, two


def _holds(x: Tensor, examples: int) -> bool:
    return x.dim() > 0 and len(x) == examples


def _with_another_first(x: Tensor) -> Tensor:
    other = x[:1] * 1.5 + 1 if x.is_floating_point() else x[1:2]
    return torch.cat([other, x[1:]])


def _others(output: Any, examples: int) -> list[Tensor]:
    return [x[1:].clone() for x in _of(output, examples)]


def _of(output: Any, examples: int) -> list[Tensor]:
    return [x for x in numbers_in(output) if _holds(x, examples)]


def _keep(seen: list[tuple[str, Any]], name: str, examples: int, _layer: nn.Module, _args: Any, output: Any) -> None:
    seen.append((name, _others(output, examples)))
