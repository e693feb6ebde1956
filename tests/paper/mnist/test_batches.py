"""The order of the mini-batches depends on the seed and the step alone."""

import pytest
import torch

import batchnorm as bn
from batchnorm.paper.mnist.batches import Batches


def test_an_epoch_sees_every_example_once():
    batches = Batches(60, 12, seed=3)
    for epoch in (0, 1):
        seen = torch.cat([batches.indices(step) for step in range(5 * epoch, 5 * epoch + 5)])
        assert sorted(seen.tolist()) == list(range(60))


def test_batches_depend_on_seed_and_step_alone():
    forwards, backwards = Batches(60, 12, seed=3), Batches(60, 12, seed=3)
    wanted = [forwards.indices(step).tolist() for step in range(12)]
    assert [backwards.indices(step).tolist() for step in reversed(range(12))] == wanted[::-1]
    assert wanted[0] != wanted[5]
    assert Batches(60, 12, seed=4).indices(0).tolist() != wanted[0]


def test_what_is_left_over_of_an_epoch_is_dropped():
    batches = Batches(10, 4, seed=0)
    assert [len(batches.indices(step)) for step in range(4)] == [4, 4, 4, 4]
    assert len({*batches.indices(0).tolist(), *batches.indices(1).tolist()}) == 8


@pytest.mark.parametrize("size", [0, 1, 61])
def test_a_batch_size_that_does_not_fit_is_refused(size):
    with pytest.raises(bn.BatchNormError, match=f"batch size {size} does not fit 60 training examples"):
        Batches(60, size, seed=0)
