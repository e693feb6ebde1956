"""Test fusing. The oracle is the given network itself, in eval mode and through steps of training."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import Call
from torch import nn

import batchnorm as bn

IMAGE = (4, 3, 6, 6)
# float32 sums in another order, through three steps of training
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


class BatchNormAct(nn.BatchNorm2d):
    """A subclass that applies an activation, as timm's BatchNormAct2d does. With `scale` it does more."""

    def __init__(self, channels, act, scale=1.0):
        super().__init__(channels)
        self.drop: nn.Module = nn.Identity()
        self.act, self.scale = act, scale

    def forward(self, input):
        torch._assert(input.ndim == 4, "4D wanted")
        if self.training:
            self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        running = (self.running_mean, self.running_var, self.weight, self.bias)
        x = input if self.scale == 1.0 else input * self.scale
        y = F.batch_norm(x, *running, self.training, self.momentum or 0.0, self.eps)
        return self.act(self.drop(y))


def trained(model, x, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model


def activations(result):
    return [row.activation for row in result.rows]


FUSED = {
    "nn.ReLU": (lambda layers, x: layers["act"](layers["norm"](x)), nn.ReLU(), "relu"),
    "in place": (lambda layers, x: layers["act"](layers["norm"](x)), nn.ReLU(inplace=True), "relu"),
    "F.relu": (lambda layers, x: F.relu(layers["norm"](x)), nn.Identity(), "relu"),
    "torch.relu": (lambda layers, x: torch.relu(layers["norm"](x)), nn.Identity(), "relu"),
    "method": (lambda layers, x: layers["norm"](x).relu_(), nn.Identity(), "relu"),
    "leaky layer": (lambda layers, x: layers["act"](layers["norm"](x)), nn.LeakyReLU(0.3), "leaky_relu"),
    "leaky function": (lambda layers, x: F.leaky_relu(layers["norm"](x), 0.3), nn.Identity(), "leaky_relu"),
    "behind an Identity": (
        lambda layers, x: F.relu(layers["act"](layers["act"](layers["norm"](x)))),
        nn.Identity(),
        "relu",
    ),
    "sigmoid": (lambda layers, x: torch.sigmoid(layers["norm"](x)), nn.Identity(), "sigmoid"),
    "nn.ReLU6": (lambda layers, x: layers["act"](layers["norm"](x)), nn.ReLU6(inplace=True), "relu6"),
    "nn.SiLU": (lambda layers, x: layers["act"](layers["norm"](x)), nn.SiLU(inplace=True), "silu"),
    "F.silu": (lambda layers, x: F.silu(layers["norm"](x)), nn.Identity(), "silu"),
    "nn.Hardswish": (lambda layers, x: layers["act"](layers["norm"](x)), nn.Hardswish(), "hardswish"),
    "nn.GELU": (lambda layers, x: layers["act"](layers["norm"](x)), nn.GELU(), "gelu"),
    "nn.GELU tanh": (lambda layers, x: layers["act"](layers["norm"](x)), nn.GELU("tanh"), "gelu_tanh"),
    "F.gelu tanh": (lambda layers, x: F.gelu(layers["norm"](x), approximate="tanh"), nn.Identity(), "gelu_tanh"),
}


@pytest.mark.parametrize("case", FUSED)
def test_the_fused_network_computes_and_trains_the_same(case):
    forward, act, activation = FUSED[case]
    torch.manual_seed(0)
    model, x = (
        Call(
            lambda layers, x: forward(layers, layers["conv"](x)),
            conv=nn.Conv2d(3, 5, 3),
            norm=nn.BatchNorm2d(5),
            act=act,
        ),
        torch.randn(IMAGE),
    )
    result = bn.fuse(model, x)
    assert activations(result) == [activation]
    assert isinstance(result.model.get_submodule("layers.norm"), bn.BatchNorm2d)
    before, after = trained(copy.deepcopy(model), x), trained(result.model, x)
    for name, value in before.state_dict().items():
        close(after.state_dict()[name], value)
    close(after.eval()(x), before.eval()(x))


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d(3), (5, 3)), (nn.BatchNorm3d(3), (2, 3, 2, 2, 2))])
def test_every_rank_is_fused(layer, shape):
    result = bn.fuse(nn.Sequential(layer, nn.ReLU()), torch.randn(shape))
    assert activations(result) == ["relu"]


