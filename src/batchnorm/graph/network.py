"""The one view of a network that the transforms share: which call feeds which, and what each call is.

A `Network` is a copy of a model and the `torch.fx` graph of its calls, every call carrying the shape it had on the
example inputs; `trace.trace` makes one. Layers (`conv`), functions (`F.conv2d`), methods (`x.relu()`) and exported
operators (`aten.conv2d`) answer to one name, `network.op(node)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..errors import BatchNormError
from .batches import in_eval
from .compare import Call
from .ops import (
    AFFINE_NAMES,
    CROPS,
    IN_PLACE_OPERATORS,
    NONLINEARITIES,
    NOTHING_IN_EVAL,
    RESHAPES,
    function_name,
    layer_name,
    plain_name,
)


class Network:
    """A model as a graph of calls, over a copy of its own.

    Arguments:
        root: the copy that owns parameters, buffers and modules.
        graph: its calls, in the order in which they run.
        inputs: (args, kwargs) of the example as `as_module()` takes them.
        trainable: whether the graph reads `self.training` when it runs (otherwise it is that of the eval network).

    `node.meta["value"]` is what the call gave on the example inputs, with every tensor on the meta device.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: Call, trainable: bool) -> None:
        self.root = root
        self.graph = graph
        self.inputs = inputs
        self.trainable = trainable
        graph._tracer_cls = None  # ours would have to be imported to load a pickle of the result
        _record(self.as_module(), inputs)

    # What a call is

    def layer(self, node: Any) -> nn.Module | None:
        """The module that `node` calls, or None."""
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self.root.get_submodule(str(node.target))
        return None

    def op(self, node: Any) -> str:
        """One name for a layer, function, method or exported operator: lower case, no underscores.

        `nn.LeakyReLU`, `F.leaky_relu`, `x.leaky_relu_()` and `aten.leaky_relu.default` are all "leakyrelu";
        any batch normalization is "batchnorm"; a subclass of a convolution or of Linear has its base's name
        (`is_stock` tells them apart). What is neither torch's nor such a subclass has the name "".
        """
        if not isinstance(node, fx.Node):
            return ""
        if node.op == "call_module":
            return layer_name(self.root.get_submodule(str(node.target)))
        if node.op == "call_method":
            return plain_name(str(node.target))
        return function_name(node.target) if node.op == "call_function" else ""

    def is_stock(self, node: fx.Node) -> bool:
        """Whether the call does what torch defines for `op(node)`: no forward of its own, no hook around it."""
        layer = self.layer(node)
        if layer is None:
            return True
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        return not hooked and type(layer).__module__.startswith("torch.nn.modules")

    def is_batch_norm(self, node: Any) -> bool:
        return self.op(node) == "batchnorm"

    def is_affine(self, node: Any) -> bool:
        """Whether `node` is Linear, Conv1d/2d/3d or a transposed convolution, as a layer or as a function."""
        return self.op(node) in AFFINE_NAMES

    def is_nonlinearity(self, node: Any) -> bool:
        return self.op(node) in NONLINEARITIES

    def mutates(self, node: fx.Node) -> bool:
        """Whether the call writes into its first argument."""
        layer = self.layer(node)
        if layer is not None:
            return bool(getattr(layer, "inplace", False))
        name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
        in_place = name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        return in_place or self.argument(node, None, "inplace", False) is True

    def label(self, node: fx.Node) -> str:
        """A name that a reader finds in the model: the layer's path, else the call's own name."""
        if node.op == "call_module":
            return str(node.target)
        for source in node.all_input_nodes:
            path, _, attribute = str(source.target).rpartition(".")
            if source.op == "get_attr" and path and attribute in ("weight", "running_mean"):
                return path
        return node.name

    def argument(self, node: fx.Node, position: int | None, name: str, default: Any = None) -> Any:
        """An argument of a function or method by position or by name; of a layer, its attribute `name`."""
        layer = self.layer(node)
        if layer is not None:
            return getattr(layer, name, default)
        if position is not None and len(node.args) > position:
            return node.args[position]
        return node.kwargs.get(name, default)

    # What feeds what

    def calls(self, layer: nn.Module) -> int:
        """How often the graph calls `layer`, under whatever name."""
        return sum(self.layer(node) is layer for node in self.graph.nodes)

    def input(self, node: fx.Node) -> fx.Node | None:
        """The node that gives the first argument, or None if that is no node."""
        first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("x"))
        return first if isinstance(first, fx.Node) else None

    def source(self, node: fx.Node, through: frozenset[str] = RESHAPES | CROPS | NOTHING_IN_EVAL) -> fx.Node | None:
        """What feeds `node`, seen `through` calls that only reshape, crop or pass on."""
        source = self.input(node)
        while source is not None and self.op(source) in through:
            source = self.input(source)
        return source

    def shape(self, node: fx.Node) -> torch.Size | None:
        """Shape on the example inputs, or None if the call gives no tensor."""
        value = node.meta.get("value")
        return value.shape if isinstance(value, Tensor) else None

    def constant(self, value: Any) -> Tensor | None:
        """The tensor that `value` (an argument of a call) is whatever the network's input, or None."""
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, fx.Node) or value.op not in ("get_attr", "call_function", "call_method"):
            return None
        if value.op == "get_attr":
            found = operator.attrgetter(str(value.target))(self.root)
            return found.detach() if isinstance(found, Tensor) else None
        if not self.is_constant(value):
            return None
        found: dict[fx.Node, Any] = {}
        for node in self._sources(value):  # each once, though several may read it
            found[node] = self.constant(node) if node.op == "get_attr" else self.run(node, found)
        return found[value] if isinstance(found[value], Tensor) else None

    def is_constant(self, node: fx.Node) -> bool:
        """Whether `node` depends on parameters and buffers alone."""
        return all(
            source.op == "get_attr" or (source.op in ("call_function", "call_method") and source.all_input_nodes)
            for source in self._sources(node)
        )

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """`node` and all that it depends on, each once, in the order of the graph."""
        waiting, found = [node], {node}
        while waiting:
            new = set(waiting.pop().all_input_nodes) - found
            found |= new
            waiting += new
        return sorted(found)

    @torch.no_grad()
    def run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """What the call gives for `values` in place of its inputs; those not given are as on the example inputs."""

        def value(source: fx.Node) -> Any:
            return values[source] if source in values else source.meta["value"]

        args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
        match node.op:
            case "call_function":
                assert callable(node.target)
                return node.target(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
        raise BatchNormError(f"{node.op} nodes cannot be run by themselves; got {node}")

    # Changing it

    def add_layer(self, name: str, layer: nn.Module) -> str:
        """Own `layer` under `name`, or `name_1`, `name_2`, ... where that is taken; returns the name."""
        return self._own(name, lambda owner, last: owner.add_module(last, layer))

    def add_tensor(self, name: str, tensor: Tensor) -> str:
        """Own `tensor` as a buffer (or parameter, if it is one); returns the name, as `add_layer`."""
        if isinstance(tensor, nn.Parameter):
            return self._own(name, lambda owner, last: owner.register_parameter(last, tensor))
        return self._own(name, lambda owner, last: owner.register_buffer(last, tensor))

    def _own(self, name: str, register: Callable[[nn.Module, str], None]) -> str:
        path, _, wanted = name.rpartition(".")
        owner = self.root.get_submodule(path)
        last, copies = wanted, 0
        while hasattr(owner, last):
            copies += 1
            last = f"{wanted}_{copies}"
        register(owner, last)
        self.graph.owning_module = None  # some earlier as_module() does not have it
        return f"{path}.{last}" if path else last

    def remove(self, node: fx.Node, instead: fx.Node) -> None:
        """Let whoever took `node` take `instead`, and drop what then feeds nobody (constants and the like)."""
        node.replace_all_uses_with(instead)
        self.erase(node)

    def erase(self, node: fx.Node) -> None:
        """Erase an unused node, then the constants that fed it and are left without users."""
        unused = [node]
        while unused:
            node = unused.pop()
            sources = node.all_input_nodes
            self.graph.erase_node(node)
            unused += [source for source in sources if not source.users and self.is_constant(source)]

    def as_module(self) -> fx.GraphModule:
        """The network as a module.

        An eval network keeps only what the graph uses. A trainable one keeps all that the model owned, in its order,
        so that `state_dict` and an optimizer's state fit it as before, and the hooks around it.
        """
        name = type(self.root).__name__
        if not self.trainable:
            return fx.GraphModule(self.root, self.graph, class_name=name).eval()
        module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=name)
        for table in _OWNED:
            getattr(module, table).update(getattr(self.root, table))
        module.training = self.root.training
        module.graph = self.graph
        return module


_OWNED = (
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)


class _Recorder(fx.Interpreter):
    """Runs a graph on the example inputs and leaves what each call gave in `node.meta["value"]`."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["value"] = pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), value)
        return value


@torch.no_grad()
def _record(module: fx.GraphModule, inputs: Call) -> None:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, inputs)
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    given = args + tuple(kwargs[name] for name in names[len(args) :] if name in kwargs)
    with in_eval(module):
        _Recorder(module).run(*given)
