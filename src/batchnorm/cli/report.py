"""`batchnorm report`: Figures 2, 3 and 4 of the paper."""

from __future__ import annotations

from pathlib import Path

from .arguments import Runs


def command(runs: Runs, out: Path | None = None) -> None:
    """Draw Figures 2, 3 and 4 of the paper from the records of runs.

    Write figure2.png, figure2.svg and report.html, a page that opens offline. It shows accuracy against steps, the
    steps to the plain network's best accuracy, and the results of crops and ensembles, each beside the paper's. Runs of
    the recipe's parts have a table of their own, and the pictures recipe.png and recipe.svg.

        batchnorm report runs/inception-all-1
        batchnorm report runs/seed-1 runs/seed-2 --out pages/both

    Args:
        runs: Folders that batchnorm inception made, each of one run or of several. Runs of one variant count as seeds.
        out: Folder for the results, new or empty. By default runs/report-1, or the next free number.
    """
    from ..paper.show.inception_terminal import show_report

    show_report(runs, out)
