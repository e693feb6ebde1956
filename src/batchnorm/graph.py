"""The one view of a network that the transforms share: which call feeds which, and what each call is.

`trace(model, example_inputs)` gives a `Network`: a copy of the model and the `torch.fx` graph of its calls, every call
carrying the shape it had on the example inputs. Layers (`conv`), functions (`F.conv2d`), methods (`x.relu()`) and
exported operators (`aten.conv2d`) answer to one name, `network.op(node)`.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from .errors import BatchNormError
from .layers import _FusedBatchNorm

AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NONLINEARITIES = frozenset(
    {
        "relu",
        "relu6",
        "leakyrelu",
        "prelu",
        "rrelu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "logsigmoid",
        "tanh",
        "softplus",
        "softsign",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "threshold",
        "clamp",
        "clampmin",
    }
)
RESHAPES = frozenset(
    {"flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze", "reshapeas", "viewas", "unsafeview"}
)
CROPS = frozenset({"getitem", "slice", "narrow", "select"})
NOTHING_IN_EVAL = frozenset(
    {
        "identity",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alphadropout",
        "featuredropout",
        "featurealphadropout",
        "contiguous",
        "clone",
        "detach",
        "alias",
    }
)


class TrainingFlag(nn.Module):
    """Whether the module that holds it is training: what `self.training` becomes in a graph that is to be trained."""

    def forward(self) -> bool:
        return self.training


class Network:
    """A model as a graph of calls, over a copy of its own.

    Arguments:
        root: the copy that owns parameters, buffers and modules.
        graph: its calls, in the order in which they run.
        inputs: (args, kwargs) of the example as `as_module()` takes them.
        trainable: whether the graph reads `self.training` when it runs (otherwise it is that of the eval network).

    `node.meta["value"]` is what the call gave on the example inputs, with every tensor on the meta device.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, inputs: tuple[tuple[Any, ...], dict[str, Any]], trainable: bool
    ) -> None:
        self.root = root
        self.graph = graph
        self.inputs = inputs
        self.trainable = trainable
        graph._tracer_cls = None  # ours would have to be imported to load a pickle of the result
        _record(self.as_module(), *inputs)

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
            return _layer_name(self.root.get_submodule(str(node.target)))
        if node.op == "call_method":
            return _plain_name(str(node.target))
        return _function_name(node.target) if node.op == "call_function" else ""

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
        return self.op(node) in _AFFINE_NAMES

    def is_nonlinearity(self, node: Any) -> bool:
        return self.op(node) in NONLINEARITIES

    def mutates(self, node: fx.Node) -> bool:
        """Whether the call writes into its first argument."""
        layer = self.layer(node)
        if layer is not None:
            return bool(getattr(layer, "inplace", False))
        name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
        in_place = name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
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
        found = self.run(value, {source: self.constant(source) for source in value.all_input_nodes})
        return found if isinstance(found, Tensor) else None

    def is_constant(self, node: fx.Node) -> bool:
        """Whether `node` depends on parameters and buffers alone."""
        if node.op == "get_attr":
            return True
        sources = node.all_input_nodes
        return node.op in ("call_function", "call_method") and bool(sources) and all(map(self.is_constant, sources))

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
        """Drop an unused node and the unused constants that fed it."""
        sources = node.all_input_nodes
        self.graph.erase_node(node)
        for source in sources:
            if not source.users and self.is_constant(source):
                self.erase(source)

    def as_module(self) -> fx.GraphModule:
        """The network as a module.

        An eval network keeps only what the graph uses. A trainable one keeps all that the model owned, in its order,
        so that `state_dict` and an optimizer's state fit it as before.
        """
        name = type(self.root).__name__
        if not self.trainable:
            return fx.GraphModule(self.root, self.graph, class_name=name).eval()
        module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=name)
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            getattr(module, table).update(getattr(self.root, table))
        module.training = self.root.training
        module.graph = self.graph
        return module


