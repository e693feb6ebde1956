"""Copy the settings and measurements of a recorded experiment. Leave out checkpoints, logs and runs without an end.

A path of this machine does not belong into a record: --data names the images in its place.

    python tools/collect_inception.py FROM records/inception-fashion
    python tools/collect_inception.py FROM records/inception-cifar10 --data cifar10-jpeg
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

KEPT = ("metrics.jsonl", "evaluations.jsonl", "rates.jsonl", "trainings.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--data", help="the name of the images, in place of a path")
    given = parser.parse_args()
    for file in sorted(given.source.rglob("config.json")):
        settings = json.loads(file.read_text())
        if not ended(file.parent, settings["steps"]):
            print(f"left out, not ended: {file.parent}")
            continue
        if given.data is not None:
            settings["data"] = given.data
        place = given.target / file.parent.relative_to(given.source)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for path in filter(Path.exists, (file.parent / name for name in KEPT)):
            shutil.copyfile(path, place / path.name)


def ended(run: Path, steps: int) -> bool:
    """Return True if the run has the row of its last step, or diverged."""
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return bool(rows) and (rows[-1].get("diverged", False) or rows[-1]["step"] == steps)


if __name__ == "__main__":
    main()
