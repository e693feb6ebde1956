"""Print the tables and draw the picture of a folder of records: python benchmarks/plot_networks.py [folder]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import matplotlib.pyplot as plt
from bench_networks import times_torch

RECORDS = Path(__file__).parents[1] / "records" / "networks"
SIDES = {"fused": ("bn.fuse", "#2266aa"), "compiled": ("torch.compile", "#6f7a86")}
BOUNDS = {"no BN": ("without BN", "-"), "bare": ("without BN and activation", ":")}
RED = "#cc4422"
HEAD = ("network", "torch, ms", "`bn.fuse`", "`torch.compile`", "without BN", "without BN and activation", "cost left")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("N*.json"))}
    for name, record in records.items():
        print(f"<!-- {name} -->", table(record), "<!-- end -->", sep="\n", end="\n\n")
    draw(records, folder / "networks.png")


def table(record: dict[str, Any]) -> str:
    """Return a Markdown table with one row per network, and the geometric means."""
    networks = record["networks"]
    times = {name: times_torch(found["ms"]) for name, found in networks.items()}
    rows = [HEAD, ["---"] * len(HEAD)]
    for name, found in networks.items():
        rows.append([name, f"{found['medians_ms']['torch']:.0f}", *cells(times[name]), f"{found['left']:.0%}"])
    means = {side: geometric_mean(of[side] for of in times.values()) for side in times[next(iter(times))]}
    rows.append(["geometric mean", "", *cells(means), f"{record['total']['left']:.0%} (mean)"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(times: dict[str, float]) -> list[str]:
    return [f"{times[side]:.2f}" if side in times else "" for side in (*SIDES, *BOUNDS)]


def draw(records: dict[str, Any], picture: Path) -> None:
    figure, axes = plt.subplots(
        len(records), 1, squeeze=False, sharex=True, figsize=(11, 0.6 + 2.6 * len(records)), layout="constrained"
    )
    for axis, (name, record) in zip(axes[:, 0], records.items(), strict=True):
        times = {network: times_torch(found["ms"]) for network, found in record["networks"].items()}
        present = [side for side in SIDES if all(side in found for found in times.values())]
        width = 0.7 / len(present)
        for index, side in enumerate(present):
            label, color = SIDES[side]
            places = [place + (index - (len(present) - 1) / 2) * width for place in range(len(times))]
            bars = axis.bar(places, [found[side] for found in times.values()], width, color=color, label=label)
            axis.bar_label(bars, fmt="%.2f", label_type="center", color="white", fontsize=8)
        for side, (label, style) in BOUNDS.items():
            left, right = [place - 0.42 for place in range(len(times))], [place + 0.42 for place in range(len(times))]
            axis.hlines([found[side] for found in times.values()], left, right, RED, style, label=label)
        axis.axhline(1, color="#444444", linewidth=1)
        axis.set_xticks(range(len(times)), list(times), fontsize=8)
        axis.set_title(name.replace("-", ", "), fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylabel("times torch")
    axes[0][0].legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
