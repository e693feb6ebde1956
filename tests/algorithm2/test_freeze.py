"""Check that frozen layers keep their bits, whatever happens to the network (Algorithm 2, line 7)."""

import copy
import io
import json
import pickle

import pytest
import torch
from support.commands import run_ranks
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm as bn

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
AFFINE = ("weight", "bias")


class Network(nn.Module):
    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = layer(4)
        self.bn.register_buffer("running_mean", torch.randn(4))
        self.bn.register_buffer("running_var", torch.rand(4) + 0.5)
        self.block = nn.Sequential(self.bn, nn.ReLU())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.block(self.conv(x)))


def network(layer: type[_BatchNorm] = nn.BatchNorm2d):
    return Network(layer)


def every_kind():
    """Return layers with statistics and parameters, with statistics alone, with parameters alone, with neither."""
    return nn.Sequential(
        nn.BatchNorm2d(4),
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm3d(4, track_running_stats=False),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    )


def images(seed=0):
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def train(model, steps=2, optimizer=None):
    """Train with weight decay and momentum, which move parameters that have a gradient of zero."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(step)).square().mean().backward()
        optimizer.step()


def state(layer, names):
    return {name: layer.state_dict()[name].clone() for name in names}


def changed(layer, before):
    return {name for name, value in before.items() if not torch.equal(layer.state_dict()[name], value)}


KINDS = [nn.BatchNorm2d, nn.SyncBatchNorm, bn.BatchNorm2d, type("Subclass", (nn.BatchNorm2d,), {})]


MOVES = [
    ({}, set()),
    ({"affine": False}, {*AFFINE}),
    ({"statistics": False}, {*STATISTICS}),
    ({"statistics": False, "affine": False}, {*STATISTICS, *AFFINE}),
]
# On a CPU SyncBatchNorm does not normalize by the batch, so its statistics must be frozen here.
CASES = [(kind, *case) for kind in KINDS for case in (MOVES[:2] if kind is nn.SyncBatchNorm else MOVES)]


@pytest.mark.parametrize(("kind", "options", "moves"), CASES)
def test_what_is_frozen_does_not_move_and_the_rest_does(kind, options, moves):
    model = network(kind)
    layer, before = model.bn, state(model.bn, (*STATISTICS, *AFFINE))
    bn.freeze(model, **options)
    model.train()
    train(model)
    assert changed(layer, before) == moves


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm1d, (8, 4)), (nn.BatchNorm3d, (2, 4, 2, 3, 3))])
def test_other_dimensions(layer, shape):
    model = layer(4)
    before = state(model, STATISTICS)
    bn.freeze(model)
    model.train()(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert changed(model, before) == set()


def test_a_frozen_layer_computes_the_constant_affine_map():
    layer = network().bn
    bn.freeze(layer.train())
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, var, gamma, beta = (
        layer.state_dict()[name].double().view(1, 4, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    expected = gamma / (var + 1e-5).sqrt() * x + (beta - gamma * mean / (var + 1e-5).sqrt())
    torch.testing.assert_close(layer.train()(x.float()).double(), expected, rtol=1e-6, atol=1e-6)  # float32 rounding


def test_gradients_still_flow_to_the_layers_before():
    model = network()
    bn.freeze(model)
    model(images()).square().mean().backward()
    assert model.conv.weight.grad is not None
    assert model.conv.weight.grad.abs().sum() > 0


# --- how long it lasts ---


@pytest.mark.parametrize("parent", ["itself", "direct", "root"])
def test_train_of_any_parent_is_survived(parent):
    model = network()
    layer = model.bn
    bn.freeze(model)
    returned = {"itself": layer, "direct": model.block, "root": model}[parent].train()
    assert not layer.training
    assert returned.training == (parent != "itself")


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, through_pickle, through_torch_save])
def test_a_copy_is_frozen_by_itself(clone):
    model = network()
    bn.freeze(model.train())
    twin = clone(model)
    before = state(twin.bn, (*STATISTICS, *AFFINE))
    train(twin.train())
    assert changed(twin.bn, before) == set()
    bn.unfreeze(model)
    assert model.bn.training
    assert not twin.bn.training
    train(model)  # timm's freeze_batch_norm_2d shares storage: this would move the twin
    assert changed(twin.bn, before) == set()
    bn.unfreeze(twin)
    train(twin)
    assert changed(twin.bn, before) == {*STATISTICS, *AFFINE}


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(assign):
    model, other = network(), network()
    train(other)
    keys = list(model.state_dict())
    bn.freeze(model)
    assert list(model.state_dict()) == keys
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    loaded = state(other.bn, (*STATISTICS, *AFFINE))
    assert changed(model.bn, loaded) == set()
    train(model.train())
    assert changed(model.bn, loaded) == set()


def test_a_gradient_from_before_moves_nothing():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer=optimizer)
    model(images()).square().mean().backward()
    before = state(model.bn, AFFINE)
    bn.freeze(model)
    optimizer.step()
    assert changed(model.bn, before) == set()


def test_a_compiled_network_stays_frozen():
    model = network()
    before = state(model.bn, STATISTICS)
    bn.freeze(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert isinstance(compiled, nn.Module)
    compiled.train()(images())
    assert changed(model.bn, before) == set()


# --- unfreezing ---


@pytest.mark.parametrize("training", [True, False])
def test_unfreezing_gives_the_mode_that_was_last_asked_for(training):
    model = network()
    bn.freeze(model.train(not training))
    model.train(training)
    bn.unfreeze(model)
    assert model.bn.training == training
    model.train(not training)
    assert model.bn.training != training


def test_unfreezing_moves_everything_again():
    model = network()
    before = state(model.bn, (*STATISTICS, *AFFINE))
    bn.freeze(model)
    bn.unfreeze(model)
    train(model)
    assert changed(model.bn, before) == {*STATISTICS, *AFFINE}


def test_unfreezing_restores_requires_grad_of_each_parameter():
    model = network()
    model.bn.bias.requires_grad_(False)
    bn.freeze(model)
    bn.freeze(model)
    bn.unfreeze(model)
    assert (model.bn.weight.requires_grad, model.bn.bias.requires_grad) == (True, False)


def test_unfreezing_leaves_what_was_never_frozen():
    model = network()
    model.bn.eval().requires_grad_(False)
    bn.unfreeze(model)
    assert not model.bn.training
    assert not model.bn.weight.requires_grad


def test_each_half_is_unfrozen_by_itself():
    model = network()
    bn.freeze(model)
    bn.unfreeze(model, affine=False)
    assert model.bn.training
    assert not model.bn.weight.requires_grad
    bn.unfreeze(model, statistics=False)
    assert model.bn.weight.requires_grad


def test_unfreezing_leaves_no_trace():
    model = network()
    names = set(vars(model.bn))
    bn.freeze(model)
    bn.unfreeze(model)
    assert set(vars(model.bn)) == names


@pytest.mark.parametrize("error", [None, KeyError])
def test_context_manager(error):
    model = network().train()
    try:
        with bn.freeze(model) as frozen:
            assert frozen.model is model
            assert not model.bn.training
            assert not model.bn.weight.requires_grad
            if error:
                raise error
    except KeyError:
        pass
    assert model.bn.training
    assert model.bn.weight.requires_grad


def test_context_manager_keeps_what_was_frozen_before():
    model = network()
    bn.freeze(model, affine=False)
    with bn.freeze(model):
        pass
    assert not model.bn.training
    assert model.bn.weight.requires_grad
    with bn.unfreeze(model):
        assert model.bn.training
    assert not model.bn.training


# --- which layers ---


def test_timm_layer_is_frozen_and_its_dropout_is_not():
    timm_layers = pytest.importorskip("timm.layers")
    layer = timm_layers.BatchNormAct2d(4, drop_layer=nn.Dropout)
    bn.freeze(layer.eval())
    before = state(layer, STATISTICS)
    nn.Sequential(layer).train()(images().repeat(1, 2, 1, 1))
    assert changed(layer, before) == set()
    assert layer.drop.training
    assert not layer.training


def test_parameters_of_an_activation_inside_are_not_frozen():
    timm_layers = pytest.importorskip("timm.layers")
    layer = timm_layers.BatchNormAct2d(4, act_layer=nn.PReLU)
    bn.freeze(layer)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["act.weight"]


def test_a_layer_without_statistics_is_in_the_mode_of_its_parents():
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    bn.freeze(model)
    assert model.train()[0].training


def test_instance_norm_is_no_batch_norm():
    model = nn.Sequential(nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.BatchNorm2d(4))
    rows = bn.freeze(model).rows
    assert [row.name for row in rows] == ["1"]
    assert model.get_parameter("0.weight").requires_grad
    assert model.train()[0].training


def test_lazy_layer():
    model = nn.LazyBatchNorm2d()
    bn.freeze(model)
    model.train()(images())
    assert type(model) is nn.BatchNorm2d
    assert model.state_dict()["running_mean"].tolist() == [0.0, 0.0]
    assert not model.get_parameter("weight").requires_grad


def test_a_network_without_batch_norm_is_an_error():
    with pytest.raises(bn.BatchNormError, match="Linear has no BatchNorm layer to freeze"):
        bn.freeze(nn.Linear(2, 2))
    with pytest.raises(bn.BatchNormError, match="Linear has no BatchNorm layer to unfreeze"):
        bn.unfreeze(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "outcomes", "counts"),
    [
        ({}, ["frozen", "frozen", "frozen", "free"], (3, 0, 1)),
        ({"affine": False}, ["partly", "frozen", "free", "free"], (1, 1, 2)),
        ({"statistics": False}, ["partly", "free", "frozen", "free"], (1, 1, 2)),
        ({"statistics": False, "affine": False}, ["free"] * 4, (0, 0, 4)),
    ],
)
def test_outcomes_say_how_much_of_each_layer_is_frozen(options, outcomes, counts):
    result = bn.freeze(every_kind(), **options)
    assert [row.outcome for row in result.rows] == outcomes
    assert (result.frozen, result.partly, result.free) == counts


def test_a_reason_says_that_a_layer_has_nothing_to_freeze():
    rows = bn.freeze(every_kind()).rows
    assert [row.reason for row in rows] == ["", "", "", "has no running statistics and no parameters"]


def test_outcomes_tell_the_state_now_not_the_last_call():
    model = every_kind()
    bn.freeze(model)
    assert [row.outcome for row in bn.unfreeze(model, affine=False).rows] == ["partly", "free", "frozen", "free"]
    assert [row.outcome for row in bn.freeze(model, affine=False).rows] == ["frozen", "frozen", "frozen", "free"]


def test_the_result_prints_as_a_table():
    lines = str(bn.freeze(every_kind(), affine=False)).splitlines()
    assert lines[0].split() == ["name", "outcome", "kind", "statistics", "affine", "reason"]
    assert [line.split(maxsplit=5) for line in lines[2:-1]] == [
        ["0", "partly", "BatchNorm2d", "frozen", "free"],
        ["1", "frozen", "BatchNorm1d", "frozen", "none"],
        ["2", "free", "BatchNorm3d", "none", "free"],
        ["3", "free", "BatchNorm2d", "none", "none", "has no running statistics and no parameters"],
    ]
    assert lines[-1] == "after freeze: 1 frozen, 1 partly, 2 free"


def test_the_table_is_true_after_the_block_that_restored():
    with bn.freeze(every_kind()) as result:
        inside = str(result)
    assert str(result) == inside
    assert inside.splitlines()[-1] == "after freeze: 3 frozen, 0 partly, 1 free"
    assert str(bn.unfreeze(result.model)).splitlines()[-1] == "after unfreeze: 0 frozen, 0 partly, 4 free"


# --- with the rest ---


def test_recalibrate_leaves_frozen_statistics():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    bn.freeze(model[0])
    before = state(model[0], STATISTICS)
    rows = bn.recalibrate(model.eval(), [images()]).rows
    assert changed(model[0], before) == set()
    assert [row.reason for row in rows] == ["frozen", ""]
    assert not model.train()[0].training
    with pytest.raises(bn.BatchNormError, match=r"'0': frozen.*Call bn.unfreeze"):
        bn.recalibrate(model[:1], [images()])


def test_recalibrate_does_not_change_the_mode_that_was_asked_for():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    bn.freeze(model[0])
    bn.recalibrate(model.train(), [images()])
    bn.unfreeze(model)
    assert model[0].training


def train_in_ddp(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = network()
    layer, before = model.bn, state(model.bn, (*STATISTICS, *AFFINE))
    bn.freeze(model)
    wrapped = nn.parallel.DistributedDataParallel(model).train()
    train(wrapped)
    moved = sorted(changed(layer, before))
    (folder / f"{rank}.json").write_text(json.dumps([moved, layer.training, model.conv.weight.tolist()]))
    torch.distributed.barrier()  # leave together: a process that goes early can abort the other
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    run_ranks(train_in_ddp, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[:2] == [[], False]
    assert first[2] != network().conv.weight.tolist()


def test_a_network_that_is_one_layer_has_a_name_in_the_table():
    assert str(bn.freeze(nn.BatchNorm1d(3))).splitlines()[2].startswith("(itself)  frozen")
