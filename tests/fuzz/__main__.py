"""Fuzz the readers of files that others made, with atheris: make fuzz, or python -m fuzz with tests/ in PYTHONPATH.

Each reader runs in a process of its own. It must read any bytes, or refuse them with an error of the project. Anything
else is a find: another error, a crash, more than 10 seconds, more than 2 GiB. The input of each find is written to
OUT/finds, with its trace or beside the log OUT/READER.log. Inputs that reach new code are kept in OUT/corpus.
"""

import argparse
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fuzz.engine import temporary_folder
from fuzz.keep import keep
from fuzz.readers import READERS

MOST_SECONDS, MOST_MEGABYTES = 10, 2048  # of one input
OUT = Path("build/fuzz")
GRACE = 300  # seconds that a process may take to start and to end
SHOWN_EVERY = 30  # seconds


class Result(NamedTuple):
    """What one reader took and gave."""

    executions: int
    seconds: float
    finds: list[Path]
    failure: str = ""


def main() -> int:
    """Fuzz the chosen readers. Return 1 if there are finds or a reader did not run."""
    options = _options()
    if find_spec("atheris") is None:
        sys.exit("fuzz: fuzzing needs atheris: pip install 'batchnorm[fuzz]'")
    failed = False
    for name in options.reader or READERS:
        result = fuzz(name, options.out, options.seconds)
        failed |= bool(result.finds or result.failure)
        print(f"{name}: {result.executions:,} executions in {result.seconds:.0f} s, {len(result.finds)} finds")
        for line in (*result.finds, *filter(None, [result.failure])):
            print(f"  {line}")
        if options.keep:
            print(f"{name}: {keep(name, options.out / 'corpus' / name)} inputs added to the corpus", flush=True)
    return int(failed)


def fuzz(name: str, out: Path, seconds: int) -> Result:
    """Fuzz one reader. After a crash or a hang, start it again for the rest of the time."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "finds").mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (out / "finds").iterdir()}
    log, began, executions, failure = out / f"{name}.log", time.monotonic(), 0, ""
    log.write_bytes(b"")
    while (left := round(began + seconds - time.monotonic())) > 0:
        status, done = _run(name, out, log, left)
        executions += done
        if status == 0:
            break
        if not done:  # it would end at the same input of the corpus again
            failure = f"{name} ended before its first mutation, with status {status}: see {log}"
            break
    changed = [path for path in (out / "finds").iterdir() if before.get(path) != path.stat().st_mtime_ns]
    finds = sorted(path for path in changed if path.name.startswith(f"{name}-") and path.suffix != ".txt")
    return Result(executions, time.monotonic() - began, finds, failure)


def _run(name: str, out: Path, log: Path, seconds: int) -> tuple[int, int]:
    """Run libFuzzer once. Return its status, negative for a signal, and its executions."""
    limits = [f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}"]
    limits += [f"-artifact_prefix={out / 'finds' / name}-"]
    start, began, shown = log.stat().st_size, time.monotonic(), time.monotonic()
    with log.open("ab") as file, temporary_folder() as scratch:
        command = [sys.executable, "-m", "fuzz.engine", name, str(out), scratch, *limits]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while (status := process.poll()) is None:
            time.sleep(0.2)
            now = time.monotonic()
            if now - shown > SHOWN_EVERY:
                shown = now
                print(f"{name}: {_executions(log, start):,} executions, {now - began:.0f} of {seconds} s", flush=True)
            if now - began > seconds + GRACE:
                process.kill()
    return status, _executions(log, start)


def _executions(log: Path, start: int) -> int:
    with log.open("rb") as file:
        file.seek(start)
        return max(map(int, re.findall(rb"^(?:#|Done )(\d+)", file.read(), re.MULTILINE)), default=0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fuzz",
        description=__doc__,
        epilog="\n".join(["readers:", *(f"  {name:22}{reader.prepare.__doc__}" for name, reader in READERS.items())]),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("reader", nargs="*", help="by default all of them")
    parser.add_argument("--seconds", type=int, default=60, help="of each reader; by default 60")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of finds and logs; by default {OUT}")
    parser.add_argument("--keep", action="store_true", help="add to tests/fuzz/corpus what reaches new lines")
    options = parser.parse_args()
    if unknown := [name for name in options.reader if name not in READERS]:
        parser.error(f"there is no reader {unknown[0]!r}; wanted {', '.join(READERS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
