"""Top-1 and top-5 accuracy of class scores."""

from __future__ import annotations

import torch
from torch import Tensor


def count_hits(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the correct answers of scores (N, classes) for labels (N,).

    Returns:
        A float64 vector (top-1 hits, top-5 hits, N), which sums over batches and processes.
    """
    hits = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
    return torch.tensor([hits[:, 0].sum().item(), hits.sum().item(), len(labels)], dtype=torch.float64)
