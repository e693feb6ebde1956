"""Make a `Network` of a model: trace it symbolically, or else by `torch.export`, and check the result."""

from __future__ import annotations

import inspect
import io
import reprlib
from contextlib import redirect_stderr
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import BatchNormError, first_line
from ..kernels.activation import FUNCTIONS, Activation
from ..layers import FusedBatchNorm
from ..torch_private import AnyBatchNorm, pytree
from .batches import check_module, described, does_not_run, in_eval, list_advice, needed_arguments
from .compare import SAME, Call, copied, doubled, largest_error, run
from .network import Network
from .symbolic import Traced, trace_symbolically


def trace(model: nn.Module, example_inputs: Any, *, trainable: bool = False) -> Network:
    """Return a model as a graph of calls, over a copy. The model stays as it is.

    By default the graph is that of the eval mode:

    - Subclasses of batch normalization that do more are opened, so that every normalization in the graph is plain.
      Among them are timm's BatchNormAct2d and our own layers with an activation. Parametrizations are baked in.
    - Symbolic tracing comes first. The model's control flow may stop it, or its graph compute something else than the
      model. Then `torch.export` traces with the example inputs and a free batch size.

    With `trainable=True` the graph trains as the model does:

    - Every batch normalization is one call, and the graph reads `self.training` when it runs (a `TrainingFlag`).
    - The layers keep their modes, and the network owns all that the model owned.
    - If Python decides on sizes around a batch normalization, the sizes of the example count, except the batch size.

    In both, a module becomes one call if it cannot be traced and holds no batch normalization.

    Arguments:
        model: any network. Symbolic tracing needs only its forward.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of named ones. An argument that is itself a
            list of tensors stands in a tuple: ([a, b],).
        trainable: True for a graph that will be trained.

    Raises:
        BatchNormError: the model is no module, does not take the inputs, or cannot be traced.
    """
    call = _call(model, example_inputs)
    root = copied(model)
    oracle = _Oracle(model, call)
    if trainable:
        return _trace_for_training(root, call, oracle)
    _simplify(root)
    try:
        return oracle.check(_trace_for_eval(root, call))
    except Exception as error:
        stopped = error
    try:
        return oracle.check(_trace_by_export(root, call))
    except Exception as error:
        raise BatchNormError(
            f"{type(model).__name__} cannot be traced. Symbolic tracing says: {first_line(stopped)}. "
            f"torch.export says: {first_line(error)}. "
            "Rewrite the forward without Python control flow on values, or give a part of the network."
        ) from error


def _call(model: nn.Module, example_inputs: Any) -> Call:
    """Return example inputs as the (args, kwargs) of one call."""
    _check_model(model)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example_inputs)):
        raise BatchNormError(
            f"example_inputs hold no tensor; got {reprlib.repr(example_inputs)}. Wanted a tensor, a tuple of arguments "
            "or a dict of named ones. For a shape such as (1, 3, 64, 64) make one: torch.randn(1, 3, 64, 64)"
        )
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
        names = ", ".join(needed_arguments(model))
        known = f"It needs {names}: give the tuple ({names})"
        wanted = known if "," in names else "Give a tensor, a tuple of arguments"
        raise BatchNormError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}. {wanted} or a dict of named ones."
        ) from error
    return args, kwargs


def _check_model(model: nn.Module) -> None:
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise BatchNormError(
            f"wanted a network that runs in Python; got {type(model).__name__}. "
            "Give it as it was before torch.jit.script or torch.jit.trace"
        )
    wrapped = "module" if isinstance(model, DataParallel | DistributedDataParallel) else "_orig_mod"  # torch.compile's
    if wrapped in model._modules and type(model).__module__.startswith("torch."):
        raise BatchNormError(f"{type(model).__name__} wraps the network; give the network itself, model.{wrapped}")
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) and "BatchNorm" in layer.original_name:
            raise BatchNormError(
                f"{name!r} is a batch normalization in TorchScript, which cannot be read; "
                "give the network as it was before torch.jit.script or torch.jit.trace"
            )


