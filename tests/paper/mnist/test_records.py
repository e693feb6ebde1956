"""Reading the records of both arms."""

import math

from batchnorm.paper.mnist.records import grid_means, last_step, series, steps_to

ROWS = [
    {"step": step, "arm": arm, "test_accuracy": accuracy}
    for step, arm, accuracy in [(0, "bn", 0.1), (0, "plain", 0.95), (10, "bn", 0.9), (20, "bn", 0.85)]
]


def test_steps_to_is_the_first_step_reached():
    assert steps_to(ROWS, "bn", 0.9) == 10
    assert steps_to(ROWS, "bn", 0.91) is None


def test_the_last_step_is_the_arms_own():
    assert [last_step(ROWS, arm) for arm in ("bn", "plain", "other")] == [20, 0, 0]


def test_a_series_is_nan_where_the_network_had_diverged():
    steps, values = series([*ROWS, {"step": 30, "arm": "bn", "test_accuracy": None}], "bn", "test_accuracy")
    assert steps == [0, 10, 20, 30]
    assert values[:3] == [0.1, 0.9, 0.85]
    assert math.isnan(values[3])


def test_grid_means_are_over_the_seeds_of_one_arm():
    rows = [
        {"lr": 0.1, "std": 1.0, "arm": arm, "seed": seed, "test_accuracy": accuracy}
        for arm, seed, accuracy in [("bn", 1, 0.5), ("bn", 2, 1.0), ("plain", 1, 0.0)]
    ]
    assert grid_means(rows, "bn") == {(0.1, 1.0): 0.75}
    assert grid_means(rows, "other") == {}
