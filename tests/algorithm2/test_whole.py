"""Test the four steps of Algorithm 2 one after another, on random networks."""

import copy
import re

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from torch import nn

import batchnorm as bn

# The networks run in double: some tens of layers, each with rounding of 1e-16.
TOLERANCE = 1e-9


class RandomNetwork(nn.Module):
    """A network of the calls that `parts` names, with a linear end."""

    def __init__(self, parts, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.parts = parts
        self.layers = nn.ModuleList(self._layer(part, 8) for part in parts)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 6), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(6, 4))

    @staticmethod
    def _layer(part, c):
        match part:
            case "bn":
                return nn.BatchNorm2d(c)
            case "depthwise":
                return nn.Conv2d(c, c, 3, padding=1, groups=c)
            case "transposed":
                return nn.ConvTranspose2d(c, c, 3, padding=1)
            case "concatenate":
                return nn.ModuleList([nn.Conv2d(c, c // 2, 1), nn.Conv2d(c, c // 2, 3, padding=1, bias=False)])
            case "conv" | "shared" | "sum":
                return nn.Conv2d(c, c, 3, padding=1)
        return nn.Identity()

    def forward(self, x):
        x = self.stem(x)
        for part, layer in zip(self.parts, self.layers, strict=True):
            x = self._call(part, layer, x)
        return self.head(x)

    @staticmethod
    def _call(part, layer, x):
        match part:
            case "relu":
                return F.relu(x)
            case "tanh":
                return x.tanh()
            case "dropout":
                return F.dropout(x, 0.2, training=False)
            case "shared":
                return layer(torch.sigmoid(layer(x)))
            case "sum":
                return torch.relu(layer(x)) + x
            case "concatenate":
                left, right = layer
                return torch.cat([left(x).relu(), right(x)], 1)
        return layer(x)


PARTS = ["conv", "relu", "tanh", "bn", "depthwise", "transposed", "concatenate", "shared", "sum", "dropout"]
networks = st.builds(RandomNetwork, st.lists(st.sampled_from(PARTS), max_size=8), st.integers(0, 2**16))
quick = settings(max_examples=20, deadline=None, derandomize=True)


def images(seed, n=8):
    return torch.randn(n, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_random_statistics(model):
    """Change all tensors of the BN layers, as training does."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name in ("weight", "running_var"):
                nn.init.uniform_(module.state_dict()[name], 0.5, 2.0)
            for name in ("bias", "running_mean"):
                nn.init.normal_(module.state_dict()[name])
    return model


def assert_equal(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)


@quick
@given(networks)
def test_insert_with_batches_equals_the_old_network(network):
    network = with_random_statistics(network.double().eval())
    result = bn.insert(network, images(0), batches=[images(1), images(2, n=3)]).model
    assert_equal(result(images(3, n=5)), network(images(3, n=5)))


@quick
@given(networks)
def test_insert_train_recalibrate_fold_equals(network):
    model = bn.insert(network.double().train(), images(0), remove="dropout").model
    untrained = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images(step)), torch.arange(8) % 4).backward()
        optimizer.step()
    trained = copy.deepcopy(dict(model.named_parameters()))
    bn.recalibrate(model, [images(seed) for seed in range(4)])
    assert any(not torch.equal(p, untrained[name]) for name, p in trained.items())
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())

    folded = bn.fold(model, images(0)).model
    assert_equal(folded(images(9, n=3)), model.eval()(images(9, n=3)))
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())


def test_the_page_runs_and_prints_what_it_says(capsys):
    page = (ROOT / "docs" / "algorithm2.md").read_text()
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL)
    names = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "algorithm2.md", "exec"), names)
        else:
            table = block.partition("; relative error")[0]  # the error itself depends on the machine
            assert table in capsys.readouterr().out
    assert [kind for kind, _ in blocks].count("text") == 3
    assert ", 0 BN left" in capsys.readouterr().out
