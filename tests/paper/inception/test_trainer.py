"""Sec. 4.2 through the real path: JPEGs, the command, one process and two under torchrun, kill -9 and resume."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import torch
from support.commands import prepare, started
from support.jpegs import CLASSES, jpeg_shards, jpeg_tree
from torch import nn

import batchnorm as bn
from batchnorm.cli.main import main
from batchnorm.paper.images import shards as shard_room
from batchnorm.paper.images.distortions import Distort, crops_144, normalised
from batchnorm.paper.images.loader import ImageBatches
from batchnorm.paper.images.sources import open_both, open_images
from batchnorm.paper.inception import evaluate as evaluation
from batchnorm.paper.inception import trainer as trainer_module
from batchnorm.paper.inception.comparison import read_records
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.evaluate import evaluate, load_network
from batchnorm.paper.inception.jobs import CHECKPOINT, GROUPS, NAMES, choose_jobs, new_jobs, resumed_jobs
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.trainer import Trainer, run_variant
from batchnorm.paper.inception.variants import BN_X5, BN_X30, BY_NAME, INCEPTION, INCEPTION_X5, learning_rate
from batchnorm.paper.show import progress
from batchnorm.paper.training.processes import ALONE
from batchnorm.paper.training.run import Run

TINY = InceptionConfig(
    steps=12, eval_every=6, size=28, width=1 / 8, modules=("3c", "5b"), lr=0.02, batch_size=16, workers=0, threads=1
)


@pytest.fixture(autouse=True, scope="module")
def _prepared():
    prepare()


def ignore(*_):
    """No progress display."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return str(jpeg_tree(tmp_path_factory.mktemp("tree"), train=15, val=5))


def train(folder, variant, config):
    """A run of `variant` in this process."""
    (job,) = new_jobs(variant.name, config, folder)
    return go_on(job)


def go_on(job, stop=None, progress=None):
    """A run in this process, from where it is."""
    run, images = Run(job.folder), open_both(job.config.data, job.index)
    trainer = Trainer(job.config, job.variant, *images, ALONE)
    run_variant(trainer, run, run.checkpoint(CHECKPOINT), ignore, stop or Event(), progress)
    return run


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    """A run of BN-x5, never stopped."""
    return train(tmp_path_factory.mktemp("runs") / "finished", BN_X5, replace(TINY, data=tree))


def wait_for_rows(alive, folder, rows):
    """Until the run has measured so often, or is no longer alive."""
    path = folder / "metrics.jsonl"
    while alive() and (not path.exists() or path.read_text().count("\n") < rows):
        time.sleep(0.02)


