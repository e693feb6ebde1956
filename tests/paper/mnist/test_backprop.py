"""The chain rule written out gives autograd's numbers."""

import copy

import pytest
import torch
from torch import nn

import batchnorm as bn
from batchnorm.paper.mnist.backprop import loss_and_gradients
from batchnorm.paper.mnist.experiment import ARMS, network


@pytest.mark.parametrize("arm", ARMS)
def test_loss_gradients_and_running_statistics_are_those_of_autograd(arm):
    model = network(arm, 0.1, 1).double().train()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    twin = copy.deepcopy(model)
    x = torch.rand(12, 784, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (12,), generator=generator)
    loss, gradients = loss_and_gradients(model, x.clone(), labels)
    wanted = nn.functional.cross_entropy(twin(x), labels)
    torch.testing.assert_close(loss, wanted.detach())
    torch.testing.assert_close(gradients, list(torch.autograd.grad(wanted, list(twin.parameters()))))
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_the_input_is_not_written():
    x = torch.rand(4, 784)
    before = x.clone()
    loss_and_gradients(network("bn", 0.1, 1), x, torch.zeros(4, dtype=torch.long))
    assert x.equal(before)


def test_another_layer_is_refused():
    with pytest.raises(TypeError, match="no gradient written for Tanh"):
        loss_and_gradients(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.zeros(2, 2), torch.zeros(2).long())


def test_a_layer_tracks_what_it_is_told():
    layer = bn.BatchNorm1d(2, momentum=0.5)
    layer.track(torch.tensor([2.0, 4.0]), torch.tensor([3.0, 5.0]))
    assert layer.state_dict()["running_mean"].tolist() == [1.0, 2.0]
    assert layer.state_dict()["running_var"].tolist() == [2.0, 3.0]
