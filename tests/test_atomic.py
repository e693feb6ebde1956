"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from batchnorm.atomic import write_atomically
from batchnorm.errors import StorageError


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path):
    file = tmp_path / "report.html"
    write_atomically(file, "old")
    (tmp_path / "report.html.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"cannot write .*report\.html: .*No space left"):
        write_atomically(file, b"new")
    assert file.read_text() == "old"
