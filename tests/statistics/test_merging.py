"""Test pooled statistics against numpy on the concatenated values."""

from __future__ import annotations

import pytest
import torch
from support import reference
from torch import nn
from torch.testing import assert_close

import batchnorm as bn


def client(x):
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=1.0, dtype=torch.float64))
    model(x)
    return model.state_dict()


def test_the_pooled_statistics_are_those_of_all_values():
    parts = [torch.randn(n, 3, dtype=torch.float64) + 3 * n for n in (4, 9, 2)]
    merged = bn.merge_statistics([client(part) for part in parts], [len(part) for part in parts])
    mean, var = reference.population(torch.cat(parts).numpy())
    assert_close(merged["0.running_mean"], torch.from_numpy(mean), rtol=1e-12, atol=1e-12)
    assert_close(merged["0.running_var"], torch.from_numpy(var), rtol=1e-12, atol=1e-12)
    assert merged["0.num_batches_tracked"] == 3
    model = nn.Sequential(bn.BatchNorm1d(3))
    assert not model.load_state_dict(merged, strict=False).unexpected_keys


def state(channels=2, name="0."):
    return {f"{name}running_mean": torch.zeros(channels), f"{name}running_var": torch.ones(channels)}


WRONG = {
    "nothing": ([], [], "a count for each state dict; got 0 and 0"),
    "counts": ([state()], [2, 3], "got 1 and 2"),
    "one value": ([state()], [1], r"2 or more.*\[1\]"),
    "no number": ([state()], [float("nan")], r"2 or more.*\[nan\]"),
    "no variance": ([{"0.running_mean": torch.zeros(2)}], [2], "'0.running_mean' without '0.running_var'"),
    "no statistics": ([{"weight": torch.ones(2)}], [2], "no running statistics: nothing to merge"),
    "channels": ([state(), state(3)], [2, 2], r"1 and 2 have different statistics: 0.running_mean \(2,\)"),
    "names": ([state(), state(name="1.")], [2, 2], "1 and 2 have different statistics"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case):
    states, counts, match = WRONG[case]
    with pytest.raises(bn.BatchNormError, match=match):
        bn.merge_statistics(states, counts)
