"""Top-1 and top-5 hits."""

import pytest
import torch

from batchnorm.paper.inception.scores import count_hits


@pytest.mark.parametrize(
    ("label", "hits"),
    [(0, [1, 1, 1]), (4, [0, 1, 1]), (5, [0, 0, 1])],  # best, fifth and sixth score
)
def test_top1_is_the_best_score_and_top5_the_best_five(label, hits):
    scores = torch.arange(10.0, 0, -1)[None]
    assert count_hits(scores, torch.tensor([label])).tolist() == hits


def test_hits_are_summed_over_images():
    scores = torch.eye(10)[[3, 3, 0]]
    assert count_hits(scores, torch.tensor([3, 3, 9])).tolist() == [2, 2, 3]


def test_fewer_than_five_classes_are_all_in_the_top5():
    assert count_hits(torch.eye(3), torch.tensor([0, 2, 1])).tolist() == [1, 3, 3]
