"""Algorithm 2, line 11, and beyond: batch normalization composed into its neighbours or left as one affine map."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..errors import BatchNormError
from ..graph.compare import Call, copied, doubled, largest_error, run
from ..graph.trace import example_args, trace
from .folding.placement import Composer, FoldRow
from .results import format_table


@dataclass(frozen=True)
class FoldResult:
    """A network without batch normalization, what became of each, and the error that was measured.

    Arguments:
        model: the folded network, in eval mode.
        rows: one per call of a batch normalization, in the order in which they run.
        max_error: the larger of the errors below.
        errors: by precision, the largest difference from the given network on the example inputs, relative to the
            largest output. "float64" runs both networks in double; it is missing if they do not run in double.
    """

    model: fx.GraphModule
    rows: tuple[FoldRow, ...]
    max_error: float
    errors: dict[str, float]

    @property
    def folded(self) -> int:
        """How many batch normalizations are gone."""
        return sum(row.outcome == "folded" for row in self.rows)

    def __str__(self) -> str:
        cells = [(row.name, row.outcome, ", ".join(row.into) or row.reason) for row in self.rows]
        table = format_table(("batch normalization", "outcome", "into, or why not"), cells)
        errors = ", ".join(f"{error:.1e} in {precision}" for precision, error in self.errors.items())
        return f"{table}\n{self.folded} of {len(self.rows)} folded; relative error {errors}"


def fold(model: nn.Module, example_inputs: Any, *, tolerance: float | None = None) -> FoldResult:
    """The inference network of Alg. 2, lines 8-12, with batch normalization composed into its neighbours.

    y = scale * x + shift, scale = gamma / sqrt(Var[x] + eps), shift = beta - scale * E[x] (line 11).

    Such a map goes into the convolutions and linear layers that feed it, or into those that it feeds, or into another
    batch normalization, through whatever passes it on: reshape, permute, crop, concatenation, average pooling,
    Dropout, constants added or multiplied. It goes only where the result is the same function: into no layer whose
    output is read elsewhere, and forward into no zero-padded convolution, whose border would see the wrong constant
    (torch.fx's `fuse` is wrong where one convolution is called twice: here each call gets its own weights).
    What cannot go anywhere is left as that one affine map; no running statistics survive.

    The model given is not changed and is treated as in eval mode. The folded one is a plain `torch.fx.GraphModule`,
    needs no import of this package, takes any batch size, and exports with `torch.export` and to ONNX.

    Arguments:
        model: any network of torch modules and functions.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones; the error is measured on them.
        tolerance: largest relative error allowed, in the network's own precision and in float64; by default 1e-4, or
            16 times the rounding of a narrower network (0.016 in float16, 0.125 in bfloat16).

    Returns:
        The folded model, a row per batch normalization, and the measured error; prints as a table.

    Raises:
        BatchNormError: a network that cannot be traced, or an error above `tolerance`.
    """
    network = trace(model, example_inputs)
    rows = Composer(network).run()
    folded = network.as_module()
    for node in folded.graph.nodes:
        node.meta.clear()
    precision = _precision(model)
    errors = _measure(model, folded, precision, example_args(model, example_inputs), network.inputs)
    worst = max(errors.values())
    if tolerance is None:
        tolerance = max(1e-4, 16 * torch.finfo(precision).eps)
    if not worst <= tolerance:
        raise BatchNormError(
            f"folding {type(model).__name__} changed its output by {worst:.1e}, more than tolerance={tolerance:.1e}. "
            "The network may multiply small differences (allow more), or do what its graph does not show."
        )
    return FoldResult(folded, tuple(rows), worst, errors)


def _measure(model: nn.Module, folded: nn.Module, precision: torch.dtype, given: Call, taken: Call) -> dict[str, float]:
    """The error of `folded` (called with `taken`) against `model` (with `given`) by precision, on two batch sizes."""
    original = copied(model).eval()
    errors = {str(precision).removeprefix("torch."): _error(original, folded, given, taken)}
    with suppress(RuntimeError):  # a network that fixes the type of a tensor in its forward
        errors["float64"] = _error(original.double(), copied(folded).double(), _wide(given), _wide(taken))
    return errors


def _error(original: nn.Module, folded: nn.Module, given: Call, taken: Call) -> float:
    error = largest_error(run(folded, taken), run(original, given))
    try:
        wanted = run(original, doubled(given))
    except Exception:
        return error  # the network itself takes no other batch size
    try:
        return max(error, largest_error(run(folded, doubled(taken)), wanted))
    except RuntimeError:
        return float("inf")


def _precision(model: nn.Module) -> torch.dtype:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    return min(dtypes, key=lambda dtype: dtype.itemsize)


def _wide(call: Call) -> Call:
    return pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, call)
