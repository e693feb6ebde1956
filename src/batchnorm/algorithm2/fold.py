"""Fold batch normalization into its neighbors for inference (Algorithm 2, line 11, and beyond)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from ..errors import BatchNormError
from ..graph.compare import Call, copied, doubled, largest_error, run
from ..graph.trace import trace
from ..torch_private import pytree
from .folding.placement import Composer
from .results import count, format_table

FoldOutcome = Literal["folded", "affine", "kept"]


@dataclass(frozen=True)
class FoldRow:
    """Tell what became of one call of a batch normalization.

    Arguments:
        name: the name of the layer, or of the call of `F.batch_norm`.
        outcome: "folded" into neighbors; "affine" if it is one multiply-add now; "kept" if it is as it was.
        reason: why it is not folded, or "".
        into: the names of the neighbors that took its map in.
    """

    name: str
    outcome: FoldOutcome
    reason: str = ""
    into: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldResult:
    """The folded network, what became of each batch normalization, and the measured error. Prints as a table.

    Arguments:
        model: the folded network, in eval mode.
        rows: one row per call of a batch normalization, in the order of the calls.
        max_error: the largest of `errors`.
        errors: the largest difference from the given network on the example inputs, relative to the largest output,
            by precision. "float64" runs both networks in double; it is missing if they do not run in double.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), bn.BatchNorm1d(4), torch.nn.ReLU(), bn.BatchNorm1d(4))
        >>> result = bn.fold(model, torch.randn(2, 8))
        >>> result.folded, result.affine, result.kept
        (1, 1, 0)
        >>> result.rows[1]
        FoldRow(name='3', outcome='affine', reason="it follows ReLU (2); it precedes the network's output", into=())
    """

    model: fx.GraphModule
    rows: tuple[FoldRow, ...]
    max_error: float
    errors: dict[str, float]

    @property
    def folded(self) -> int:
        """Return how many batch normalizations were folded into neighbors."""
        return count(self.rows, "folded")

    @property
    def affine(self) -> int:
        """Return how many batch normalizations are one multiply-add now."""
        return count(self.rows, "affine")

    @property
    def kept(self) -> int:
        """Return how many batch normalizations are as they were."""
        return count(self.rows, "kept")

    def __str__(self) -> str:
        cells = [(row.name, row.outcome, ", ".join(row.into), row.reason) for row in self.rows]
        table = format_table(("name", "outcome", "into", "reason"), cells)
        errors = ", ".join(f"{error:.1e} in {precision}" for precision, error in self.errors.items())
        return f"{table}\n{self.folded} folded, {self.affine} affine, {self.kept} kept; relative error {errors}"


def fold(model: nn.Module, example_inputs: Any, *, tolerance: float | None = None) -> FoldResult:
    """Return a new model for inference, with batch normalization folded into its neighbors (Alg. 2, lines 8-12).

    In eval mode a batch normalization is one affine map per channel (line 11):

        y = scale * x + shift,   scale = gamma / sqrt(Var[x] + eps),   shift = beta - scale * E[x]

    The map goes into convolutions and linear layers before it, after it or parallel to it, or into another batch
    normalization. On its way it passes calls such as reshape, concatenation, average pooling and Dropout. It goes only
    where the function stays the same; docs/fold.md has the rules. A map that can go nowhere becomes one multiply-add.
    No running statistics survive, except in rows that are "kept".

    The new model is a plain `torch.fx.GraphModule`. It needs no import of this package, takes any batch size, and
    exports with `torch.export` and to ONNX.

    Arguments:
        model: any network of torch modules and functions. It is read in eval mode, and stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones. An argument that is itself a
            list stands in a tuple: ([a, b],). The error is measured on them.
        tolerance: the largest relative error allowed, in the network's own precision and in float64. The default is
            1e-4, or 16 times the rounding of a narrower network (0.016 in float16, 0.125 in bfloat16).

    Returns:
        The new model, a row per batch normalization, and the measured error.

    Raises:
        BatchNormError: `tolerance` is no number of 0 or more, the network cannot be traced, or the error is above
            `tolerance`.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), bn.BatchNorm2d(8), torch.nn.ReLU())
        >>> result = bn.fold(model, torch.randn(1, 3, 32, 32))
        >>> result.rows
        (FoldRow(name='1', outcome='folded', reason='', into=('0',)),)
        >>> result.model(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 8, 30, 30])
    """
    _check_tolerance(tolerance)
    network = trace(model, example_inputs)
    composer = Composer(network)
    composer.run()
    folded = network.finished()
    precision = _precision(model)
    errors = _measure(model, folded, precision, network.call, network.inputs)
    worst = max(errors.values())
    if tolerance is None:
        tolerance = max(1e-4, 16 * torch.finfo(precision).eps)
    if not worst <= tolerance:
        raise BatchNormError(
            f"folding {type(model).__name__} changed its output by {worst:.1e}, more than tolerance={tolerance:.1e}. "
            "The network may multiply small differences (allow more), or do what its graph does not show."
        )
    return FoldResult(folded, tuple(_row(composer, node) for node in composer.norms), worst, errors)


def _check_tolerance(tolerance: object) -> None:
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not float(tolerance) >= 0:  # nor is NaN
        raise BatchNormError(f"tolerance must be a number of 0 or more, or None for the default; got {tolerance!r}")


def _row(composer: Composer, node: fx.Node) -> FoldRow:
    name, reason = composer.norms[node], composer.reasons.get(node, "")
    if node in composer.into:
        return FoldRow(name, "folded", into=composer.into[node])
    return FoldRow(name, "affine" if node in composer.maps else "kept", reason)


def _measure(model: nn.Module, folded: nn.Module, precision: torch.dtype, call: Call, inputs: Call) -> dict[str, float]:
    """Return the error of `folded` by precision, on two batch sizes.

    Arguments:
        model: the given network, called with `call`.
        folded: the folded network, called with `inputs`.
        precision: the precision of the given network.
        call: arguments of `model`.
        inputs: arguments of `folded`.
    """
    original = copied(model).eval()
    errors = {str(precision).removeprefix("torch."): _error(original, folded, call, inputs)}
    with suppress(RuntimeError):  # the forward may fix the type of a tensor
        errors["float64"] = _error(original.double(), copied(folded).double(), _wide(call), _wide(inputs))
    return errors


def _error(original: nn.Module, folded: nn.Module, call: Call, inputs: Call) -> float:
    error = largest_error(run(folded, inputs), run(original, call))
    try:
        wanted = run(original, doubled(call))
    except Exception:
        return error  # the given network takes no other batch size
    try:
        return max(error, largest_error(run(folded, doubled(inputs)), wanted))
    except RuntimeError:
        return float("inf")


def _precision(model: nn.Module) -> torch.dtype:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    return min(dtypes, key=lambda dtype: dtype.itemsize)


def _wide(call: Call) -> Call:
    return pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, call)