def test_one_relu_shared_by_all_fuses_where_it_follows_a_batch_norm():
    def forward(layers, x):
        y = layers["relu"](layers["a"](x))
        return layers["relu"](layers["b"](y) + x)

    model = Call(forward, a=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3), relu=nn.ReLU())
    x = torch.randn(IMAGE)
    result = bn.fuse(model, x)
    assert activations(result) == ["relu", "relu"]
    assert [row.residual for row in result.rows] == [False, True]
    close(result.model(x), model(x))


@pytest.mark.parametrize(("act", "activation"), [(nn.ReLU(inplace=True), "relu"), (nn.LeakyReLU(0.2), "leaky_relu")])
def test_a_subclass_that_holds_its_activation_is_fused(act, activation):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), BatchNormAct(5, act)), torch.randn(IMAGE)
    result = bn.fuse(model, x)
    assert activations(result) == [activation], result
    before, after = trained(copy.deepcopy(model), x), trained(result.model, x)
    close(after.eval()(x), before.eval()(x))
    assert after.state_dict()["1.num_batches_tracked"] == 3


@pytest.mark.parametrize("act", [nn.Mish(), nn.PReLU(5), torch.tanh])
def test_of_a_subclass_with_an_unknown_activation_the_batch_norm_is_swapped(act):
    torch.manual_seed(0)
    layer = BatchNormAct(5, act if isinstance(act, nn.Module) else nn.Identity())
    if not isinstance(act, nn.Module):
        layer.drop = Call(lambda _, x: act(x))
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), layer, nn.ReLU()), torch.randn(IMAGE)
    result = bn.fuse(model, x)
    (row,) = result.rows
    assert (row.outcome, row.activation) == ("swapped", None)
    assert row.reason == f"{type(act).__name__ if isinstance(act, nn.Module) else 'tanh'} follows it"
    assert type(result.model.get_submodule("1")) is bn.BatchNorm2d
    assert list(result.model.state_dict()) == list(model.state_dict())
    before, after = trained(copy.deepcopy(model), x), trained(result.model, x)
    for name, value in before.state_dict().items():
        close(after.state_dict()[name], value)
    close(after.eval()(x), before.eval()(x))


class ByBatch(nn.BatchNorm2d):
    """A subclass that is a plain BN in training only."""

    def forward(self, input):
        running = (None, None) if not self.training else (self.running_mean, self.running_var)
        if self.training:
            self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        return F.batch_norm(input, *running, self.weight, self.bias, True, 0.1, self.eps)


class Twice(bn.BatchNorm2d):
    def forward(self, input, residual=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * super().forward(input, residual)


def hooked(register):
    layer = nn.BatchNorm2d(3)
    getattr(layer, register)(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (BatchNormAct(3, nn.RReLU()), "BatchNormAct does more than BN"),
        (BatchNormAct(3, nn.ReLU(), scale=2.0), "does more than BN"),
        (ByBatch(3), "ByBatch does more than BN"),
        (Twice(3), "Twice is a subclass of the fused layer already"),
        (nn.SyncBatchNorm(3), "no fused counterpart"),
        (bn.BatchNorm2d(3, activation="relu"), "fused with relu already"),
        (hooked("register_forward_hook"), "it has hooks"),
        (hooked("register_full_backward_hook"), "it has hooks"),
        (hooked("register_full_backward_pre_hook"), "it has hooks"),
    ],
)
def test_what_is_kept_has_its_reason(layer, reason):
    model, x = nn.Sequential(layer, nn.ReLU()).eval(), torch.randn(IMAGE)
    result = bn.fuse(model, x)
    assert [(row.activation, row.outcome) for row in result.rows] == [(None, "kept")], result
    assert reason in result.rows[0].reason
    assert type(result.model.get_submodule("0")) is type(layer)
    close(result.model(x), model(x))


