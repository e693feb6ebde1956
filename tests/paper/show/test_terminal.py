"""The terminal shows every word of a table, and a log file gets a line a measurement."""

from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from support.records import evaluation, longest_cells, record

from batchnorm.paper.show.inception_tables import fig3_table, fig4_table
from batchnorm.paper.show.inception_terminal import TrainingBar, evaluation_bar, print_evaluation, training_bar
from batchnorm.paper.show.mnist_terminal import arm_bars, sweep_bar
from batchnorm.paper.show.terminal import print_paths, print_table


@pytest.mark.parametrize("table", [fig3_table, fig4_table])
def test_narrow_terminals_keep_every_word_of_every_column(monkeypatch, capsys, table):
    monkeypatch.setenv("COLUMNS", "80")
    lines = table(longest_cells())
    print_table("Figure", lines)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = printed.split()
    assert {word for line in lines for cell in line for word in cell.split()} - set(words) == set()
    assert all(f" {line[0]} " in printed for line in lines[1:])


def test_long_paths_are_not_wrapped(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    path = Path("/", *["folder"] * 30, "report.html")
    print_paths([path])
    assert capsys.readouterr().out == f"{path}\n"


def test_waiting_is_shown_unless_it_is_negligible(capsys):
    with training_bar(record("bn-x5", 0.9).job, 0, 16) as bar:
        for step, waited in ((4, 0.25), (8, 0.01)):
            bar.report({"step": step, "top1": 0.5, "waited": waited})
        bar.report({"step": 9, "diverged": True})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "step 4: top-1 50.00%, 25% waiting for images" in lines
    assert "step 8: top-1 50.00%" in lines
    assert "step 9: diverged at step 9" in lines


def test_an_accuracy_that_is_gone_is_shown_no_more(capsys):
    with training_bar(record("bn-x5", 0.9).job, 0, 16) as bar:
        bar.report({"step": 4, "top1": 0.5, "waited": 0.0})
        bar.report({"step": 8, "top1": None, "waited": 0.0})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "step 8: no accuracy: the network's output is not finite" in lines
    assert not any("top-1" in line for line in lines if not line.startswith("step 4"))


def test_the_speed_is_that_of_all_processes(monkeypatch):
    seconds = iter([0.0, 0.25, 2.0, 2.0])
    monkeypatch.setattr("batchnorm.paper.show.inception_terminal.monotonic", lambda: next(seconds))
    bars = Progress(auto_refresh=False)
    bar = TrainingBar(bars, record("bn-x5", 0.9).job, 100, 32)
    (task,) = bars.tasks
    bar.progress(121, torch.tensor(1.5))  # the first step of this process: its checkpoint was of step 120
    assert (task.completed, task.fields["speed"]) == (100, "")
    bar.progress(140, torch.tensor(0.5))
    # 20 steps of 32 images in 2 s.
    assert (task.completed, task.fields["speed"], task.fields["loss"]) == (140, "320 images/s", "loss 0.500")


def test_an_evaluation_prints_a_line_a_tenth(capsys):
    with evaluation_bar() as progress:
        for done in range(0, 101, 5):
            progress(done, 100)
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 100 images" in line]
    assert lines == [f"{done} of 100 images" for done in range(10, 101, 10)]


def test_an_evaluation_prints_accuracy_and_error_of_each_run(capsys):
    print_evaluation([evaluation(0.75) | {"images": 1000}])
    printed = capsys.readouterr().out
    assert "1,000 images" in printed
    assert printed.splitlines()[-2].split() == ["bn-x5", "1", "75.00%", "100.00%", "25.00%", "0.00%"]


def test_the_bars_of_mnist_start_where_the_records_end_and_name_the_accuracy(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    rows = [{"step": 20, "arm": "bn", "test_accuracy": 0.5}]
    with arm_bars(100, rows) as report:
        report({"step": 40, "arm": "plain", "test_accuracy": 0.25})
    plain, bn = [line.split() for line in capsys.readouterr().out.splitlines() if "BN" in line]
    assert (plain[:2], bn[:2]) == (["without", "BN"], ["with", "BN"])
    assert "40/100" in plain
    assert "test accuracy 25.00%" in " ".join(plain)
    assert "20/100" in bn


def test_the_bar_of_the_sweep_counts_trainings(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    with sweep_bar(10, 3) as report:
        report({"lr": 0.1, "std": 1.0, "arm": "bn", "test_accuracy": 0.5})
    printed = " ".join(capsys.readouterr().out.split())
    assert "4/10" in printed
    assert "with BN, lr 0.1, std 1: 50.00%" in printed
