"""Two processes train one network, under the environment of torchrun and under torchrun itself."""

import os
import signal
import socket
import subprocess

import pytest
from support.commands import start, wait_for_rows
from support.inception_runs import assert_same_bits, make_trainer, options
from torch import nn

from batchnorm.paper.images.distortions import Distort
from batchnorm.paper.images.loader import ImageBatches
from batchnorm.paper.inception.variants import BN_X5, learning_rate
from batchnorm.paper.training.processes import Processes
from batchnorm.paper.training.run import Run


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def two(shards, tmp_path_factory):
    """Train with two processes on shards, and return the run."""
    parent = tmp_path_factory.mktemp("two")
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = ["inception", "bn-x5", *options(shards, parent / "run")]
    ranks = [start(*arguments, output=parent / "output", RANK=rank, LOCAL_RANK=rank, **where) for rank in "01"]
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0, (parent / "output").read_text()
    return Run(parent / "run")


def test_two_processes_train_and_evaluate_together(two):
    rows = two.rows()
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert rows[-1]["epoch"] == pytest.approx(12 * 2 * 16 / 150)  # Both processes' images count.
    assert rows[-1]["top1"] > 0.3


def train_replicas(data, steps):
    """Train two replicas by hand: each normalizes its own 16 images, then gradients are averaged. Return the loss."""
    trainers, streams, losses = [make_trainer(BN_X5, data) for _ in range(2)], [], []
    for rank, trainer in enumerate(trainers):
        settings = {"seed": trainer.config.seed, "within_shard": True, "processes": Processes(rank, 2), "workers": 0}
        batches = ImageBatches(trainer.batches.source, Distort(28, "weak"), 16, **settings)
        streams.append(trainer.prepared(batches.batches(0)))
        trainer.model.train()
    for step in range(steps):
        losses = []
        for trainer, stream in zip(trainers, streams, strict=True):
            batch, labels = next(stream)
            trainer.optimizer.zero_grad()
            losses.append(nn.functional.cross_entropy(trainer.model(batch), labels))
            losses[-1].backward()
        for a, b in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
            assert a.grad is not None
            a.grad = b.grad = (a.grad + b.grad) / 2
        for trainer in trainers:
            for group in trainer.optimizer.param_groups:
                group["lr"] = learning_rate(trainer.variant, step * 32 / 150)
            trainer.optimizer.step()
    return losses[0].item()


def test_two_processes_average_the_gradients_of_their_own_mini_batches(two, shards):
    loss = train_replicas(shards, steps=6)
    assert two.rows()[1]["loss"] == pytest.approx(loss, rel=1e-4)  # float32 sums in another order


@pytest.mark.slow
def test_torchrun_restarts_a_dead_rank_and_the_run_resumes_to_the_same_bits(two, shards, tmp_path):
    folder = tmp_path / "run"
    launcher = ["--nproc-per-node=2", "--standalone", "--max-restarts=2", "-m", "batchnorm"]
    arguments = ["inception", "bn-x5", *options(shards, folder), "--checkpoint-minutes", 1e-6]
    said = tmp_path / "output"
    process = start(*launcher, *arguments, module="torch.distributed.run", output=said, OMP_NUM_THREADS="1")
    wait_for_rows(process.is_alive, folder, 2)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    process.join(240)
    assert process.exitcode == 0, said.read_text()
    assert_same_bits(Run(folder), two)
