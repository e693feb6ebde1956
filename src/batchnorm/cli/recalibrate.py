"""`batchnorm recalibrate`: estimate population statistics again."""

from __future__ import annotations

from pathlib import Path

from ..algorithm2.choices import Estimator
from .arguments import Target
from .kernels import warn_without_kernels


def command(
    target: Target,
    data: str,
    weights: Path | None = None,
    batches: int | None = None,
    estimator: Estimator = "pooled",
    out: Path | None = None,
) -> None:
    """Estimate the population statistics of every batch normalization from data (Alg. 2, line 10).

    Print how far the statistics of each layer moved.

        batchnorm recalibrate mine:network --weights trained.pt --data mine:batches --out recalibrated.safetensors

    Args:
        target: Factory of the network, called without arguments, such as torchvision.models:resnet18.
        data: MODULE:FACTORY of batches of the training set.
        weights: File with a state_dict: .safetensors, or one by torch.save. A file that would run code is refused.
        batches: Number of batches to read. By default all; some factories give batches without end.
        estimator: pooled takes all values together, paper averages the statistics of the batches.
        out: New .safetensors file for the state_dict of the result.
    """
    from ..algorithm2.recalibrate import recalibrate
    from .factory import make_batches, make_model
    from .output import check_out, save_state, write

    warn_without_kernels()
    check_out(out, (".safetensors",))
    model = make_model(target, weights)
    print(recalibrate(model, make_batches(data, batches), estimator=estimator, progress=True))
    write(out, lambda file: save_state(model, file))
