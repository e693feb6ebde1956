"""The jobs that a command line asks for, and their folders."""

import re
import shutil
from dataclasses import replace

import pytest
from support.inception_runs import TINY

import batchnorm as bn
from batchnorm.paper.images import shards as shard_module
from batchnorm.paper.images.sources import open_both
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.jobs import GROUPS, NAMES, choose_jobs, new_jobs, resumed_jobs, runs
from batchnorm.paper.inception.variants import BY_NAME
from batchnorm.paper.training.run import Run


def test_the_help_lists_every_variant_and_group():
    assert (*BY_NAME, *GROUPS) == NAMES


def test_all_creates_a_run_for_each_variant(tree, tmp_path):
    jobs = choose_jobs("all", replace(TINY, data=tree), tmp_path / "all", None)
    assert [job.variant.name for job in jobs] == [
        "inception", "bn-baseline", "bn-x5", "bn-x30", "bn-x5-sigmoid", "inception-x5", "inception-sigmoid",
    ]  # fmt: skip
    assert all((job.folder / "config.json").exists() for job in jobs)


def test_resuming_a_group_gives_the_same_jobs_in_the_same_order(tree, tmp_path):
    jobs = new_jobs("all", replace(TINY, data=tree), tmp_path / "all")
    assert resumed_jobs(tmp_path / "all") == jobs
    assert choose_jobs(None, InceptionConfig(), None, tmp_path / "all") == jobs


def test_a_group_that_was_killed_while_it_was_created_is_an_error(tree, tmp_path):
    jobs = new_jobs("all", replace(TINY, data=tree), tmp_path / "all")
    for job in jobs[3:]:
        shutil.rmtree(job.folder)
    with pytest.raises(bn.BatchNormError, match="all has 3 of the 7 runs of 'all': it was killed while"):
        resumed_jobs(tmp_path / "all")
    Run(jobs[0].folder).replace_rows([])  # Training began, so the others were removed on purpose.
    assert resumed_jobs(tmp_path / "all") == jobs[:3]


def test_torchrun_creates_a_run_again_that_was_killed_before_its_settings_were_written(tree, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    (job,) = choose_jobs("bn-x5", replace(TINY, data=tree), tmp_path, None)
    assert choose_jobs("bn-x5", replace(TINY, data=tree), tmp_path, None) == [job]


def test_the_headers_of_shards_are_read_once_for_a_group_and_every_resume(shards, tmp_path, monkeypatch):
    read, original = [], shard_module.read_headers
    monkeypatch.setattr(shard_module, "read_headers", lambda path: read.append(path.name) or original(path))
    jobs = new_jobs("all", replace(TINY, data=shards), tmp_path / "all")
    for job in [*jobs, *resumed_jobs(tmp_path / "all"), *resumed_jobs(tmp_path / "all" / "bn-x5")]:
        open_both(job.config.data, job.index)
    assert sorted(read) == [f"{split}-00000{number}.tar" for split in ("train", "val") for number in range(3)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InceptionConfig("fashion", steps=0), "--steps must be an integer from 1 to .*; got 0"),
        (InceptionConfig("nowhere"), "--data nowhere is not a folder"),
    ],
)
def test_nothing_is_written_if_settings_or_images_are_wrong(config, message, tmp_path):
    with pytest.raises(bn.BatchNormError, match=message):
        new_jobs("all", config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torchrun_wants_a_folder_named(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(bn.BatchNormError, match="under torchrun name the run folder, --out"):
        choose_jobs("bn-x5", replace(TINY, data="fashion"), None, None)


def test_a_variant_that_does_not_exist_lists_all_in_order_and_the_nearest():
    message = f"there is no variant 'bn-x31'; wanted one of {', '.join(NAMES)}. Did you mean 'bn-x30'?"
    with pytest.raises(bn.BatchNormError, match=f"^{re.escape(message)}$"):
        choose_jobs("bn-x31", InceptionConfig("fashion"), None, None)


@pytest.mark.parametrize(("name", "fault"), [("gone", "does not exist"), ("file", "is no folder")])
def test_a_folder_of_runs_that_is_none_says_so(tmp_path, name, fault):
    (tmp_path / "file").touch()
    with pytest.raises(bn.BatchNormError, match=rf"{name} {fault}; wanted the folder of a run, which has a config"):
        runs([tmp_path / name])


def test_a_command_without_variant_or_resume_is_an_error():
    with pytest.raises(bn.BatchNormError, match="name a variant, one of inception, bn-baseline"):
        choose_jobs(None, InceptionConfig(), None, None)


def test_resume_takes_no_other_settings(finished):
    with pytest.raises(bn.BatchNormError, match="uses that run's own settings"):
        choose_jobs("bn-x5", InceptionConfig(), None, finished.folder)


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(bn.BatchNormError, match=r"has no config\.json"):
        choose_jobs(None, InceptionConfig(), None, tmp_path)


def test_a_run_of_another_experiment_is_an_error(tmp_path):
    Run.create(tmp_path / "mnist", "mnist", {})
    with pytest.raises(bn.BatchNormError, match="is a run of 'mnist'; wanted one of batchnorm inception"):
        resumed_jobs(tmp_path / "mnist")


def test_no_folder_is_an_error():
    with pytest.raises(bn.BatchNormError, match="name the folder of at least one run of batchnorm inception"):
        runs([])
