"""Trace a model symbolically: run its forward on `torch.fx` proxies, with batch normalization as a leaf."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from ..errors import first_line
from ..torch_private import AnyBatchNorm, assert_, pytree
from .compare import Call
from .interpreter import Interpreter, on_meta
from .ops import READS, function_name


class TrainingFlag(nn.Module):
    """Return the mode of the module that holds the flag. It replaces `self.training` in a graph that will train."""

    def forward(self) -> bool:
        """Return True in training."""
        return self.training


class Traced(NamedTuple):
    """A symbolic graph.

    Arguments:
        graph: the calls.
        inputs: the arguments that the graph takes: those that hold tensors.
        by_sizes: True if sizes of the example decided a branch. The graph may then be wrong for other sizes.
    """

    graph: fx.Graph
    inputs: Call
    by_sizes: bool


def trace_symbolically(root: nn.Module, call: Call, trainable: bool) -> Traced:
    """Trace `root` on the arguments `call`.

    Arguments:
        root: the model. A trainable trace adds a `TrainingFlag` to every module whose mode it reads.
        call: the arguments. Those without a tensor become constants.
        trainable: True for a graph that reads `self.training` when it runs.
    """
    args, kwargs = call
    bound = inspect.signature(root.forward).bind(*args, **kwargs)
    with _symbolic_training(root) if trainable else nullcontext():
        tracer = _Tracer(trainable, bound.arguments)
        graph = tracer.trace(root)
    _drop_checks(graph)
    if trainable:
        _own_constants(root, graph)
    inputs = tuple(filter(_has_tensor, bound.args)), {k: v for k, v in bound.kwargs.items() if _has_tensor(v)}
    return Traced(graph, inputs, tracer.sizes is not None)


def holds_batch_norm(module: nn.Module) -> bool:
    """Return True if the module is or contains a batch normalization."""
    return any(isinstance(layer, AnyBatchNorm) for layer in module.modules())


def _drop_checks(graph: fx.Graph) -> None:
    """Erase the assertions inside opened batch normalizations, and reads of shapes and constants without a user."""
    for node in reversed(list(graph.nodes)):
        stack = node.meta.get("nn_module_stack") or {"": ("", nn.Module)}
        checks_norm = node.target is assert_ and issubclass(list(stack.values())[-1][1], AnyBatchNorm)
        if checks_norm or (not node.users and (node.op == "get_attr" or function_name(node.target) in READS)):
            graph.erase_node(node)


def _own_constants(root: nn.Module, graph: fx.Graph) -> None:
    """Make buffers of the root's plain tensors, such as constants that fx stores. Keep them out of the `state_dict`."""
    for node in graph.find_nodes(op="get_attr"):
        if isinstance(tensor := vars(root).get(str(node.target)), Tensor):
            delattr(root, str(node.target))
            root.register_buffer(str(node.target), tensor, persistent=False)


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


