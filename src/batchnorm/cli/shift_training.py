"""Measure a look at why BN helps into its run folder, draw it, and print its table."""

from __future__ import annotations

import sys

from ..escape import printable
from ..paper.images.interface import Images
from ..paper.inception.shift.config import ShiftConfig
from ..paper.inception.shift.experiment import run_shift
from ..paper.inception.shift.records import read_shift
from ..paper.show.shift_figure import shift_figure
from ..paper.show.shift_table import SHIFT_TITLE, shift_table
from ..paper.show.terminal import print_paths, print_table
from ..paper.training.rows import Row
from ..paper.training.run import Run
from ..paper.training.signals import stop_on_signal


def look(config: ShiftConfig, images: tuple[Images, Images], run: Run) -> None:
    """Measure what is missing in `run`, draw all of it, and print its table.

    Raises:
        BatchNormError: a line of the records is damaged, or the images cannot be read.
        StorageError: the run folder cannot be written.
    """
    print(f"Run folder: {printable(run.folder)}", flush=True)
    with stop_on_signal() as stop:
        finished = run_shift(config, images, run, _say, stop)
    if not finished:
        print(f"Stopped early. Continue with: batchnorm shift --resume {printable(run.folder)}")
        sys.exit(130)  # the status of Ctrl-C, so that a shell does not run what follows &&
    records = read_shift(run.folder)
    pictures = shift_figure(records, run.folder)
    print_table(SHIFT_TITLE, shift_table(records))
    print_paths(pictures)


def _say(row: Row) -> None:
    at = f"step {row['step']:,}" if "step" in row else f"learning rate {row['lr']:g}"
    print(f"{row['network']}, seed {row['seed']}: {at}", flush=True)
