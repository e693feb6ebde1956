"""Tests of `keep_memory`. It changes its whole process, so each measurement has a process of its own."""

import platform
import subprocess
import sys

import pytest

from batchnorm.cli import inception, main, mnist

FAULTS = """
import resource, torch, batchnorm as bn
torch.set_num_threads(1)
if {keep}: assert bn.keep_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16): torch.ones(8 << 20)
before = faults()
for _ in range(8): torch.ones(8 << 20)
print((faults() - before) * resource.getpagesize() / (8 * (32 << 20)))
"""


def refaulted(keep):
    """Return the share of the memory of freed and allocated tensors that is mapped anew."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True, text=True)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc only")
def test_freed_memory_is_used_again():
    assert refaulted(keep=True) < 0.05 * refaulted(keep=False)


@pytest.mark.parametrize(
    ("module", "command"),
    [(mnist, ["mnist", "--steps", "1"]), (inception, ["inception", "bn-baseline", "--data", "fashion"])],
)
def test_the_trainers_of_the_command_line_keep_theirs(module, command, monkeypatch, tmp_path):
    class Kept(SystemExit):  # the command ends other exceptions itself
        pass

    def keep_memory():
        raise Kept

    monkeypatch.setattr(module, "keep_memory", keep_memory)
    monkeypatch.setattr("sys.argv", ["batchnorm", *command, "--out", str(tmp_path / "run")])
    with pytest.raises(Kept):
        main.main()
