"""The Inception network of Fig. 5, with and without batch normalization, at full size and small."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from ...errors import BatchNormError
from ...kernels.activation import Activation
from ...layers import BatchNorm1d, BatchNorm2d


@dataclass(frozen=True)
class Widths:
    """The widths of the four branches of one module of Fig. 5. A `projection` of 0 is "pass through", at stride 2."""

    name: str
    one: int
    three_reduce: int
    three: int
    double_reduce: int
    double: int
    pool: str
    projection: int


#            1x1  3x3 red. 3x3  dbl red. dbl 3x3  pool  proj.
TABLE = (
    Widths("3a", 64, 64, 64, 64, 96, "avg", 32),
    Widths("3b", 64, 64, 96, 64, 96, "avg", 64),
    Widths("3c", 0, 128, 160, 64, 96, "max", 0),
    Widths("4a", 224, 64, 96, 96, 128, "avg", 128),
    Widths("4b", 192, 96, 128, 96, 128, "avg", 128),
    Widths("4c", 160, 128, 160, 128, 160, "avg", 96),  # The paper prints 128, which does not add up to its 576.
    Widths("4d", 96, 128, 192, 160, 192, "avg", 96),  # The same.
    Widths("4e", 0, 128, 192, 192, 256, "max", 0),
    Widths("5a", 352, 192, 320, 160, 224, "avg", 128),
    Widths("5b", 352, 192, 320, 192, 224, "max", 128),
)
MODULES = tuple(row.name for row in TABLE)
SMALL = ("3c", "4a", "4e", "5b")  # For small images: one module a resolution, and both reductions.
STEM = (64, 64, 192)
DEPTH_MULTIPLIER = 8
LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0}  # From GoogLeNet's Caffe release. The paper states none.


class Inception(nn.Module):
    """The network of Fig. 5: (N, channels, H, W) -> logits (N, classes).

    Every convolution computes z = g(Wu + b), or with `batch_norm` z = g(BN(Wu)) (Sec. 3.2). The printed table
    contradicts itself at 4c and 4d. This is the reading that fits every stated output size: 11,188,288 parameters with
    BN at full size. (No reading has the 13.6 million parameters that the paper states.)

    Arguments:
        classes: number of classes.
        batch_norm: put BN before every nonlinearity. The convolutions then have no bias.
        activation: "relu" or "sigmoid".
        lrn: local response normalization after the first pool and before the second, as in GoogLeNet.
        dropout: probability of Dropout before the classifier.
        init_scale: factor on the convolutions' initial weights, which are Gaussian with variance 2 / fan-in at 1.
        per_activation: modules whose BN has a gamma and beta per activation, not per feature map (Sec. 4.2.3's
            "non-convolutional"). The network then takes images of `size` alone.
        channels: channels of the images.
        size: side of the images. At 64 and above the stem is Fig. 5's 7x7/2 convolution with both pools. Below, for
            images of 28x28 or 32x32, it is one 3x3 convolution at full resolution.
        width: factor on every number of feature maps.
        modules: rows of Fig. 5, in order.

    Raises:
        BatchNormError: a module or activation is unknown, a module comes twice, or the width leaves a layer without
            feature maps.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        batch_norm: bool = False,
        activation: Activation = "relu",
        lrn: bool = False,
        dropout: float = 0.0,
        init_scale: float = 1.0,
        per_activation: tuple[str, ...] = (),
        channels: int = 3,
        size: int = 224,
        width: float = 1.0,
        modules: tuple[str, ...] = MODULES,
    ) -> None:
        super().__init__()
        rows = _widths(modules, width)
        _check_known("per_activation", per_activation, modules)
        _check_known("activation", (activation,), ("relu", "sigmoid"))
        block = _Block(batch_norm, activation)
        self.stem, maps, size = _stem(block, channels, size, width, lrn)
        self.inception = nn.ModuleDict()
        for row in rows:
            module = Module(maps, row, _Block(batch_norm, activation, size if row.name in per_activation else None))
            self.inception[row.name] = module
            maps, size = module.maps, module.size(size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(maps, classes)
        _initialize(self, init_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        x = self.stem(images)
        for module in self.inception.values():
            x = module(x)
        return self.classifier(self.dropout(x.mean((2, 3))))


class Module(nn.Module):
    """One row of the table: four concatenated branches. At stride 2 there is no 1x1, and the pool passes through."""

    def __init__(self, inputs: int, row: Widths, block: _Block) -> None:
        super().__init__()
        self.stride = 1 if row.projection else 2
        # The branches' last convolutions put out the reduced map, the others a map of the input's size.
        reduced = block.at_stride(self.stride)
        branches: list[nn.Module] = [
            nn.Sequential(block(inputs, row.three_reduce, 1), reduced(row.three_reduce, row.three, 3, self.stride)),
            nn.Sequential(
                block(inputs, row.double_reduce, 1),
                block(row.double_reduce, row.double, 3),
                reduced(row.double, row.double, 3, self.stride),
            ),
        ]
        average = nn.AvgPool2d(3, self.stride, padding=1, count_include_pad=False)
        pool = average if row.pool == "avg" else nn.MaxPool2d(3, self.stride, padding=1)
        branches.append(nn.Sequential(pool, block(inputs, row.projection, 1)) if row.projection else pool)
        if row.one:
            branches.insert(0, block(inputs, row.one, 1))
        self.branches = nn.ModuleList(branches)
        self.maps = row.one + row.three + row.double + (row.projection or inputs)

    def size(self, size: int) -> int:
        """Return the side of the output maps, for input maps of side `size`."""
        return -(-size // self.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches: (N, inputs, H, W) -> (N, maps, H', W')."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class PerActivation(nn.Module):
    """BN with a gamma and beta per activation, not per feature map: it normalizes each of C*H*W over N (Sec. 3.1)."""

    def __init__(self, maps: int, side: int, activation: Activation | None) -> None:
        super().__init__()
        self.norm = BatchNorm1d(maps * side**2, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return self.norm(x.flatten(1)).view(x.shape)


@dataclass(frozen=True)
class _Block:
    """Makes blocks of a convolution, BN if asked for, and the nonlinearity. With a `side`, BN is per activation."""

    batch_norm: bool
    activation: Activation
    side: int | None = None

    def __call__(self, inputs: int, maps: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, maps, kernel, stride, kernel // 2, bias=not self.batch_norm)
        return nn.Sequential(convolution, *self.nonlinearity(maps))

    def nonlinearity(self, maps: int) -> list[nn.Module]:
        if not self.batch_norm:
            return [nn.ReLU(inplace=True) if self.activation == "relu" else nn.Sigmoid()]
        if self.side is not None:
            return [PerActivation(maps, self.side, self.activation)]
        return [BatchNorm2d(maps, activation=self.activation)]

    def at_stride(self, stride: int) -> _Block:
        side = None if self.side is None else -(-self.side // stride)
        return _Block(self.batch_norm, self.activation, side)


def _stem(block: _Block, channels: int, size: int, width: float, lrn: bool) -> tuple[nn.Sequential, int, int]:
    """Return the layers before 3a, the number of maps that they put out, and the side of the maps."""
    first, reduce, second = (_scaled(maps, width) for maps in STEM)
    if size < 64:
        return block(channels, second, 3), second, size
    between = DEPTH_MULTIPLIER * channels
    layers = [
        nn.Conv2d(channels, between, 7, 2, 3, groups=channels, bias=False),  # Separable: by channel, then 1x1.
        block(between, first, 1),
        nn.MaxPool2d(3, 2, padding=1),
        *([nn.LocalResponseNorm(**LRN)] if lrn else []),
        block(first, reduce, 1),
        block(reduce, second, 3),
        *([nn.LocalResponseNorm(**LRN)] if lrn else []),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for _ in range(3):
        size = -(-size // 2)
    return nn.Sequential(*layers), second, size


def _widths(modules: tuple[str, ...], width: float) -> list[Widths]:
    _check_known("modules", modules, MODULES)
    if len(set(modules)) < len(modules):
        raise BatchNormError(f"modules: each at most once; got {' '.join(modules)}")
    table = {row.name: row for row in TABLE}
    return [_scaled_widths(table[name], width) for name in modules]


def _scaled_widths(row: Widths, width: float) -> Widths:
    widths = {name: _scaled(value, width) for name, value in vars(row).items() if isinstance(value, int)}
    return replace(row, **widths)


def _scaled(maps: int, width: float) -> int:
    scaled = round(maps * width)
    if maps and scaled < 1:
        raise BatchNormError(f"width {width} leaves a layer of {maps} maps without any; wanted at least {1 / 32}")
    return scaled


def _check_known(what: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise BatchNormError(f"{what}: {name!r} is not one of {', '.join(known)}")


def _initialize(network: nn.Module, scale: float) -> None:
    """Draw Gaussian weights that keep the variance in a ReLU network; set biases to 0. The paper states neither."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = scale * 2**0.5 if isinstance(layer, nn.Conv2d) else 1.0
            nn.init.normal_(layer.weight, std=gain * prod(layer.weight.shape[1:]) ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
