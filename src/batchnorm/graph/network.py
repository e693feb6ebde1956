"""The one view of a network that the transforms share: what each call is, and which call feeds which.

`trace.trace` makes a `Network`. Layers (`conv`), functions (`F.conv2d`), methods (`x.relu()`) and exported operators
(`aten.conv2d`) have one name for one operation, `network.op(node)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .compare import Call
from .interpreter import Interpreter, record
from .ops import (
    AFFINE,
    CROPS,
    IDENTITIES_IN_EVAL,
    IN_PLACE_OPERATORS,
    NONLINEARITIES,
    RESHAPES,
    SHAPED_LIKE,
    function_name,
    layer_name,
    plain_name,
)


class Network:
    """A copy of a model as a graph of calls.

    `node.meta["value"]` is the output of a call on the example inputs, with every tensor on the meta device.

    Arguments:
        root: the copy. It owns the parameters, buffers and modules.
        graph: the calls in the order in which they run.
        call: the example inputs as the model takes them.
        inputs: the part of `call` that the graph takes: the arguments that hold tensors.
        trainable: True if the graph reads `self.training` when it runs. False for the graph of the eval mode.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, *, call: Call, inputs: Call, trainable: bool) -> None:
        self.root = root
        self.graph = graph
        self.call = call
        self.inputs = inputs
        self.trainable = trainable
        graph._tracer_cls = None  # pickle would store our class, and loading the result would import this package
        record(root, graph, inputs)
        self._interpreter = Interpreter(root, graph)
        self._callers: dict[nn.Module, set[fx.Node]] = {}
        for node in graph.find_nodes(op="call_module"):
            self._add_caller(node)

    # What a call is

    def layer(self, node: Any) -> nn.Module | None:
        """Return the module that `node` calls, or None if it calls a function or method."""
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self.root.get_submodule(str(node.target))
        return None

    def op(self, node: Any) -> str:
        """Return the name of an operation, the same for a layer, function, method or exported operator.

        `nn.LeakyReLU`, `F.leaky_relu`, `x.leaky_relu_()` and `aten.leaky_relu.default` are all "leakyrelu".
        Every batch normalization is "batchnorm". A subclass of a convolution or of Linear has the name of its base;
        `is_stock` tells it apart. Every other operation that torch does not define has the name "".
        """
        if not isinstance(node, fx.Node):
            return ""
        if node.op == "call_module":
            return layer_name(self.root.get_submodule(str(node.target)))
        if node.op == "call_method":
            return plain_name(str(node.target))
        return function_name(node.target) if node.op == "call_function" else ""

    def is_stock(self, node: fx.Node) -> bool:
        """Return True if the call does what torch defines: it has neither a forward of its own nor hooks."""
        layer = self.layer(node)
        if layer is None:
            return True
        hooked = layer._forward_hooks or layer._forward_pre_hooks
        return not hooked and type(layer).__module__.startswith("torch.nn.modules")

    def is_batch_norm(self, node: Any) -> bool:
        """Return True for a batch normalization, as a layer or as a function."""
        return self.op(node) == "batchnorm"

    def is_affine(self, node: Any) -> bool:
        """Return True for Linear, Conv1d/2d/3d and transposed convolutions, as a layer or as a function."""
        return self.op(node) in AFFINE

    def is_linear(self, node: Any) -> bool:
        """Return True for a Linear, as a layer or as a function. Its features are on the last axis, not on axis 1."""
        return self.op(node) == "linear"

    def is_transposed(self, node: Any) -> bool:
        """Return True for a transposed convolution, as a layer or as a function."""
        return self.is_affine(node) and "transpose" in self.op(node)

    def is_nonlinearity(self, node: Any) -> bool:
        """Return True for a nonlinearity, as a layer, function or method."""
        return self.op(node) in NONLINEARITIES

    def mutates(self, node: fx.Node) -> bool:
        """Return True if the call writes into its first argument."""
        layer = self.layer(node)
        if layer is not None:
            return bool(getattr(layer, "inplace", False))
        name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
        in_place = name in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        return in_place or self.argument(node, None, "inplace", False) is True

    def label(self, node: fx.Node) -> str:
        """Return the name of a call as the model has it: the path of the layer, or else the name of the node."""
        if node.op == "call_module":
            return str(node.target)
        for source in node.all_input_nodes:
            path, _, attribute = str(source.target).rpartition(".")
            if source.op == "get_attr" and path and attribute in ("weight", "running_mean"):
                return path
        return node.name

    def described(self, node: fx.Node | None) -> str:
        """Return what a node is, for a message. None is a constant."""
        if node is None:
            return "a constant"
        match node.op:
            case "placeholder":
                return f"the network's input {node.name}"
            case "output":
                return "the network's output"
            case "call_module":
                return f"{type(self.layer(node)).__name__} ({node.target})"
        return self.op(node) or node.name

    def argument(self, node: fx.Node, position: int | None, name: str, default: Any = None) -> Any:
        """Return an argument of a function or method, by position or name. For a layer return its attribute `name`."""
        layer = self.layer(node)
        if layer is not None:
            return getattr(layer, name, default)
        if position is not None and len(node.args) > position:
            return node.args[position]
        return node.kwargs.get(name, default)

    # What a call gives

    def gives_tensor(self, node: fx.Node) -> bool:
        """Return True if the output is one tensor."""
        return isinstance(node.meta.get("value"), Tensor)

    def shape(self, node: fx.Node) -> torch.Size:
        """Return the shape of the output on the example inputs.

        Raises:
            TypeError: the output is no tensor. Ask `gives_tensor` first.
        """
        value = node.meta.get("value")
        if not isinstance(value, Tensor):
            raise TypeError(f"{node} gives {type(value).__name__}, which has no shape")
        return value.shape

    def same_shape(self, *nodes: fx.Node) -> bool:
        """Return True if all outputs are tensors of one shape."""
        return all(map(self.gives_tensor, nodes)) and len({self.shape(node) for node in nodes}) == 1

    def constant(self, value: Any) -> Tensor | None:
        """Return the tensor that an argument is for every input of the network, or None if there is no such tensor."""
        if isinstance(value, Tensor):
            return value
        if not isinstance(value, fx.Node) or not self.is_constant(value):
            return None
        found = self._interpreter.evaluate(value, {})
        return found.detach() if isinstance(found, Tensor) else None

    def is_constant(self, node: fx.Node) -> bool:
        """Return True if `node` depends on parameters and buffers alone."""
        waiting, seen = [node], {node}
        while waiting:  # stops at the first call that is none: most calls have an input of the network close by
            found = waiting.pop()
            if found.op == "get_attr":
                continue
            if found.op not in ("call_function", "call_method") or not found.all_input_nodes:
                return False
            new = set(found.all_input_nodes) - seen
            seen |= new
            waiting += new
        return True

    def depends_on_input(self, node: fx.Node) -> bool:
        """Return True if an input of the network is behind `node`.

        What does not need be no constant to `is_constant`: a layer that is called with parameters may be random.
        """
        waiting, seen = [node], {node}
        while waiting:
            found = waiting.pop()
            if found.op == "placeholder":
                return True
            new = set(found.all_input_nodes) - seen
            seen |= new
            waiting += new
        return False

    def run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Run one call.

        Arguments:
            node: the call.
            values: the values of its inputs. An input without one has its shape, but no storage (the meta device).
        """
        inputs = {source: values.get(source, source.meta["value"]) for source in node.all_input_nodes}
        return self._interpreter.evaluate(node, inputs)

    # What feeds what

    def calls(self, layer: nn.Module) -> int:
        """Return how often the graph calls `layer`, under any name."""
        return len(self._callers.get(layer, ()))

    def input_or_none(self, node: fx.Node, position: int = 0) -> fx.Node | None:
        """Return the node that gives an argument, by default the first, or None if that is no node."""
        if position < len(node.args):
            given = node.args[position]
        else:
            given = None if position else node.kwargs.get("input", node.kwargs.get("x"))
        return given if isinstance(given, fx.Node) else None

    def input(self, node: fx.Node, position: int = 0) -> fx.Node:
        """Return the node that gives an argument, by default the first.

        Raises:
            TypeError: the argument is no node. `input_or_none` returns None instead.
        """
        source = self.input_or_none(node, position)
        if source is None:
            raise TypeError(f"argument {position} of {node} is no output of another call")
        return source

    def source(self, node: fx.Node) -> fx.Node | None:
        """Return the call that feeds `node`, or None for a constant. Skip reshapes, crops and identities."""
        source = self.input_or_none(node)
        while source is not None and self.op(source) in _PASSED_ON:
            source = self.input_or_none(source)
        return source

    def data_inputs(self, node: fx.Node) -> list[fx.Node]:
        """List the tensors that a call takes values from, each once.

        Of a call that gives a tuple (split, chunk) list the inputs instead. Skip a tensor if only its shape is read.
        """
        found: dict[fx.Node, None] = {}
        for source in node.all_input_nodes:
            if self._reads_shape_alone(node, source):
                continue
            if self.gives_tensor(source):
                found[source] = None
            elif self.gives_tuple_of_tensors(source):
                found.update(dict.fromkeys(self.data_inputs(source)))
        return list(found)

    def data_users(self, node: fx.Node) -> list[fx.Node]:
        """List the calls that take values from `node`.

        Of a call that gives a tuple (split, chunk) list the users instead. Skip a call that reads the shape alone.
        """
        users: list[fx.Node] = []
        for user in node.users:
            if self._reads_shape_alone(user, node):
                continue
            if user.op == "output" or self.gives_tensor(user):
                users.append(user)
            elif self.gives_tuple_of_tensors(user):
                users.extend(user.users)
        return users

    def gives_tuple_of_tensors(self, node: fx.Node) -> bool:
        """Return True if the output is a tuple or list that holds a tensor."""
        value = node.meta.get("value")
        return isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value)

    def _reads_shape_alone(self, node: fx.Node, source: fx.Node) -> bool:
        return self.op(node) in SHAPED_LIKE and source is not self.input_or_none(node)

    # Changing it

    def add_layer(self, name: str, layer: nn.Module) -> str:
        """Own `layer` as `name`, or as `name_1`, `name_2`, ... if that exists. Return the name."""
        return self._own(name, lambda owner, last: owner.add_module(last, layer))

    def add_tensor(self, name: str, tensor: Tensor) -> str:
        """Own a parameter or buffer as `add_layer` owns a layer. Return the name."""
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
        self.graph.owning_module = None  # a module of an earlier as_module() lacks it
        return f"{path}.{last}" if path else last

    def own_layer(self, node: fx.Node) -> nn.Module | None:
        """Return the layer that `node` calls, or None for a function. If other calls share it, copy it for this one."""
        layer = self.layer(node)
        if layer is None or self.calls(layer) == 1:
            return layer
        self._callers[layer].remove(node)
        layer = copy.deepcopy(layer)
        node.target = self.add_layer(str(node.target), layer)
        self._add_caller(node)
        return layer

    def call_after(
        self, node: fx.Node, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        """Add a call to the graph after `node`: a "call_module", "call_function" or "call_method"."""
        with self.graph.inserting_after(node):
            call = self.graph.create_node(kind, target, args, kwargs)
        if kind == "call_module":
            self._add_caller(call)
        return call

    def _add_caller(self, node: fx.Node) -> None:
        self._callers.setdefault(self.root.get_submodule(str(node.target)), set()).add(node)

    def remove(self, node: fx.Node, instead: fx.Node) -> None:
        """Replace all uses of `node` by `instead`, then erase `node` and constants left without users."""
        node.replace_all_uses_with(instead)
        self.erase(node)

    def erase(self, node: fx.Node) -> None:
        """Erase a node without users, then the constants that it leaves without users."""
        unused = [node]
        while unused:
            node = unused.pop()
            sources, layer = node.all_input_nodes, self.layer(node)
            self.graph.erase_node(node)
            if layer is not None:
                self._callers.get(layer, set()).discard(node)  # not there if another layer has taken its place
            unused += [source for source in sources if not source.users and self.is_constant(source)]

    def as_module(self) -> fx.GraphModule:
        """Return the network as a module.

        An eval network keeps what the graph uses. A trainable network keeps all that the model owned, in the same
        order, and the hooks around it. So an old `state_dict` and an old optimizer's state still fit.
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

    def finished(self) -> fx.GraphModule:
        """Return the network as a module and forget the outputs on the example inputs. Call this last."""
        module = self.as_module()
        for node in module.graph.nodes:
            node.meta.clear()
        return module


_PASSED_ON = RESHAPES | CROPS | IDENTITIES_IN_EVAL
_OWNED = (
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)