def trace(model: nn.Module, example_inputs: Any, *, trainable: bool = False) -> Network:
    """See `model` as a graph of calls; the model itself is not changed.

    Eval (default): the graph of the network in eval mode. Subclasses of batch normalization that do more, such as
    timm's BatchNormAct2d and our own fused layers, are opened, so that every normalisation in it is plain, and
    parametrizations are baked in. Symbolic tracing comes first; where the network's own control flow stops it, or
    gives another output than the network, `torch.export` traces with the example inputs, any batch size.

    Trainable: every batch normalization is a leaf, `self.training` is read when the graph runs (a `TrainingFlag`),
    the modes of the model's layers are kept, and the result owns all that the model owned.

    Either way a module that cannot be traced and holds no batch normalization stays whole, as a leaf.

    Arguments:
        model: any network; symbolic tracing wants nothing but its forward.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones.

    Raises:
        BatchNormError: not a module, inputs that the forward does not take, a network that cannot be traced.
    """
    args, kwargs = example_args(model, example_inputs)
    root = _copy(model)
    expected = _run_example(_copy(model).eval(), args, kwargs)
    if trainable:
        return _checked(lambda: _trace_for_training(root, args, kwargs), expected)
    _simplify(root)
    try:
        return _checked(lambda: _trace_symbolically(root, args, kwargs), expected)
    except Exception as error:
        stopped = error
    try:
        return _checked(lambda: _trace_by_export(root, args, kwargs), expected)
    except Exception as error:
        raise BatchNormError(
            f"{type(model).__name__} cannot be traced. Symbolic tracing says: {stopped}. torch.export says: {error}. "
            "Rewrite the forward without Python control flow on values, or give the part that can be traced."
        ) from error


def example_args(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs, a tensor, a tuple or list of arguments or a dict of named ones, as (args, kwargs) of one call."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise BatchNormError(f"wanted a torch.nn.Module that runs in Python; got {type(model).__name__}")
    match example_inputs:
        case dict():
            args, kwargs = (), example_inputs
        case tuple() | list():
            args, kwargs = tuple(example_inputs), {}
        case _:
            args, kwargs = (example_inputs,), {}
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise BatchNormError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}. "
            "Give a tensor, a tuple of arguments or a dict of named ones."
        ) from error
    return args, kwargs


def largest_error(got: Any, wanted: Any) -> float:
    """The largest difference between two outputs of one structure, relative to the largest value of its tensor."""
    got_leaves, wanted_leaves = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    if len(got_leaves) != len(wanted_leaves):
        return float("inf")
    return max((_difference(*pair) for pair in zip(got_leaves, wanted_leaves, strict=True)), default=0.0)


_SAME = 1e-5  # another order of the same float32 operations, not another function
_IN_PLACE_OPERATORS = frozenset({"iadd", "isub", "imul", "itruediv", "setitem"})
_FUNCTIONS_OF = ("torch", "_operator", "operator", "builtins", "math")


def _plain_name(name: str) -> str:
    return name.replace("_", "").lower()


_AFFINE_NAMES = frozenset(_plain_name(layer.__name__) for layer in AFFINE_LAYERS)


def _layer_name(layer: nn.Module) -> str:
    if isinstance(layer, _BatchNorm):
        return "batchnorm"
    for base in AFFINE_LAYERS:
        if isinstance(layer, base):
            return _plain_name(base.__name__)
    return _plain_name(type(layer).__name__) if type(layer).__module__.startswith("torch.nn") else ""


def _function_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return _plain_name(target._opname) if target.namespace == "aten" else ""
    home = getattr(target, "__module__", None) or "torch"  # torch's built-in functions have no __module__
    return _plain_name(getattr(target, "__name__", "")) if home.split(".")[0] in _FUNCTIONS_OF else ""


