"""A result without rows says so in place of a table."""

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.algorithm2.results import format_table


@pytest.mark.parametrize("step", [bn.fold, bn.fuse])
def test_a_network_without_batch_norm_says_so(step):
    result = step(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    found, counts = str(result).splitlines()
    assert found == "no batch normalization found"
    assert counts.startswith("0 ")


def test_a_table_without_rows_is_its_line():
    assert format_table(("name", "outcome"), []) == "no batch normalization found"
    assert format_table(("name", "outcome"), [], empty="none") == "none"
    assert len(format_table(("name", "outcome"), [("a", "b")], empty="none").splitlines()) == 3
