"""Records as JSON lines: whole lines only, on a full disk and after a kill too."""

from pathlib import Path

import pytest

import batchnorm as bn
from batchnorm.errors import StorageError
from batchnorm.paper.training.rows import append_row, read_rows, write_rows


@pytest.fixture
def file(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_rows_read_back_as_written(file):
    assert read_rows(file) == []
    write_rows(file, [{"step": 0, "loss": None}])
    append_row(file, {"step": 1, "loss": 0.1})
    assert read_rows(file) == [{"step": 0, "loss": None}, {"step": 1, "loss": 0.1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_json_lacks_are_null(file, value):
    append_row(file, {"loss": value})
    assert file.read_text() == '{"loss": null}\n'


def test_a_last_line_that_a_kill_cut_short_is_ignored(file):
    file.write_text('{"step": 0}\n{"st')
    assert read_rows(file) == [{"step": 0}]


@pytest.mark.parametrize("before", ['{"step": 0}\n', ""])
@pytest.mark.parametrize("cut", ['{"st', '{"loss": "' + "1" * 9_000])
def test_a_row_takes_the_place_of_a_last_line_that_a_kill_cut_short(file, before, cut):
    file.write_text(before + cut)
    append_row(file, {"step": 1})
    assert file.read_text() == before + '{"step": 1}\n'


@pytest.mark.parametrize("damaged", [b'{"st', b'{"step": "\xff"}'])
def test_another_damaged_line_is_named(file, damaged):
    file.write_bytes(b'{"step": 0}\n' + damaged + b'\n{"step": 1}\n')
    with pytest.raises(bn.BatchNormError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_rows(file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
def test_a_full_disk_is_an_error_of_storage(file):
    file.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl: .*No space left"):
        append_row(file, {"step": 0})


def test_a_row_that_does_not_fit_leaves_no_part_of_itself(file):
    resource = pytest.importorskip("resource")
    append_row(file, {"step": 0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            append_row(file, {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_text() == '{"step": 0}\n'