def _difference(got: Any, wanted: Any) -> float:
    if not isinstance(wanted, Tensor):
        return 0.0 if got == wanted else float("inf")
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    got, wanted = got.detach().double(), wanted.detach().double()
    # nan and inf must be where they were, and do not spoil the rest
    finite = wanted.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("inf")
    scale = torch.where(finite, wanted, 0).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.where(finite, got - wanted, 0).abs().max() / scale)


def _checked(trace_it: Callable[[], Network], expected: Any) -> Network:
    """The network that `trace_it` gives, if it computes in eval mode what the model does; an error otherwise."""
    network = trace_it()
    module = network.as_module()
    with _in_eval(module):
        error = largest_error(_run_example(module, *network.inputs), expected)
    if not error <= _SAME:
        raise BatchNormError(
            f"what was traced differs from the network in eval mode by {error:.1e}: its forward does one thing in "
            "training and another in eval, or is random"
        )
    return network


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise BatchNormError(
            f"{type(model).__name__} cannot be copied, and the model given must stay as it is: {error}"
        ) from error


@torch.no_grad()
def _run_example(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # clones: a network may write into its inputs
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    return model(*args, **kwargs)


def _simplify(root: nn.Module) -> None:
    """Bring a copy to eval mode, with no parametrization and none of our own layers in it."""
    root.eval()
    for layer in root.modules():
        if parametrize.is_parametrized(layer):
            _bake_parametrizations(layer)
        if isinstance(layer, _FusedBatchNorm):
            layer.__class__ = cast(Any, _Unfused)


def _bake_parametrizations(layer: nn.Module) -> None:
    # torch's remove_parametrizations edits the class, which a copy shares with the model that was given
    baked = {name: getattr(layer, name).detach().clone() for name in layer._modules["parametrizations"]._modules}  # pyright: ignore[reportOptionalMemberAccess]
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer._modules["parametrizations"]
    for name, value in baked.items():
        layer.register_parameter(name, nn.Parameter(value))


class _Unfused(_BatchNorm):
    """One of our own layers in eval mode, written out in torch's functions."""

    activation: str | None
    negative_slope: float

    def forward(self, input: Tensor) -> Tensor:
        by_batch = self.running_mean is None
        y = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, by_batch, 0.0, self.eps)
        match self.activation:
            case "relu":
                return F.relu(y)
            case "leaky_relu":
                return F.leaky_relu(y, self.negative_slope)
            case "sigmoid":
                return torch.sigmoid(y)
        return y


