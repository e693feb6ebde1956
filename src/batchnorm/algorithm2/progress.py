"""Report how many batches are done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import Any, TextIO

from .processes import rank

Report = Callable[[int, int | None], object]


def reported(batches: Iterable[Any], progress: bool | Report, step: str = "recalibrate") -> Iterator[Any]:
    """Yield the batches, and report each one when the consumer asks for the next.

    Arguments:
        batches: any iterable.
        progress: True prints to stderr, in the first process alone. A function is called as `progress(done, total)`,
            with None for an unknown total. False reports nothing.
        step: the word before the number.
    """
    if callable(progress):
        yield from _reported(batches, progress)
    elif progress and rank() == 0:
        with _lines(sys.stderr, step) as report:
            yield from _reported(batches, report)
    else:
        yield from batches


def _reported(batches: Iterable[Any], report: Report) -> Iterator[Any]:
    total = length_hint(batches, 0) or None
    for done, batch in enumerate(batches, 1):
        yield batch
        report(done, total)


@contextmanager
def _lines(stream: TextIO, step: str) -> Iterator[Report]:
    """Give a function that prints.

    A terminal shows one line. A file gets a line per tenth of a known total, otherwise one after 1, 2, 4, 8, … batches.
    """
    terminal, tenths, line_open = stream.isatty(), 0, False

    def report(done: int, total: int | None) -> None:
        nonlocal tenths, line_open
        text = f"{step}: batch {done}" + (f" of {total}" if total else "")
        if terminal:
            print(f"\r{text}", end="", file=stream, flush=True)
            line_open = True
        elif total and 10 * done // total > tenths:
            print(text, file=stream, flush=True)
            tenths = 10 * done // total
        elif not total and done.bit_count() == 1:
            print(text, file=stream, flush=True)

    try:
        yield report
    finally:
        if line_open:
            print(file=stream)
