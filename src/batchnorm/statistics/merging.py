"""`merge_statistics`: pool the running statistics of several copies of one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from ..errors import BatchNormError, first_few
from ..moments import Moments

_MEAN, _VAR, _COUNT = "running_mean", "running_var", "num_batches_tracked"


def merge_statistics(state_dicts: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """Return the pooled running statistics of several copies of one network.

    For the clients of federated learning, ranks, or shards of data. Mean and variance are merged by Chan's formula. The
    variance holds the spread between the means of the copies, which the mean of their variances loses.

    Arguments:
        state_dicts: `model.state_dict()` of each copy.
        counts: the number of values per channel that each copy's statistics stand for. The number of examples serves
            too, because the ratios count.

    Returns:
        `running_mean`, `running_var` and `num_batches_tracked` (the sum) of every BN layer. Load them with
        `model.load_state_dict(merged, strict=False)`.

    Raises:
        BatchNormError: there is no state dict, a count is below 2, or the state dicts have different statistics.

    Example:
        >>> import torch
        >>> import batchnorm as bn
        >>> first = {"running_mean": torch.tensor([0.0]), "running_var": torch.tensor([2.0])}
        >>> second = {"running_mean": torch.tensor([10.0]), "running_var": torch.tensor([2.0])}
        >>> bn.merge_statistics([first, second], [2, 2])
        {'running_mean': tensor([5.]), 'running_var': tensor([34.6667])}
    """
    _check(state_dicts, counts)
    merged: dict[str, Tensor] = {}
    for mean_name in _means(state_dicts[0]):
        var_name, count_name = _var_of(mean_name), mean_name.removesuffix(_MEAN) + _COUNT
        moments = reduce(
            Moments.merge,
            (_moments(state[mean_name], state[var_name], n) for state, n in zip(state_dicts, counts, strict=True)),
        )
        first = state_dicts[0]
        merged[mean_name] = moments.mean.to(first[mean_name].dtype)
        merged[var_name] = moments.var(unbiased=True).to(first[var_name].dtype)
        if count_name in first:
            merged[count_name] = torch.stack([state[count_name] for state in state_dicts]).sum()
    return merged


def _moments(mean: Tensor, var: Tensor, count: int) -> Moments:
    return Moments(count, mean.double(), var.double() * (count - 1))


def _means(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if name == _MEAN or name.endswith(f".{_MEAN}")]


def _var_of(mean_name: str) -> str:
    return mean_name.removesuffix(_MEAN) + _VAR


def _check(state_dicts: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> None:
    """Raise BatchNormError unless there is a count for each state dict, and all have the same statistics."""
    if not state_dicts or len(state_dicts) != len(counts):
        raise BatchNormError(
            f"merge_statistics wants a count for each state dict; got {len(state_dicts)} and {len(counts)}"
        )
    if not all(count >= 2 for count in counts):  # NaN is not, either
        raise BatchNormError(f"counts must be 2 or more, the values behind each copy's variance; got {list(counts)}")
    shapes = [_shapes(state) for state in state_dicts]
    if not shapes[0]:
        raise BatchNormError("the state dicts have no running statistics: nothing to merge")
    alone = next((name for name in _means(state_dicts[0]) if _var_of(name) not in shapes[0]), None)
    if alone is not None:
        raise BatchNormError(f"the state dicts have {alone!r} without {_var_of(alone)!r}")
    for number, other in enumerate(shapes[1:], start=2):
        different = sorted(set(shapes[0].items()) ^ set(other.items()))
        if different:
            names = first_few([f"{name} {shape}" for name, shape in different])
            raise BatchNormError(
                f"state dicts 1 and {number} have different statistics: {names}. Merge copies of one network only."
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    statistics = (name for name in state if name.rpartition(".")[2] in (_MEAN, _VAR, _COUNT))
    return {name: tuple(state[name].shape) for name in statistics}