class _Recorder(fx.Interpreter):
    """Runs a graph on the example inputs and leaves what each call gave in `node.meta["value"]`."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["value"] = pytree.tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), value)
        return value


@torch.no_grad()
def _record(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    given = args + tuple(kwargs[name] for name in names[len(args) :] if name in kwargs)
    with _in_eval(module):
        _Recorder(module).run(*given)


def _trace_for_training(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Network:
    try:
        return _trace_symbolically(root, args, kwargs, trainable=True)
    except Exception as error:
        raise BatchNormError(
            f"{type(root).__name__} cannot be traced for training: {error}. "
            "Its forward depends on values in Python; give the part that can be traced."
        ) from error


def _trace_symbolically(
    root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], trainable: bool = False
) -> Network:
    bound = inspect.signature(root.forward).bind(*args, **kwargs).arguments
    with _symbolic_training(root) if trainable else nullcontext():
        graph = _Tracer(trainable, bound).trace(root)
    _drop_checks(graph)
    if not any(isinstance(argument, tuple) for argument in bound.values()):
        args, kwargs = (), {name: value for name, value in bound.items() if _has_tensor(value)}
    return Network(root, graph, (args, kwargs), trainable)


def _drop_checks(graph: fx.Graph) -> None:
    """Drop the assertions inside opened batch normalizations, and reads of shapes and constants that nobody uses."""
    for node in reversed(list(graph.nodes)):
        stack = node.meta.get("nn_module_stack") or {"": ("", nn.Module)}
        checks_norm = node.target is torch._assert and issubclass(list(stack.values())[-1][1], _BatchNorm)
        if checks_norm or (not node.users and (node.op == "get_attr" or _function_name(node.target) in _READS)):
            graph.erase_node(node)


_READS = frozenset({"getattr", "eq", "ne", "getitem"})


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _holds_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _default(name: str, signature: inspect.Signature) -> Any:
    if name.startswith("*"):
        return {} if name.startswith("**") else ()
    return signature.parameters[name].default


class _Tracer(fx.Tracer):
    """Symbolic tracing with batch normalization as a leaf, and with what cannot be traced as a leaf too.

    Arguments of the forward that hold no tensor keep the value that the example gives them, or their default:
    a symbolic value is never None, so that `if mask is None` would be decided wrongly in silence.
    """

    def __init__(self, trainable: bool, given: dict[str, Any]) -> None:
        super().__init__()
        self.trainable = trainable
        self.given = given

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any) -> Any:
        plain = name.lstrip("*")
        if _has_tensor(self.given.get(plain)):
            return super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)
        return self.given.get(plain, _default(name, sig))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _BatchNorm):
            return self.trainable or type(m).__module__.startswith("torch.nn.modules")
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        known, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if _holds_batch_norm(m):
                raise
        for node in reversed(list(self.graph.nodes)[known:]):
            self.graph.erase_node(node)
        self.module_stack = stack
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """`if self.training`: a module without batch normalization stays whole, in others the training branch counts.

        (Should that be another function in eval, `trace` finds out.)
        """
        layer = self.root.get_submodule(str(obj.node.target)) if obj.node.op == "call_module" else None
        owner = str(obj.node.target).rpartition(".")[0]
        if isinstance(layer, TrainingFlag) and _holds_batch_norm(self.root.get_submodule(owner)):
            return True
        return super().to_bool(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if isinstance(attr_val, _Mode):
            return self.create_proxy("call_module", attr_val.flag(), (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Mode:
    """Stands for `layer.training` during a trace, so that reading it is seen."""

    def __init__(self, path: str, layer: nn.Module) -> None:
        self.path = path
        self.layer = layer
        self.training = layer.training

    def flag(self) -> str:
        """The path of a `TrainingFlag` in the layer, put there when first asked for."""
        if "training_flag" not in self.layer._modules:
            self.layer.add_module("training_flag", TrainingFlag().train(self.training))
        return f"{self.path}.training_flag".lstrip(".")


@contextmanager
def _symbolic_training(root: nn.Module) -> Iterator[None]:
    """While this holds, reading `layer.training` inside `root` gives a `_Mode` to the tracer."""
    modes = [_Mode(path, layer) for path, layer in root.named_modules()]
    for mode in modes:
        # what is no plain attribute is looked up by Module.__getattr__, where the tracer listens
        del mode.layer.__dict__["training"]
        mode.layer._buffers["training"] = mode  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for mode in modes:
            del mode.layer._buffers["training"]
            mode.layer.training = mode.training


def _trace_by_export(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Network:
    # a batch of one is taken for a constant, so double it
    batch = pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.dim() else x, (args, kwargs))
    dynamic = pytree.tree_map(
        lambda x: {0: torch.export.Dim.DYNAMIC} if isinstance(x, Tensor) and x.dim() else None, batch
    )
    names = list(inspect.signature(root.forward).bind(*args, **kwargs).arguments)
    program = torch.export.export(root, *batch, dynamic_shapes=_by_name(names, dynamic))
    module = program.module()
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_module":
            module.graph.erase_node(node)  # checks of the example's shapes
    return Network(module, module.graph, (args, kwargs), trainable=False)


def _by_name(names: list[str], inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    args, kwargs = inputs
    return {**dict(zip(names, args, strict=False)), **kwargs}
