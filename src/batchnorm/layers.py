"""The layers `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`: parameters, buffers, train and eval mode."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .kernels import batches, dispatch
from .kernels.activation import Activation, Transform
from .kernels.batches import Special
from .kernels.bindings import Running
from .kernels.checks import check_activation, check_running
from .kernels.packing import as_mask
from .torch_private import AnyBatchNorm

if TYPE_CHECKING:
    from typing_extensions import Self

_STATISTICS = ("running_mean", "running_var")


class _Held(NamedTuple):
    """The tensors of a layer, None where it has none."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    batches_seen: Tensor | None


class FusedBatchNorm(AnyBatchNorm):
    """Normalize over axis 1 and apply what follows: z = g(BN(x) + residual) (Sec. 3.2).

    BN(x) = weight * (x - mean) / sqrt(var + eps) + bias. `layer(x)` has no residual; `layer(x, residual)` adds one.
    With `layer(x, mask=mask)` or `layer(x, lengths=lengths)` only the values that the mask counts take part.

    Training normalizes by the mean and the biased variance of the batch. The running statistics move by `momentum`
    toward its mean and unbiased variance. Eval normalizes by the running statistics, or by the batch if
    `track_running_stats=False`.

    The layer is a subclass of torch's layer of the same name, and either loads the other's `state_dict`. It differs
    from torch's layer in four ways:

    - Running statistics stay float32 in a `.half()` or `.bfloat16()` network. (A bfloat16 running mean in torch stops
      at 96 where the true mean is 100.)
    - A batch whose mean or variance is not finite changes neither the running statistics nor `num_batches_tracked`. In
      eager mode on the CPU the layer warns once. Elsewhere it is silent, because a warning would have to wait for the
      device.
    - A batch counts once. A forward inside a backward pass, as `torch.utils.checkpoint` has it, changes neither the
      running statistics nor `num_batches_tracked`. (Torch counts it twice: pytorch issue 96136.)
    - `momentum=None`, the cumulative average, works under `torch.compile(fullgraph=True)`.

    Some of torch's tools replace any batch norm by an affine map, such as `SyncBatchNorm.convert_sync_batchnorm` and
    `torch.nn.utils.fusion`. They do not know `activation` and drop it. Use them on layers with `activation=None` only.

    Arguments:
        num_features: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        momentum: weight of the *new* batch in the running statistics (1 minus that of Caffe and Keras). None averages
            all batches equally.
        affine: learn gamma (`weight`) and beta (`bias`), (C,) each.
        track_running_stats: keep `running_mean`, `running_var` and `num_batches_tracked`.
        activation: None, "relu", "leaky_relu", "relu6", "sigmoid", "silu", "hardswish", "gelu" or "gelu_tanh".
        negative_slope: slope of the leaky ReLU below 0.
        virtual_batch_size: in training, normalize each group of that many examples by statistics of its own ("ghost
            batches"). A short last group is part of the one before it. The running statistics are those of the whole
            batch. None for one group.
        device: where parameters and buffers are, as in torch.
        dtype: of the parameters, as in torch. Statistics are float32 at least.
        **torch_options: other arguments of torch's layer, such as `bias=False` in recent versions.

    Raises:
        BatchNormError: the activation is unknown, or the residual or the mask has a wrong shape. In training, also if
            the batch, or a virtual batch, has one value per channel that counts.
    """

    activation: Activation | None = None
    negative_slope: float = 0.01
    _warned = False
    _special: Special | None = None  # None is the fast path

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        virtual_batch_size: int | None = None,
        **torch_options: Any,
    ) -> None:
        check_activation(activation)
        size = batches.check_size(virtual_batch_size)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **torch_options)
        self.activation = activation
        self.negative_slope = negative_slope
        self._special = Special(size=size) if size else None
        self.widen_statistics()

    @property
    def virtual_batch_size(self) -> int | None:
        """Return the number of examples in a virtual batch, or None."""
        return None if self._special is None or not self._special.size else self._special.size

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Normalize `input`, and in training move the running statistics in place.

        With a mask the statistics are those of the values that count, as if they had been packed. The output is 0
        elsewhere, and no gradient flows from or to there. A batch in which nothing counts leaves the running
        statistics as they are.

        Arguments:
            input: (N, C, ...).
            residual: shaped like `input`, added before the activation, or None.
            mask: bool, (N,) or broadcastable to the shape of `input` without its channel axis. True where a value
                counts. None if all do.
            lengths: integers, (N,), in place of `mask` for (N, C, L): how many values of each sequence count.
        """
        if isinstance(input, Proxy):  # torch.fx makes leaves of layers from torch's own modules only
            tracer, inputs = input.tracer, (input,) if residual is None else (input, residual)
            named = {name: t for name, t in (("mask", mask), ("lengths", lengths)) if t is not None}
            return tracer.create_proxy("call_module", tracer.path_of_module(self), inputs, named)  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
        self._check_input_dim(input)
        weight, bias, running_mean, running_var, count = self._held()
        how = Transform(weight, bias, self.eps, self.activation, self.negative_slope, residual)
        if self._special or mask is not None or lengths is not None:
            return self._normalize_specially(input, how, mask, lengths)
        tracks = self.training and self.track_running_stats and input.numel() > 0 and not batches.in_backward()
        if tracks and running_mean is not None and running_var is not None:
            running = Running(running_mean, running_var, self._momentum(), count)
            z, finite = dispatch.normalize_and_track(input, how, running)
            if finite is False:
                self.warn_left_out()
            return z
        if self.training or running_mean is None or running_var is None:
            check_running(input, running_mean, running_var)
            return dispatch.normalize_by_batch(input, how)[0]
        return dispatch.normalize(input, running_mean, running_var, how)

    def _held(self) -> _Held:
        """Return the tensors. Each takes 1 us as an attribute, because Python asks the Module last."""
        held = self._parameters | self._buffers
        try:
            return _Held(
                held["weight"], held["bias"], held["running_mean"], held["running_var"], held["num_batches_tracked"]
            )
        except KeyError:  # parametrizations and pruning make attributes of them
            return _Held(self.weight, self.bias, self.running_mean, self.running_var, self.num_batches_tracked)

    def _normalize_specially(self, x: Tensor, how: Transform, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        special = self._special or Special()
        if mask is not None or lengths is not None:
            special = replace(special, mask=lambda x: as_mask(x, mask, lengths))
        mean, var, running = self.running_mean, self.running_var, None
        if mean is not None and var is not None and (self.track_running_stats or not self.training):
            running = Running(mean, var, self._momentum(), self.num_batches_tracked)
        normalize = batches.batch_norm if special.is_traceable() else batches.batch_norm_eagerly
        z, finite = normalize(x, how, running, self.training, special)
        if finite is False:
            self.warn_left_out()
        return z

    def _momentum(self) -> float | Tensor:
        if self.momentum is not None:
            return self.momentum
        mean, count = self.running_mean, self.num_batches_tracked
        return 0.0 if mean is None or count is None else (count + 1).to(mean.dtype).reciprocal()

    def warn_left_out(self) -> None:
        """Warn once that a batch was left out of the running statistics because it is not finite."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self}: a batch whose mean or variance is not finite was left out of the running statistics. "
                "Look for inf or NaN in the data or in the layers before. This layer warns once.",
                RuntimeWarning,
                stacklevel=5,
            )

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        if self.virtual_batch_size is not None:
            text += f", virtual_batch_size={self.virtual_batch_size}"
        return text

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name in _STATISTICS if (buffer := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        self.widen_statistics(before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.widen_statistics()  # assign=True puts the tensors of the checkpoint here, which may be half precision

    def widen_statistics(self, before: dict[str, Tensor] | None = None) -> None:
        """Convert half-precision running statistics to float32 in place.

        Arguments:
            before: the statistics by name, as they were before a conversion to half precision rounded them.
        """
        for name in _STATISTICS:
            narrow = getattr(self, name)
            if narrow is not None and narrow.dtype in (torch.float16, torch.bfloat16):
                source = before[name] if before else narrow
                setattr(self, name, source.to(narrow.device, torch.float32))


class BatchNorm1d(FusedBatchNorm, nn.BatchNorm1d):
    """Normalize vectors (N, C) or sequences (N, C, L), one mean and variance per channel.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> layer = bn.BatchNorm1d(1)
        >>> layer(torch.tensor([[0.0], [2.0], [4.0], [6.0]])).detach()
        tensor([[-1.3416],
                [-0.4472],
                [ 0.4472],
                [ 1.3416]])
    """


class BatchNorm2d(FusedBatchNorm, nn.BatchNorm2d):
    """Normalize feature maps (N, C, H, W), one mean, variance, gamma and beta per map (Sec. 3.2).

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> layer = bn.BatchNorm2d(64, activation="relu")
        >>> layer(torch.randn(8, 64, 14, 14)).shape
        torch.Size([8, 64, 14, 14])
        >>> layer.num_batches_tracked
        tensor(1)
    """


class BatchNorm3d(FusedBatchNorm, nn.BatchNorm3d):
    """Normalize volumes (N, C, D, H, W), one mean and variance per channel.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> layer = bn.BatchNorm3d(16).eval()
        >>> layer(torch.zeros(2, 16, 4, 8, 8)).shape
        torch.Size([2, 16, 4, 8, 8])
    """


# help() of a layer shows its own text, then the text that all layers share.
for _layer in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
    _layer.__doc__ = f"{inspect.getdoc(_layer)}\n\n{inspect.getdoc(FusedBatchNorm)}"