SWAPPED = {
    "before a product": (lambda layers, x: F.relu(layers["norm"](x) * x), "mul follows it"),
    "last": (lambda layers, x: layers["norm"](x), "output follows it"),
    "read twice": (lambda layers, x: (lambda y: F.relu(y) + y)(layers["norm"](x)), "used more than once"),
    "called twice": (lambda layers, x: layers["norm"](F.relu(layers["norm"](x))), "output follows it"),
    "followed by two": (lambda layers, x: layers["norm"](x).relu() + layers["norm"](x).sigmoid(), "by different"),
    "plus a number": (lambda layers, x: F.relu(layers["norm"](x) + 1), "a sum of something else than two tensors"),
    "plus twice x": (lambda layers, x: torch.add(layers["norm"](x), x, alpha=2), "something else than two tensors"),
    "plus itself": (lambda layers, x: (lambda y: y + y)(layers["norm"](x)), "added to itself"),
    "plus a mean": (lambda layers, x: layers["norm"](x) + x.mean((2, 3), keepdim=True), "another shape or dtype"),
    "into another": (lambda layers, x: (lambda z: z.add_(layers["norm"](x)) + z)(x.sin()), "changes a tensor in place"),
}


@pytest.mark.parametrize("case", SWAPPED)
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(3, momentum=None), bn.BatchNorm2d(3), BatchNormAct(3, nn.Identity())], ids=lambda n: type(n)
)
def test_a_batch_norm_without_an_activation_is_swapped(case, norm):
    forward, reason = SWAPPED[case]
    torch.manual_seed(0)
    model = Call(lambda layers, x: forward(layers, layers["conv"](x)), conv=nn.Conv2d(3, 3, 1), norm=norm)
    x = torch.randn(IMAGE)
    result = bn.fuse(model, x)
    (row,) = result.rows
    assert (row.activation, row.outcome) == (None, "swapped")
    assert reason in row.reason
    layer = result.model.get_submodule("layers.norm")
    assert type(layer) is bn.BatchNorm2d
    assert layer.activation is None
    before, after = trained(copy.deepcopy(model), x), trained(result.model, x)
    assert list(after.state_dict()) == list(before.state_dict())
    for name, value in before.state_dict().items():
        close(after.state_dict()[name], value)
    close(after.eval()(x), before.eval()(x))


CHANGES = {
    "itself": lambda layers, x: layers["norm"](x) + x.relu_(),
    "by a view": lambda layers, x: layers["norm"](x) + x.view(4, -1).relu_().view(IMAGE),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_sum_is_left_if_the_input_changes_before_it(case):
    model = Call(lambda layers, x: CHANGES[case](layers, x.sin()), norm=nn.BatchNorm2d(3)).eval()
    x = torch.randn(IMAGE)
    result = bn.fuse(model, x)
    assert result.rows[0].reason == "its input is changed in place before the sum that follows it"
    close(result.model(x), model(x))


def test_the_order_of_the_calls_of_one_layer_stays():
    def forward(layers, x):
        first = layers["norm"](x)
        return first + layers["norm"](2 * x)

    model, x = Call(forward, norm=nn.BatchNorm2d(3)), torch.randn(IMAGE)
    fused, wanted = bn.fuse(model, x).model.train(), copy.deepcopy(model).train()
    close(fused(x), wanted(x))
    close(fused.state_dict(), wanted.state_dict())  # the running statistics too


SUMS = {
    "norm + x": lambda layers, x: layers["norm"](x) + x,
    "x + norm": lambda layers, x: x + layers["norm"](x),
    "behind Identity": lambda layers, x: layers["identity"](layers["norm"](x)) + x,
    "torch.add": lambda layers, x: torch.add(x, layers["norm"](x)),
    "in place": lambda layers, x: layers["norm"](x).add_(x),
    "into the last reader": lambda layers, x: x.sin().add_(layers["norm"](x)),
    "residual later": lambda layers, x: (lambda y: y + layers["more"](x))(layers["norm"](x)),
    "called twice": lambda layers, x: layers["norm"](layers["norm"](x) + x) + x,
    "two meet": lambda layers, x: layers["norm"](x) + layers["other"](layers["more"](x)),
}


@pytest.mark.parametrize("case", SUMS)
@pytest.mark.parametrize("act", [None, F.relu, F.silu, torch.tanh])
def test_a_sum_and_its_activation_are_fused(case, act):
    torch.manual_seed(0)

    def forward(layers, x):
        y = SUMS[case](layers, layers["conv"](x))
        return y if act is None else act(y)

    norms = {"norm": nn.BatchNorm2d(3), **({"other": nn.BatchNorm2d(3)} if case == "two meet" else {})}
    layers = {"conv": nn.Conv2d(3, 3, 1), "more": nn.Conv2d(3, 3, 1), "identity": nn.Identity(), **norms}
    model, x = Call(forward, **layers).double(), torch.randn(IMAGE, dtype=torch.float64)
    result = bn.fuse(model, x)
    row = result.rows[-1]
    known = act in (F.relu, F.silu) and case != "called twice"  # behind one of the two calls there is none
    assert (row.outcome, row.residual, row.activation is not None) == ("fused", True, known)
    if case == "two meet":
        assert (result.rows[0].outcome, result.rows[0].reason) == ("swapped", "layers.other adds it")
    if case != "called twice":
        assert row.reason == ("" if known else f"of the sum, {'tanh' if act else 'output'} follows it")
    before, after = trained(copy.deepcopy(model), x, 1), trained(result.model, x, 1)
    # float64, where torch's operations compute both
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after.eval()(x), before.eval()(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, partial(BatchNormAct, act=nn.Identity())])
def test_a_sum_that_is_read_twice_is_fused_without_its_activation(norm):
    def forward(layers, x):  # a network with pre-activation: the sum itself goes on
        y = layers["norm"](x) + x
        return F.relu(y) + y

    (row,) = bn.fuse(Call(forward, norm=norm(3)), torch.randn(IMAGE)).rows
    assert (row.outcome, row.residual, row.activation) == ("fused", True, None)
    assert row.reason == "of the sum, its output is used more than once"


