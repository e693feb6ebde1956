"""Compute the tables of records/inception-cifar10 from its raw rows, and write them into its README.

python tools/summarize_inception_cifar10.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev

from batchnorm.paper.inception.comparison import Record, by_variant, read_records
from batchnorm.paper.inception.shift.records import read_shift
from batchnorm.paper.show.inception_tables import fig3_table, fig4_table
from batchnorm.paper.show.recipe_table import recipe_table
from batchnorm.paper.show.shift_table import shift_table

RECORDS = Path(__file__).parents[1] / "records" / "inception-cifar10"
BLOCK = re.compile(r"<!-- (\w+)( \d+)? -->\n(.*?)<!-- end -->\n", re.DOTALL)


def main() -> None:
    readme = RECORDS / "README.md"
    readme.write_text(filled(readme.read_text()))


def filled(text: str) -> str:
    """Return the text with each table computed anew. A comment names it, with the number of steps if it has one."""

    def fill(found: re.Match[str]) -> str:
        name, steps, _ = found.groups()
        table = TABLES[name](*([int(steps)] if steps else []))
        return f"<!-- {name}{steps or ''} -->\n{markdown(table)}<!-- end -->\n"

    return BLOCK.sub(fill, text)


def markdown(table: Sequence[Sequence[str]]) -> str:
    head, *lines = table
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def sweep(steps: int) -> list[list[str]]:
    """Return the last top-1 of the plain network at each learning rate."""
    runs = sorted(read_records(sorted((RECORDS / str(steps)).glob("sweep/*"))), key=lambda r: r.job.config.lr)
    return [
        ["lr", *(f"{run.job.config.lr:g}" for run in runs)],
        [f"top-1 after {steps:,} steps", *(f"{run.rows[-1]['top1']:.1%}" for run in runs)],
    ]


def variants(steps: int) -> list[list[str]]:
    """Return Fig. 3 for the runs of one length."""
    return fig3_table(seeds_of(steps))


def evaluated(steps: int) -> list[list[str]]:
    """Return the accuracy of the networks at the end of their runs, by one crop and folded, for each variant.

    The newest evaluation of a run counts.
    """
    table = [["", "seeds", "images", "top-1", "top-5"]]
    for name, members in by_variant(seeds_of(steps)).items():
        found = [[row for row in r.evaluations if row["crops"] == 1 and row["folded"]] for r in members]
        rows = [of_one_run[-1] for of_one_run in found if of_one_run]
        if rows:
            cells = [spread([100 * row[key] for row in rows], "%") for key in ("top1", "top5")]
            table.append([name, str(len(rows)), f"{min(row['images'] for row in rows):,}", *cells])
    return table


def recipe(steps: int) -> list[list[str]]:
    """Return what each part of the recipe gives, for the runs of one length."""
    return recipe_table(seeds_of(steps))


def rates() -> list[list[str]]:
    """Return the best top-1 of BN-x5 and BN-x30 for each length of run."""
    table = [["steps", "seeds", "BN-x5", "BN-x30", "BN-x30 over BN-x5, in points"]]
    for steps in sorted(int(path.name) for path in RECORDS.iterdir() if path.name.isdigit()):
        groups = by_variant(seeds_of(steps))
        best = {name: {r.job.config.seed: r.best["top1"] for r in groups.get(name, [])} for name in ("bn-x5", "bn-x30")}
        seeds = sorted(best["bn-x5"].keys() & best["bn-x30"].keys())
        if seeds:
            each = [[100 * best[name][seed] for seed in seeds] for name in best]
            gains = [x30 - x5 for x5, x30 in zip(*each, strict=True)]
            table.append([f"{steps:,}", str(len(seeds)), *(spread(values, "%") for values in each), spread(gains, "")])
    return table


def ensemble(steps: int) -> list[list[str]]:
    """Return the errors of the ensemble and its members, by one crop and by 144."""
    return fig4_table(read_records([RECORDS / str(steps) / "ensemble"]))


def shift() -> list[list[str]]:
    """Return what BN changes."""
    return shift_table(read_shift(RECORDS / "shift"))


def seeds_of(steps: int) -> list[Record]:
    """Return the records of all seeds of one length."""
    folders = sorted((RECORDS / str(steps)).glob("seed-*"))
    return read_records(folders) if folders else []


def spread(values: Sequence[float], unit: str) -> str:
    return f"{mean(values):.1f}{unit}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


TABLES: dict[str, Callable[..., list[list[str]]]] = {
    "sweep": sweep, "variants": variants, "evaluated": evaluated, "recipe": recipe, "rates": rates,
    "ensemble": ensemble, "shift": shift,
}  # fmt: skip

if __name__ == "__main__":
    main()
