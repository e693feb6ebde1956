"""The command ends with one line and a status, never with a traceback, whatever is raised and wherever it prints."""

import errno
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from batchnorm.cli.ending import BUG, ending, one_line_errors
from batchnorm.errors import BatchNormError, StorageError

MAIN = "import sys; sys.argv[0] = 'batchnorm'; from batchnorm.cli.main import main; main()"
FULL = Path("/dev/full")
ESCAPES = "evil\x1b[31m\nbatchnorm: wrote\u202e \x9b0m"
ESCAPED = r"evil\x1b[31m\nbatchnorm: wrote\u202e \x9b0m"


def shell(line, **environment):
    """Run a line of bash with `$B` as the command, and `set -o pipefail`."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        check=False,
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment, "PYTHON": sys.executable, "MAIN": MAIN},
    )


def raises(error):
    """Return the status and the line of a command that raises `error`."""
    with pytest.raises(SystemExit) as exited, one_line_errors():
        raise error
    return exited.value.code


# Exceptions


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BatchNormError("no file x"), "no file x"),
        (BatchNormError(ESCAPES), ESCAPED),
        (StorageError(ESCAPES), ESCAPED),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), r"a\nb: Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", b"a\xff"), r"a\udcff: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "the output cannot be written: No space left on device"),
        (MemoryError("Unable to allocate 8 TiB"), "not enough memory: Unable to allocate 8 TiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_1(error, line):
    assert raises(error) == f"batchnorm: {line}"


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError(), RecursionError("deep\nand more"), GeneratorExit()])
def test_anything_else_is_a_line_that_says_bug_and_status_70(capsys, error):
    assert raises(error) == BUG == 70
    found = capsys.readouterr()
    assert re.fullmatch(
        rf"batchnorm: {type(error).__name__}: .* \(test_ending\.py, line \d+\)\. "
        r"This is a bug; BATCHNORM_DEBUG=1 shows the trace\n",
        found.err,
    )
    assert found.out == ""


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
@pytest.mark.parametrize("error", [KeyError("x"), BatchNormError("no file x")])
def test_the_trace_is_printed_on_request(monkeypatch, capsys, value, shown, error):
    monkeypatch.setenv("BATCHNORM_DEBUG", value)
    raises(error)
    assert ("Traceback (most recent call last)" in capsys.readouterr().err) is shown


def test_a_broken_pipe_between_processes_is_no_closed_output():
    assert ending(BrokenPipeError(errno.EPIPE, "Broken pipe")).status == BUG


def test_a_command_that_exits_keeps_its_status():
    assert raises(SystemExit(3)) == 3


def test_the_command_itself_ends_so():
    done = shell("""$PYTHON -c "import batchnorm.cli.main as m; m._run = lambda: 1 / 0; m.main()" """)
    assert (done.returncode, done.stdout) == (70, b"")
    assert done.stderr.startswith(b"batchnorm: ZeroDivisionError: division by zero (<string>, line 1). This is a bug")
    assert done.stderr.count(b"\n") == 1


# Warnings and logs


def test_warnings_and_logs_are_one_line_each_with_their_names_escaped(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import logging, warnings
from batchnorm.cli.ending import one_line_errors
with one_line_errors():
    warnings.warn({ESCAPES!r}, stacklevel=1)
    logging.getLogger("batchnorm").warning("%s", {ESCAPES!r})
""")
    done = subprocess.run([sys.executable, program], check=True, capture_output=True, text=True)
    assert done.stderr == f"UserWarning: {ESCAPED}\n{ESCAPED}\n"


def test_warnings_and_logs_of_others_stay_as_they_were():
    handler = logging.lastResort
    assert handler is not None
    before = warnings.formatwarning, handler.formatter
    with one_line_errors():
        assert warnings.formatwarning is not before[0]
    assert (warnings.formatwarning, handler.formatter) == before


# Where it prints

RICH = r"from batchnorm.paper.show.terminal import print_table; print_table('t', [['a'], ['b \xb10.5']])"
PROGRAMS = {
    "version": "--version",
    "help": "fold --help",
    "table": f"""-c "from batchnorm.cli.ending import one_line_errors as o
with o():
    {RICH}" """,
}


def program(name):
    return f"$PYTHON {PROGRAMS[name]}" if name == "table" else f'$PYTHON -c "$MAIN" {PROGRAMS[name]}'


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_closed_early_ends_as_other_commands_do(name, unbuffered):
    # `true` has left long before Python has started.
    done = shell(f"{program(name)} | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert done.stdout == b"141\n"
    assert done.stderr == b""


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full, a disk that is always full")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_one_line(name, unbuffered):
    done = shell(f"{program(name)} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == b"batchnorm: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_closed_output_is_no_error(name):
    done = shell(f"{program(name)} >&-")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_an_ascii_terminal_gets_every_line(name, environment):
    done = shell(program(name), **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert {"version": b"torch", "help": b"--weights", "table": b"b"}[name] in done.stdout


def test_a_name_with_a_byte_that_is_not_utf_8_is_printed():
    done = shell("""$PYTHON -c "$MAIN" evaluate $'no\\xff\\x1b[31m' --data fashion""")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr
    assert rb"no\udcff\x1b[31m does not exist; wanted the folder of a run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("$'fo\\x1b[31mld'", 2), ("fold x --input 1x3 --we$'\\x1b[31m'", 2), ("inception $'\\x1b[31m'", 1)],
)
def test_a_command_line_that_is_refused_does_not_reach_the_terminal_raw(arguments, status):
    done = shell(f"""$PYTHON -c "$MAIN" {arguments}""")
    assert done.returncode == status
    assert b"\x1b[31m" not in done.stdout + done.stderr
    assert rb"\x1b[31m" in done.stderr


def test_a_training_whose_reader_has_left_resumes(tmp_path):
    arguments = f"mnist --steps 2 --eval-every 1 --threads 1 --out {tmp_path}/run"
    done = shell(f'$PYTHON -c "$MAIN" {arguments} | true; echo ${{PIPESTATUS[0]}}')
    assert (done.stdout, done.stderr) == (b"141\n", b"")
    again = shell(f'$PYTHON -c "$MAIN" mnist --resume {tmp_path}/run')
    assert (again.returncode, again.stderr) == (0, b"")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6
