"""Print the table and draw the picture of a folder of records: python benchmarks/plot_batch_norm.py [folder]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from bench_batch_norm import FOLLOWERS, PASSES

RECORDS = Path(__file__).parents[1] / "records" / "kernels"
NAMES = {"torch": "torch eager", "compile": "torch.compile", "ours": "batchnorm"}
COLORS = {"torch": "#9aa5b1", "compile": "#cfd6dd", "ours": "#2266aa"}


HEAD = (
    "run",
    "torch, ms",
    "ours, ms",
    "times torch",
    "in rounds of fast copies, of slow",
    "times torch.compile",
    "least of a shape",
    "inference, times torch",
    "least of a shape",
    "share of copy bandwidth over 32 MB",
)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS
    records = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("N*.json"))}
    print(table(records))
    print(table_of_followers(folder / "then"))
    draw(records, folder / "batch_norm.png")


def table(records: dict[str, dict]) -> str:
    """Return a Markdown table with one row per record."""
    rows = [HEAD, ["---"] * len(HEAD), *(row(name, record["summary"]) for name, record in records.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(name: str, s: dict) -> list[str]:
    rounds = s["times_torch_in_rounds_with"]
    return [
        name,
        spread(s, "torch"),
        spread(s, "ours"),
        f"{s['times_torch']:.2f}",
        f"{rounds['fast_copies']:.2f}, {rounds['slow_copies']:.2f}",
        f"{s['times_compile']:.1f}" if s["times_compile"] else "",
        f"{s['least_times_torch']:.2f} at {shape(s['least_at'])}",
        f"{s['inference_times_torch']:.2f}",
        f"{s['inference_least']:.2f} at {shape(s['inference_least_at'])}",
        ", ".join(f"{share:.0%}" for share in s["copy_bandwidth_share"].values()),
    ]


def table_of_followers(folder: Path) -> str:
    """Return a Markdown table with a row for each thing that follows BN, and both layouts."""
    head = ("BN, then", "NCHW: torch", "ours", "times torch", "NHWC: torch", "ours", "times torch")
    rows = [head, ["---"] * len(head)]
    for then in FOLLOWERS:
        cells = [then]
        for layout in PASSES:
            summary = json.loads((folder / f"{then}-{layout}.json").read_text())["summary"]
            cells += [f"{summary['ms'][name]:.0f}" for name in ("torch", "ours")] + [f"{summary['times_torch']:.2f}"]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def shape(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))


def spread(summary: dict, name: str) -> str:
    low, high = summary["spread_ms"][name]
    return f"{summary['ms'][name]:.1f} ({low:.1f} to {high:.1f})"


def draw(records: dict[str, dict], picture: Path) -> None:
    figure, axes = plt.subplots(1, len(records), squeeze=False, figsize=(3 * len(records), 4), layout="constrained")
    for axis, (name, record) in zip(axes[0], records.items(), strict=True):
        milliseconds = record["summary"]["ms"]
        shown = [c for c in NAMES if c in milliseconds]
        bars = axis.bar(
            [NAMES[c] for c in shown], [milliseconds[c] for c in shown], color=[COLORS[c] for c in shown], width=0.6
        )
        axis.bar_label(bars, fmt="%.0f", padding=2)
        limit = milliseconds["copy"] * PASSES[record["layout"]] / 2
        axis.axhline(limit, color="#cc4422", linewidth=1.2)
        axis.annotate(
            f"memory limit, {limit:.0f}",
            (0.02, limit),
            xycoords=("axes fraction", "data"),
            color="#cc4422",
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.7},
        )
        layout, dtype, threads, *_ = name.split("-")
        axis.set_title(f"{layout}, {dtype}, {threads} thread{'s' if threads != '1' else ''}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0][0].set_ylabel("ms, forward + backward of 69 layers, batch 32")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
