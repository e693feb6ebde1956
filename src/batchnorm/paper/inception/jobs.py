"""The jobs of one command: the variants that it trains, each in its own run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from ...errors import BatchNormError, did_you_mean
from ..images.sources import has_index, open_both, save_index
from ..training.processes import device_type, launched, restarted
from ..training.run import Run, check_folder, new_folder
from ..training.settings import saved_settings
from ..training.validation import shown
from .config import InceptionConfig, VariantName
from .presets import PRESETS
from .settled import EXPERIMENT, Settled, check_network, run_digest, settled
from .variants import BY_NAME, ENSEMBLE, RECIPE, VARIANTS, Variant

CHECKPOINT = "training"  # name in the run folder
EVALUATIONS = "evaluations.jsonl"  # one row for each evaluated run or ensemble
GROUPS = {"all": VARIANTS, "ensemble": ENSEMBLE, "recipe": RECIPE}
NAMES: tuple[str, ...] = get_args(VariantName)


@dataclass(frozen=True)
class Job:
    """One variant, its settled config, and its run folder."""

    variant: Variant
    config: Settled
    folder: Path

    @property
    def index(self) -> Path:
        """The folder that may hold an index of the shards: the run's own, or its group's."""
        return self.folder if has_index(self.folder) else self.folder.parent


def choose_jobs(name: str | None, config: InceptionConfig, out: Path | None, resume: Path | None) -> list[Job]:
    """Return the jobs that a command line asks for: new ones in `out`, or those of the folder `resume`.

    Raises:
        BatchNormError: the command line names neither or both, the variant is unknown, or `new_jobs` or
            `resumed_jobs` raises.
    """
    if resume is None:
        if name is None:
            raise BatchNormError(f"name a variant, one of {', '.join(NAMES)}, or --resume a run")
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise BatchNormError(f"there is no variant {name!r}; wanted one of {known}{did_you_mean(name, NAMES)}")
        if not launched():
            return new_jobs(name, config, out)
        if out is None:
            raise BatchNormError("under torchrun name the run folder, --out; a restarted process resumes there")
        return resumed_jobs(out) if restarted() and _has_runs(out) else new_jobs(name, config, out)
    if name is not None or config != InceptionConfig() or out is not None:
        raise BatchNormError(f"--resume {resume} uses that run's own settings; give no others beside it")
    return resumed_jobs(resume)


def new_jobs(name: str, config: InceptionConfig, out: Path | None) -> list[Job]:
    """Create the run folder of a variant, or one for each variant of a group within one folder.

    Check all settings and images before anything is written.

    Raises:
        BatchNormError: a setting is out of range; the images cannot be read; the folder exists.
    """
    chosen = {variant: settled(config, variant) for variant in GROUPS.get(name) or (BY_NAME[name],)}
    images = open_both(config.data)
    if name in GROUPS:
        folder = new_folder(out, f"{EXPERIMENT}-{name}")
        jobs = [_new_job(variant, config, folder / variant.name) for variant, config in chosen.items()]
    else:
        jobs = [_new_job(variant, config, out) for variant, config in chosen.items()]
        folder = jobs[0].folder
    save_index(images, folder)
    return jobs


def resumed_jobs(folder: Path) -> list[Job]:
    """Return the jobs that `new_jobs` created in `folder`.

    Raises:
        BatchNormError: there is no job, or one of another experiment or version, or only the first of a group.
    """
    check_folder(folder)
    if (folder / "config.json").exists():
        return [resumed_job(folder)]
    jobs = [resumed_job(path.parent) for path in folder.glob("*/config.json")]
    if not jobs:
        raise BatchNormError(f"{folder} is not the folder of one or more runs: it has no config.json")
    order = list(BY_NAME)
    jobs.sort(key=lambda job: order.index(job.variant.name))
    _check_created(folder, jobs)
    return jobs


def resumed_job(folder: Path) -> Job:
    """Return the job of one run's folder.

    Raises:
        BatchNormError: it is of another experiment, or a setting is missing, unknown, out of bounds or edited.
    """
    run, experiment, saved = Run.open(folder)
    if experiment != EXPERIMENT:
        raise BatchNormError(f"{folder} is a run of {experiment!r}; wanted one of batchnorm inception")
    name = saved.pop("variant", None)
    if not isinstance(name, str) or name not in BY_NAME:
        raise BatchNormError(f"{run.config}: variant must be one of {', '.join(BY_NAME)}; got {shown(name)}")
    config = saved_settings(Settled, saved, run.config, EXPERIMENT, name)
    if not config.data:
        raise BatchNormError(f'{run.config}: data must be a folder, or one of {", ".join(PRESETS)}; got ""')
    try:
        check_network(config)
    except BatchNormError as error:
        raise BatchNormError(f"{run.config}: {error}") from error
    return Job(BY_NAME[name], config, folder)


def runs(folders: Sequence[Path]) -> list[Job]:
    """Return the jobs of several folders, each of one run or of a group.

    Raises:
        BatchNormError: no folder is given, or one is neither.
    """
    if not folders:
        raise BatchNormError("name the folder of at least one run of batchnorm inception")
    return [job for folder in folders for job in resumed_jobs(folder)]


def _check_created(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuse the first runs of a group that was killed while `new_jobs` created it. Nothing was trained yet."""
    found = [job.variant for job in jobs]
    if any((job.folder / "metrics.jsonl").exists() for job in jobs):
        return
    for name, group in GROUPS.items():
        if len(found) < len(group) and found == list(group[: len(found)]):
            raise BatchNormError(
                f"{folder} has {len(found)} of the {len(group)} runs of {name!r}: it was killed while it was created. "
                "Remove it and start again, or resume the runs one by one"
            )


def _has_runs(folder: Path) -> bool:
    """Return False for a folder whose creation was killed before the settings of a run were in it."""
    return any(folder.glob("config.json")) or any(folder.glob("*/config.json"))


def _new_job(variant: Variant, config: Settled, out: Path | None) -> Job:
    saved = asdict(config)
    if config.data not in PRESETS:
        saved["data"] = str(Path(config.data).resolve())  # The run may be resumed from another folder.
    kept = {"variant": variant.name, **saved}
    run = Run.create(out, EXPERIMENT, kept, run_digest(config, variant), device_type())
    return Job(variant, config, run.folder)