class _Oracle:
    """The given model in eval mode. Its output says what a graph of it must compute."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.model = copied(model).eval()
        self.call = call
        try:
            self.output = run(self.model, call)
        except Exception as error:
            what = f"example_inputs of {described(call)}"
            raise does_not_run(model, what, error, list_advice(call[0])) from error
        values = [x for x in pytree.tree_leaves(self.output) if isinstance(x, Tensor) and x.numel()]
        if values and not any(x.isfinite().any() for x in values):  # then no result can be compared
            raise BatchNormError(
                f"{type(model).__name__} gives no finite value for the example_inputs; look for inf or NaN in its "
                "weights and statistics, or give other inputs"
            )

    def check(self, network: Network, *, twice: bool = False) -> Network:
        """Return `network` if it computes what the model does in eval mode; otherwise raise.

        Arguments:
            network: the network to check.
            twice: compare on the example inputs twice in one batch, to see that the graph takes another batch size.
        """
        wanted = run(self.model, doubled(self.call)) if twice else self.output
        module = network.as_module()
        with in_eval(module):
            error = largest_error(run(module, doubled(network.inputs) if twice else network.inputs), wanted)
        if error == float("inf"):
            raise BatchNormError(
                "its forward returns another structure in training than in eval. Auxiliary outputs? Make the network "
                "without them (torchvision: aux_logits=False)"
            )
        if not error <= SAME:
            raise BatchNormError(
                f"the traced graph differs from the network in eval mode by {error:.1e}: its forward does one thing "
                "in training and another in eval, or is random"
            )
        return network


def _trace_for_training(root: nn.Module, call: Call, oracle: _Oracle) -> Network:
    if isinstance(root, AnyBatchNorm):
        name = type(root).__name__
        raise BatchNormError(f"wanted a network; got one layer, {name}. Put it into one: torch.nn.Sequential(layer)")
    try:
        traced = trace_symbolically(root, call, trainable=True)
        network = oracle.check(_as_in_training(root, call, traced))
        return oracle.check(network, twice=True) if traced.by_sizes else network  # by sizes, not by the batch size
    except Exception as error:
        raise BatchNormError(
            f"{type(root).__name__} cannot be traced for training: {first_line(error)}. Python control flow on values "
            "cannot be followed, and of `if self.training` around batch normalization the training branch is traced; "
            "give a part of the network that can be traced."
        ) from error


def _as_in_training(root: nn.Module, call: Call, traced: Traced) -> Network:
    try:
        return Network(root, traced.graph, call=call, inputs=traced.inputs, trainable=True)
    except Exception as error:  # in eval mode the network did run on them
        raise BatchNormError(
            f"its forward in training does not run on {described(traced.inputs)}: {first_line(error).rstrip('.')}. "
            "Auxiliary outputs? Make the network without them (torchvision: aux_logits=False)"
        ) from error


def _trace_for_eval(root: nn.Module, call: Call) -> Network:
    traced = trace_symbolically(root, call, trainable=False)
    return Network(root, traced.graph, call=call, inputs=traced.inputs, trainable=False)


def _trace_by_export(root: nn.Module, call: Call) -> Network:
    args, kwargs = call
    batch = doubled(call)  # torch.export takes a batch of one for a constant
    dynamic = pytree.tree_map(
        lambda x: {0: torch.export.Dim.DYNAMIC} if isinstance(x, Tensor) and x.dim() else None, batch
    )
    names = list(inspect.signature(root.forward).bind(*args, **kwargs).arguments)
    with redirect_stderr(io.StringIO()):  # when it fails, torch prints the whole graph so far
        program = torch.export.export(root, *batch, dynamic_shapes=_by_name(names, dynamic))
    module = program.module()
    for node in reversed(list(module.graph.nodes)):
        if node.op == "call_module":
            module.graph.erase_node(node)  # checks of the example's shapes
    return Network(module, module.graph, call=call, inputs=call, trainable=False)


def _by_name(names: list[str], inputs: Call) -> dict[str, Any]:
    args, kwargs = inputs
    return {**dict(zip(names, args, strict=False)), **kwargs}


# Simplifying a copy


def _simplify(root: nn.Module) -> None:
    """Bring a copy to eval mode, with plain weights, and with torch's functions in place of our own layers."""
    root.eval()
    for layer in root.modules():
        _bake_hooks(layer)
        if parametrize.is_parametrized(layer):
            _bake_parametrizations(layer)
        if isinstance(layer, FusedBatchNorm):
            layer.__class__ = cast(Any, _Unfused)
            _match_dtypes(layer)


def _bake_hooks(layer: nn.Module) -> None:
    """Replace weights that hooks compute before every forward by their present values."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            hook.remove(layer)
            del layer._forward_pre_hooks[key]


def _bake_parametrizations(layer: nn.Module) -> None:
    # torch's remove_parametrizations edits the class, which the copy shares with the given model.
    baked = {name: getattr(layer, name).detach().clone() for name in layer._modules["parametrizations"]._modules}  # pyright: ignore[reportOptionalMemberAccess]
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer._modules["parametrizations"]
    for name, value in baked.items():
        layer.register_parameter(name, nn.Parameter(value))


def _match_dtypes(layer: AnyBatchNorm) -> None:
    # In a half-precision network our statistics stay float32. torch's function then wants float32 gamma and beta.
    for name, value in layer._parameters.items():
        if value is not None and layer.running_mean is not None:
            dtype = torch.promote_types(value.dtype, layer.running_mean.dtype)
            layer._parameters[name] = nn.Parameter(value.detach().to(dtype), value.requires_grad)


class _Unfused(AnyBatchNorm):
    """One of our own layers in eval mode, in torch's functions."""

    activation: Activation | None
    negative_slope: float

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add the residual and apply the activation."""
        by_batch = self.running_mean is None
        y = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, by_batch, 0.0, self.eps)
        return FUNCTIONS[self.activation](y if residual is None else y + residual, self.negative_slope)
