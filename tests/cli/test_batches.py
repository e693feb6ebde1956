"""Batches of a factory: errors with the batch's number, and factories without end."""

import re

import pytest
from support.interpreter import batchnorm

from batchnorm.cli.factory import make_batches, reason

MORE = """
from torch.utils.data import DataLoader, Dataset

def endless():
    while True:
        yield torch.randn(5, 3, 8, 8)

def failing():
    yield from batches()
    raise OSError("the disk is\\x1b[31m gone\\nand more")

class Failing:
    def __len__(self):
        return 5
    def __iter__(self):
        raise KeyError("no data")

class Rows(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, row):
        if row == 5:
            raise ValueError("row 5 is damaged")
        return torch.randn(3, 8, 8)

def workers():
    return DataLoader(Rows(), batch_size=2, num_workers=1)

def one():
    return torch.zeros(2, 3, 8, 8)

def leaves():
    import sys
    sys.exit(3)
"""
COMMANDS = pytest.mark.parametrize(
    "command",
    [("recalibrate", "tiny:with_norm"), ("insert", "tiny:plain", "--input", "2x3x8x8")],
    ids=lambda command: command[0],
)


@pytest.fixture(autouse=True)
def _more(tiny, tmp_path):
    """Add factories to the module `tiny`, on the disk too."""
    source = (tmp_path / "tiny.py").read_text() + MORE
    (tmp_path / "tiny.py").write_text(source)
    exec(compile(MORE, "tiny.py", "exec"), vars(tiny))


@COMMANDS
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("failing", r"batch 4 of tiny:failing \(the first is 1\) cannot be made: OSError: the disk is\\x1b\[31m gone$"),
        ("Failing", r"batch 1 of tiny:Failing \(the first is 1\) cannot be made: KeyError: 'no data'$"),
        ("workers", r"batch 3 of tiny:workers \(the first is 1\) cannot be made: ValueError: row 5 is damaged$"),
        ("one", r"wanted an iterable of batches; got one Tensor\. Give \[batch\]\.$"),
        ("leaves", r"cannot make tiny:leaves: SystemExit: 3$"),
    ],
)
def test_a_factory_that_fails_is_one_line_with_the_number_of_the_batch(fails, command, factory, message):
    assert re.match(message, fails(*command, "--data", f"tiny:{factory}"))


@COMMANDS
def test_the_progress_says_how_many_batches_were_read(tmp_path, command):
    done = batchnorm(*command, "--data", "tiny:endless", "--batches", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{command[0]}: batch {number} of 5" for number in range(1, 6)]


def test_a_number_of_batches_reads_no_more(tiny):
    read = []
    tiny.counted = lambda: (read.append(number) or number for number in range(10))
    assert list(make_batches("tiny:counted", 3)) == [0, 1, 2]
    assert read == [0, 1, 2]


@pytest.mark.parametrize(("most", "total"), [(None, 3), (2, 2), (7, 3)])
def test_the_total_is_known_where_the_factory_knows_it(most, total):
    batches = make_batches("tiny:batches", most)
    assert batches.__length_hint__() == total
    assert len(list(batches)) == total


@COMMANDS
@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_batches_below_one_is_one_line(fails, command, number):
    assert (
        fails(*command, "--data", "tiny:batches", "--batches", number) == f"--batches must be at least 1; got {number}"
    )


def test_batches_without_data_is_one_line(fails):
    found = fails("insert", "tiny:plain", "--input", "2x3x8x8", "--batches", 3)
    assert found == "--batches counts the batches of --data; give that too"


def test_an_error_without_a_message_has_its_type():
    assert reason(ValueError()) == "ValueError: no message"
