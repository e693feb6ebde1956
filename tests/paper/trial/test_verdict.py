"""The verdict of a trial, from records with known curves."""

import math
from dataclasses import replace

import numpy as np
import pytest

from batchnorm.paper.trial.config import TrialSettings
from batchnorm.paper.trial.records import TIMES
from batchnorm.paper.trial.verdict import STUDENT, judge, sign_of_mean, spread

SETTINGS = TrialSettings(
    steps=100,
    eval_every=10,
    network="net",
    data="batches",
    eval_data=None,
    loss=None,
    metric=None,
    subject="",
    score="accuracy",
    higher=True,
    arms=("plain", "bn"),
    why_alone="",
    one_start=False,
)
CHANCE = 0.1


def rises(reach, best=0.8):
    """Return a curve that stays at chance and reaches `best` at step `reach`."""
    return [best if step >= reach else CHANCE for step in range(0, 101, 10)]


def rows(curves):
    """Return the records of curves by (arm, times), a list with a curve a seed. Other contenders stay at chance."""
    found = []
    for arm, factors in TIMES.items():
        for times in factors:
            for seed in range(1, 4):
                scores = curves.get((arm, times), [rises(1000)] * 3)[seed - 1]
                names = {"arm": arm, "times": times, "lr": 0.1 * times, "seed": seed, "loss": 1.0}
                found += [{**names, "step": 10 * place, "score": score} for place, score in enumerate(scores)]
    return found


def judged(plain, bn, **changes):
    """Judge the plain network at its own rate, and BN at 5 times it."""
    return judge(rows({("plain", 1.0): plain, ("bn", 5.0): bn}), replace(SETTINGS, **changes))


def test_faster_with_every_seed_helps_and_the_ratio_has_its_spread():
    found = judged([rises(step) for step in (80, 100, 100)], [rises(step) for step in (40, 40, 30)])
    assert found.verdict == "helps"
    ratios = [40 / 80, 40 / 100, 30 / 100]
    text = f"{np.mean(ratios):.2f} ± {np.std(ratios, ddof=1):.2f}"
    assert found.sentence == (
        f"BN helps: it reaches the plain network's best, accuracy 0.8, in {text} of the steps; "
        "its own best is 0.8 ± 0, against 0.8 ± 0 (3 seeds)."
    )
    assert found.level == 0.8


def test_slower_with_every_seed_does_not_help():
    found = judged([rises(20)] * 3, [rises(step) for step in (80, 90, 90)])
    assert found.verdict == "does not help"
    assert found.sentence.startswith(
        "BN does not help: it needs 4.33 ± 0.29 times the steps to the plain network's best"
    )


def test_bn_that_never_gets_there_does_not_help():
    found = judged([rises(20)] * 3, [rises(10, best=0.7)] * 3)
    assert found.verdict == "does not help"
    assert "within 100 steps it does not reach the plain network's best, accuracy 0.8; its own best is 0.7" in (
        found.sentence
    )


def test_bn_that_gets_there_with_some_seeds_does_not_help():
    found = judged([rises(50)] * 3, [rises(10), rises(10), rises(10, best=0.7)])
    assert found.verdict == "does not help"
    assert "with 2 of 3 seeds alone" in found.sentence


def test_a_better_best_helps_where_the_plain_network_learns_nothing():
    found = judged([rises(1000)] * 3, [rises(40, best=best) for best in (0.85, 0.86, 0.88)])
    assert found.verdict == "helps"
    assert found.sentence.endswith("its own best is 0.8633 ± 0.02, against 0.1 ± 0 (3 seeds).")


@pytest.mark.parametrize("steps", [(40, 60, 50), (50, 50, 50), (40, 40, 40), (60, 60, 60)])
def test_a_difference_within_the_spread_or_one_measurement_is_unclear(steps):
    """A network that is at the level at step 50 may have been there at step 41."""
    found = judged([rises(50)] * 3, [rises(step) for step in steps])
    assert found.verdict == "unclear"
    assert found.sentence.startswith(
        "BN makes no clear difference: it reaches the plain network's best, accuracy 0.8, in"
    )


def test_one_seed_is_unclear():
    one = [row for row in rows({("plain", 1.0): [rises(90)] * 3, ("bn", 5.0): [rises(10)] * 3}) if row["seed"] == 1]
    found = judge(one, replace(SETTINGS, seeds=1))
    assert found.verdict == "unclear"
    assert (
        "BN needs more seeds: it reaches the plain network's best, accuracy 0.8, in 0.11 of the steps" in found.sentence
    )
    assert found.sentence.endswith("against 0.8 (1 seed).")


def test_the_plain_network_is_judged_at_its_best_rate():
    fast = {("plain", 1.0): [rises(90)] * 3, ("plain", 30.0): [rises(20)] * 3, ("bn", 1.0): [rises(60)] * 3}
    assert judge(rows(fast), SETTINGS).verdict == "does not help"
    assert judge(rows({**fast, ("plain", 30.0): [rises(1000)] * 3}), SETTINGS).verdict == "helps"


