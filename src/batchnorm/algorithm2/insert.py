"""Insert batch normalization before nonlinearities (Algorithm 2, lines 1-5)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import fx, nn

from ..errors import BatchNormError, first_few
from ..escape import printable
from ..graph.batches import in_eval
from ..graph.compare import largest_error, run
from ..graph.network import Network
from ..graph.ops import DROPOUTS, LOCAL_RESPONSE_NORMS
from ..graph.symbolic import TrainingFlag
from ..graph.trace import trace
from ..layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, FusedBatchNorm
from .inserting.biases import Bias, disown, drop, judge
from .inserting.identity import Start, start_at_identity
from .inserting.places import Place, Skipped, Where, find, narrow
from .results import count, format_table

InsertOutcome = Literal["inserted", "removed", "skipped"]
Removable = Literal["dropout", "lrn"]

_REMOVABLE: dict[str, frozenset[str]] = {"dropout": DROPOUTS, "lrn": LOCAL_RESPONSE_NORMS}
_KINDS = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}  # by the rank of the input


@dataclass(frozen=True)
class InsertRow:
    """Tell what was done at one place of the network.

    Arguments:
        name: the name of the affine layer, or of the layer or call that was removed or skipped.
        outcome: "inserted", "removed" or "skipped".
        reason: which nonlinearity it feeds and why its bias is kept, or why the place is skipped.
        layer: the name of the new BN layer, or "".
        bias: what became of the affine layer's bias: "dropped", "kept", or "none" if it had none.
    """

    name: str
    outcome: InsertOutcome
    reason: str = ""
    layer: str = ""
    bias: str = ""


@dataclass(frozen=True)
class InsertResult:
    """The network with batch normalization, and what was done at each place. Prints as a table.

    Arguments:
        model: the network.
        rows: what was removed, then one row per place, in the order of the calls.
        max_error: the largest difference from the given network on the example inputs in eval mode, relative to the
            largest output. None if `insert` got no batches.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Softplus())
        >>> print(bn.insert(model, torch.randn(2, 8)))
        name  outcome   layer  bias     reason
        ----  --------  -----  -------  -------------------------------------------
        0     inserted  0_bn   dropped  before 1
        2     skipped                   not fed by an affine layer, but by ReLU (1)
        1 inserted, 0 removed, 1 skipped
    """

    model: fx.GraphModule
    rows: tuple[InsertRow, ...]
    max_error: float | None = None

    @property
    def inserted(self) -> int:
        """Return how many BN layers were inserted."""
        return count(self.rows, "inserted")

    @property
    def removed(self) -> int:
        """Return how many calls of Dropout or local response normalization were removed."""
        return count(self.rows, "removed")

    @property
    def skipped(self) -> int:
        """Return how many places have no BN."""
        return count(self.rows, "skipped")

    def __str__(self) -> str:
        cells = [(row.name, row.outcome, row.layer, row.bias, row.reason) for row in self.rows]
        table = format_table(("name", "outcome", "layer", "bias", "reason"), cells, empty="no place for one found")
        skipped = [f"{row.name}: {row.reason}" for row in self.rows if row.outcome == "skipped"]
        why = "" if self.inserted else f": {printable(first_few(skipped, 3)) or 'the network has no nonlinearity'}"
        error = "" if self.max_error is None else f"\nlargest relative error: {self.max_error:.1e}"
        return f"{table}\n{self.inserted} inserted, {self.removed} removed, {self.skipped} skipped{why}{error}"


def insert(
    model: nn.Module,
    example_inputs: Any,
    *,
    where: Where | None = None,
    remove: Removable | Collection[Removable] = (),
    batches: Iterable[Any] | None = None,
) -> InsertResult:
    """Return a new model with BN before the nonlinearities that affine layers feed (Alg. 2, lines 1-5).

    z = g(Wu + b) becomes z = g(BN(Wu)) (Sec. 3.2).

    - BN follows every Linear, convolution and transposed convolution that feeds a nonlinearity, directly or through
      reshaping, cropping and Dropout. All of them may be layers, functions or methods.
    - All users of the affine layer's output take the output of BN instead.
    - BN normalizes each feature map, or each feature of a Linear. A layer that is called twice gets two BN layers.
    - A bias is dropped if BN cancels it wherever it is used.

    The new model trains. It has the modes and the parameter names of `model`. An old checkpoint lacks only the keys of
    the BN layers, and still has the dropped biases.

    Arguments:
        model: any network that `torch.fx` can trace. It stays as it is.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones. An argument that is itself a
            list stands in a tuple: ([a, b],).
        where: the places to use: one name or several, of layers or of modules that hold layers. Or a function of
            (name, layer) that returns True for them. For a call of a function the layer is None.
        remove: what to remove: "dropout", "lrn" (local response normalization), or both (Sec. 4.2.1).
        batches: batches to measure the inputs of the new layers on: tensors, (input, ...) tuples, or dicts of
            arguments. With them the new model computes in eval mode what `model` does, except for what `remove` took
            out: gamma and beta start at sqrt(var + eps) and mean (Sec. 3.1). Without them gamma is 1 and beta is 0.

    Returns:
        The new model, and a row per place.

    Raises:
        BatchNormError: the network cannot be traced, `where` has a name without a place, or `remove` is unknown. Or
            the network does not run on the batches, or a new layer gets too few or non-finite values from them.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Sigmoid())
        >>> result = bn.insert(model, torch.randn(2, 8))
        >>> result.rows
        (InsertRow(name='0', outcome='inserted', reason='before 1', layer='0_bn', bias='dropped'),)
        >>> same = bn.insert(model, torch.randn(2, 8), batches=[torch.randn(64, 8) for _ in range(3)])
        >>> same.max_error < 1e-5
        True
    """
    network = trace(model, example_inputs, trainable=True)
    removed = _remove(network, {remove} if isinstance(remove, str) else set(remove))
    places = narrow(find(network), where)
    chosen = [place for place in places if isinstance(place, Place)]
    judged = judge(network, chosen)
    inserted = {place: _insert_after(network, place, bias) for place, bias in zip(chosen, judged, strict=True)}
    if batches is not None:
        starts = [Start(new.layer, place.name, new.bias.dropped) for place, new in inserted.items()]
        start_at_identity(network.as_module(), starts, batches)
    for place, new in inserted.items():
        if new.bias.outcome == "dropped":
            drop(network, place)
    result = network.finished()
    rows = [_skipped(place) if isinstance(place, Skipped) else _inserted(place, inserted[place]) for place in places]
    error = None if batches is None else _error(result, model, network)
    return InsertResult(result, (*removed, *rows), error)


class _Inserted(NamedTuple):
    """A new BN layer, its name, and what becomes of the bias before it."""

    layer: FusedBatchNorm
    name: str
    bias: Bias


def _inserted(place: Place, new: _Inserted) -> InsertRow:
    reason = f"before {place.nonlinearity}" + (f"; {new.bias.reason}" if new.bias.reason else "")
    return InsertRow(place.name, "inserted", reason, new.name, new.bias.outcome)


def _skipped(place: Skipped) -> InsertRow:
    return InsertRow(place.name, "skipped", place.reason)


def _remove(network: Network, kinds: set[str]) -> list[InsertRow]:
    unknown = kinds - set(get_args(Removable))
    if unknown:
        raise BatchNormError(f"remove takes 'dropout' and 'lrn'; got {', '.join(map(repr, sorted(unknown)))}")
    ops = frozenset().union(*(_REMOVABLE[kind] for kind in kinds))
    rows = []
    for node in list(network.graph.nodes):
        source = network.input_or_none(node)
        if network.op(node) in ops and source is not None:
            rows.append(InsertRow(network.label(node), "removed"))
            network.remove(node, source)
            if node.op == "call_module":
                disown(network, str(node.target))
    for node in reversed(list(network.graph.nodes)):
        if not node.users and isinstance(network.layer(node), TrainingFlag):
            network.erase(node)
    return rows


def _insert_after(network: Network, place: Place, bias: Bias) -> _Inserted:
    """Add a BN layer, and replace all uses of the affine call's output by the output of BN."""
    node, shape, linear = place.node, network.shape(place.node), network.is_linear(place.node)
    kind = BatchNorm1d if linear else _KINDS[len(shape)]
    layer = kind(shape[-1 if linear else 1], device=place.weight.device, dtype=place.weight.dtype)
    layer.train(network.root.training)
    name = network.add_layer(f"{place.name}_bn", layer)
    users = set(node.users)
    if linear and len(shape) > 2:  # features are on the last axis; all other axes are the batch
        rows = network.call_after(node, "call_method", "flatten", (node, 0, -2))
        normalized = network.call_after(rows, "call_module", name, (rows,))
        replacement = network.call_after(normalized, "call_method", "view_as", (normalized, node))
    else:
        replacement = network.call_after(node, "call_module", name, (node,))
    node.replace_all_uses_with(replacement, delete_user_cb=lambda user: user in users)
    return _Inserted(layer, name, bias)


def _error(result: nn.Module, model: nn.Module, network: Network) -> float:
    """Return the largest relative difference of the two networks in eval mode on the example inputs."""
    with in_eval(model), in_eval(result):
        return largest_error(run(result, network.inputs), run(model, network.call))
