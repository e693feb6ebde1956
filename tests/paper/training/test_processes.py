"""Two processes: what one raises, and what the other is told."""

import os
import socket
import subprocess
import sys

import pytest
import torch

import batchnorm as bn
from batchnorm.errors import DownloadError, Failure, PeerError, StorageError
from batchnorm.paper.training.processes import ALONE, joined

START = """
import os, torch
from batchnorm.errors import StorageError
from batchnorm.paper.training.processes import joined

def fail():
    raise StorageError("disk full")

try:
    with joined() as processes:
        {}
except Exception as error:
    print(type(error).__name__, error)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def two_processes(body):
    """Return what each of two joined processes printed."""
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START.format(body)]
    both = [
        subprocess.Popen(command, env={**os.environ, **where, "RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    return [own(process.communicate(timeout=120)[0]) for process in both]


def own(printed):
    """Leave out what gloo prints in torch 2.8."""
    return "\n".join(line for line in printed.splitlines() if not line.startswith("[Gloo]"))


def test_an_error_of_rank_0_is_raised_on_every_process():
    assert two_processes("processes.share(fail)") == ["StorageError disk full"] * 2


@pytest.mark.parametrize(
    "waiting", ["processes.any(False)", "model(torch.ones(3, 2)).sum().backward()"], ids=["flags", "gradients"]
)
def test_a_dead_process_is_a_peer_error_in_the_others(waiting):
    model = "model = processes.replicate(torch.nn.Linear(2, 2)); processes.any(False)"
    alive, dead = two_processes(f"{model}; os._exit(1) if processes.rank else {waiting}")
    assert dead == ""
    assert alive.startswith("PeerError lost another process of this training, see its own message (")
    assert "gloo" not in alive
    assert "\n" not in alive


LONELY = """
import sys
from batchnorm.errors import Failure
from batchnorm.paper.training import processes
processes.JOIN_SECONDS, processes.NOTICE_SECONDS = 2, 0.5
try:
    with processes.joined():
        print("joined")
except Failure as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("rank", "others"), [("0", "the other processes"), ("1", "rank 0")], ids=["master", "without a master"]
)
def test_a_process_that_waits_alone_says_for_what_and_gives_up(rank, others):
    port = free_port()
    where = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, "-c", LONELY], check=True, capture_output=True, text=True, timeout=120,
        env={**os.environ, **where},
    )  # fmt: skip
    assert f"rank {rank} of 2 waits for {others} at localhost:{port}, 2 seconds at most\n" in done.stderr
    assert done.stdout.startswith(f"PeerError rank {rank} waited for {others} at localhost:{port} in vain, 2 seconds ")
    assert done.stdout.endswith("or unset RANK and WORLD_SIZE to train with one process\n")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "one"}, "RANK must be an integer from 0 to 1; got 'one'"),
        ({"RANK": "-1"}, "RANK must be an integer from 0 to 1; got '-1'"),
        ({"RANK": "2"}, "RANK must be an integer from 0 to 1; got '2'"),
        ({"RANK": ""}, "RANK must be an integer from 0 to 1; got ''"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be an integer from 1 to 1,000,000; got '0'"),
        ({"WORLD_SIZE": "9" * 30}, "WORLD_SIZE must be an integer from 1 to 1,000,000; got '999"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be an integer from 0 to 65,535; got 'http'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be an integer from 0 to 65,535; got '65536'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR must be the host of rank 0; got nothing"),
    ],
)
def test_an_environment_that_torchrun_did_not_set_is_one_line(monkeypatch, wrong, message):
    right = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in {**right, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(bn.BatchNormError, match=f"^{message}"), joined():
        pass


def test_two_processes_agree_on_flags_and_sums():
    said = two_processes(
        "print(processes.any(False, processes.rank == 1), processes.sum(torch.tensor([1.0, processes.rank])).tolist())"
    )
    assert said == ["(False, True) [2.0, 1.0]"] * 2


@pytest.mark.parametrize("kind", [StorageError, DownloadError, PeerError])
def test_alone_every_failure_passes_through(kind):
    def fail():
        raise kind("the reason")

    with pytest.raises(Failure, match="the reason"):
        ALONE.share(fail)


def test_other_runtime_errors_are_left_as_they_are(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", free_port())):
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as raised, joined():
        torch.ones(2).dot(torch.ones(3))
    assert raised.type is RuntimeError