def test_of_a_residual_network_all_is_fused_but_the_projections():
    model = pytest.importorskip("torchvision").models.resnet18(weights=None)
    result = bn.fuse(model, torch.randn(1, 3, 64, 64))
    assert str(result).endswith("\n17 fused, 3 swapped, 0 kept")
    assert all(row.activation == "relu" for row in result.rows if row.outcome == "fused")
    norms = [layer for layer in result.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [type(layer) for layer in norms] == [bn.BatchNorm2d] * 20


def test_an_output_read_twice_is_not_fused():
    twice = Call(lambda layers, x: (lambda y: F.relu(y) + y)(layers["norm"](x)), norm=nn.BatchNorm2d(3))
    assert "used more than once" in bn.fuse(twice, torch.randn(IMAGE)).rows[0].reason


def test_keys_order_modes_and_the_given_model_stay():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(), nn.BatchNorm2d(5))
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    fused = bn.fuse(model, torch.randn(IMAGE)).model
    assert [(name, v.shape) for name, v in fused.state_dict().items()] == [(n, v.shape) for n, v in state.items()]
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert (fused.training, fused.get_submodule("1").training, fused.get_submodule("3").training) == (True, False, True)
    assert type(model[1]) is nn.BatchNorm2d
    for parameter in fused.parameters():
        parameter.data.zero_()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_narrow_network_keeps_its_statistics_in_float32_from_here_on(dtype):
    x = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 100
    fused = bn.fuse(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).to(dtype), x.to(dtype)).model.train()
    for _ in range(200):
        fused(x.to(dtype))
    mean = dict(fused.named_buffers())["0.running_mean"]
    assert mean.dtype == torch.float32
    assert (mean - 100).abs().max() < 0.1  # in bfloat16 it would stick at 96


@pytest.mark.parametrize("half", ["statistics", "affine"])
def test_what_is_frozen_stays_frozen(half):
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), torch.randn(IMAGE)
    bn.freeze(model, **{other: other == half for other in ("statistics", "affine")})
    result = bn.fuse(model, x)
    assert "it is frozen" in result.rows[0].reason
    bn.unfreeze(result.model)
    assert result.model.get_parameter("1.weight").requires_grad
    assert result.model.get_submodule("1").training


def test_a_hook_on_the_identity_between_keeps_the_two_apart():
    model, x = nn.Sequential(nn.BatchNorm2d(3), nn.Identity(), nn.ReLU()), torch.randn(IMAGE)
    model[1].register_forward_hook(lambda _, __, output: -output)
    result = bn.fuse(model, x)
    assert result.rows[0].reason == "Identity follows it"
    close(result.model(x), model(x))


NETWORKS = {"maxvit_t": 23, "timm/mobilevit_xxs": 25, "timm/efficientvit_m0": 23}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_known_networks_whose_way_depends_on_sizes(name):
    torch.manual_seed(0)
    if name.startswith("timm/"):
        model = pytest.importorskip("timm").create_model(name.removeprefix("timm/"))
    else:
        model = pytest.importorskip("torchvision").models.get_model(name, weights=None)
    size = 64 if "mobilevit" in name else 224
    result, x = bn.fuse(model, torch.randn(1, 3, size, size)), torch.randn(2, 3, size, size)
    assert sum(row.activation is not None for row in result.rows) == NETWORKS[name]
    with torch.no_grad():
        close(result.model.eval()(x), model.eval()(x))


