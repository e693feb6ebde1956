"""Judge a trial from its records: the steps of each contender to the plain network's best, and one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING, Literal, NamedTuple

from .config import TrialSettings
from .records import Contender, Curve, contenders, curves

if TYPE_CHECKING:
    from ..training.rows import Row  # which needs pydantic

Verdict = Literal["helps", "unclear", "does not help", "no place"]

# Student's t, one-sided at 2.5 %, for 1 to 9 degrees of freedom. From there on the last is on the safe side.
# There are two tests, of speed and of the best score. So by chance alone one verdict in twenty says that BN helps.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class TrialRow:
    """Tell how one contender did.

    Arguments:
        name: the network and its learning rate, such as "with BN, lr 0.5".
        outcome: "reached" if all seeds reach the plain network's best, "partly" if some do, "never" if none does.
        reason: how many seeds diverged, or "".
        batch_norm: True with BN.
        lr: the learning rate.
        steps: for each seed the first measured step with the plain network's best, or None.
        best: for each seed its best score. It is NaN if it has none.
    """

    name: str
    outcome: Literal["reached", "partly", "never"]
    reason: str
    batch_norm: bool
    lr: float
    steps: tuple[int | None, ...]
    best: tuple[float, ...]


class Judgment(NamedTuple):
    """The result of a trial.

    Arguments:
        verdict: one word or two.
        sentence: the verdict with its numbers and their spread.
        level: the plain network's best: the best score that all seeds reach at one of its learning rates. None if it
            has none.
        rows: a row a contender.
        notes: what the verdict depends on.
    """

    verdict: Verdict
    sentence: str
    level: float | None
    rows: tuple[TrialRow, ...]
    notes: tuple[str, ...]


def judge(rows: Sequence[Row], settings: TrialSettings) -> Judgment:
    """Compare BN with the plain network, each at its best learning rate.

    Speed is the steps to the plain network's best, at the rate that gets there first; quality is the best score, at
    the rate with the highest mean. Student's t-test over the seeds, paired, says whether either differs.

    | BN | verdict |
    |---|---|
    | does not reach the plain network's best with every seed, or is slower | "does not help" |
    | is faster, or its best is better | "helps" |
    | neither, or there is one seed, which has no spread | "unclear" |
    """
    found = {each: curves(rows, each) for each in contenders(settings.arms, settings.lr)}
    best = {each: tuple(_best(curve, settings.higher) for curve in seeds.values()) for each, seeds in found.items()}
    level = _level([best[each] for each in found if each.arm == "plain"], settings.higher)
    judged = tuple(_row(each, found[each], best[each], level, settings.higher) for each in found)
    if level is None:
        return Judgment("unclear", "The plain network has no finite score at any learning rate.", None, judged, ())
    plain, norm = ([row for row in judged if row.batch_norm is arm] for arm in (False, True))
    verdict, sentence = _sentence(plain, norm, level, settings)
    return Judgment(verdict, sentence, level, judged, tuple(_notes(plain, norm, settings)))


def _sentence(
    plain: Sequence[TrialRow], norm: Sequence[TrialRow], level: float, settings: TrialSettings
) -> tuple[Verdict, str]:
    goal = f"the plain network's best, {settings.score} {level:.4g}"
    seeds = f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
    if not norm:
        why = f"it has no place in this network ({settings.why_alone})"
        return "no place", f"BN cannot help: {why}; without it the best is {settings.score} {level:.4g} ({seeds})."
    pace = speed(_fastest(plain), _fastest(norm), settings.eval_every)
    best = [_best_row(rows, settings.higher) for rows in (plain, norm)]
    gains = [after - before for before, after in zip(best[0].best, best[1].best, strict=True)]
    gain = sign_of_mean(gains) if settings.higher else -sign_of_mean(gains)
    verdict, claim = _claim(_fastest(norm), pace, gain, goal, settings)
    return verdict, f"{claim}; its own best is {_score(best[1])}, against {_score(best[0])} ({seeds})."


def _claim(norm: TrialRow, pace: Pace | None, gain: int, goal: str, settings: TrialSettings) -> tuple[Verdict, str]:
    """Return the verdict and the part of the sentence about speed."""
    if norm.outcome == "never":
        return "does not help", f"BN does not help: within {settings.steps:,} steps it does not reach {goal}"
    if pace is None:
        reached = sum(step is not None for step in norm.steps)
        return "does not help", f"BN does not help: it reaches {goal}, with {reached} of {len(norm.steps)} seeds alone"
    factor = spread(pace.ratios, ".2f", ".2f")
    if pace.sign > 0:
        return "does not help", f"BN does not help: it needs {factor} times the steps to {goal}"
    reaches = f"it reaches {goal}, in {factor} of the steps"
    if pace.sign < 0 or gain > 0:
        return "helps", f"BN helps: {reaches}"
    return "unclear", f"BN {'makes no clear difference' if settings.seeds > 1 else 'needs more seeds'}: {reaches}"


class Pace(NamedTuple):
    """The steps with BN divided by those without, for each seed, and 1 or -1 if they are more or fewer for sure."""

    ratios: list[float]
    sign: int


def speed(plain: TrialRow, norm: TrialRow, every: int) -> Pace | None:
    """Compare the steps to the level. Return None if a seed does not reach it.

    A network may have reached the level up to `every` steps before a measurement says so. So BN counts as faster only
    if it is when the plain network gets these steps, and as slower only if it is when BN gets them.
    """
    pairs = [(a, b) for a, b in zip(norm.steps, plain.steps, strict=True) if a is not None and b is not None]
    if len(pairs) < len(norm.steps):
        return None
    ratios = [max(ours, every) / max(theirs, every) for ours, theirs in pairs]
    latest = [math.log(max(ours, every) / max(theirs - every, 1)) for ours, theirs in pairs]
    earliest = [math.log(max(ours - every, 1) / max(theirs, every)) for ours, theirs in pairs]
    return Pace(ratios, -1 if sign_of_mean(latest) < 0 else 1 if sign_of_mean(earliest) > 0 else 0)


def sign_of_mean(values: Sequence[float]) -> int:
    """Return -1 or 1 if the mean is below or above 0 by Student's t-test, one-sided at 2.5 %, otherwise 0."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return 0
    margin = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * stdev(values) / math.sqrt(len(values))
    return -1 if mean(values) + margin < 0 else 1 if mean(values) - margin > 0 else 0


