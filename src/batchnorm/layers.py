"""`BatchNorm1d`, `2d`, `3d`: parameters, buffers, train and eval around `functional`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from . import functional
from .functional import Activation

if TYPE_CHECKING:
    from typing_extensions import Self

_STATISTICS = ("running_mean", "running_var")


class _FusedBatchNorm(_BatchNorm):
    """Batch normalization over axis 1, fused with the nonlinearity that follows it: z = g(BN(x)) (Sec. 3.2).

    y = weight * (x - mean) / sqrt(var + eps) + bias.

    A drop-in for torch's layer of the same name: a subclass of it, with the same `state_dict` both ways. It differs
    where torch's loses something:

    - running statistics stay float32 in a `.half()` or `.bfloat16()` network (torch's bfloat16 mean sticks at 96
      where the truth is 100);
    - a batch whose mean or variance is not finite leaves the running statistics and `num_batches_tracked` as they
      were, with one warning a layer in eager mode on the CPU (elsewhere silently: a device would have to wait);
    - `momentum=None`, the cumulative average, works under `torch.compile(fullgraph=True)`.

    Training: normalises by the batch's mean and biased variance; the running statistics move by `momentum` towards
    its mean and unbiased variance. Eval: normalises by the running statistics, or by the batch's own if
    `track_running_stats=False`.

    Torch's tools that take any batch norm for an affine map, such as `SyncBatchNorm.convert_sync_batchnorm` and
    `torch.nn.utils.fusion`, don't know of `activation` and drop it: use them on layers with `activation=None`.

    Arguments:
        num_features: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        momentum: weight of the *new* batch in the running statistics (1 minus Caffe's and Keras's); None averages
            all batches equally.
        affine: learn gamma (`weight`) and beta (`bias`), (C,) each.
        track_running_stats: keep `running_mean`, `running_var` and `num_batches_tracked`.
        activation: None, "relu", "leaky_relu" or "sigmoid".
        negative_slope: of the leaky ReLU.
        device, dtype: of parameters and buffers, as in torch; statistics are float32 at least.
        **torch_options: what newer torch layers take besides, such as `bias=False`.

    Raises:
        BatchNormError: an unknown activation; in training, a batch with one value per channel.
    """

    activation: Activation | None = None
    negative_slope: float = 0.01
    _warned = False

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
        **torch_options: Any,
    ) -> None:
        functional.check_activation(activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **torch_options)
        self.activation = activation
        self.negative_slope = negative_slope
        self._widen_statistics()

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):  # torch.fx takes layers of torch's own modules as leaves, and only those
            tracer = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
        self._check_input_dim(input)
        running_mean, running_var = self.running_mean, self.running_var
        fused = (self.weight, self.bias, self.eps, self.activation, self.negative_slope)
        tracks = self.training and self.track_running_stats and input.numel() > 0
        if tracks and running_mean is not None and running_var is not None:
            z, finite = functional.normalize_and_track(
                input, running_mean, running_var, self._momentum(), *fused, self.num_batches_tracked
            )
            if finite is False:
                self._warn()
            return z
        if self.training or running_mean is None or running_var is None:
            functional.check_running(input, running_mean, running_var)
            return functional.normalize_by_batch(input, *fused)[0]
        return functional.normalize(input, running_mean, running_var, *fused)

    def track(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, (C,) each, and count the batch."""
        running_mean, running_var = self.running_mean, self.running_var
        if running_mean is not None and running_var is not None:
            statistics = (running_mean, running_var, mean, var)
            if functional.update_running(*statistics, self._momentum(), self.num_batches_tracked) is False:
                self._warn()

    def _momentum(self) -> float | Tensor:
        if self.momentum is not None:
            return self.momentum
        mean, count = self.running_mean, self.num_batches_tracked
        return 0.0 if mean is None or count is None else (count + 1).to(mean.dtype).reciprocal()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self}: a batch whose mean or variance is not finite was left out of the running statistics. "
                "Look for inf or NaN in the data or in the layers before. This layer warns once.",
                RuntimeWarning,
                stacklevel=5,
            )

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name in _STATISTICS if (buffer := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        self._widen_statistics(before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._widen_statistics()  # assign=True puts the checkpoint's own, perhaps narrow, tensors here

    def _widen_statistics(self, before: dict[str, Tensor] | None = None) -> None:
        """Bring statistics narrower than float32 back to it, from their values `before` they were narrowed if known."""
        for name in _STATISTICS:
            narrow = getattr(self, name)
            if narrow is not None and narrow.dtype in (torch.float16, torch.bfloat16):
                source = before[name] if before else narrow
                setattr(self, name, source.to(narrow.device, torch.float32))


class BatchNorm1d(_FusedBatchNorm, nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L)."""


class BatchNorm2d(_FusedBatchNorm, nn.BatchNorm2d):
    """Batch normalization of feature maps, (N, C, H, W): one mean, variance, gamma and beta per map (Sec. 3.2)."""


class BatchNorm3d(_FusedBatchNorm, nn.BatchNorm3d):
    """Batch normalization of volumes, (N, C, D, H, W)."""


for _layer in (BatchNorm1d, BatchNorm2d, BatchNorm3d):
    _layer.__doc__ = f"{_layer.__doc__}\n\n{_FusedBatchNorm.__doc__}"
