"""Figs. 3 and 4 as tables, from the records of any choice of runs."""

import pytest
from support.records import comparison, evaluation, record

import batchnorm as bn
from batchnorm.paper.inception.comparison import by_variant, fig3_table, fig4_table, read_records
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.variants import BY_NAME
from batchnorm.paper.training.run import Run


@pytest.mark.parametrize(
    "records",
    [
        [record("bn-x5", 0.9)],
        [record("inception", 0.5, diverged=100), record("inception-x5", 0.5, diverged=200)],
        [record(f"ensemble-{number}", 0.9) for number in range(1, 7)],
    ],
    ids=["no plain network", "all diverged", "ensemble"],
)
def test_any_choice_of_runs_has_a_line_a_variant(records):
    assert len(fig3_table(records)) == 1 + len({r.job.variant.name for r in records})


def test_fig3_table():
    head, plain, x5, diverged = fig3_table(comparison())
    assert head[3] == "steps to 80.00%"
    assert plain[3:6] == ["1,000", "80.00%", "1,000"]
    # 0.9 s / 1000 >= 0.8 from s = 889 on, measured at 900; 1.0 s / 1000 from 800.
    assert x5[2:6] == ["2", "850", "95.00% ± 7.07", "1,000"]
    assert diverged[3] == "never; diverged at 300"


def test_a_run_that_reached_the_level_and_diverged_says_both():
    table = fig3_table([record("inception", 0.2), record("bn-x5", 0.9, diverged=800)])
    assert table[2][3] == "300; diverged at 800"


def test_the_ensemble_comes_after_the_variants_in_its_order():
    names = list(reversed(BY_NAME))
    assert list(by_variant([record(name, 0.9) for name in names])) == list(BY_NAME)


def test_activations_that_are_not_finite_at_the_end_are_divergence():
    gone = record("bn-x5", 0.9)
    gone.rows[4] |= {"top1": None, "top5": None}
    assert gone.diverged is None  # it came back
    gone.rows[-1] |= {"top1": None, "top5": None}
    assert gone.diverged == 1000
    assert gone.best["step"] == 900


def test_the_newest_evaluation_of_a_kind_counts():
    own = record("bn-x5", 0.9, evaluations=[evaluation(0.5), evaluation(0.75, crops=144), evaluation(0.875)])
    assert fig4_table([own])[1:3] == [
        ["bn-x5", "28", "1", "1", "12.50%", "0.00%"],
        ["bn-x5", "28", "144", "1", "25.00%", "0.00%"],
    ]


def test_runs_that_have_not_begun_are_left_out_of_a_report(tmp_path):
    for number, name in enumerate(("bn-x5", "bn-x30")):
        config = vars(settled(InceptionConfig("fashion"), BY_NAME[name]))
        run = Run.create(tmp_path / name, "inception", {"variant": name, **config})
        if number:
            run.append({"step": 0, "loss": None, "top1": 0.1, "top5": 0.5})
    assert [found.job.variant.name for found in read_records([tmp_path])] == ["bn-x30"]
    with pytest.raises(bn.BatchNormError, match="bn-x5 has no records yet; train it first"):
        read_records([tmp_path / "bn-x5"])