def options(tree, out, config=TINY):
    given = {
        "steps": config.steps,
        "eval-every": config.eval_every,
        "size": 28,
        "width": 1 / 8,
        "lr": 0.02,
        "batch-size": 16,
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", value)]
    return [*flags, "--modules", "3c", "5b", "--workers", 0, "--threads", 1, "--data", tree, "--out", out]


def test_it_learns_and_records(finished):
    rows = finished.rows()
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert [row["epoch"] for row in rows] == pytest.approx([step * 16 / 150 for step in (0, 6, 12)])
    assert rows[0]["lr"] == pytest.approx(0.1)  # five times the plain network's
    assert rows[-1]["loss"] < 2.3
    assert rows[-1]["top1"] > 0.3 > rows[0]["top1"]
    assert all(row["top5"] >= row["top1"] for row in rows)


def test_the_rows_say_how_long_training_waited_for_images(finished):
    waited = [row["waited"] for row in finished.rows()]
    assert waited[0] == 0.0
    assert all(0 < share < 1 for share in waited[1:])  # without workers it reads its images itself


def test_waiting_is_shown_unless_it_is_negligible(tree, tmp_path, capsys):
    (job,) = new_jobs("bn-x5", replace(TINY, data=tree), tmp_path / "run")
    with progress._display(job, Run(job.folder), ALONE) as (report, _):
        for step, waited in ((4, 0.25), (8, 0.01)):
            report({"step": step, "top1": 0.5, "waited": waited})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "step 4: top-1 50.00%, 25% waiting for images" in lines
    assert "step 8: top-1 50.00%" in lines


def test_an_update_is_sgd_with_momentum_decay_of_the_weights_alone_and_the_schedule(tree):
    config = settled(replace(TINY, data=tree, decay_every=0.5), BN_X5)  # with the recipe every 1/12 epoch
    trainer = Trainer(config, BN_X5, *(open_images(tree, split) for split in ("train", "val")), ALONE)
    trainer.model.train()
    model = deepcopy(trainer.model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(3):
        images, labels = next(trainer._placed(trainer.batches.batches(step)))
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        rate = 0.1 * 0.96 ** int(step * 16 / 150 * 12)
        with torch.no_grad():
            for parameter, v in zip(model.parameters(), velocity, strict=True):
                gradient = parameter.grad + (4e-5 * parameter if parameter.dim() > 1 else 0)
                v.mul_(0.9).add_(gradient)
                parameter.sub_(rate * v)
        assert trainer.update(step).item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(
        dict(trainer.model.named_parameters()), dict(model.named_parameters()), rtol=1e-4, atol=1e-6
    )


def test_accuracy_is_by_statistics_of_the_training_set_not_moving_averages(tree):
    config = settled(replace(TINY, data=tree), BN_X5)
    trainer = Trainer(config, BN_X5, *(open_images(tree, split) for split in ("train", "val")), ALONE)
    for layer in trainer.model.modules():
        if isinstance(layer, bn.BatchNorm2d):
            layer.running_mean.fill_(1e6)
    trainer.model.eval()
    with torch.no_grad():
        trainer.measure()
    means = [layer.running_mean for layer in trainer.model.modules() if isinstance(layer, bn.BatchNorm2d)]
    assert max(mean.abs().max() for mean in means) < 100


def test_dropout_is_fixed_by_the_step_not_by_what_ran_before(tree):
    variant = replace(BN_X30, dropout=0.5)
    config = settled(replace(TINY, data=tree), variant)
    losses = []
    for disturbance in (0, 1):
        trainer = Trainer(config, variant, *(open_images(tree, split) for split in ("train", "val")), ALONE)
        trainer.model.train()
        torch.manual_seed(disturbance)
        losses.append(trainer.update(0).item())
    assert losses[0] == losses[1]


def test_divergence_is_a_result(tree, tmp_path):
    config = replace(TINY, data=tree, lr=1e6)
    run = train(tmp_path / "run", INCEPTION_X5, config)
    last = run.rows()[-1]
    assert last["diverged"] is True
    assert last["loss"] is None
    assert 0 < last["step"] < 12
    before = run.rows()
    go_on(*resumed_jobs(run.folder))
    assert run.rows() == before  # resumed, it stays where it ended
    (record,) = read_records([run.folder])
    assert record.diverged == last["step"]


def test_stopping_and_resuming_gives_the_same_bits(tree, tmp_path, finished):
    stop = Event()
    (job,) = new_jobs("bn-x5", replace(TINY, data=tree), tmp_path / "run")

    def stop_after_6(step, _):
        if step == 6:
            stop.set()  # seen at the end of the next step

    assert go_on(job, stop, stop_after_6).checkpoint(CHECKPOINT).load()["step"] == 7
    same(go_on(job), finished)


def timeless(run):
    """The rows but for `waited`, which is of the clock."""
    return [{name: value for name, value in row.items() if name != "waited"} for row in run.rows()]


def same(run, other):
    assert timeless(run) == timeless(other)
    ours, theirs = (r.checkpoint(CHECKPOINT).load() for r in (run, other))
    assert ours["step"] == theirs["step"]
    for name, value in ours["model"].items():
        assert value.equal(theirs["model"][name]), name


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_loses_nothing_that_a_resume_does_not_bring_back(tree, tmp_path, finished, seed):
    folder, rng = tmp_path / "run", random.Random(seed)
    process = started("inception", "bn-x5", *options(tree, folder), "--checkpoint-minutes", 1e-6)
    wait_for_rows(process.is_alive, folder, 1)
    time.sleep(rng.uniform(0, 1.0))
    process.kill()
    process.join()
    (job,) = choose_jobs(None, InceptionConfig(), None, folder)
    same(go_on(job), finished)


def test_ctrl_c_ends_with_a_checkpoint_and_says_how_to_go_on(tree, tmp_path):
    folder = tmp_path / "run"
    long = replace(TINY, steps=5000)
    process = started("inception", "bn-x5", *options(tree, folder, long), output=tmp_path / "output")
    wait_for_rows(process.is_alive, folder, 2)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    output = (tmp_path / "output").read_text()
    assert f"Go on with: batchnorm inception --resume {folder}" in output, output
    assert process.exitcode == 130
    assert Run(folder).checkpoint(CHECKPOINT).load()["step"] > 0


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(jpeg_shards(tmp_path_factory.mktemp("shards"), train=15, val=5))


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory):
    """A run of two processes on shards, with the environment that torchrun makes."""
    parent = tmp_path_factory.mktemp("two")
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = ["inception", "bn-x5", *options(shards, parent / "run")]
    ranks = [started(*arguments, output=parent / "output", RANK=rank, LOCAL_RANK=rank, **where) for rank in "01"]
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0, (parent / "output").read_text()
    return Run(parent / "run")


def test_two_processes_train_and_evaluate_together(two):
    rows = two.rows()
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert rows[-1]["epoch"] == pytest.approx(12 * 2 * 16 / 150)  # both processes' images count
    assert rows[-1]["top1"] > 0.3


def test_two_processes_average_the_gradients_of_their_own_mini_batches(two, shards):
    """The loss of the first steps by hand: each replica normalises its own 16 images; gradients are averaged."""
    config = settled(replace(TINY, data=shards), BN_X5)
    images = [open_images(shards, split) for split in ("train", "val")]
    trainers = []
    for rank in (0, 1):
        trainer = Trainer(config, BN_X5, *images, ALONE)
        trainer.batches = ImageBatches(images[0], Distort(28, "weak"), 16, config.seed, True, rank, 2, 0)
        trainer.model.train()
        trainers.append(trainer)
    streams = [trainer._placed(trainer.batches.batches(0)) for trainer in trainers]
    for step in range(6):
        losses = []
        for trainer, stream in zip(trainers, streams, strict=True):
            batch, labels = next(stream)
            trainer.optimizer.zero_grad()
            losses.append(nn.functional.cross_entropy(trainer.model(batch), labels))
            losses[-1].backward()
        for a, b in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
            a.grad = b.grad = (a.grad + b.grad) / 2
        rate = learning_rate(trainers[0].variant, step * 32 / 150)
        for trainer in trainers:
            trainer.optimizer.param_groups[0]["lr"] = trainer.optimizer.param_groups[1]["lr"] = rate
            trainer.optimizer.step()
    assert two.rows()[1]["loss"] == pytest.approx(losses[0].item(), rel=1e-4)  # float32 sums in another order


def test_torchrun_starts_a_dead_rank_again_and_the_run_goes_on_to_the_same_bits(two, shards, tmp_path):
    folder = tmp_path / "run"
    launcher = ["--nproc-per-node=2", "--standalone", "--max-restarts=2", "-m", "batchnorm"]
    arguments = ["inception", "bn-x5", *options(shards, folder), "--checkpoint-minutes", 1e-6]
    said = tmp_path / "output"
    process = started(*launcher, *arguments, module="torch.distributed.run", output=said, OMP_NUM_THREADS="1")
    wait_for_rows(process.is_alive, folder, 2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.join(240)
    assert process.exitcode == 0, said.read_text()
    same(Run(folder), two)


def test_torchrun_wants_a_folder_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(bn.BatchNormError, match="under torchrun name the folder to write, --out"):
        choose_jobs("bn-x5", replace(TINY, data="fashion"), None, None)


def test_a_truncated_checkpoint_gives_way_to_the_one_before(tree, tmp_path, finished):
    run = train(tmp_path / "run", BN_X5, replace(TINY, data=tree, checkpoint_minutes=1e-9))
    checkpoint = run.checkpoint(CHECKPOINT)
    assert torch.load(checkpoint.previous, weights_only=True)["step"] == 11
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:5000])
    with pytest.warns(
        UserWarning, match=r"checkpoint-training\.pt is damaged .* Going on from .*previous\.pt, step 11"
    ):
        assert checkpoint.load()["step"] == 11
    with pytest.warns(UserWarning, match="Going on from"):
        same(go_on(*resumed_jobs(run.folder)), finished)


