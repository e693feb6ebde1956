"""Inference that depends on the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import BatchNormError, first_line
from ...graph.compare import copied, largest_error
from ...torch_private import AnyBatchNorm, pytree
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

    Examples are the items of a list, as detection networks take it, or the rows of the inputs. Sequences of the shape
    (length, N, ...) have no examples on axis 0. So a BN layer must get as many examples as there are, or else the
    outputs must follow when the examples change places.
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
    if not isinstance(module, AnyBatchNorm):
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
    for given in _readings(inputs_of(batch)):
        found, layers = _compare(model, batch, given)
        if layers & e.layers.keys() or _follows(model, batch, given):
            return found
    raise BatchNormError("neither axis 0 nor a list of the input holds two examples or more")


def _compare(model: nn.Module, batch: Any, given: Inputs) -> tuple[tuple[float, str], set[str]]:
    """Return the change of the other outputs and the first module where they change, and all that get the examples."""
    seen: list[tuple[str, list[Tensor]]] = []
    hooks = [
        layer.register_forward_hook(partial(_keep, seen, name, given))
        for name, layer in model.named_modules()
        if isinstance(layer, AnyBatchNorm) or not any(layer.children())
    ]
    first = given.others(_run(model, with_inputs(batch, given.inputs)))
    kept, seen[:] = list(seen), []
    second = given.others(_run(model, with_inputs(batch, given.with_another_first())))
    for hook in hooks:
        hook.remove()
    changed = [n for (n, a), (m, b) in zip(kept, seen, strict=False) if n == m and largest_error(b, a) > SAME]
    return (largest_error(second, first), (changed or [""])[0]), {name for name, found in kept if found}


@torch.no_grad()
def _run(model: nn.Module, batch: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run(model, batch)


def _follows(model: nn.Module, batch: Any, given: Inputs) -> bool:
    """Return True if the outputs change places as the examples do."""
    before, after = (_run(model, with_inputs(batch, each)) for each in (given.inputs, given.turned()))
    wanted = given.numbers(before, range(given.size))
    return bool(wanted) and not largest_error(given.numbers(after, range(given.size)[::-1]), wanted) > SAME


class Inputs(NamedTuple):
    """Hold the inputs of a batch, cut to `size` examples: the items of a list, or the rows of tensors."""

    inputs: Any
    size: int
    listed: bool

    def with_another_first(self) -> Any:
        """Return the inputs with another first example."""
        if self.listed:
            return [_another(*self.inputs[:2]), *self.inputs[1:]]
        return self._map(lambda x: torch.cat([_another(x[:1], x[1:2]), x[1:]]))

    def turned(self) -> Any:
        """Return the inputs with the examples in the other order."""
        return self.inputs[::-1] if self.listed else self._map(lambda x: x.flip(0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Any:
        return pytree.tree_map_only(Tensor, lambda x: change(x) if _holds(x, self.size) else x, self.inputs)

    def others(self, output: Any) -> list[Tensor]:
        """Return the numbers of all examples but the first in an output."""
        return self.numbers(output, range(1, self.size))

    def numbers(self, output: Any, places: range) -> list[Tensor]:
        """Return the numbers of the examples at some places in an output. A list in mostly gives a list out."""
        if self.listed and isinstance(output, list) and len(output) == self.size:
            return numbers_in([output[place] for place in places])
        return [x[list(places)] for x in numbers_in(output) if _holds(x, self.size)]


def _readings(inputs: Any) -> Iterator[Inputs]:
    """Yield the ways to find two examples or more: the items of a list, the rows of the largest tensor."""
    if isinstance(inputs, list | tuple) and len(inputs) > 1:
        items = list(inputs)[:EXAMPLES]
        yield Inputs(items, len(items), listed=True)
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    total = len(max(tensors, key=Tensor.numel, default=torch.empty(0)))
    if total > 1:
        size = min(total, EXAMPLES)
        rows = pytree.tree_map_only(Tensor, lambda x: x[:size] if _holds(x, total) else x, inputs)
        yield Inputs(rows, size, listed=False)


def _holds(x: Tensor, size: int) -> bool:
    return x.dim() > 0 and len(x) == size


def _another(x: Tensor, neighbor: Tensor) -> Tensor:
    return x * 1.5 + 1 if x.is_floating_point() else neighbor


def _keep(
    seen: list[tuple[str, list[Tensor]]], name: str, given: Inputs, _layer: nn.Module, _args: Any, output: Any
) -> None:
    seen.append((name, [x.clone() for x in given.others(output)]))
