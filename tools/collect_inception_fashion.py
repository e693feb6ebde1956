"""Copy the settings and measurements of the recorded experiment. Leave out checkpoints and logs.

python tools/collect_inception_fashion.py FROM records/inception-fashion
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

KEPT = ("config.json", "metrics.jsonl", "evaluations.jsonl")


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    for path in sorted(source.rglob("*.json*")):
        if path.name in KEPT:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


if __name__ == "__main__":
    main()
