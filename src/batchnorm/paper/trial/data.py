"""Keep the batches of a trial in memory, number them, and hold some out."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import BatchNormError
from ...graph.batches import check_batches
from ...torch_private import pytree

MOST_HELD_OUT = 64  # batches: a measurement should cost less than the steps between two
HELD_OUT_SHARE = 5  # without batches of their own, one batch in five


class Data(NamedTuple):
    """Lists of (input, target) batches: to train on, and to measure on."""

    training: list[Any]
    held_out: list[Any]

    def batch(self, seed: int, step: int) -> Any:
        """Return the training batch of a step, counted from 0. Every epoch is a new permutation of the batches."""
        epoch, place = divmod(step, len(self.training))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.training))
        return copied(self.training[order[place]])


def read_data(batches: Iterable[Any], eval_batches: Iterable[Any] | None, steps: int) -> Data:
    """Read as many batches as `steps` can use, since some iterables never end.

    Without `eval_batches`, one batch in five is held out, at even distances, 64 at most.

    Raises:
        BatchNormError: there are too few batches, or one is no (input, target).
    """
    if eval_batches is not None:
        return Data(_read(batches, steps, 1), _read(eval_batches, MOST_HELD_OUT, 1))
    found = _read(batches, steps + min(max(1, steps // (HELD_OUT_SHARE - 1)), MOST_HELD_OUT), 2)
    held = min(max(1, len(found) // HELD_OUT_SHARE), MOST_HELD_OUT)
    places = {number * len(found) // held for number in range(held)}
    return Data([b for n, b in enumerate(found) if n not in places], [found[n] for n in sorted(places)])


def copied(batch: Any) -> Any:
    """Return a copy of a batch. A network may write into its input, as `ReLU(inplace=True)` does."""
    return pytree.tree_map_only(Tensor, torch.clone, batch)


def examples(batch: Any) -> int:
    """Return the number of examples of a batch: the first size of its first tensor."""
    sizes = [len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    return sizes[0] if sizes else 1


def digest_of(values: Any) -> str:
    """Return a digest of the tensors in nested lists and dicts, of their shapes and types, and of other values."""
    found = sha256()
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:16]


def _read(batches: Iterable[Any], most: int, least: int) -> list[Any]:
    check_batches(batches)
    found = list(islice(batches, most))
    if len(found) < least:
        raise BatchNormError(
            f"a trial wants {'two batches or more, since it holds some out' if least > 1 else 'one batch or more'}; "
            f"got {len(found)}"
        )
    for number, batch in enumerate(found, 1):
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise BatchNormError(
                f"batch {number} (the first is 1) is a {type(batch).__name__}"
                f"{f' of {len(batch)} parts' if isinstance(batch, tuple | list) else ''}; wanted (input, target)"
            )
    return found
