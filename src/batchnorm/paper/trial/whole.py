"""Run a whole trial: train, judge, draw."""

from __future__ import annotations

from pathlib import Path
from threading import Event

from ...errors import BatchNormError
from ..training.run import Run
from ..training.settings import json_values
from ..training.validation import checked
from .config import TrialConfig, TrialSettings
from .experiment import Subject, finished, jobs, run_trial
from .figure import trial_figure
from .page import write_trial_page
from .prepare import Given, Names, check_same, create, prepare, reopen
from .records import TrialFields
from .result import TrialResult
from .terminal import trial_bar
from .verdict import judge


def run_from_python(
    given: Given, config: TrialConfig, out: Path | None, resume: Path | None, progress: bool
) -> TrialResult:
    """Run a trial as `bn.trial` describes it."""
    if out is not None and resume is not None:
        raise BatchNormError("resume continues in the folder of that run; give no out beside it")
    config = checked(TrialConfig, json_values(config), "bn.trial")
    subject, settings = prepare(given, _names(given), config)
    if resume is None:
        run = create(settings, out)
    else:
        run, saved = reopen(resume)
        check_same(settings, saved, run)
        settings = saved  # the digest of the checkpoints has its names
    with run.claimed():
        result = finish(subject, settings, run, Event(), progress)
    assert result is not None
    return result


def finish(subject: Subject, settings: TrialSettings, run: Run, stop: Event, progress: bool) -> TrialResult | None:
    """Train what is missing in `run`, then judge and draw. Return None if `stop` was set before the end.

    Raises:
        BatchNormError: the records or a checkpoint are damaged.
        StorageError: the run folder cannot be written.
    """
    done = sum(finished(run.rows(TrialFields), job, settings) for job in jobs(settings))
    with trial_bar(settings, done, progress) as bar:
        rows = run_trial(subject, settings, run, stop, bar.report, bar.progress)
    if stop.is_set():
        return None
    found = judge(rows, settings)
    pictures = trial_figure(rows, settings, found.level, run.folder)
    page = write_trial_page(rows, settings, found, run.folder)
    verdict, sentence, level, judged, notes = found
    return TrialResult(verdict, sentence, settings.score, level, judged, notes, run.folder, (*pictures, page))


def _names(given: Given) -> Names:
    """Return names for what a Python program gives, without addresses, which change with each process."""
    network, data, *others = (None if each is None else _name(each) for each in given)
    return Names(str(network), str(data), *others)


def _name(thing: object) -> str:
    return getattr(thing, "__qualname__", type(thing).__name__)
