"""How the command ends: whatever is raised becomes one line on stderr and an exit status."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn, TextIO

from ..errors import Failure, first_line
from ..escape import printable
from .extras import EXTRAS, how_to_install

DEBUG = "BATCHNORM_DEBUG"  # an environment variable: with 1 the trace is printed too
BUG = 70  # EX_SOFTWARE of BSD's sysexits.h
INTERRUPTED = 130  # what a shell reports for Ctrl-C, SIGINT
PIPE_CLOSED = 141  # what a shell reports for SIGPIPE
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Ending(NamedTuple):
    """The exit status, and the line before it; "" prints none."""

    status: int
    line: str = ""


class OutputFailed(Exception):
    """What was printed cannot be written: the reader is gone, or the disk is full."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Run the command. Turn every exception into `SystemExit` with one line, and escape what warnings and logs say.

    | ends with | status | line |
    |---|---|---|
    | an error of the package, a missing extra, a file or folder that the system refuses, no memory | 1 | what to do |
    | a full disk behind stdout | 1 | says so |
    | stdout closed early, as by `head` | 141 | none |
    | Ctrl-C | 130 | none |
    | anything else | 70 | says that it is a bug |
    """
    _prepare_streams()
    with _escaped_messages():
        try:
            try:
                yield
            finally:
                _flush()
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich exits with 1
                error.code = PIPE_CLOSED
            raise
        except BaseException as error:
            _end(error)


def ending(error: BaseException) -> Ending:
    """Return how an exception ends the command."""
    match error:
        case Failure():
            return Ending(1, str(error))
        case KeyboardInterrupt():
            return Ending(INTERRUPTED)
        case OutputFailed(__cause__=BrokenPipeError()):
            return Ending(PIPE_CLOSED)
        case OutputFailed():
            return Ending(1, f"the output cannot be written: {error}")
        case BrokenPipeError() if _reader_is_gone():
            return Ending(PIPE_CLOSED)
        case ModuleNotFoundError() if (package := (error.name or "").partition(".")[0]) in EXTRAS:
            return Ending(1, f"this command needs {package}. Install it with: {how_to_install(package)}")
        case OSError(filename=str() | bytes() as name):
            return Ending(1, f"{os.fsdecode(name)}: {error.strerror}")
        case OSError(errno=number) if number in _NO_ROOM:
            return Ending(1, f"the output cannot be written: {error.strerror}")
        case _ if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            return Ending(1, f"not enough memory: {_first_line(error)}")
    what = f"{type(error).__name__}: {_first_line(error)}{_place(error)}"
    return Ending(BUG, f"{what}. This is a bug; {DEBUG}=1 shows the trace")


def _end(error: BaseException) -> NoReturn:
    status, line = ending(error)
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    _silence()
    if status == 1:
        sys.exit(f"batchnorm: {printable(line)}")
    if line:
        print(f"batchnorm: {printable(line)}", file=sys.stderr)
    sys.exit(status)


def _first_line(error: BaseException) -> str:
    return first_line(error) if isinstance(error, Exception) else str(error)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""  # noqa: PTH119


def _prepare_streams() -> None:
    """Let stdout and stderr take every character, in an ASCII terminal too, and give closed ones an end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-. The next file that is opened would take its number.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    for error in filter(None, map(_flush_error, (sys.stdout, sys.stderr))):
        raise OutputFailed(error.strerror) from error


def _silence() -> None:
    """Lead a stream that cannot be written to nowhere. Otherwise Python prints a trace when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if _flush_error(stream):
            with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), stream.fileno())


def _flush_error(stream: TextIO) -> OSError | None:
    try:
        stream.flush()
    except OSError as error:
        return error
    return None


def _reader_is_gone() -> bool:
    """Return True if stdout or stderr is a pipe without a reader. Other pipes break too, such as those of workers."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def _escaped_messages() -> Iterator[None]:
    """Print each warning and each line of a log on one line, with the names in it escaped."""
    handler, formatwarning = logging.lastResort, warnings.formatwarning
    formatter = handler.formatter if handler else None
    warnings.formatwarning = _format_warning
    if handler:
        handler.setFormatter(_Escaping())
    try:
        yield
    finally:
        warnings.formatwarning = formatwarning
        if handler:
            handler.setFormatter(formatter)


def _format_warning(message: Warning | str, category: type[Warning], *_place: object, **_line: object) -> str:
    return f"{category.__name__}: {printable(message)}\n"


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
