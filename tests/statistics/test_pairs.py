"""Test each pair of masks, checkpoints, held statistics, accumulation, virtual batches and synchronization."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from support import reference
from support.kernel_cases import to_numpy
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn

FEATURES = ("masked", "checkpoint", "hold", "accumulate", "virtual", "synchronize")
PAIRS = list(combinations(FEATURES, 2))
ALL = [FEATURES, tuple(name for name in FEATURES if name != "hold")]
OURS = [("ours", features) for features in (*PAIRS, *ALL)]
TORCH = [("torch's", features) for features in PAIRS if "virtual" not in features]
PROCESSES, MICRO_BATCHES, EXAMPLES, CHANNELS, LENGTH, SIZE = 2, 2, 5, 3, 4, 2
ACTIVATION = {"ours": "silu", "torch's": None}


def batch(rank: int, number: int, features: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Return x, dz and the mask of a micro-batch."""
    rng = torch.Generator().manual_seed(10 * rank + number)
    x, dz = (torch.randn(EXAMPLES, CHANNELS, LENGTH, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(EXAMPLES, LENGTH, generator=rng) < (0.7 if "masked" in features else 1.0)
    return x * (1 + rank) + 3 * number, dz, mask


def trained(rank: int, group: Any, kind: str, features: tuple[str, ...], reentrant: bool) -> dict[str, Any]:
    """Return outputs, gradients and buffers of one process."""
    if kind == "ours":
        size = SIZE if "virtual" in features else None
        layer = bn.BatchNorm1d(CHANNELS, momentum=0.5, activation="silu", virtual_batch_size=size).double()
    else:
        layer = nn.BatchNorm1d(CHANNELS, momentum=0.5).double()
    model = nn.Sequential(layer)
    if "synchronize" in features:
        bn.synchronize(model, group)
    outputs, gradients = [], []
    with ExitStack() as blocks:
        if "accumulate" in features:
            blocks.enter_context(bn.accumulate(model))
        if "hold" in features:
            blocks.enter_context(bn.hold_statistics(model))
        for number in range(MICRO_BATCHES):
            x, dz, mask = batch(rank, number, features)
            x.requires_grad_()
            with ExitStack() as inner:
                if "masked" in features:
                    inner.enter_context(bn.masked(model, mask=mask))
                z = checkpoint(model, x, use_reentrant=reentrant) if "checkpoint" in features else model(x)
                z.backward(dz)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            outputs.append(to_numpy(z))
            gradients.append(to_numpy(x.grad))
    parameters = {name: to_numpy(p.grad) for name, p in layer.named_parameters()}
    return {"z": outputs, "dx": gradients, **parameters, **{n: to_numpy(b) for n, b in layer.named_buffers()}}


def rows(t: Any, mask: torch.Tensor) -> np.ndarray:
    return np.moveaxis(to_numpy(torch.as_tensor(t)), 1, -1)[mask.numpy()]


def groups(features: tuple[str, ...]) -> list[list[tuple[int, slice]]]:
    """Return what is normalized together: (rank, examples), of each group."""
    if "virtual" in features:  # 5 examples in groups of 2: the last one has 3
        return [[(rank, part)] for rank in range(PROCESSES) for part in (slice(0, 2), slice(2, 5))]
    everyone = [(rank, slice(None)) for rank in range(PROCESSES)]
    return [everyone] if "synchronize" in features else [[one] for one in everyone]


def check_normalized(kind: str, features: tuple[str, ...], found: list[dict[str, Any]]) -> None:
    """Compare outputs and gradients with the oracle on the packed values of each group."""
    sums = {"weight": np.zeros(CHANNELS), "bias": np.zeros(CHANNELS)}
    for number in range(MICRO_BATCHES):
        batches = [batch(rank, number, features) for rank in range(PROCESSES)]
        for group in groups(features):

            def packed(tensors: list[Any], group=group, batches=batches) -> np.ndarray:
                parts = [rows(tensors[rank][part], batches[rank][2][part]) for rank, part in group]
                return np.concatenate(parts)

            x, dz = packed([b[0] for b in batches]), packed([b[1] for b in batches])
            arguments = (x, np.ones(CHANNELS), np.zeros(CHANNELS), 1e-5, ACTIVATION[kind])
            dx, dweight, dbias, _ = reference.backward(dz, *arguments)
            sums["weight"] += dweight
            sums["bias"] += dbias
            for name, want in (("z", reference.forward(*arguments)), ("dx", dx)):
                got = packed([f[name][number] for f in found])
                np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
        for f, (_, _, mask) in zip(found, batches, strict=True):
            assert all((rows(t, ~mask) == 0).all() for t in (f["z"][number], f["dx"][number]))
    for name, want in sums.items():
        np.testing.assert_allclose(sum(f[name] for f in found), want, rtol=1e-10, atol=1e-10)


def check_counted(features: tuple[str, ...], rank: int, found: dict[str, Any]) -> None:
    """Compare the buffers with the population of what counts."""
    own = range(PROCESSES) if "synchronize" in features else [rank]
    numbers = [[0, 1]] if "accumulate" in features else [[0], [1]]
    mean, var = np.zeros(CHANNELS), np.ones(CHANNELS)
    for together in [] if "hold" in features else numbers:
        batches = [batch(rank, number, features) for number in together for rank in own]
        population = reference.population(np.concatenate([rows(x, mask) for x, _, mask in batches]))
        mean, var = (mean + population[0]) / 2, (var + population[1]) / 2
    np.testing.assert_allclose(found["running_mean"], mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found["running_var"], var, rtol=1e-10, atol=1e-10)
    assert found["num_batches_tracked"] == (0 if "hold" in features else len(numbers))


def cases() -> list[Any]:
    found = []
    for kind, features in (*OURS, *TORCH):
        for reentrant in (False, True) if "checkpoint" in features else (False,):
            name = " ".join([kind, *features, *(["reentrant"] if reentrant else [])])
            found.append(pytest.param(kind, features, reentrant, id=name))
    return found


@pytest.mark.parametrize(("kind", "features", "reentrant"), cases())
def test_each_combines_with_the_others(gloo, kind, features, reentrant):
    found = gloo.run(trained, kind, features, reentrant, processes=PROCESSES)
    check_normalized(kind, features, found)
    for rank, f in enumerate(found):
        check_counted(features, rank, f)
