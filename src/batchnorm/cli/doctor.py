"""`batchnorm doctor`: why a network with batch normalization misbehaves."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import Failure
from ..escape import printable
from .arguments import Target
from .kernels import warn_without_kernels


def command(
    target: Target,
    data: str,
    weights: Path | None = None,
    batches: int | None = None,
    loss: str | None = None,
    eval_data: str | None = None,
    html: Path | None = None,
) -> None:
    """Say why a network with batch normalization misbehaves, in which layer, and what mends it.

    Fine in training and useless in eval, NaN after an hour, worse with small batches: give the network as you use it
    and batches of its training set. Print what was found, worst first, with the numbers, the reason and the remedy.
    The network is left as it is.

        batchnorm doctor mine:network --weights trained.pt --data mine:batches --batches 20
        batchnorm doctor mine:network --data mine:batches --loss torch.nn:CrossEntropyLoss --html doctor.html

    The exit status is 0 if the network is healthy (notes do not count), 1 if something is wrong, and 2 if the
    network could not be examined.

    Args:
        target: Factory of the network, called without arguments. Its mode counts: return it in eval mode as it serves.
        data: MODULE:FACTORY of batches of the training set: tensors, (input, target) pairs, or dicts of arguments.
        weights: File with a state_dict: .safetensors, or one by torch.save. A file that would run code is refused.
        batches: Number of batches to read of each set. By default all; some factories give batches without end.
        loss: MODULE:FACTORY of a loss, called as loss(output, target). The proof is then in its units.
        eval_data: MODULE:FACTORY of batches of the evaluation set, to compare the two.
        html: New .html file for a page with the findings and the values of every channel. It opens offline.
    """
    warn_without_kernels()
    try:
        healthy = _examine(target, data, weights, batches, loss, eval_data, html)
    except Failure as error:
        print(f"batchnorm: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if healthy else 1)


def _examine(
    target: str,
    data: str,
    weights: Path | None,
    batches: int | None,
    loss: str | None,
    eval_data: str | None,
    html: Path | None,
) -> bool:
    """Print what the doctor finds, and return True if that is nothing."""
    from ..diagnosis.doctor import doctor
    from .factory import make, make_batches, make_network
    from .output import check_out

    check_out(html, (".html",))
    result = doctor(
        make_network(target, weights),
        make_batches(data, batches),
        loss=None if loss is None else make(loss),
        eval_batches=None if eval_data is None else make_batches(eval_data, batches),
        progress=True,
    )
    print(result)
    if html is not None:
        print(result.to_html(html))
    return result.healthy