def test_the_help_lists_every_variant_and_group():
    assert (*BY_NAME, *GROUPS) == NAMES


@pytest.mark.parametrize("variant", ["inception", "bn-x30", "ensemble-5"])
def test_options_train_too(tree, tmp_path, variant):
    config = replace(TINY, data=tree, steps=2, eval_every=2, precision="bfloat16", channels_last=False)
    rows = train(tmp_path / "run", BY_NAME[variant], config).rows()
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[-1]["loss"] is not None


def test_all_makes_a_run_of_each_variant_and_resumes_them(tree, tmp_path):
    jobs = choose_jobs("all", replace(TINY, data=tree), tmp_path / "all", None)
    assert [job.variant.name for job in jobs] == [
        "inception", "bn-baseline", "bn-x5", "bn-x30", "bn-x5-sigmoid", "inception-x5", "inception-sigmoid",
    ]  # fmt: skip
    assert resumed_jobs(tmp_path / "all") == jobs
    assert choose_jobs(None, InceptionConfig(), None, tmp_path / "all") == jobs


def test_the_headers_of_shards_are_read_once_for_all_variants_and_never_again(shards, tmp_path, monkeypatch):
    read, index_shard, shown = [], shard_room._index_shard, []
    monkeypatch.setattr(shard_room, "_index_shard", lambda path: read.append(path.name) or index_shard(path))
    monkeypatch.setattr(progress, "_show", lambda job, trainer, _: shown.append((job, trainer.val_images)))
    jobs = choose_jobs("all", replace(TINY, data=shards), tmp_path / "all", None)
    progress.show_jobs(jobs, ALONE)
    progress.show_jobs(resumed_jobs(tmp_path / "all"), ALONE)
    assert [job for job, _ in shown] == [*jobs, *resumed_jobs(tmp_path / "all")]
    assert len({id(images) for _, images in shown}) == 2  # opened once a command
    progress.show_jobs(resumed_jobs(tmp_path / "all" / "bn-x5"), ALONE)
    assert sorted(read) == [f"{split}-00000{number}.tar" for split in ("train", "val") for number in range(3)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InceptionConfig(), "name the images: --data FOLDER, or --data fashion"),
        (InceptionConfig("fashion", steps=0), "steps must be at least 1; got 0"),
        (InceptionConfig("fashion", batch_size=1), "batch-size must be at least 2; got 1"),
        (InceptionConfig("fashion", lr=float("inf")), "lr must be a positive number; got inf"),
        (InceptionConfig("fashion", decay_every=-1), "decay-every must be a positive number; got -1"),
        (InceptionConfig("fashion", workers=-1), "workers must be at least 0; got -1"),
        (InceptionConfig("fashion", threads=0), "threads must be at least 1; got 0"),
        (InceptionConfig("fashion", modules=("9z",)), "modules: '9z' is not one of 3a, 3b"),
        (InceptionConfig("fashion", width=1e-3), r"width 0\.001 leaves a layer"),
        (InceptionConfig("nowhere"), "--data nowhere is no folder"),
    ],
)
def test_settings_that_cannot_be_run_are_named_before_anything_is_written(config, message, tmp_path):
    with pytest.raises(bn.BatchNormError, match=message):
        new_jobs("all", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_defaults_suit_the_data():
    small, large = settled(InceptionConfig("fashion"), BN_X5), settled(InceptionConfig("/imagenet"), BN_X5)
    assert (small.size, small.width, small.steps) == (28, 1 / 8, 3000)
    assert (large.size, large.width, large.steps, len(large.modules)) == (224, 1.0, 6_000_000, 10)
    assert settled(InceptionConfig("/imagenet"), INCEPTION).steps == 31_000_000


def test_what_cannot_be_resumed_is_an_error(tmp_path, finished):
    with pytest.raises(bn.BatchNormError, match=r"has no config\.json"):
        choose_jobs(None, InceptionConfig(), None, tmp_path)
    with pytest.raises(bn.BatchNormError, match="goes on under that run's own settings"):
        choose_jobs("bn-x5", InceptionConfig(), None, finished.folder)
    with pytest.raises(bn.BatchNormError, match="name a variant, one of inception, bn-baseline"):
        choose_jobs(None, InceptionConfig(), None, None)
    Run.create(tmp_path / "mnist", "mnist", {})
    with pytest.raises(bn.BatchNormError, match="is a run of 'mnist'; wanted one of batchnorm inception"):
        resumed_jobs(tmp_path / "mnist")


def test_evaluation_folds_and_agrees_with_training(tree, finished):
    jobs = resumed_jobs(finished.folder)
    folded, classes = load_network(jobs[0], folded=True)
    assert classes == CLASSES
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in folded.modules())
    kernels = [p for p in folded.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    (row,) = evaluate(jobs, tree, 1, True, 0, ignore)
    assert row["top1"] == finished.rows()[-1]["top1"]
    assert (row["images"], row["folded"], row["runs"]) == (50, True, ["bn-x5, seed 1"])


def test_an_ensemble_is_the_mean_of_probabilities_of_144_crops(tree, finished, tmp_path):
    few = str(jpeg_shards(tmp_path / "few", train=1, val=1))
    (tmp_path / "few" / "val-000002.tar").unlink()  # 7 images are enough
    other = train(tmp_path / "other", BN_X30, replace(TINY, data=tree, seed=2, steps=2, eval_every=2))
    jobs = [*resumed_jobs(finished.folder), *resumed_jobs(other.folder)]
    rows = evaluate(jobs, few, 144, True, 0, ignore)
    assert [row["name"] for row in rows] == ["bn-x5", "bn-x30", "ensemble"]
    images, hits = open_images(few, "val"), 0
    networks = [load_network(job, folded=False)[0] for job in jobs]
    for number in range(len(images)):
        crops = normalised(crops_144(images.read(number), 28))
        with torch.no_grad():
            means = [network(crops).softmax(1).mean(0) for network in networks]
        hits += int((sum(means) / 2).argmax()) == images.label(number)
    assert rows[-1]["top1"] == pytest.approx(hits / len(images))
    assert rows[-1]["runs"] == ["bn-x5, seed 1", "bn-x30, seed 2"]


def test_what_has_diverged_is_left_out_of_an_evaluation(tree, tmp_path, finished, caplog):
    diverged = resumed_jobs(train(tmp_path / "diverged", INCEPTION_X5, replace(TINY, data=tree, lr=1e6)).folder)
    with pytest.raises(bn.BatchNormError, match="has diverged: its parameters are not finite"):
        evaluate(diverged, tree, 1, True, 0, ignore)
    rows = evaluate([*diverged, *resumed_jobs(finished.folder)], tree, 1, True, 0, ignore)
    assert [row["runs"] for row in rows] == [["bn-x5, seed 1"]]
    assert f"left out: {diverged[0].folder} has diverged" in caplog.text


@pytest.fixture
def damaged(tmp_path):
    """A tree of which the last image to validate, alone in its batch, can't be read."""
    folder = jpeg_tree(tmp_path / "damaged", train=2, val=1)
    images = open_images(str(folder), "val")
    Path(images.name(len(images) - 1)).write_bytes(b"no image")
    return str(folder)


@pytest.mark.parametrize("crops", [1, 144])
def test_an_evaluation_passes_over_a_batch_of_damaged_images(damaged, finished, crops, monkeypatch):
    monkeypatch.setattr(evaluation, "FORWARD_IMAGES", 3 if crops == 1 else 144)
    (row,) = evaluate(resumed_jobs(finished.folder), damaged, crops, True, 0, ignore)
    assert row["images"] == 9


def test_images_none_of_which_can_be_read_are_an_error(damaged, finished, tmp_path):
    for path in (Path(damaged) / "val").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(bn.BatchNormError, match=r"none of the 10 images of .* can be read"):
        evaluate(resumed_jobs(finished.folder), damaged, 1, True, 0, ignore)
    with pytest.raises(bn.BatchNormError, match="none of the 10 validation images can be read"):
        train(tmp_path / "run", BN_X5, replace(TINY, data=damaged))


def test_measuring_passes_over_a_damaged_batch_and_training_does_not(damaged, monkeypatch):
    monkeypatch.setattr(trainer_module, "EVALUATION_BATCH", 3)
    config = settled(replace(TINY, data=damaged, batch_size=2), BN_X5)
    trainer = Trainer(config, BN_X5, *(open_images(damaged, split) for split in ("train", "val")), ALONE)
    assert trainer._count_correct()[2] == 9
    for path in (Path(damaged) / "train").rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(
        bn.BatchNormError, match=r"every image of a mini-batch is damaged, such as .*\.jpg: not an image"
    ):
        trainer.update(0)


def test_activations_that_overflow_are_recorded_not_a_crash(tree):
    config = settled(replace(TINY, data=tree), BN_X5)
    trainer = Trainer(config, BN_X5, *(open_images(tree, split) for split in ("train", "val")), ALONE)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(3e38)  # finite, and its sums are not
        trainer.model.eval()
        with pytest.warns(RuntimeWarning, match="is not finite"):
            row = trainer.measure()
    assert (row["top1"], row["top5"]) == (None, None)


def test_going_on_with_other_processes_is_said(tree, caplog):
    config = settled(replace(TINY, data=tree), BN_X5)
    trainer = Trainer(config, BN_X5, *(open_images(tree, split) for split in ("train", "val")), ALONE)
    state = {"step": 3, **trainer.state()}
    trainer.restore(state)
    assert caplog.text == ""
    trainer.restore(state | {"processes": 8})
    assert "this run had 8 processes and goes on with 1: other mini-batches, other epochs" in caplog.text


def test_what_cannot_be_evaluated_is_an_error(tree, tmp_path, finished):
    (job,) = new_jobs("bn-x5", replace(TINY, data=tree), tmp_path / "new")
    with pytest.raises(bn.BatchNormError, match="has no checkpoint to evaluate"):
        load_network(job, folded=True)
    (smaller,) = new_jobs("bn-x5", replace(TINY, data=tree, size=32), tmp_path / "smaller")
    renamed = jpeg_tree(tmp_path / "renamed", train=1, val=1)
    for number, path in enumerate(sorted((renamed / "val").iterdir())):
        path.rename(path.with_name(f"other{number}"))
    with pytest.raises(bn.BatchNormError, match="classes to validate were not trained, such as 'other0'"):
        evaluate(resumed_jobs(finished.folder), str(renamed), 1, True, 0, ignore)
    with pytest.raises(bn.BatchNormError, match="images of different sizes"):
        evaluate([*resumed_jobs(finished.folder), smaller], tree, 1, True, 0, ignore)


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_a_command_without_runs_is_an_error(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["batchnorm", name, *(["--data", "fashion"] if name == "evaluate" else [])])
    with pytest.raises(SystemExit, match="batchnorm: name the folder of at least one run"):
        main()


def test_the_commands_evaluate_and_report(tree, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["batchnorm", "evaluate", str(finished.folder), "--data", tree, "--workers", "0"])
    main()
    said = capsys.readouterr().out
    assert "with every BN folded away" in said
    row = json.loads((finished.folder / "evaluations.jsonl").read_text().splitlines()[-1])
    assert f"{row['images']} of {row['images']} images" in said  # progress, though not to a terminal
    assert row["top1"] == finished.rows()[-1]["top1"]
    monkeypatch.setattr(sys, "argv", ["batchnorm", "report", str(finished.folder), "--out", str(tmp_path / "report")])
    main()
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"figure2.png", "figure2.svg", "report.html"}
    page = (tmp_path / "report" / "report.html").read_text()
    assert "BN-Inception multicrop" in page
    assert f"{1 - row['top1']:.2%}" in page
    assert Path(tree).parent.name not in page  # no path of the machine in a page to be shared