class _Tracer(fx.Tracer):
    """Trace with batch normalization as a leaf, and with every module as a leaf that cannot be traced.

    An argument without a tensor keeps the value of the example, or its default. As a proxy it would never be None, and
    `if mask is None` would silently take the wrong branch.
    """

    def __init__(self, trainable: bool, given: dict[str, Any]) -> None:
        super().__init__()
        self.trainable = trainable
        self.given = given
        self.examples: dict[str, Any] = {}
        self.sizes: _Sizes | None = None

    # Inputs

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: inspect.Signature, fn_for_analysis: Any) -> Any:
        plain = name.lstrip("*")
        given = self.given.get(plain)
        if name.startswith("**"):
            return _Named({key: self._input(key, value) for key, value in (given or {}).items()})
        if name.startswith("*"):
            return _Several(self._input(f"{plain}_{i}", value) for i, value in enumerate(given or ()))
        if isinstance(given, list | tuple) and _has_tensor(given):  # fx gives the forward one tuple
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

    # Modules

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True for a module that becomes one call."""
        if isinstance(m, AnyBatchNorm):
            return self.trainable or type(m).__module__.startswith("torch.nn.modules")
        return isinstance(m, torch.jit.ScriptModule) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module. If that fails and the module holds no batch normalization, make it one call."""
        if self.sizes is not None and m in self.sizes.modules:  # the interpreter runs this module; trace nothing
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

    # Branches

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide an `if` on a proxy.

        - `if self.training`: take the training branch. `trace` checks that eval mode computes the same.
        - Another condition in a module without batch normalization: raise, so that the module becomes one call.
        - Else decide by the sizes of the example, as `torch.export` does.
        """
        layer = self.root.get_submodule(str(obj.node.target)) if obj.node.op == "call_module" else None
        if isinstance(layer, TrainingFlag):
            owner = str(obj.node.target).rpartition(".")[0]
            return True if holds_batch_norm(self.root.get_submodule(owner)) else super().to_bool(obj)
        path = self.scope.module_path
        if not self.trainable or (path and not holds_batch_norm(self.root.get_submodule(path))):
            return super().to_bool(obj)
        self.sizes = self.sizes or _Sizes(self.root, self.graph, self.examples)
        return bool(self.sizes.value(obj.node))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return an attribute of a module. Reading `training` becomes a call of a `TrainingFlag`."""
        if isinstance(attr_val, _Mode):
            return self.create_proxy("call_module", attr_val.flag(), (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Several(tuple):
    """The value of `*args`. fx would take a plain tuple for one argument."""


class _Named(dict):
    """The value of `**kwargs`."""


class _Mode:
    """A placeholder for `layer.training` during a trace. It lets the tracer see that the attribute is read."""

    def __init__(self, path: str, layer: nn.Module) -> None:
        self.path = path
        self.layer = layer
        self.training = layer.training

    def flag(self) -> str:
        """Return the path of the layer's `TrainingFlag`. Add one at the first call."""
        if "training_flag" not in self.layer._modules:
            self.layer.add_module("training_flag", TrainingFlag().train(self.training))
        return f"{self.path}.training_flag".lstrip(".")


@contextmanager
def _symbolic_training(root: nn.Module) -> Iterator[None]:
    """Replace every `layer.training` inside `root` by a `_Mode`, and restore it at the end."""
    modes = [_Mode(path, layer) for path, layer in root.named_modules() if "training" in vars(layer)]
    for mode in modes:
        # Module.__getattr__, which the tracer patches, is called for buffers but not for plain attributes.
        del mode.layer.__dict__["training"]
        mode.layer._buffers["training"] = mode  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for mode in modes:
            del mode.layer._buffers["training"]
            mode.layer.training = mode.training


class _Sizes(Interpreter):
    """Evaluate calls of an unfinished graph on the example, on the meta device: sizes, but no values."""

    def __init__(self, root: nn.Module, graph: fx.Graph, examples: dict[str, Any]) -> None:
        copied = copy.deepcopy(root)
        for layer in copied.modules():
            if isinstance(layer._buffers.get("training"), _Mode):
                del layer._buffers["training"]
                layer.training = False
        super().__init__(copied.to("meta"), graph)
        self.given = root
        self.modules = set(copied.modules())
        placeholders = graph.find_nodes(op="placeholder")
        self.values = {node: on_meta(examples[str(node.target)]) for node in placeholders}

    def value(self, node: fx.Node) -> Any:
        """Return the number, flag or tuple that `node` gives.

        Raises:
            TraceError: the value depends on the values of a tensor.
        """
        try:
            if isinstance(value := self.evaluate(node, self.values), Tensor):
                raise TypeError("it is a tensor")
        except Exception as error:
            raise TraceError(f"its control flow depends on values ({first_line(error)})") from error
        return value

    def run_node(self, n: fx.Node) -> Any:
        """Run one call on the meta device."""
        return on_meta(super().run_node(n))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a tensor of the model. While it traces, fx adds constants to the given model, not to the copy."""
        constants = vars(self.given)
        return constants[target] if target in constants else super().get_attr(target, args, kwargs)
