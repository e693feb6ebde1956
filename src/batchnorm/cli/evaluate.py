"""`batchnorm evaluate`: accuracy of trained networks and of their ensemble."""

from __future__ import annotations

from typing import Literal

from .arguments import Runs
from .kernels import warn_without_kernels


def command(
    runs: Runs,
    data: str,
    crops: Literal[1, 144] = 1,
    fold: bool = True,
    workers: int | None = None,
) -> None:
    """Measure trained networks, and their ensemble, on the validation images (Sec. 4.2.3).

    Print the top-1 and top-5 accuracy of each run's newest checkpoint. Several runs are also measured together: their
    ensemble predicts the arithmetic mean of the class probabilities. The results are added to evaluations.jsonl in the
    folder of the first run, where batchnorm report finds them.

        batchnorm evaluate runs/x30 --data /data/imagenet --crops 144
        batchnorm evaluate runs/inception-all-1 --data fashion

    Args:
        runs: Folders that batchnorm inception made, each of one run or of several.
        data: Folder with val, as in training, or fashion or cifar10.
        crops: Crops of each image: 1 takes the center, 144 the paper's (4 scales, 3 squares, 6 crops, mirrored).
        fold: Fold the batch normalization into the other layers first (Alg. 2, line 11). --no-fold keeps its layers.
        workers: Processes that read images. By default one per core.
    """
    from .inception_evaluation import evaluate_runs

    warn_without_kernels()
    evaluate_runs(runs, data, crops, fold, workers)
