"""The bank of planted faults. Each generator plants, yields the ill network, applies the remedy and yields again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from support.patients import CLASSES, LOSS, SIZE, Patient, fit, pictures, recalibrated
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn


@dataclass
class Case:
    """What the doctor gets, and the layers that it must name; none for the network as a whole."""

    model: nn.Module
    where: tuple[str, ...] = ()
    batches: list[Any] = field(default_factory=lambda: pictures(3, 4))
    options: dict[str, Any] = field(default_factory=dict)

    def examine(self):
        return bn.doctor(self.model, self.batches, **self.options)


Plant = Callable[[Patient], Iterator[Case]]
FAULTS: dict[str, tuple[str, Plant]] = {}


def fault(check: str) -> Callable[[Plant], Plant]:
    """Put a fault into the bank, under the check that must find it."""

    def add(plant: Plant) -> Plant:
        FAULTS[plant.__name__] = (check, plant)
        return plant

    return add


def every_norm(model):
    return tuple(name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d))


def recalibrate(model):
    bn.recalibrate(model, pictures(2, 8))


def convolution_before(model, name):
    """Return the name of the convolution that stands before a BN layer in `named_modules`."""
    names = [each for each, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    return names[names.index(name) - 1]


def head_name(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]


# Statistics that are not the data's


@fault("stale statistics")
def one_layer_has_another_mean(p):
    norm = p.model.get_submodule(p.middle)
    norm.running_mean += 2 * norm.running_var.sqrt()
    yield (case := Case(p.model, (p.middle,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
def one_layer_has_nine_times_the_variance(p):
    p.model.get_submodule(p.last).running_var *= 9
    yield (case := Case(p.model, (p.last,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
def one_channel_has_another_mean(p):
    norm = p.model.get_submodule(p.first)
    norm.running_mean[3] -= 1.5 * norm.running_var[3].sqrt()
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
def two_layers_have_each_others_statistics(p):
    state = p.model.state_dict()
    for key in ("running_mean", "running_var"):
        state[f"{p.first}.{key}"].copy_(state[f"{p.first}.{key}"].flip(0) + 0.7)
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
def never_updated(p):
    for name in every_norm(p.model):
        p.model.get_submodule(name).reset_running_stats()
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


@fault("eval against training")
def eval_is_useless(p):
    norm = p.model.get_submodule(p.first)
    norm.running_mean += 3 * norm.running_var.sqrt()
    yield (case := Case(p.model, (p.first,), options={"loss": LOSS}))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
def averaged_weights_keep_old_statistics(p):
    wrong = [(x, (labels + 1) % CLASSES) for x, labels in pictures(5, 20)]
    other = fit(copy.deepcopy(p.model), wrong, lr=0.1)
    for mine, theirs in zip(p.model.parameters(), other.parameters(), strict=True):
        mine.data.lerp_(theirs.data, 0.5)
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
@torch.no_grad()
def pruned_weights_keep_old_statistics(p):
    weight = p.model.get_submodule(convolution_before(p.model, p.middle)).weight
    weight[weight.abs() < weight.abs().quantile(0.7)] = 0
    yield (case := Case(p.model, (p.middle,)))
    recalibrate(p.model)
    yield case


@fault("stale statistics")
@torch.no_grad()
def quantized_weights_keep_old_statistics(p):
    weight = p.model.get_submodule(convolution_before(p.model, p.first)).weight
    step = weight.abs().max()  # one bit and a sign
    weight.copy_((weight / step).round() * step)
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


# Few values


def with_neck(model):
    """Normalize the features behind global pooling too."""
    name = head_name(model)
    head = model.get_submodule(name)
    model.set_submodule(name, nn.Sequential(nn.BatchNorm1d(head.in_features), head).eval())
    return f"{name}.0"


@fault("few values")
def a_batch_of_one_behind_pooling(p):
    where = with_neck(p.model)
    recalibrate(p.model)
    case = Case(p.model, (where,), pictures(3, 3) + pictures(4, 1, examples=1))
    yield case
    case.batches.pop()
    yield case


@fault("few values")
def batches_of_four_behind_pooling(p):
    where = with_neck(p.model)
    recalibrate(p.model)
    case = Case(p.model, (where,), pictures(3, 8, examples=4))
    yield case
    case.batches = pictures(3, 4, examples=32)
    yield case


# Momentum, eps, number formats


@fault("momentum")
def momentum_of_another_framework(p):
    for name in every_norm(p.model):
        p.model.get_submodule(name).momentum = 0.99
    yield (case := Case(p.model, every_norm(p.model)))
    for name in every_norm(p.model):
        p.model.get_submodule(name).momentum = 0.01
    recalibrate(p.model)
    yield case


@fault("momentum")
@torch.no_grad()
def momentum_forgets_too_slowly(p):
    norm = p.model.get_submodule(p.middle)
    norm.reset_running_stats()
    norm.momentum = 0.002
    p.model.train()
    for x, _ in pictures(5, 40):
        p.model(x)
    yield (case := Case(p.model.eval(), (p.middle,)))
    recalibrate(p.model)
    yield case


@fault("momentum")
def momentum_zero(p):
    norm = p.model.get_submodule(p.middle)
    norm.momentum = 0.0
    yield (case := Case(p.model, (p.middle,)))
    norm.momentum = 0.1
    yield case


@fault("eps")
def eps_swamps_the_variance(p):
    norm = p.model.get_submodule(p.middle)
    norm.eps = 4 * float(norm.running_var.max())
    yield (case := Case(p.model, (p.middle,)))
    norm.eps = 1e-5
    yield case


@fault("resolution")
def a_large_mean_hides_the_values(p):
    convolution = p.model.get_submodule(convolution_before(p.model, p.first))
    convolution.bias = nn.Parameter(torch.full((convolution.out_channels,), 1e5))
    recalibrate(p.model)
    yield (case := Case(p.model, (p.first,)))
    convolution.bias = None
    recalibrate(p.model)
    yield case


@fault("narrow statistics")
def half_precision(p):
    p.model.bfloat16()
    batches = [(x.bfloat16(), labels) for x, labels in pictures(3, 4)]
    yield (case := Case(p.model, every_norm(p.model), batches))
    for name in every_norm(p.model):
        p.model.get_submodule(name).float()
    yield case


# Counting and freezing


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


@fault("counted twice")
def checkpointing_counts_again(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, Checkpointed(norm))
    yield (case := Case(p.model, (f"{p.middle}.inner",)))
    p.model.set_submodule(p.middle, norm)
    yield case


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(self.inner(x).relu() * 2)


@fault("counted twice")
def one_layer_in_two_places(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, Twice(norm))
    recalibrate(p.model)
    yield (case := Case(p.model, (f"{p.middle}.inner",)))
    p.model.set_submodule(p.middle, norm)
    recalibrate(p.model)
    yield case


@fault("counted twice")
def micro_batches(p):
    for name in every_norm(p.model):
        p.model.get_submodule(name).reset_running_stats()
    optimizer = torch.optim.Adam(p.model.parameters(), lr=1e-3)
    p.model.train()
    for step, (x, labels) in enumerate(pictures(6, 12)):
        LOSS(p.model(x), labels).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    yield (case := Case(p.model.eval(), every_norm(p.model), options={"optimizer": optimizer}))
    bn.recalibrate(p.model, pictures(2, 3))
    yield case


@fault("half frozen")
def eval_that_train_undoes(p):
    p.model.train()
    p.model.get_submodule(p.middle).eval()
    yield (case := Case(p.model, (p.middle,)))
    bn.freeze(p.model.get_submodule(p.middle))
    yield case


@fault("half frozen")
def statistics_move_under_frozen_parameters(p):
    p.model.train()
    p.model.get_submodule(p.middle).requires_grad_(False)
    yield (case := Case(p.model, (p.middle,)))
    bn.freeze(p.model.get_submodule(p.middle))
    yield case


@fault("half frozen")
def the_optimizer_lacks_gamma(p):
    norms = {id(q) for name in every_norm(p.model) for q in p.model.get_submodule(name).parameters()}
    p.model.train()
    optimizer = torch.optim.SGD([q for q in p.model.parameters() if id(q) not in norms], lr=0.1)
    yield (case := Case(p.model, every_norm(p.model), options={"optimizer": optimizer}))
    bn.freeze(p.model)
    yield case


# Channels and values


@fault("dead channels")
@torch.no_grad()
def gamma_zero(p):
    norm = p.model.get_submodule(p.middle)
    norm.weight[[1, 4]] = 0
    yield (case := Case(p.model, (p.middle,)))
    norm.weight[[1, 4]] = 1
    yield case


@fault("dead channels")
@torch.no_grad()
def beta_out_of_reach_of_the_activation(p):
    norm = p.model.get_submodule(p.first)
    norm.bias[2] = -1000
    yield (case := Case(p.model, (p.first,)))
    norm.bias[2] = 0
    yield case


@fault("gamma")
@torch.no_grad()
def gamma_explodes(p):
    norm = p.model.get_submodule(p.last)
    norm.weight[0] = 300
    yield (case := Case(p.model, (p.last,)))
    norm.weight[0] = 1
    yield case


@fault("gamma")
@torch.no_grad()
def gamma_vanishes(p):
    norm = p.model.get_submodule(p.middle)
    norm.weight *= 1e-3
    yield (case := Case(p.model, (p.middle,)))
    norm.weight *= 1e3
    yield case


@fault("not finite")
@torch.no_grad()
def a_parameter_is_nan(p):
    norm = p.model.get_submodule(p.middle)
    norm.weight[0] = torch.nan
    yield (case := Case(p.model, (p.middle,)))
    norm.weight[0] = 1
    yield case


@fault("not finite")
def running_statistics_are_infinite(p):
    p.model.get_submodule(p.last).running_mean[1] = torch.inf
    yield (case := Case(p.model, (p.last,)))
    recalibrate(p.model)
    yield case


@fault("not finite")
def a_variance_is_negative(p):
    p.model.get_submodule(p.first).running_var[1] = -0.01
    yield (case := Case(p.model, (p.first,)))
    recalibrate(p.model)
    yield case


@fault("not finite")
def one_batch_holds_nan(p):
    case = Case(p.model, (p.first,))
    case.batches[2][0][1, 0, 5, 5] = torch.nan
    yield case
    case.batches.pop(2)
    yield case


# Inference


@fault("batch statistics")
def no_running_statistics(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, nn.BatchNorm2d(norm.num_features, track_running_stats=False).eval())
    yield (case := Case(p.model, (p.middle,)))
    p.model.set_submodule(p.middle, nn.BatchNorm2d(norm.num_features).eval())
    recalibrate(p.model)
    yield case


@fault("batch statistics")
def left_in_training_mode(p):
    p.model.get_submodule(p.last).train()
    yield (case := Case(p.model, (p.last,)))
    p.model.eval()
    yield case


class ByBatch(nn.BatchNorm2d):
    def forward(self, input):
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


@fault("leak")
def examples_leak_into_one_another(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, ByBatch(norm.num_features).eval())
    recalibrate(p.model)
    yield (case := Case(p.model, (p.middle,)))
    p.model.set_submodule(p.middle, norm)
    recalibrate(p.model)
    yield case


# Batches


@fault("padding")
def zeros_behind_the_data(p):
    batches, generator = pictures(3, 4), torch.Generator().manual_seed(0)
    for x, _ in batches:
        for each, width in zip(x, torch.randint(SIZE // 3, SIZE, (len(x),), generator=generator), strict=True):
            each[..., width:] = 0
    yield (case := Case(p.model, (p.first,), batches))
    case.batches = pictures(3, 4)
    yield case


@fault("sorted batches")
def one_class_a_batch(p):
    x, labels = pictures(3, 1, examples=160)[0]
    case = Case(p.model, (p.first,), [(x[labels == label], labels[labels == label]) for label in range(CLASSES)])
    yield case
    case.batches = list(zip(x.split(32), labels.split(32), strict=True))
    yield case


@fault("data shift")
def evaluation_data_are_brighter(p):
    case = Case(p.model, (p.first,), options={"eval_batches": [(1.5 * x + 1, labels) for x, labels in pictures(4, 4)]})
    yield case
    case.options["eval_batches"] = pictures(4, 4)
    yield case


# Structure


@fault("redundant bias")
def a_bias_before_the_norm(p):
    convolution = p.model.get_submodule(convolution_before(p.model, p.middle))
    convolution.bias = nn.Parameter(torch.randn(convolution.out_channels))
    recalibrate(p.model)
    yield (case := Case(p.model, (p.middle,)))
    convolution.bias = None
    yield case


@fault("dropout before BN")
def dropout_before_the_norm(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, nn.Sequential(nn.Dropout(0.5), norm).eval())
    yield (case := Case(p.model, (f"{p.middle}.1",)))
    p.model.set_submodule(p.middle, norm)
    yield case


@fault("last layer")
def a_norm_behind_the_last_layer(p):
    name = head_name(p.model)
    head = p.model.get_submodule(name)
    p.model.set_submodule(name, nn.Sequential(head, nn.BatchNorm1d(CLASSES)).eval())
    recalibrate(p.model)
    yield (case := Case(p.model, (f"{name}.1",)))
    p.model.set_submodule(name, head)
    yield case


@fault("normalized twice")
def two_norms_in_a_row(p):
    norm = p.model.get_submodule(p.middle)
    p.model.set_submodule(p.middle, nn.Sequential(norm, nn.BatchNorm2d(norm.num_features)).eval())
    recalibrate(p.model)
    yield (case := Case(p.model, (f"{p.middle}.1",)))
    p.model.set_submodule(p.middle, norm)
    yield case


@fault("weight decay")
def weight_decay_on_gamma(p):
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.1, weight_decay=1e-4)
    case = Case(p.model, every_norm(p.model), options={"optimizer": optimizer})
    yield case
    norms = [q for name in every_norm(p.model) for q in p.model.get_submodule(name).parameters()]
    others = [q for q in p.model.parameters() if not any(q is norm for norm in norms)]
    groups = [{"params": norms, "weight_decay": 0}, {"params": others}]
    case.options["optimizer"] = torch.optim.SGD(groups, lr=0.1, weight_decay=1e-4)
    yield case


@fault("unfolded")
def not_folded_for_inference(p):
    yield (case := Case(p.model))
    for name in every_norm(p.model):  # as trained again, without BN in any place where it folds
        p.model.set_submodule(name, nn.Sequential(nn.ReLU(), p.model.get_submodule(name)))
    yield case


def patient(family: str) -> Patient:
    """Return a healthy network for planting."""
    return recalibrated(family)
