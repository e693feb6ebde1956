"""Figs. 3 and 4 as tables, from the records of any choice of runs."""

import pytest
from support.records import CHOICES, comparison, evaluation, record

from batchnorm.paper.show.inception_tables import fig3_table, fig4_table


@pytest.mark.parametrize("records", CHOICES.values(), ids=CHOICES)
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


def test_seeds_that_diverge_are_named_from_the_first_to_the_last():
    seeds = [record("bn-x5", 0.9, seed=seed, diverged=end) for seed, end in ((1, 800), (2, None), (3, 500))]
    assert fig3_table([record("inception", 0.2), *seeds])[2][3] == "300; diverged between 500 and 800 (2 of 3 seeds)"


def test_the_newest_evaluation_of_a_kind_counts():
    own = record("bn-x5", 0.9, evaluations=[evaluation(0.5), evaluation(0.75, crops=144), evaluation(0.875)])
    assert fig4_table([own])[1:3] == [
        ["bn-x5", "28", "1", "1", "12.50%", "0.00%"],
        ["bn-x5", "28", "144", "1", "25.00%", "0.00%"],
    ]
