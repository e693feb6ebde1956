"""Test that a batch counts once: checkpoints, held statistics, micro-batches."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from support import reference
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import batchnorm as bn

KINDS = [bn.BatchNorm1d, nn.BatchNorm1d]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def network(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), kind(6), nn.ReLU(), nn.Linear(6, 6), kind(6))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("special", [False, True], ids=["plain", "virtual batches"])
def test_under_a_checkpoint_buffers_are_bit_equal(reentrant, special):
    model = network(lambda c: bn.BatchNorm1d(c, virtual_batch_size=4 if special else None))
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4, requires_grad=True)
    for _ in range(3):
        model(x).square().sum().backward()
        z = checkpoint(twin, x, use_reentrant=reentrant)
        z.square().sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
    assert_close(buffers(twin), buffers(model), rtol=0, atol=0)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # the inner one, at first
@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("inner", [False, True], ids=["not reentrant inside", "reentrant inside"])
@pytest.mark.parametrize("outer", [False, True], ids=["not reentrant", "reentrant"])
def test_nested_checkpoints_count_once(outer, inner, early_stop):
    model = network(bn.BatchNorm1d)
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4, requires_grad=True)

    def parts(x):
        for part in (twin[:3], twin[3:]):
            x = checkpoint(part, x, use_reentrant=inner)
        return x

    with set_checkpoint_early_stop(early_stop):
        checkpoint(parts, x, use_reentrant=outer).square().sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
    model(x).square().sum().backward()
    assert_close(buffers(twin), buffers(model), rtol=0, atol=0)
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


class Recomputed(torch.autograd.Function):
    """A checkpoint of one's own: the backward pass runs the layer again."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx, *gradients):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            z = ctx.layer(x)
        return torch.autograd.grad(z, x, gradients[0])[0], None


def test_inside_any_other_backward_pass_a_batch_does_not_count():
    layer = bn.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    Recomputed.apply(x, layer).square().sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_whose_backward_is_within_the_blocks(kind, reentrant):
    model = network(kind)
    twin, x = copy.deepcopy(model), torch.randn(8, 4, requires_grad=True)
    mask = torch.arange(8) < 6
    with bn.masked(model, mask=mask), bn.accumulate(model):
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
    with bn.masked(twin, mask=mask):
        twin(x).square().sum().backward()
    assert_close(buffers(model), buffers(twin))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_held_statistics_stay_and_the_output_is_that_of_training(kind):
    model = network(kind)
    twin, before, x = copy.deepcopy(model), buffers(model), torch.randn(8, 4)
    with bn.hold_statistics(model):
        held = model(x)
    assert_close(held, twin(x))
    assert_close(buffers(model), before, rtol=0, atol=0)
    model(x)
    assert_close(buffers(model), buffers(twin))


@pytest.mark.parametrize("kind", KINDS)
def test_in_eval_held_layers_normalize_by_running_statistics(kind):
    model = network(kind).eval()
    x = torch.randn(8, 4)
    want = model(x)
    with bn.hold_statistics(model):
        assert_close(model(x), want, rtol=0, atol=0)


def test_a_hold_ends_after_an_exception_and_leaves_untracked_layers_alone():
    model = nn.Sequential(bn.BatchNorm1d(3), bn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(RuntimeError, match="stop"), bn.hold_statistics(model):
        raise RuntimeError("stop")
    assert [layer.track_running_stats for layer in model] == [True, False]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_count_as_one_batch(kind, momentum):
    layer = kind(3, momentum=momentum)
    x = torch.randn(12, 3) * 2 + 5
    for step in range(1, 3):
        alone = nn.Sequential(copy.deepcopy(layer))
        with bn.accumulate(nn.Sequential(layer)):
            found = [layer(part) for part in x.split([4, 5, 3])]
        assert layer.num_batches_tracked == step
        for z, part in zip(found, x.split([4, 5, 3]), strict=True):
            assert_close(z, alone(part))
    mean, var = reference.population(x.numpy())
    start = 0.9**2 if momentum else 0.0
    assert_close(layer.running_mean, torch.from_numpy((1 - start) * mean).float())
    assert_close(layer.running_var, torch.from_numpy(start + (1 - start) * var).float())


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_the_statistics_as_they_were(kind):
    model = network(kind)
    before = buffers(model)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), bn.accumulate(model):
        [model(x) for x in (torch.randn(8, 4), torch.randn(8, 3))]
    assert_close(buffers(model), before, rtol=0, atol=0)
    assert "forward" not in vars(model[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_micro_batch_that_is_not_finite_is_left_out(kind):
    layer, x = kind(3, momentum=1.0), torch.randn(8, 3)
    bad = x.clone()
    bad[0, 0] = torch.inf
    ours = kind is bn.BatchNorm1d
    warned = pytest.warns(RuntimeWarning, match="not finite was left out") if ours else nullcontext()
    with warned, bn.accumulate(nn.Sequential(layer)):
        layer(x)
        layer(bad)
    assert_close(layer.running_mean, x.mean(0))


def test_checkpoints_masks_and_virtual_batches_accumulate():
    layer = bn.BatchNorm1d(3, momentum=1.0, virtual_batch_size=2)
    x = torch.randn(2, 5, 3, 7, requires_grad=True)
    lengths = torch.tensor([[7, 2, 0, 5, 3], [1, 6, 4, 0, 7]])
    with bn.accumulate(nn.Sequential(layer)):
        for part, own in zip(x, lengths, strict=True):
            z = checkpoint(lambda x, n: layer(x, lengths=n), part, own, use_reentrant=False)
            z.square().sum().backward()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    mask = torch.arange(7) < lengths[..., None]
    mean, var = reference.population(x.detach().movedim(2, -1)[mask].numpy())
    assert_close(layer.running_mean, torch.from_numpy(mean).float())
    assert_close(layer.running_var, torch.from_numpy(var).float())
    assert layer.num_batches_tracked == 1


def test_a_lazy_layer_is_not_held():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(bn.BatchNormError, match="layer '0' has no channels yet"), bn.hold_statistics(model):
        pass


@pytest.mark.parametrize("block", [bn.hold_statistics, bn.accumulate])
def test_a_network_without_layers_is_refused(block):
    with pytest.raises(bn.BatchNormError, match="Linear has no BatchNorm layer"), block(nn.Linear(2, 2)):
        pass