def test_a_fused_network_folds():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()), torch.randn(IMAGE)
    fused = trained(bn.fuse(model, x).model, x).eval()
    folded = bn.fold(fused, x)
    assert folded.folded == 1
    close(folded.model(x), fused(x))


def test_the_result_prints_as_a_table():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Tanh(), nn.SyncBatchNorm(3)).eval()
    result = bn.fuse(model, torch.randn(IMAGE))
    lines = str(result).splitlines()
    assert [row.outcome for row in result.rows] == ["fused", "swapped", "kept"]
    assert (result.fused, result.swapped, result.kept) == (1, 1, 1)
    assert lines[0].split() == ["name", "outcome", "residual", "activation", "reason"]
    assert lines[2].split() == ["0", "fused", "relu"]
    assert lines[3].split() == ["2", "swapped", "Tanh", "follows", "it"]
    assert lines[4].split() == ["4", "kept", "SyncBatchNorm", "has", "no", "fused", "counterpart"]
    assert lines[5] == "1 fused, 1 swapped, 1 kept"


BLOCKS = st.lists(
    st.sampled_from(["relu", "leaky", "sigmoid", "tanh", "none", "skip", "twice"]), min_size=1, max_size=5
)


class Blocks(nn.Module):
    """Blocks of a convolution, BN and what `kinds` says. In "twice" a sum uses the output of BN too."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in kinds)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in kinds)

    def forward(self, x):
        after = {"leaky": lambda y: F.leaky_relu(y, 0.2), "sigmoid": torch.sigmoid, "tanh": torch.tanh}
        for kind, conv, norm in zip(self.kinds, self.convs, self.norms, strict=True):
            y = norm(conv(x))
            if kind in ("relu", "skip", "twice"):
                x = F.relu(y) + (x if kind == "skip" else y if kind == "twice" else 0)
            else:
                x = after[kind](y) if kind in after else y
        return x


@given(BLOCKS, st.integers(0, 2**31))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_small_network_keeps_its_function_and_trains_the_same(kinds, seed):
    torch.manual_seed(seed)
    model, x = Blocks(kinds).double().train(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    result = bn.fuse(model, x)
    fusable = {"relu": "relu", "skip": "relu", "leaky": "leaky_relu", "sigmoid": "sigmoid"}
    assert activations(result) == [fusable.get(kind) for kind in kinds]
    plain, fused = trained(copy.deepcopy(model), x), trained(result.model, x)
    # float64 sums in another order differ in their last digits, and three steps of training add to that
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [bn.BatchNorm1d, nn.BatchNorm1d])
def test_a_network_fused_within_a_block_has_no_part_in_it(kind):
    model, x = nn.Sequential(kind(3), nn.ReLU()), torch.randn(3, 3)
    with bn.masked(model, mask=torch.tensor([True, True, False])):
        result = bn.fuse(model, x)
        z = result.model.train()(x)
    assert [row.outcome for row in result.rows] == ["fused"]
    torch.testing.assert_close(z, model.train()(x))


def test_a_layer_with_virtual_batches_is_kept():
    (row,) = bn.fuse(nn.Sequential(bn.BatchNorm1d(3, virtual_batch_size=2)), torch.randn(4, 3)).rows
    assert (row.outcome, row.reason) == ("kept", "it takes its statistics in another way")


class Embedded(nn.Module):
    """Add an embedding of the places to a normalization, as timm's visformer does, through a layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.layer = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Identity()
        self.places = nn.Parameter(torch.randn(1, 3, *IMAGE[2:]))

    def forward(self, x):
        return self.norm(self.conv(x)) + torch.sin(self.layer(self.places))


def test_a_parameter_of_the_shape_of_one_example_is_no_residual():
    torch.manual_seed(0)
    model = Embedded().eval()
    result = bn.fuse(model, torch.randn(1, *IMAGE[1:]))
    assert (result.rows[0].outcome, result.rows[0].residual) == ("swapped", False)
    assert result.rows[0].reason == "a sum with a constant follows it"
    x = torch.randn(5, *IMAGE[1:])
    close(result.model(x), model(x))
