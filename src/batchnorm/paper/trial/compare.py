"""`bn.trial`: compare a network with and without BN.

The work needs rich, matplotlib and pydantic, of the extra `paper`. So it is imported when the function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ...algorithm2.choices import Removable
from ...errors import BatchNormError
from .config import Optimizer, TrialConfig
from .result import TrialResult


def trial(
    network: Callable[[], nn.Module],
    batches: Iterable[Any],
    *,
    eval_batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    metric: Callable[[Any, Any], Any] | None = None,
    lr: float = TrialConfig.lr,
    steps: int = TrialConfig.steps,
    seeds: int = TrialConfig.seeds,
    eval_every: int = TrialConfig.eval_every,
    optimizer: Optimizer = TrialConfig.optimizer,
    momentum: float = TrialConfig.momentum,
    weight_decay: float = TrialConfig.weight_decay,
    decay_every: float = TrialConfig.decay_every,
    recipe: bool = TrialConfig.recipe,
    remove: Removable | Collection[Removable] = (),
    out: Path | str | None = None,
    resume: Path | str | None = None,
    progress: bool = False,
) -> TrialResult:
    """Train a network with and without BN, and tell whether BN helps it (Fig. 2 of the paper, for any network).

    Each seed gives all contenders the same weights and the same mini-batches. The network with BN trains at 1, 5 and
    30 times the learning rate (Sec. 4.2.2), the plain one also at a fifth of it. Each is judged at its fastest rate.
    BN is what `insert` puts in. A network that has BN already is compared with itself without: y = gamma x + beta.

    Scores are over held-out batches in eval mode, by population statistics of 8 training batches. The run folder gets
    `config.json`, `metrics.jsonl` with every measurement, `figure2.png`, `figure2.svg` and `report.html`. No run is
    overwritten. The same call with `resume` continues one that was killed, and gives the same rows, to the bit, on the
    same machine.

    Arguments:
        network: a function without arguments that returns a new network, with weights from torch's generator.
        batches: (input, target) batches as `recalibrate` takes them. No more are read than `steps` can use. They stay
            in memory. One in five is held out, 64 at most, unless `eval_batches` is given.
        eval_batches: the held-out batches, the first 64.
        loss: a function of (output, target). By default cross-entropy for integer targets, otherwise the mean squared
            error.
        metric: a function of (output, target) that returns a number; higher is better. By default the accuracy where
            the loss is the default cross-entropy, otherwise the loss, lower is better.
        lr: the learning rate that you train the network with.
        steps: mini-batches that each contender trains on.
        seeds: how many seeds. One gives no spread.
        eval_every: steps between two measurements.
        optimizer: "sgd" or "adamw".
        momentum: of sgd.
        weight_decay: of all contenders, but see `recipe`.
        decay_every: steps between two decays of the learning rate by 4 %, but see `recipe`. 0 keeps it constant.
        recipe: give the network with BN the rest of the paper's recipe (Sec. 4.2.1): a fifth of `weight_decay`, and a
            decay of the learning rate that is 6 times as fast.
        remove: what inserting BN removes: "dropout", "lrn" or both (Sec. 4.2.1).
        out: a new folder. By default runs/trial-1, or the next free number.
        resume: the folder of a trial to continue, in place of `out`.
        progress: show a progress bar on stderr.

    Returns:
        The verdict, a row per contender, and the files.

    Raises:
        BatchNormError: the extra `paper` is not installed, or an argument is wrong: the network or the batches do not
            fit each other or the loss, the network cannot be traced, `out` exists, or `resume` is another trial.
        StorageError: the folder cannot be written.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Sigmoid(), torch.nn.Linear(16, 2))
        >>> inputs = torch.randn(10, 32, 2, generator=torch.Generator().manual_seed(0))
        >>> batches = [(x, (x[:, 0] > 0).long()) for x in inputs]
        >>> result = bn.trial(network, batches, lr=0.1, steps=20, seeds=2, eval_every=10, out="short")
        >>> len(result.rows), result.folder.name
        (7, 'short')
        >>> sorted(path.name for path in result.paths)
        ['figure2.png', 'figure2.svg', 'report.html']
    """
    try:
        from .whole import Given, run_from_python
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "matplotlib", "pydantic"):
            raise
        raise BatchNormError(f"bn.trial needs {error.name}. Install it with: pip install 'batchnorm[paper]'") from error
    removed = (remove,) if isinstance(remove, str) else tuple(remove)
    config = TrialConfig(
        *(lr, steps, seeds, eval_every, optimizer, momentum), weight_decay, decay_every, recipe, removed
    )
    given = Given(network, batches, eval_batches, loss, metric)
    return run_from_python(given, config, _path(out), _path(resume), progress)


def _path(folder: Path | str | None) -> Path | None:
    return None if folder is None else Path(folder)
