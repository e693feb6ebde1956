"""`bn.trial`: fair to both networks, right about them, and resumable to the bit."""

import json
import shutil
from functools import partial
from itertools import count
from threading import Event

import pytest
import torch
from support.interpreter import python
from support.trials import deep_sigmoid, linear_batches, mnist_batches, small_mlp, with_norm
from torch import nn

import batchnorm as bn
from batchnorm.paper.training.rows import read_rows
from batchnorm.paper.trial.config import TrialConfig
from batchnorm.paper.trial.contenders import Networks
from batchnorm.paper.trial.data import read_data
from batchnorm.paper.trial.experiment import ContenderTraining, jobs, run_trial
from batchnorm.paper.trial.prepare import Given, Names, create, prepare

TINY = TrialConfig(lr=0.01, steps=4, seeds=2, eval_every=2)
LINEAR = linear_batches()
tiny_trial = partial(bn.trial, small_mlp, LINEAR, lr=0.01, steps=4, seeds=2, eval_every=2)


def ignore(*_):
    """Show no progress."""


def stop_after(stop, steps):
    """Return a progress that sets `stop` after so many steps. The training ends at the step after."""
    counter = count(1)
    return lambda *_: stop.set() if next(counter) == steps else None


def prepared(network=small_mlp, batches=LINEAR, config=TINY, **given):
    return prepare(Given(network, batches, **given), Names("net", "batches"), config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a trial that was never stopped."""
    return tiny_trial(out=tmp_path_factory.mktemp("trial") / "whole")


def test_bn_helps_a_deep_network_of_sigmoids(tmp_path):
    found = bn.trial(deep_sigmoid, mnist_batches(), lr=0.1, steps=20, eval_every=5, out=tmp_path / "run")
    assert found.verdict == "helps"
    assert found.level is not None
    assert found.level < 0.2 < 0.5 < max(min(row.best) for row in found.rows if row.batch_norm)
    assert str(found).endswith("\n".join(["", found.sentence, *found.notes]))


def test_bn_does_not_help_a_network_that_must_keep_the_scale_of_its_input(tmp_path):
    """The target is the size of the input, the same for all of a batch. BN in training takes exactly that away."""
    sizes = torch.linspace(0.5, 3, 20).tolist()
    batches = [(torch.full((16, 4), size) + 0.01 * torch.randn(16, 4), torch.full((16, 1), size)) for size in sizes]
    found = bn.trial(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        batches,
        lr=0.02,
        steps=60,
        eval_every=10,
        out=tmp_path / "run",
    )
    assert found.verdict == "does not help"
    assert found.sentence.startswith("BN does not help: within 60 steps it does not reach the plain network's best")


def test_bn_has_no_place_in_a_linear_layer(tmp_path):
    found = bn.trial(lambda: nn.Linear(8, 1), LINEAR, lr=0.01, steps=4, eval_every=2, out=tmp_path / "run")
    assert found.verdict == "no place"
    assert found.sentence.startswith("BN cannot help: it has no place in this network (no nonlinearity follows")
    assert [row.batch_norm for row in found.rows] == [False] * 4


@pytest.mark.parametrize("seed", [1, 2])
def test_both_networks_have_the_same_weights(seed):
    networks = Networks(deep_sigmoid, mnist_batches(1)[0])
    plain, norm = (networks.build(arm, seed).state_dict() for arm in ("plain", "bn"))
    shared = plain.keys() & norm.keys()
    assert plain.keys() - shared == {f"{layer}.bias" for layer in (0, 2, 4, 6)}  # BN cancels them
    assert all(plain[name].equal(norm[name]) for name in shared)
    assert not networks.build("plain", 3).state_dict()["0.weight"].equal(plain["0.weight"])


def test_all_contenders_of_a_seed_train_on_the_same_batches(tmp_path):
    seen = {}

    def loss(output, target):
        if output.requires_grad:
            seen.setdefault((torch.initial_seed()), []).append(target.sum().item())
        return nn.functional.mse_loss(output, target)

    found = bn.trial(small_mlp, LINEAR, loss=loss, lr=0.01, steps=4, seeds=2, eval_every=2, out=tmp_path / "run")
    assert len(seen) == 2 * 4  # a seed and a step
    assert {len(sums) for sums in seen.values()} == {len(found.rows)}
    assert all(len(set(sums)) == 1 for sums in seen.values())


def test_an_epoch_has_every_training_batch_once_and_no_held_out_one():
    data = read_data(iter(range_batches(23)), None, steps=100)
    held = [int(batch[0]) for batch in data.held_out]
    assert held == [0, 5, 11, 17]
    for epoch in range(2):
        order = [int(data.batch(7, 19 * epoch + step)[0]) for step in range(19)]
        assert sorted([*order, *held]) == list(range(23))
        assert order != sorted(order)


def range_batches(count):
    return [(torch.tensor([number]), torch.tensor([number])) for number in range(count)]


def test_batches_without_end_are_read_as_far_as_the_steps_need():
    def endless():
        while True:
            yield LINEAR[0]

    data = read_data(endless(), None, steps=40)
    assert (len(data.training), len(data.held_out)) == (40, 10)
    assert len(read_data(endless(), endless(), steps=40).held_out) == 64


def test_a_network_with_bn_is_compared_with_it_taken_out(tmp_path):
    networks = Networks(with_norm, LINEAR[0])
    plain, norm = (networks.build(arm, 1).get_submodule("1") for arm in ("plain", "bn"))
    assert type(norm) is nn.BatchNorm1d
    x, gamma, beta = torch.randn(5, 16), torch.rand(16) + 0.5, torch.randn(16)
    for layer in (plain, norm):
        layer.load_state_dict({**layer.state_dict(), "weight": gamma, "bias": beta})
    # var + eps is 1 up to the rounding of float32
    torch.testing.assert_close(plain.train()(x), gamma * x + beta, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm(x), gamma * (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() + beta)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    found = bn.trial(with_norm, LINEAR, lr=0.01, steps=4, eval_every=2, seeds=2, out=tmp_path / "run")
    assert [row.batch_norm for row in found.rows] == [False] * 4 + [True] * 3


def test_bn_without_running_statistics_is_taken_out_too():
    networks = Networks(lambda: nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False)), LINEAR[0])
    x = torch.randn(5, 8)
    torch.testing.assert_close(networks.build("plain", 1)(x), x, rtol=1e-6, atol=1e-6)  # 1 - eps rounds


def test_training_is_that_of_a_plain_pytorch_loop(tmp_path):
    """The plain network at its own rate, with momentum and Dropout, against a loop written out here."""

    def network():
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.0), nn.Linear(16, 1))

    found = bn.trial(network, LINEAR, lr=0.02, momentum=0.5, steps=6, seeds=1, eval_every=6, out=tmp_path / "run")
    data = read_data(LINEAR, None, steps=6)
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.5)
    for step in range(6):
        inputs, targets = data.batch(1, step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        wanted = torch.stack([nn.functional.mse_loss(model(x), y) for x, y in data.held_out]).mean().item()
    (row,) = [row for row in records(found.folder) if (row["arm"], row["times"], row["step"]) == ("plain", 1.0, 6)]
    assert row["score"] == pytest.approx(wanted, rel=1e-6)  # the same arithmetic, in float32


def test_the_recipe_is_for_the_network_with_bn_alone():
    """A fifth of the weight decay, and 4 % less of the rate 6 times as often (Sec. 4.2.1)."""
    config = TrialConfig(lr=0.02, steps=7, seeds=1, weight_decay=0.1, decay_every=12, recipe=True)
    subject, settings = prepared(config=config)
    found = {}
    for job in jobs(settings):
        training = ContenderTraining(subject, job, settings)
        for step in range(5):
            training.update(step)
        (group,) = training.optimizer.param_groups
        found[job.contender.arm, job.contender.times] = group["lr"], group["weight_decay"]
    rates = {"plain": (0.02, 0.1), "bn": (0.02 * 0.96**2, 0.02)}
    wanted = {(arm, times): (times * rates[arm][0], rates[arm][1]) for arm, times in found}
    assert found == {key: pytest.approx(value) for key, value in wanted.items()}


def records(folder):
    return read_rows(folder / "metrics.jsonl")


def test_records_have_every_measurement_of_every_contender(finished):
    rows = records(finished.folder)
    assert [(row["seed"], row["arm"], row["times"], row["step"]) for row in rows] == [
        (seed, arm, times, step)
        for seed in (1, 2)
        for arm, times in [*(("plain", t) for t in (0.2, 1.0, 5.0, 30.0)), *(("bn", t) for t in (1.0, 5.0, 30.0))]
        for step in (0, 2, 4)
    ]
    assert sorted(path.name for path in finished.folder.iterdir()) == [
        "config.json",
        "figure2.png",
        "figure2.svg",
        "metrics.jsonl",
        "report.html",
    ]


@pytest.mark.parametrize("stopped_after", [1, 5, 20])
def test_a_trial_that_stopped_resumes_with_the_same_bits(finished, tmp_path, stopped_after):
    subject, settings = prepared()
    run, stop = create(settings, tmp_path / "run"), Event()
    rows = run_trial(subject, settings, run, stop, ignore, stop_after(stop, stopped_after))
    assert stop.is_set()
    assert len(rows) < len(records(finished.folder))
    found = tiny_trial(resume=tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished.folder / "metrics.jsonl").read_bytes()
    assert found.sentence == finished.sentence
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_checkpoint_that_a_kill_cut_short_does_not_stay(finished, tmp_path):
    """The kill came after the last row."""
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run/checkpoint-bn-x1-seed-2.partial").write_bytes(b"cut")
    tiny_trial(resume=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        path.name for path in sorted(finished.folder.iterdir())
    ]


def test_a_finished_trial_trains_nothing_again(finished, monkeypatch):
    monkeypatch.setattr("batchnorm.paper.trial.experiment.train", None)
    assert tiny_trial(resume=finished.folder).rows == finished.rows


def test_dropout_resumes_with_the_same_bits(tmp_path):
    """Its masks depend on the seed and the step alone."""

    def network():
        return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1))

    subject, settings = prepared(network)
    whole, stopped, stop = create(settings, tmp_path / "whole"), create(settings, tmp_path / "stopped"), Event()
    run_trial(subject, settings, whole, Event(), ignore, ignore)
    run_trial(subject, settings, stopped, stop, ignore, stop_after(stop, 2))
    torch.rand(1)
    run_trial(subject, settings, stopped, Event(), ignore, ignore)
    assert stopped.metrics.read_bytes() == whole.metrics.read_bytes()


def test_the_callers_generator_stays_as_it_was(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    tiny_trial(out=tmp_path / "run")
    assert torch.rand(3).equal(wanted)


def test_nothing_is_overwritten(finished):
    before = {path: path.read_bytes() for path in finished.folder.iterdir()}
    with pytest.raises(bn.BatchNormError, match=r"whole exists, and nothing is overwritten\. Name a new folder"):
        tiny_trial(out=finished.folder)
    assert {path: path.read_bytes() for path in finished.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, r"config\.json has lr 0\.01; got 0\.5\. Give the run's own"),
        ({"batches": linear_batches(19)}, "the network's first weights, the batches or the score are others than"),
        ({"network": with_norm}, "the network's first weights, the batches or the score are others than"),
        ({"out": "other"}, "resume continues in the folder of that run; give no out beside it"),
    ],
)
def test_a_trial_is_resumed_with_what_it_began_with(finished, change, message):
    given = {"network": small_mlp, "batches": LINEAR, "lr": 0.01, "steps": 4, "seeds": 2, "eval_every": 2}
    with pytest.raises(bn.BatchNormError, match=message):
        bn.trial(**{**given, **change}, resume=finished.folder)


def test_an_edited_setting_is_refused(finished, tmp_path):
    edited = json.loads((finished.folder / "config.json").read_text()) | {"lr": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(edited))
    with pytest.raises(bn.BatchNormError, match=r"config\.json was edited after the run began"):
        tiny_trial(resume=tmp_path)


def test_a_row_before_a_checkpoint_that_is_missing_is_named(tmp_path):
    subject, settings = prepared()
    run, stop = create(settings, tmp_path / "run"), Event()
    run_trial(subject, settings, run, stop, ignore, stop_after(stop, 2))
    run.replace_rows(run.rows()[1:])
    with pytest.raises(bn.BatchNormError, match=r"lacks the row of plain-x0\.2-seed-1 at step 0, before its"):
        run_trial(subject, settings, run, Event(), ignore, ignore)


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    subject, settings = prepared()
    run, stop = create(settings, tmp_path / "run"), Event()
    run_trial(subject, settings, run, stop, ignore, stop_after(stop, 2))
    path = run.folder / f"checkpoint-{jobs(settings)[0].name}.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimizer": {0: {"momentum_buffer": torch.zeros(3)}}}, path)
    with pytest.raises(bn.BatchNormError, match="optimizer's 'momentum_buffer' of parameter 0 does not fit the"):
        run_trial(subject, settings, run, Event(), ignore, ignore)


def test_a_metric_is_what_is_compared(tmp_path):
    def r2(output, target):
        return 1 - ((output - target) ** 2).mean() / target.var()

    found = tiny_trial(metric=r2, out=tmp_path / "run")
    assert found.score == "r2"
    assert "best, r2 " in found.sentence
    assert found.level == max(min(row.best) for row in found.rows if not row.batch_norm)


def test_adamw_and_a_network_that_writes_into_its_input(tmp_path):
    def network():
        return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    batches = linear_batches()
    bn.trial(network, batches, optimizer="adamw", lr=0.01, steps=2, seeds=1, eval_every=1, out=tmp_path / "run")
    assert all(x.equal(y) for one, other in zip(batches, LINEAR, strict=True) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"network": nn.Linear(8, 1)},
            "network must be a function that returns a new network.* got Linear$",
        ),
        ({"network": dict}, r"wanted a network, a torch\.nn\.Module; got dict"),
        ({"network": lambda: nn.Linear(5, 1)}, r"Linear does not run on a batch of \(32, 8\)"),
        ({"network": nn.Softplus}, "Softplus has no parameter that requires a gradient: nothing to train"),
        ({"batches": LINEAR[0][0]}, "wanted an iterable of batches; got one Tensor"),
        ({"batches": LINEAR[:1]}, "wants two batches or more, since it holds some out; got 1"),
        ({"batches": [x for x, _ in LINEAR]}, r"batch 1 \(the first is 1\) is a Tensor; wanted \(input, target\)"),
        ({"batches": [(x,) for x, _ in LINEAR]}, "batch 1 .* is a tuple of 1 parts; wanted"),
        ({"batches": [(x, "a") for x, _ in LINEAR]}, "the targets are str; wanted tensors, or a loss that takes them"),
        ({"batches": [(x, y[:, 0]) for x, y in LINEAR]}, r"loss does not run on an output of \(32, 1\).*one shape"),
        ({"loss": 7}, r"loss must be a function of \(output, target\); got int"),
        (
            {"loss": lambda output, target: output - target},
            r"the loss returns a tensor \(32, 1\); wanted",
        ),
        ({"metric": lambda *_: "good"}, "the metric returns str; wanted one number"),
        ({"metric": lambda: 1}, "the metric does not run on an output of"),
        ({"lr": -1.0}, r"bn\.trial: lr must be a number from 1e-30 to 1e\+30; got -1\.0"),
        ({"optimizer": "lion"}, r"bn\.trial: optimizer must be one of sgd, adamw; got \"lion\""),
        ({"network": with_norm, "remove": "dropout"}, "remove works where BN is inserted, and this network has BN"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_is_written(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bn.BatchNormError, match=message):
        bn.trial(**{"network": small_mlp, "batches": LINEAR, **given})
    assert not list(tmp_path.iterdir())


def test_a_batch_too_small_for_bn_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = LINEAR[1]
    with pytest.raises(bn.BatchNormError, match="Expected more than 1 value per channel"):
        bn.trial(small_mlp, [LINEAR[0], (x[:1], y[:1]), *LINEAR], lr=0.01)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_extra():
    code = "import batchnorm as bn\ntry: bn.trial(None, [])\nexcept bn.BatchNormError as error: print(error)"
    done = python(code, missing=["pydantic"])
    assert done.stdout == "bn.trial needs pydantic. Install it with: pip install 'batchnorm[paper]'\n"
