"""Test insertion (Alg. 2, lines 1-5): where BN goes, what it computes, and that the rest of the network stays."""

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import batchnorm as bn

EPS = 1e-5


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normalized(x, axis=1):
    """Compute Algorithm 1 with gamma = 1 and beta = 0, in double."""
    x = x.detach().double()
    others = [d for d in range(x.dim()) if d != axis % x.dim()]
    return (x - x.mean(others, keepdim=True)) / (x.var(others, correction=0, keepdim=True) + EPS).sqrt()


def assert_close(got, wanted, tolerance=1e-5):
    """Compare up to the rounding of a few float32 layers."""
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


def rows(result, outcome="inserted"):
    return [row.name for row in result.rows if row.outcome == outcome]


def biases(result):
    return {row.name: row.bias for row in result.rows if row.outcome == "inserted"}


class Model(nn.Module):
    """A forward given as a function of (layers, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        torch.manual_seed(0)
        for name, make in layers.items():
            setattr(self, name, make())
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


# --- every affine layer, every way to write a nonlinearity ---

AFFINE = {
    "linear": (lambda: nn.Linear(4, 6), (8, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (8, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (8, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (4, 4, 3, 3, 3)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (8, 4, 5, 5)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (8, 4, 7)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (8, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2), (4, 4, 3, 3, 3)),
}


@pytest.mark.parametrize(("make", "shape"), AFFINE.values(), ids=AFFINE)
def test_after_every_affine_layer(make, shape):
    torch.manual_seed(0)
    layer, x = make(), randn(*shape)
    result = bn.insert(nn.Sequential(layer, nn.ReLU()).train(), x)
    assert_close(result.model(x), normalized(layer(x)).relu())
    assert biases(result) == {"0": "dropped"}


NONLINEARITIES = {
    "F.relu": (lambda m, x: F.relu(m.fc(x)), torch.relu),
    "F.relu in place": (lambda m, x: F.relu(m.fc(x), inplace=True), torch.relu),
    "torch.sigmoid": (lambda m, x: torch.sigmoid(m.fc(x)), torch.sigmoid),
    "x.relu()": (lambda m, x: m.fc(x).relu(), torch.relu),
    "x.tanh_()": (lambda m, x: m.fc(x).tanh_(), torch.tanh),
    "F.leaky_relu": (lambda m, x: F.leaky_relu(m.fc(x), 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    "F.gelu": (lambda m, x: F.gelu(m.fc(x)), lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
    "clamp": (lambda m, x: m.fc(x).clamp(min=0), torch.relu),
    "nn.SiLU": (lambda m, x: m.act(m.fc(x)), lambda x: x / (1 + torch.exp(-x))),
}


@pytest.mark.parametrize(("forward", "oracle"), NONLINEARITIES.values(), ids=NONLINEARITIES)
def test_before_every_nonlinearity(forward, oracle):
    model, x = Model(forward, fc=lambda: nn.Linear(4, 6), act=nn.SiLU).train(), randn(16, 4)
    expected = oracle(normalized(model.fc(x)))
    assert_close(bn.insert(model, x).model(x), expected)


FUNCTIONAL = {
    "F.linear": (lambda m, x: F.linear(x.flatten(1), m.fc.weight, m.fc.bias).relu(), "fc"),
    "F.conv2d": (lambda m, x: F.conv2d(x, m.conv.weight, bias=m.conv.bias, padding=1).relu(), "conv"),
    "F.conv_transpose2d": (lambda m, x: F.conv_transpose2d(x, m.up.weight, m.up.bias).relu(), "up"),
}


@pytest.mark.parametrize(("forward", "used"), FUNCTIONAL.values(), ids=FUNCTIONAL)
def test_functional_affine_calls(forward, used):
    layers = {
        "fc": lambda: nn.Linear(36, 5),
        "conv": lambda: nn.Conv2d(4, 5, 3),
        "up": lambda: nn.ConvTranspose2d(4, 5, 3),
    }
    model, x = Model(forward, **{used: layers[used]}).train(), randn(8, 4, 3, 3)
    affine = {
        "fc": lambda: model.fc(x.flatten(1)),
        "conv": lambda: F.conv2d(x, model.conv.weight, padding=1),
        "up": lambda: model.up(x),
    }
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(affine[used]()).relu())
    assert list(biases(result).values()) == ["dropped"]
    assert [name for name, _ in result.model.named_parameters() if name.startswith(f"{used}.")] == [f"{used}.weight"]


# --- between the affine layer and the nonlinearity ---

BETWEEN = {
    "flatten": (lambda m, x: m.conv(x).flatten(1).relu(), lambda z: z.flatten(1)),
    "view": (lambda m, x: F.relu(m.conv(x).view(x.shape[0], -1)), lambda z: z.flatten(1)),
    "crop": (lambda m, x: m.conv(x)[:, :, 1:, :-1].relu(), lambda z: z[:, :, 1:, :-1]),
    "channels": (lambda m, x: m.conv(x)[:, 2:].relu(), lambda z: z[:, 2:]),
    "identity": (lambda m, x: F.relu(m.skip(m.conv(x))), lambda z: z),
}


@pytest.mark.parametrize(("forward", "between"), BETWEEN.values(), ids=BETWEEN)
def test_through_reshape_flatten_and_cropping_per_feature_map(forward, between):
    model = Model(forward, conv=lambda: nn.Conv2d(3, 6, 3), skip=nn.Identity).train()
    x = randn(8, 3, 6, 6)
    result = bn.insert(model, x)
    assert_close(result.model(x), between(normalized(model.conv(x))).relu())


@pytest.mark.parametrize("shape", [(4, 7, 5), (2, 3, 4, 5)])
def test_a_linear_over_tokens_normalises_its_features(shape):
    model, x = nn.Sequential(nn.Linear(5, 6), nn.GELU()).train(), randn(*shape)
    result = bn.insert(model, x).model
    assert_close(result(x), F.gelu(normalized(model[0](x), axis=-1)))
    more = randn(3, *shape[1:], seed=1)
    assert_close(result(more), F.gelu(normalized(model[0](more), axis=-1)))


def test_all_who_took_the_output_take_the_normalised_one():
    model = Model(lambda m, x: (z := m.fc(x)) * torch.sigmoid(z) + z.relu(), fc=lambda: nn.Linear(4, 6)).train()
    x = randn(16, 4)
    z = normalized(model.fc(x))
    result = bn.insert(model, x)
    assert_close(result.model(x), z * torch.sigmoid(z) + z.relu())
    assert len(rows(result)) == 1


# --- layers that are called twice ---


def test_each_call_of_a_shared_layer_has_its_own_statistics():
    model = Model(lambda m, x: m.fc(x).relu() + m.fc(5 * x + 3).sigmoid(), fc=lambda: nn.Linear(4, 6)).train()
    x = randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model.fc(x)).relu() + normalized(model.fc(5 * x + 3)).sigmoid())
    assert [row.layer for row in result.rows] == ["fc_bn", "fc_bn_1"]
    assert [row.bias for row in result.rows] == ["dropped", "dropped"]


def test_a_shared_layer_keeps_its_bias_where_one_call_has_no_batch_norm():
    model = Model(lambda m, x: m.fc(m.fc(x).relu()), fc=lambda: nn.Linear(4, 4)).train()
    x = randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), model.fc(normalized(model.fc(x)).relu().float()))
    assert biases(result) == {"fc": "kept"}
    assert "also called where no BN follows" in result.rows[0].reason


def test_a_shared_nonlinearity():
    model = Model(
        lambda m, x: m.act(m.b(m.act(m.a(x)))), a=lambda: nn.Linear(4, 5), b=lambda: nn.Linear(5, 6), act=nn.ReLU
    ).train()
    x = randn(16, 4)
    hidden = normalized(model.a(x)).relu().float()
    assert_close(bn.insert(model, x).model(x), normalized(model.b(hidden)).relu(), 1e-4)


# --- biases ---


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * input[:, :1]


def with_hook():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda _m, args, out: out * args[0][:, :1])
    return layer


def test_a_bias_that_batch_norm_might_not_cancel_is_kept():
    torch.manual_seed(0)
    model, x = nn.Sequential(with_hook(), nn.ReLU()).train(), randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model[0](x)).relu())
    assert biases(result) == {"0": "kept"}
    assert "a forward, hooks or a parametrization of its own" in result.rows[0].reason


def test_a_subclass_is_seen_as_what_it_does():
    result = bn.insert(nn.Sequential(Scaled(4, 4), nn.ReLU()), randn(16, 4))
    assert [row.reason for row in result.rows] == ["not fed by an affine layer, but by mul"]


def test_a_bias_that_is_used_by_itself_is_kept():
    model = Model(lambda m, x: m.fc(x).relu() + m.fc.bias, fc=lambda: nn.Linear(4, 4)).train()
    x = randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model.fc(x)).relu() + model.fc.bias)
    assert biases(result) == {"fc": "kept"}


def test_a_bias_that_its_layer_needs_elsewhere_stays_there():
    model = Model(lambda m, x: F.linear(x, m.fc.weight, m.fc.bias).relu() + m.fc(x), fc=lambda: nn.Linear(4, 4)).train()
    x = randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model.fc(x)).relu() + model.fc(x))
    assert biases(result) == {"fc": "dropped"}


def test_a_bias_that_is_computed_from_parameters_is_dropped_with_them():
    model = Model(lambda m, x: F.linear(x, m.fc.weight, 2 * m.fc.bias).relu(), fc=lambda: nn.Linear(4, 4)).train()
    x = randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model.fc(x)).relu())
    assert biases(result) == {"fc": "dropped"}
    assert [name for name, _ in result.model.named_parameters()] == ["fc.weight", "fc_bn.weight", "fc_bn.bias"]


def test_weight_norm_stays():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model, x = nn.Sequential(layer, nn.ReLU()).train(), randn(16, 4)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(layer(x)).relu())
    assert "0.parametrizations.weight.original0" in result.model.state_dict()


def test_a_pruned_layer_stays_pruned():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).train(), randn(16, 4)
    prune.l1_unstructured(model[0], "weight", 0.5)
    result = bn.insert(model, x)
    assert_close(result.model(x), normalized(model[0](x)).relu())
    assert biases(result) == {"0": "kept"}
    assert "0.weight_mask" in result.model.state_dict()


def test_a_network_that_decides_on_sizes():
    def forward(m, x):
        if x.shape[1] != 4:
            raise ValueError("4 channels wanted")
        return m.conv(x).relu() if x.shape[-1] > 3 else x

    model, x = Model(forward, conv=lambda: nn.Conv2d(4, 5, 3)).train(), randn(8, 4, 6, 6)
    assert_close(bn.insert(model, x[:2]).model(x), normalized(model.conv(x)).relu())


def test_no_bias_is_said():
    assert biases(bn.insert(nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()), randn(8, 4))) == {"0": "none"}


# --- what stays ---


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.LocalResponseNorm(2), nn.Conv2d(4, 4, 3))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 3))

    def forward(self, x):
        x = F.relu(self.features(x)).flatten(1)
        return self.head(F.dropout(self.drop(x), 0.25, self.training))


IMAGES = randn(8, 1, 8, 8)
PLACES = ["features.0", "features.3", "head.0"]
NEW_KEYS = ("weight", "bias", "running_mean", "running_var")


def test_the_places_of_a_network():
    assert rows(bn.insert(Net(), IMAGES)) == PLACES


@pytest.mark.parametrize("training", [True, False])
def test_the_model_given_is_not_changed(training):
    model = Net().train(training)
    before, text = copy.deepcopy(model.state_dict()), str(model)
    result = bn.insert(model, IMAGES, remove=("dropout", "lrn"), batches=[IMAGES]).model
    assert str(model) == text
    assert all(module.training == training for module in [*model.modules(), *result.modules()])
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.parameters()}


def test_an_old_checkpoint_lacks_the_new_keys_only():
    model = Net()
    result = bn.insert(model, IMAGES).model
    keys = result.load_state_dict(model.state_dict(), strict=False)
    assert set(keys.missing_keys) == {f"{place}_bn.{key}" for place in PLACES for key in NEW_KEYS}
    assert set(keys.unexpected_keys) == {f"{place}.bias" for place in PLACES}
    assert torch.equal(result.get_parameter("head.2.weight"), model.get_parameter("head.2.weight"))


def test_the_result_trains_and_obeys_train_and_eval():
    result = bn.insert(Net(), IMAGES).model
    result.train()
    assert not torch.equal(result(IMAGES), result(IMAGES))  # Dropout
    result.eval()
    assert torch.equal(result(IMAGES), result(IMAGES))
    result.train()
    result(IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in result.parameters())


def test_a_result_can_be_copied():
    result = bn.insert(Net().eval(), IMAGES).model
    assert torch.equal(copy.deepcopy(result)(IMAGES), result(IMAGES))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_layer(dtype):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).to(dtype)
    result = bn.insert(model, randn(8, 4).to(dtype)).model
    assert {p.dtype for p in result.parameters()} == {dtype}
    assert result(randn(8, 4).to(dtype)).dtype == dtype


def test_torchvision_wrote_the_same_network_by_hand():
    torchvision = pytest.importorskip("torchvision")
    plain = torchvision.models.vgg11(num_classes=1).features
    by_hand = torchvision.models.vgg11_bn(num_classes=1).features
    convs = [[m for m in net if isinstance(m, nn.Conv2d)] for net in (plain, by_hand)]
    for source, target in zip(*convs, strict=True):
        target.load_state_dict(source.state_dict())
    x = randn(4, 3, 32, 32)
    result = bn.insert(plain.train(), x).model
    # eight layers; the last normalizes four values per channel, which magnifies rounding
    assert_close(result(x), by_hand.train()(x), 1e-3)


# --- remove ---


@pytest.mark.parametrize(
    ("remove", "removed"),
    [
        ("dropout", ["drop", "dropout"]),
        ("lrn", ["features.2"]),
        (["dropout", "lrn"], ["features.2", "drop", "dropout"]),
        ((), []),
    ],
)
def test_remove(remove, removed):
    result = bn.insert(Net(), IMAGES, remove=remove)
    assert rows(result, "removed") == removed
    kinds = {type(m).__name__ for m in result.model.modules()}
    assert ("Dropout" not in kinds) == ("drop" in removed)
    assert ("LocalResponseNorm" not in kinds) == ("features.2" in removed)
    result.model.train()
    assert torch.equal(result.model(IMAGES), result.model(IMAGES)) == ("drop" in removed)


def test_no_flag_is_left_of_a_dropout_that_is_removed():
    assert "training_flag" in bn.insert(Net(), IMAGES).model.code
    assert "training_flag" not in bn.insert(Net(), IMAGES, remove="dropout").model.code


def test_a_dropout_that_is_called_twice_is_removed_twice():
    model = Model(lambda m, x: m.drop(m.fc(m.drop(x)).relu()), drop=nn.Dropout, fc=lambda: nn.Linear(4, 4)).train()
    x = randn(16, 4)
    result = bn.insert(model, x, remove="dropout")
    assert rows(result, "removed") == ["drop", "drop"]
    assert_close(result.model(x), normalized(model.fc(x)).relu())


def test_without_local_response_normalization_the_rest_is_the_same():
    model = Net().eval()
    with_lrn, without = (bn.insert(model, IMAGES, remove=kinds).model for kinds in ((), "lrn"))
    assert not torch.equal(with_lrn(IMAGES), without(IMAGES))
    vars(with_lrn.get_submodule("features.2"))["alpha"] = 0.0
    assert_close(with_lrn(IMAGES), without(IMAGES))


def test_unknown_kind_to_remove_is_named():
    with pytest.raises(bn.BatchNormError, match="remove takes 'dropout' and 'lrn'; got 'pool'"):
        bn.insert(Net(), IMAGES, remove="pool")  # pyright: ignore[reportArgumentType]


# --- where ---


@pytest.mark.parametrize(
    ("where", "places"),
    [
        ("features", ["features.0", "features.3"]),
        ("features.3", ["features.3"]),
        (["features.0", "head"], ["features.0", "head.0"]),
        (lambda _name, layer: isinstance(layer, nn.Linear), ["head.0"]),
        (lambda name, _layer: name.endswith("3"), ["features.3"]),
    ],
)
def test_where(where, places):
    result = bn.insert(Net(), IMAGES, where=where)
    assert rows(result) == places
    left_out = [row.name for row in result.rows if row.reason == "left out by where"]
    assert sorted(places + left_out) == PLACES
    assert [name for name in PLACES if result.model.get_submodule(name).bias is None] == places


def test_a_name_that_holds_no_place_is_an_error():
    message = r"where='feature' names no place.*'features\.3'.*\. Did you mean 'features'\?$"
    with pytest.raises(bn.BatchNormError, match=message):
        bn.insert(Net(), IMAGES, where=["head", "feature"])


# --- batches ---


def data(n=3):
    return [3 * randn(8, 1, 8, 8, seed=seed) + 1 for seed in range(n)]


@pytest.mark.parametrize("remove", [(), "dropout"])
def test_with_batches_it_computes_what_the_network_did(remove):
    model = Net().eval()
    result = bn.insert(model, IMAGES, remove=remove, batches=data())
    for x in [*data(5), IMAGES]:
        assert_close(result.model(x), model(x))
    with torch.no_grad():  # as max_error is measured: with gradients another kernel runs, which rounds differently
        difference = (result.model(IMAGES) - model(IMAGES)).abs().max() / model(IMAGES).abs().max()
    assert result.max_error == pytest.approx(difference.item())


def test_gamma_and_beta_start_at_the_measured_moments():
    model = Net().eval()
    batches = data()
    result = bn.insert(model, IMAGES, batches=batches).model
    z = model.features[0](torch.cat(batches)).detach().double()
    mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
    norm = result.get_submodule("features.0_bn")
    assert_close(norm.bias, mean)
    assert_close(norm.weight, (var + EPS).sqrt())
    assert_close(norm.running_var, var)
    assert_close(norm.running_mean, mean - model.get_parameter("features.0.bias").detach().double())


def test_deeper_layers_are_measured_in_the_network_as_it_was():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh()).double(), randn(64, 4).double()
    norm = bn.insert(model, x, batches=[x]).model.get_submodule("2_bn")
    z = model[2](model[1](model[0](x)))
    assert_close(norm.bias, z.mean(0), 1e-12)
    assert_close(norm.running_var, z.var(0), 1e-12)


def test_batches_may_be_a_data_loader_of_inputs_and_targets():
    model = Net().train()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat(data()), torch.zeros(24)), batch_size=10
    )
    result = bn.insert(model, IMAGES, batches=loader).model
    assert_close(result.eval()(IMAGES), model.eval()(IMAGES))


def test_batches_with_layers_called_twice_functions_and_kept_biases():
    def forward(m, x):
        shared = m.fc(m.fc(x).relu()).sigmoid() + m.fc(x + 1)
        return F.linear(shared, m.out.weight, m.out.bias).tanh() + m.scaled(x).relu()

    model = Model(forward, fc=lambda: nn.Linear(4, 4), out=lambda: nn.Linear(4, 4), scaled=with_hook).eval()
    x = randn(32, 4)
    result = bn.insert(model, x, batches=[x, 2 * x])
    assert [row.bias for row in result.rows] == ["kept", "kept", "dropped", "kept"]
    assert_close(result.model(3 * x), model(3 * x))


def test_a_network_that_writes_into_its_input_does_not_write_into_the_example():
    model = Model(lambda m, x: m.fc(x.mul_(2)).relu(), fc=lambda: nn.Linear(4, 4)).eval()
    x = randn(16, 4)
    result = bn.insert(model, x, batches=[x.clone()])
    assert torch.equal(x, randn(16, 4))
    assert result.max_error is not None
    assert result.max_error < 1e-6


def test_batches_with_a_dead_channel():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    nn.init.zeros_(model.get_parameter("0.weight").detach()[1])
    x = randn(16, 4)
    assert_close(bn.insert(model, x, batches=[x]).model(5 * x), model(5 * x))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "'features.0' fewer than two values per channel"),
        (IMAGES, r"an iterable of batches; got one Tensor. Give \[batch\]"),
        ([IMAGES, IMAGES * float("nan")], "'features.0' values that are not finite"),
        ([IMAGES[:1]], "'head.0' fewer than two values per channel"),
        (
            [IMAGES, IMAGES.expand(-1, 2, -1, -1)],
            r"Net does not run on a batch of \(8, 2, 8, 8\) torch.float32 on cpu: .*channels",
        ),
        ([IMAGES, 7], "cannot tell the input of a batch of type int"),
    ],
    ids=["none", "one", "nan", "small", "shape", "kind"],
)
def test_batches_to_measure_that_do_not_do(batches, message):
    with pytest.raises(bn.BatchNormError, match=message):
        bn.insert(Net(), IMAGES, batches=batches)


# --- reasons ---


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = F.relu(F.max_pool2d(x, 2))
        tokens = self.attention(x.flatten(2).transpose(1, 2)).mean((0, 1))
        return self.fc(tokens).sigmoid()


def test_what_is_skipped_says_why():
    result = bn.insert(Skips(), IMAGES)
    assert {row.name: row.reason for row in result.rows} == {
        "relu": "not fed by an affine layer, but by BatchNorm2d (norm)",
        "relu_1": "not fed by an affine layer, but by maxpool2d",
        "attention": "the layers inside TransformerEncoderLayer are not traced",
        "fc": "its output (4,) has no batch axis",
    }
    assert {row.outcome for row in result.rows} == {"skipped"}


def test_a_weight_that_is_computed_is_skipped():
    model = Model(lambda m, x: F.linear(x, m.fc(x)).relu(), fc=lambda: nn.Linear(4, 4))
    result = bn.insert(model, randn(8, 4))
    assert [row.reason for row in result.rows] == ["its weight is computed from the network's input"]


def test_the_result_prints_as_a_table():
    result = bn.insert(Net(), IMAGES, where="head", remove="lrn", batches=data())
    lines = str(result).splitlines()
    assert (result.inserted, result.removed, result.skipped) == (1, 1, 2)
    assert lines[0].split() == ["name", "outcome", "layer", "bias", "reason"]
    assert lines[2].split() == ["features.2", "removed"]
    assert lines[3].split() == ["features.0", "skipped", "left", "out", "by", "where"]
    assert lines[5].split() == ["head.0", "inserted", "head.0_bn", "dropped", "before", "head.1"]
    assert lines[6] == "1 inserted, 1 removed, 2 skipped"
    assert lines[7].startswith("largest relative error: ")


def test_a_network_that_cannot_be_traced_is_an_error():
    model = Model(lambda m, x: m.fc(x).relu() if x.sum() > 0 else x, fc=lambda: nn.Linear(4, 4))
    with pytest.raises(bn.BatchNormError, match="cannot be traced for training"):
        bn.insert(model, randn(8, 4))


@pytest.mark.parametrize(
    ("layers", "summary"),
    [
        ([nn.Conv2d(3, 3, 1)], "0 inserted, 0 removed, 0 skipped: the network has no nonlinearity"),
        ([nn.ReLU()] * 5, "0 inserted, 0 removed, 5 skipped: 0: not fed by an affine layer, but by the network's in"),
        ([nn.Conv2d(3, 3, 1), nn.ReLU()], "1 inserted, 0 removed, 0 skipped"),
    ],
)
def test_the_summary_counts_and_says_why_nothing_was_inserted(layers, summary):
    assert str(bn.insert(nn.Sequential(*layers), torch.randn(2, 3, 4, 4))).splitlines()[-1].startswith(summary)


def test_a_network_without_a_place_says_so_in_place_of_the_table():
    assert str(bn.insert(nn.Conv2d(3, 3, 1), torch.randn(2, 3, 4, 4))).splitlines()[0] == "no place for one found"