def spread(values: Sequence[float], form: str = ".4g", deviation: str = ".1g") -> str:
    """Return the mean and, of several values, the standard deviation."""
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{deviation}}" if values[1:] else "")


def _score(row: TrialRow) -> str:
    return "not finite" if any(map(math.isnan, row.best)) else spread(row.best)


def _level(best: Sequence[tuple[float, ...]], higher: bool) -> float | None:
    """Return the best score that all seeds reach at one learning rate."""
    worst = [min(scores) if higher else max(scores) for scores in best if scores and not any(map(math.isnan, scores))]
    return (max(worst) if higher else min(worst)) if worst else None


def _row(each: Contender, seeds: dict[int, Curve], best: tuple[float, ...], level: float | None, up: bool) -> TrialRow:
    steps = tuple(None if level is None else _first(curve, level, up) for curve in seeds.values())
    reached = sum(step is not None for step in steps)
    outcome = "never" if not reached else "reached" if reached == len(steps) else "partly"
    ends = [curve.diverged for curve in seeds.values() if curve.diverged is not None]
    reason = f"diverged in {len(ends)} of {len(seeds)} seeds, first at step {min(ends):,}" if ends else ""
    return TrialRow(each.label, outcome, reason, each.arm == "bn", each.lr, steps, best)


def _fastest(rows: Sequence[TrialRow]) -> TrialRow:
    """Return the row that most seeds reach, in the fewest steps. A tie goes to the lower learning rate."""

    def order(row: TrialRow) -> tuple[int, float, float]:
        found = [step for step in row.steps if step is not None]
        return -len(found), mean(found or [0]), row.lr

    return min(rows, key=order)


def _best_row(rows: Sequence[TrialRow], higher: bool) -> TrialRow:
    """Return the row with the best mean score, of those that are finite with every seed if there is one."""
    finite = [row for row in rows if not any(map(math.isnan, row.best))] or rows
    return (max if higher else min)(finite, key=lambda row: mean(row.best))


def _first(curve: Curve, level: float, higher: bool) -> int | None:
    pairs = zip(curve.steps, curve.scores, strict=True)
    return next((step for step, score in pairs if (score >= level if higher else score <= level)), None)


def _best(curve: Curve, higher: bool) -> float:
    finite = [score for score in curve.scores if math.isfinite(score)]
    return (max(finite) if higher else min(finite)) if finite else math.nan


def _notes(plain: Sequence[TrialRow], norm: Sequence[TrialRow], settings: TrialSettings) -> Iterator[str]:
    """Yield what could change the verdict: more steps, other learning rates, other weights."""
    if settings.seeds < 3:
        seeds = "one seed" if settings.seeds == 1 else "two seeds"
        yield f"With {seeds} hardly any difference is clear; take three or more."
    if settings.one_start:
        yield "The factory gives the same weights at every seed; the seeds differ in the order of the batches alone."
    if settings.steps in _fastest(plain).steps:
        yield "The plain network was still improving at the last step: more steps may change this."
    for rows in filter(None, (plain, norm)):
        best, rates = _best_row(rows, settings.higher), [row.lr for row in rows]
        if best.lr in (rates[0], rates[-1]):
            end = "lowest" if best.lr == rates[0] else "highest"
            which = "with" if best.batch_norm else "without"
            yield f"The best {which} BN is at the {end} learning rate tried, {best.lr:.4g}: others may be better."
