"""Test the distance of two outputs of any structure."""

import pytest
import torch

from batchnorm.graph.compare import largest_error


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), 0.0),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 1.0]), float("inf")),
        (torch.ones(2), torch.ones(3), float("inf")),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), float("inf")),
    ],
)
def test_errors_are_relative_to_the_largest_output(got, wanted, error):
    assert largest_error(got, wanted) == error
