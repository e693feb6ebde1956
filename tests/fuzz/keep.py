"""Choose the inputs that the committed corpus keeps: as few as reach all lines that are reached."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz.engine import CORPUS, is_instrumented, temporary_folder
from fuzz.readers import READERS, Read, is_read

MOST_BYTES = 30_000  # that a reader's inputs take together
Step = tuple[str, int, int]  # a file, and two lines that ran one after the other


def keep(name: str, found: Path) -> int:
    """Add to the corpus of a reader what reaches new lines, most first. Return how many inputs that is."""
    folder = CORPUS / name
    with temporary_folder() as scratch:
        read = READERS[name].prepare(Path(scratch))
        steps_of(read, b"")  # what runs once
        reached = set().union(*(steps_of(read, path.read_bytes()) for path in folder.iterdir()))
        new = {
            content: steps_of(read, content) - reached for content in {path.read_bytes() for path in found.iterdir()}
        }
    added, size = 0, sum(path.stat().st_size for path in folder.iterdir())
    while new:
        content = min(new, key=lambda content: (-len(new[content]), len(content), content))
        steps = new.pop(content)
        if not steps:
            break
        if size + len(content) > MOST_BYTES:
            continue
        (folder / f"found-{hashlib.sha256(content).hexdigest()[:12]}").write_bytes(content)
        new = {other: theirs - steps for other, theirs in new.items()}
        added, size = added + 1, size + len(content)
    return added


def steps_of(read: Read, content: bytes) -> set[Step]:
    """Return the steps between lines that reading the content takes."""
    steps: set[Step] = set()
    with _traced(steps):
        is_read(read, content)
    return steps


@contextmanager
def _traced(steps: set[Step]) -> Iterator[None]:
    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        if not is_instrumented(frame.f_globals.get("__name__", "")):
            return None
        last = 0

        def step(frame: FrameType, _event: str, _argument: Any) -> Any:
            nonlocal last
            steps.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)