def test_a_lower_loss_is_better():
    def falls(reach):
        return [0.2 if step >= reach else 2.0 for step in range(0, 101, 10)]

    flat = dict.fromkeys([(arm, times) for arm, factors in TIMES.items() for times in factors], [[2.0] * 11] * 3)
    curves = {**flat, ("plain", 1.0): [falls(90)] * 3, ("bn", 5.0): [falls(30)] * 3}
    found = judge(rows(curves), replace(SETTINGS, score="loss", higher=False))
    assert (found.verdict, found.level) == ("helps", 0.2)
    assert found.rows[1].best == (0.2, 0.2, 0.2)


@pytest.mark.parametrize(("best", "verdict"), [(0.1, "helps"), (0.2, "unclear")])
def test_a_lower_best_loss_helps_at_the_same_speed(best, verdict):
    def curve(end):
        return [[2.0] * 5 + [0.2] * 5 + [end]] * 3

    flat = dict.fromkeys([(arm, times) for arm, factors in TIMES.items() for times in factors], [[2.0] * 11] * 3)
    curves = {**flat, ("plain", 1.0): curve(0.2), ("bn", 5.0): curve(best)}
    assert judge(rows(curves), replace(SETTINGS, score="loss", higher=False)).verdict == verdict


def test_a_network_without_a_place_says_why():
    alone = [row for row in rows({("plain", 1.0): [rises(50)] * 3}) if row["arm"] == "plain"]
    found = judge(alone, replace(SETTINGS, arms=("plain",), why_alone="no nonlinearity"))
    assert found.verdict == "no place"
    assert found.sentence == (
        "BN cannot help: it has no place in this network (no nonlinearity); without it the best is accuracy 0.8 "
        "(3 seeds)."
    )
    assert len(found.rows) == len(TIMES["plain"])


def test_divergence_is_in_the_row_and_a_score_that_is_not_finite_is_no_best():
    curves = {("plain", 1.0): [rises(50)] * 3, ("bn", 5.0): [rises(50)] * 3}
    found = [row for row in rows(curves) if (row["arm"], row["times"], row["seed"]) != ("bn", 30.0, 2)]
    names = {"arm": "bn", "times": 30.0, "lr": 3.0, "seed": 2}
    found += [
        {**names, "step": 0, "loss": None, "score": None},
        {**names, "step": 7, "loss": None, "diverged": True},
    ]
    row = judge(found, SETTINGS).rows[-1]
    assert row.reason == "diverged in 1 of 3 seeds, first at step 7"
    assert [math.isnan(score) for score in row.best] == [False, False, True]
    assert row.outcome == "never"


@pytest.mark.parametrize(
    ("curves", "changes", "note"),
    [
        ({("plain", 1.0): [rises(100)] * 3}, {}, "still improving at the last step"),
        ({("plain", 30.0): [rises(50)] * 3}, {}, "The best without BN is at the highest learning rate tried, 3:"),
        ({("plain", 1.0): [rises(50)] * 3}, {"one_start": True}, "gives the same weights at every seed"),
        ({("plain", 1.0): [rises(50)] * 3}, {"seeds": 2}, "With two seeds hardly any difference is clear"),
    ],
)
def test_notes_say_what_could_change_the_verdict(curves, changes, note):
    found = judge(rows({("bn", 5.0): [rises(50)] * 3, **curves}), replace(SETTINGS, **changes))
    assert any(note in each for each in found.notes)


@pytest.mark.parametrize(("degrees", "quantile"), list(enumerate(STUDENT, 1)))
def test_the_quantiles_are_students(degrees, quantile):
    """The integral of the density above the quantile. The table has three decimals, the integral as many digits."""
    angle = np.linspace(math.atan(quantile / math.sqrt(degrees)), math.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)  # of t = sqrt(degrees) tan(angle)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(math.pi) * math.gamma(degrees / 2))
    assert scale * np.sum((density[1:] + density[:-1]) / 2 * np.diff(angle)) == pytest.approx(0.025, abs=2e-5)


def test_contenders_that_are_alike_are_seldom_judged_to_differ():
    """Curves that rise alike and then wander: 5 % by the two tests, fewer as the plain network has one rate more."""
    rng, verdicts = np.random.default_rng(0), []
    rise = 1 - np.exp(-np.arange(0, 101, 10) / 20)
    for _ in range(200):
        noisy = {
            (arm, times): list(0.8 * rise + 0.03 * rng.standard_normal((3, 11)))
            for arm in TIMES
            for times in TIMES[arm]
        }
        verdicts.append(judge(rows(noisy), SETTINGS).verdict)
    assert verdicts.count("helps") <= 14  # 10 of 200, and a standard error and a half


@pytest.mark.parametrize(("values", "sign"), [([1, 2, 3], 0), ([2, 2.1, 2.2], 1), ([-2, -2.1, -2.2], -1), ([5], 0)])
def test_the_test_wants_the_mean_above_its_error(values, sign):
    assert sign_of_mean(values) == sign
    assert sign_of_mean([*values, math.inf]) == 0


def test_a_spread_is_the_standard_deviation_of_the_sample():
    assert spread([1.0, 2.0, 3.0]) == "2 ± 1"
    assert spread([1.5]) == "1.5"
