"""Symbolic tracing: a forward run on `torch.fx` proxies, with batch normalization as a leaf."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from ..errors import first_line
from .compare import Call
from .ops import function_name

_READS = frozenset({"getattr", "eq", "ne", "getitem"})


class TrainingFlag(nn.Module):
    """Whether the module that holds it is training: what `self.training` becomes in a graph that is to be trained."""

    def forward(self) -> bool:
        return self.training


def trace_symbolically(root: nn.Module, call: Call, trainable: bool) -> tuple[fx.Graph, Call, bool]:
    """The graph of `root`, the part of `call` that it takes, and whether sizes of the example decided its way."""
    args, kwargs = call
    bound = inspect.signature(root.forward).bind(*args, **kwargs)
    with _symbolic_training(root) if trainable else nullcontext():
        tracer = _Tracer(trainable, bound.arguments)
        graph = tracer.trace(root)
    _drop_checks(graph)
    if trainable:
        _own_constants(root, graph)
    taken = tuple(filter(_has_tensor, bound.args)), {k: v for k, v in bound.kwargs.items() if _has_tensor(v)}
    return graph, taken, tracer.decided


def holds_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def _drop_checks(graph: fx.Graph) -> None:
    """Drop the assertions inside opened batch normalizations, and reads of shapes and constants that nobody uses."""
    for node in reversed(list(graph.nodes)):
        stack = node.meta.get("nn_module_stack") or {"": ("", nn.Module)}
        checks_norm = node.target is torch._assert and issubclass(list(stack.values())[-1][1], _BatchNorm)
        if checks_norm or (not node.users and (node.op == "get_attr" or function_name(node.target) in _READS)):
            graph.erase_node(node)


def _own_constants(root: nn.Module, graph: fx.Graph) -> None:
    """Make buffers, outside the `state_dict`, of the root's tensors that are none, such as those that fx stores."""
    for node in graph.find_nodes(op="get_attr"):
        if isinstance(tensor := vars(root).get(str(node.target)), Tensor):
            delattr(root, str(node.target))
            root.register_buffer(str(node.target), tensor, persistent=False)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


class _Tracer(fx.Tracer):
    """Symbolic tracing with batch normalization as a leaf, and with what cannot be traced as a leaf too.

    Arguments of the forward that hold no tensor keep the value that the example gives them, or their default:
    a symbolic value is never None, so that `if mask is None` would be decided wrongly in silence.
    """

    def __init__(self, trainable: bool, given: dict[str, Any]) -> None:
        super().__init__()
        self.trainable = trainable
        self.given = given
        self.examples: dict[str, Any] = {}
        self.sizes: _Sizes | None = None

    @property
    def decided(self) -> bool:
        return self.sizes is not None

    # What goes in

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any) -> Any:
        plain = name.lstrip("*")
        given = self.given.get(plain)
        if name.startswith("**"):
            return _Named({key: self._input(key, value) for key, value in (given or {}).items()})
        if name.startswith("*"):
            return _Several(self._input(f"{plain}_{i}", value) for i, value in enumerate(given or ()))
        if isinstance(given, list | tuple) and _has_tensor(given):  # fx writes a forward that takes them together
            return type(given)(self._input(f"{plain}_{i}", value) for i, value in enumerate(given))
        if _has_tensor(given):
            self.examples[name] = given
            return super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)
        return given if plain in self.given else sig.parameters[name].default

    def _input(self, name: str, value: Any) -> Any:
        if not _has_tensor(value):
            return value
        self.examples[name] = value
        return self.create_proxy("placeholder", name, (), {})

    # What is looked into

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _BatchNorm):
            return self.trainable or type(m).__module__.startswith("torch.nn.modules")
        return isinstance(m, torch.jit.ScriptModule) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.sizes is not None and m in self.sizes.modules:
            return forward(*args, **kwargs)
        if "_orig_mod" in m._modules:  # torch.compile's wrapper
            return m.get_submodule("_orig_mod")(*args, **kwargs)
        known, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if holds_batch_norm(m):
                raise
        for node in reversed(list(self.graph.nodes)[known:]):
            self.graph.erase_node(node)
        self.module_stack = stack
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    # What Python decides

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Which way an `if` goes. A module without batch normalization stays whole instead, but for the network itself.

        `if self.training`: the training branch counts (should that be another function in eval, `trace` finds out).
        Else the sizes of the example decide, as they do in `torch.export`.
        """
        layer = self.root.get_submodule(str(obj.node.target)) if obj.node.op == "call_module" else None
        if isinstance(layer, TrainingFlag):
            owner = str(obj.node.target).rpartition(".")[0]
            return True if holds_batch_norm(self.root.get_submodule(owner)) else super().to_bool(obj)
        path = self.scope.module_path
        if not self.trainable or (path and not holds_batch_norm(self.root.get_submodule(path))):
            return super().to_bool(obj)
        self.sizes = self.sizes or _Sizes(self.root, self.examples)
        return bool(self.sizes.value(obj.node))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if isinstance(attr_val, _Mode):
            return self.create_proxy("call_module", attr_val.flag(), (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Several(tuple):
    """What `*args` stands for; fx would take a plain tuple for one argument."""


class _Named(dict):
    """What `**kwargs` stands for."""


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
    modes = [_Mode(path, layer) for path, layer in root.named_modules() if "training" in vars(layer)]
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


class _Sizes:
    """What calls of a graph in the making give for the example, on the meta device: sizes, but no values."""

    def __init__(self, root: nn.Module, examples: dict[str, Any]) -> None:
        self.given = root
        self.root = copy.deepcopy(root)
        self.modules = set(self.root.modules())
        for layer in self.modules:
            if isinstance(layer._buffers.get("training"), _Mode):
                del layer._buffers["training"]
                layer.training = False
        self.root.to("meta")
        self.examples = examples
        self.values: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def value(self, node: fx.Node) -> Any:
        """The number, flag or tuple that `node` is.

        Raises:
            TraceError: it depends on the values of a tensor.
        """
        wanted, sources = [node], {node}
        while wanted:
            new = {n for n in wanted.pop().all_input_nodes if n not in self.values} - sources
            sources |= new
            wanted += new
        try:
            for each in node.graph.nodes:
                if each in sources and each not in self.values:
                    self.values[each] = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), self._run(each))
            if isinstance(self.values[node], Tensor):
                raise TypeError("it is a tensor")
        except Exception as error:
            raise TraceError(f"its way depends on values ({first_line(error)})") from error
        return self.values[node]

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        match node.op:
            case "placeholder":
                return self.examples[str(node.target)]
            case "get_attr":
                path, constants = str(node.target), vars(self.given)  # where fx goes on storing them
                return constants[path] if path in constants else attrgetter(path)(self.root)
            case "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            case "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
