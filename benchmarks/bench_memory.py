"""Time training steps of BN + ReLU on large maps with and without `keep_memory`, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import described

STEP = """
import json, resource, time, torch, batchnorm as bn
torch.set_num_threads({threads})
kept = {keep} and bn.keep_memory()
layer = bn.BatchNorm2d(64, activation="relu")
x, dz = torch.randn(32, 64, 112, 112, requires_grad=True), torch.randn(32, 64, 112, 112)
times = []
for _ in range(15):
    start = time.perf_counter()
    torch.autograd.grad(layer(x), [x, *layer.parameters()], dz)
    times.append((time.perf_counter() - start) * 1e3)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{"kept": kept, "ms": times[3:], "peak_mb": peak}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for keep in (False, True) * 2:
        code = STEP.format(keep=keep, threads=args.threads)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(f"kept {rows[-1]['kept']}: {min(rows[-1]['ms']):.1f} ms a step, peak {rows[-1]['peak_mb']:.0f} MB")
    if args.out:
        record = {
            "shape": [32, 64, 112, 112],
            "threads": args.threads,
            **described(),
            "malloc": "each row's own",
            "rows": rows,
        }
        args.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
