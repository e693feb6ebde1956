"""Make the tables of Figs. 3 and 4 from records."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from ..inception.comparison import Record, by_variant, without_parts
from ..inception.variants import INCEPTION, rescaled

FIG3_TITLE = "Figure 3: steps to the plain network's best, and the best"
FIG4_TITLE = "Figure 4: crops and ensembles"
# Fig. 3: steps to a top-1 of 72.2 %, and the best top-1. Where the paper gives no number, its words.
PAPER_FIG3 = {
    "inception": ("31.0M", "72.2%"),
    "bn-baseline": ("13.3M", "72.7%"),
    "bn-x5": ("2.1M", "73.0%"),
    "bn-x30": ("2.7M", "74.8%"),
    "bn-x5-sigmoid": ("never", "69.8%"),
    "inception-x5": ("reached infinity", ""),
    "inception-sigmoid": ("never", "stays at chance"),
}


class PaperResult(NamedTuple):
    """One line of Fig. 4, as printed. Empty where the paper has nothing."""

    model: str
    size: str
    crops: str
    models: str
    top1_error: str
    top5_error: str


PAPER_FIG4 = (
    PaperResult("GoogLeNet ensemble", "224", "144", "7", "", "6.67%"),
    PaperResult("Deep Image low-res", "256", "", "1", "", "7.96%"),
    PaperResult("Deep Image high-res", "512", "", "1", "24.88%", "7.42%"),
    PaperResult("Deep Image ensemble", "variable", "", "", "", "5.98%"),
    PaperResult("BN-Inception single crop", "224", "1", "1", "25.2%", "7.82%"),
    PaperResult("BN-Inception multicrop", "224", "144", "1", "21.99%", "5.82%"),
    PaperResult("BN-Inception ensemble", "224", "144", "6", "20.1%", "4.9%"),
)


def fig3_table(records: Sequence[Record]) -> list[list[str]]:
    """Return Fig. 3: a header, and for each variant the steps to the plain network's best top-1, and its own best."""
    groups = by_variant(without_parts(records))
    plain = groups.get(INCEPTION.name)
    level = mean(record.best["top1"] for record in plain) if plain else None
    reach = f"steps to {level:.2%}" if level is not None else "steps to the plain network's best"
    table = [["", "lr", "seeds", reach, "best top-1", "at step", "paper: steps to 72.2%", "best"]]
    for name, members in groups.items():
        steps = "" if level is None else _reached([record.steps_to(level) for record in members], members)
        best = [record.best for record in members]
        config = members[0].job.config
        rate = rescaled(members[0].job.variant, config.lr, config.decay_every).lr
        cells = [_spread([row["top1"] for row in best]), f"{mean(row['step'] for row in best):,.0f}"]
        table.append([name, f"{rate:g}", str(len(members)), steps, *cells, *PAPER_FIG3.get(name, ("", ""))])
    return table


def fig4_table(records: Sequence[Record]) -> list[list[str]]:
    """Return Fig. 4: a header, the newest evaluation of each kind, and the paper's results. Errors are in %."""
    head = ["", "image size", "crops", "models", "top-1 error", "top-5 error"]
    ours = {}
    for row in (row for record in records for row in record.evaluations):
        errors = [f"{1 - row['top1']:.2%}", f"{1 - row['top5']:.2%}"]
        line = [row["name"], str(row["size"]), str(row["crops"]), str(len(row["runs"])), *errors]
        ours[(*row["runs"], row["size"], row["crops"])] = line
    return [head, *ours.values(), *([f"paper: {line[0]}", *line[1:]] for line in PAPER_FIG4)]


def _reached(steps: list[int | None], members: Sequence[Record]) -> str:
    found = [step for step in steps if step is not None]
    ends = sorted(record.diverged for record in members if record.diverged is not None)
    reached = f"{mean(found):,.0f}{_share(found, members)}" if found else "never"
    if not ends:
        return reached
    where = f"at {ends[0]:,}" if ends[0] == ends[-1] else f"between {ends[0]:,} and {ends[-1]:,}"
    return f"{reached}; diverged {where}{_share(ends, members)}"


def _share(some: Sequence[object], members: Sequence[object]) -> str:
    return "" if len(some) == len(members) else f" ({len(some)} of {len(members)} seeds)"


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values) * 100:.2f}" if len(values) > 1 else "")
