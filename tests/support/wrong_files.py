"""Wrong settings, records and checkpoints: a change of a run's file, and the command's one line about it."""

import json
import shutil
import sys

import pytest
import torch

from batchnorm.cli.main import main

NOT_JSON = [b"\xff\xfe", b"{", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}"]


def fails(*arguments):
    """Run the command line in this process, and return the one line that it ends with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["batchnorm", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^batchnorm: ") as exited:
            main()
    line = str(exited.value.code)
    assert "\n" not in line
    return line.removeprefix("batchnorm: ")


def copied(run, folder):
    """Return a copy of a run's folder."""
    return shutil.copytree(run.folder, folder)


def edit_settings(folder, **changes):
    """Change settings in config.json. An Ellipsis removes one. The digest goes too, so that the value itself counts."""
    file = folder / "config.json"
    settings = {**json.loads(file.read_text()), "digest": ..., **changes}
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not ...}))


def edit_row(file, number, row):
    """Replace a line, counted from 1: by bytes, or by a dict of changes, in which an Ellipsis removes a field."""
    lines = file.read_bytes().split(b"\n")
    if isinstance(row, dict):
        changed = {**json.loads(lines[number - 1]), **row}
        row = json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()
    lines[number - 1] = row
    file.write_bytes(b"\n".join(lines))


def edit_checkpoint(file, state):
    """Replace a state: by a dict of changes, in which an Ellipsis removes an entry, or by anything else as a whole."""
    if isinstance(state, dict):
        changed = {**torch.load(file, weights_only=True), **state}
        state = {name: value for name, value in changed.items() if value is not ...}
    torch.save(state, file)
    file.with_suffix(".previous.pt").unlink(missing_ok=True)
