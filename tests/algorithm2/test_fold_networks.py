"""Fold whole networks: random small ones, and those of torchvision and timm. The oracle is the network in float64."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.folding import ROUNDED, difference, error, norms, randomized
from support.slow import slow
from torch import nn

import batchnorm as bn

# Random small networks


@st.composite
def networks(draw):
    """Draw a chain of blocks on 4 maps: convolutions, norms, activations, sums, concatenations, some layers shared."""
    kinds = ["conv", "grouped", "transposed", "norm", "relu", "pool", "dropout", "sum", "cat", "shared", "scaled"]
    return draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8)), draw(st.integers(0, 1000))


class Chain(nn.Module):
    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        make = {
            "conv": lambda: nn.Conv2d(4, 4, 3),
            "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
            "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
            "norm": lambda: nn.BatchNorm2d(4),
            "relu": nn.ReLU,
            "pool": lambda: nn.AvgPool2d(2, stride=1),
            "dropout": nn.Dropout,
            "sum": lambda: nn.Conv2d(4, 4, 1),
            "cat": lambda: nn.Conv2d(4, 4, 1),
        }
        self.parts = nn.ModuleList(make.get(kind, nn.Identity)() for kind in kinds)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 if kind == "cat" else 4) for kind in kinds)

    def forward(self, x):
        for kind, part, norm in zip(self.kinds, self.parts, self.norms, strict=True):
            if kind == "sum":
                x = norm(x) + part(x)
            elif kind == "cat":
                first, second = norm(torch.cat([part(x), x], 1)).chunk(2, 1)
                x = first * second.sigmoid()
            elif kind == "shared":
                x = norm(self.shared(x))
            elif kind == "scaled":
                x = norm(x * 0.5 + 1)
            else:
                x = part(x)
        return x


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks())
def test_folding_any_small_network_keeps_its_function(network):
    kinds, seed = network
    torch.manual_seed(seed)
    model, x = randomized(Chain(kinds), seed), torch.randn(2, 4, 24, 24)
    result = bn.fold(model, x)
    assert not norms(result.model)
    assert error(model, result.model, x) < 10 * ROUNDED  # eight layers, gammas near 0 among them


# Known networks

TORCHVISION = ["resnet18", "efficientnet_b0", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf"]
TIMM = ["levit_128s", "repvit_m0_9", "mobilenetv3_small_050", "ghostnet_050", "mobilevit_xxs", "tf_efficientnet_b0"]


def zoo_network(name):
    torch.manual_seed(0)
    if name in TIMM:
        timm = pytest.importorskip("timm")
        return randomized(timm.create_model(name)), 224 if name == "levit_128s" else 64
    torchvision = pytest.importorskip("torchvision")
    return randomized(torchvision.models.get_model(name, weights=None)), 64


@pytest.mark.parametrize("name", [*TORCHVISION, *slow(*TIMM)])
def test_a_known_network_folds_whole(name):
    model, size = zoo_network(name)
    result = bn.fold(model, torch.randn(1, 3, size, size), tolerance=1e-5)
    assert result.folded == len(result.rows) > 0, result


def through_onnx(model, x, path):
    """Return what ONNX Runtime computes for the exported model, and the stored file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own warnings
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(got), path.read_bytes()


@pytest.mark.parametrize(
    "name", ["resnet18", *slow("shufflenet_v2_x0_5", "mnasnet0_5", "mobilenetv3_small_050", "levit_128s")]
)
def test_onnx_runtime_computes_the_same(name, tmp_path):
    model, size = zoo_network(name)
    x = torch.randn(1, 3, size, size)
    got, stored = through_onnx(bn.fold(model, x).model, x, tmp_path / "folded.onnx")
    assert b"BatchNormalization" not in stored
    assert difference(got, model(x).detach()) < 1e-5  # float32 sums in another order


# ReLU and sums of two tensors; ReLU6; Hardswish and SiLU of timm's layers.
@pytest.mark.parametrize(
    ("name", "fold"),
    [
        ("resnet18", False),
        *slow(("mobilenet_v2", False), ("mobilenetv3_small_050", True), ("tf_efficientnet_b0", True)),
    ],
)
def test_fused_networks_are_plain_operations_in_onnx(name, fold, tmp_path):
    onnx = pytest.importorskip("onnx")
    model, size = zoo_network(name)
    x = torch.randn(1, 3, size, size)
    wanted = model(x).detach()
    fused = bn.fuse(model, x).model.eval()
    assert any(isinstance(layer, bn.BatchNorm2d) and layer.activation for layer in fused.modules())
    got, _ = through_onnx(bn.fold(fused, x).model if fold else fused, x, tmp_path / "network.onnx")
    assert {node.domain for node in onnx.load(tmp_path / "network.onnx").graph.node} == {""}  # ONNX's own operations
    assert difference(got, wanted) < 1e-5
