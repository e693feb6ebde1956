"""Places of BN in the network that waste it or work against it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...algorithm2.observation import on_batch_statistics
from ...errors import BatchNormError, first_line
from ...graph.compare import copied
from ...graph.network import Network
from ...graph.ops import FUSIBLE, IDENTITIES_IN_EVAL, MOVES, RESHAPES
from ...layers import FusedBatchNorm
from ...torch_private import AnyBatchNorm, AnyDropout
from ..examination import Examination
from ..finding import Finding, Severity
from ..inputs import run
from ..measurement import tracked

SHIFTED = 1.05  # times the standard deviation, in the median channel: noticeable
STRONG = 1.1
_BATCHES = 2
_PROBABILITIES = {"softmax", "logsoftmax", "sigmoid", "logsigmoid"}
_NORMS = {"batchnorm", "instancenorm1d", "instancenorm2d", "instancenorm3d", "groupnorm", "layernorm"}


def redundant_bias(e: Examination) -> Iterator[Finding]:
    """Find biases that BN cancels: of an affine layer whose output BN alone takes.

    Test: the graph. BN subtracts the mean, and the bias with it (Sec. 3.2: "b can be ignored"). Calls that move values
    may stand between, if they leave the bias one value per channel. There is no threshold.
    """
    found = []
    for network, node in _norms(e):
        source, between = _source(network, node)
        if source is None or not network.is_affine(source) or not _has_bias(network, source):
            continue
        alone = all(len(each.users) == 1 for each in (source, *between))
        if alone and network.label(node) not in e.kept and _one_per_channel(network, source, between):
            found.append((network.label(node), network.label(source)))
    if found:
        names, biased = zip(*found, strict=True)
        evidence = f"{biased[0]} has a bias, and {names[0]} alone takes its output; {len(found)} in all"
        reason = "BN subtracts the mean and the bias with it: the bias gets no gradient, and beta does its work"
        yield Finding("redundant bias", "note", names, evidence, reason, f"bias=False in {biased[0]}")


def _source(network: Network, node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """Return the call that computes the input of `node`, and the calls between that only move its values, in order."""
    between: list[fx.Node] = []
    source = network.input_or_none(node)
    while source is not None and network.op(source) in MOVES | IDENTITIES_IN_EVAL:
        between.insert(0, source)
        source = network.input_or_none(source)
    return source, between


def _one_per_channel(network: Network, source: fx.Node, between: list[fx.Node]) -> bool:
    """Return True if a number per output feature of `source` is a number per channel behind the calls."""
    shape = network.shape(source)
    axis = len(shape) - 1 if network.is_linear(source) else 1
    value = torch.arange(float(shape[axis])).view(-1, *[1] * (len(shape) - axis - 1)).expand(shape).contiguous()
    for node in between:
        value = network.run(node, {node.all_input_nodes[0]: value})
    rows = value.transpose(0, 1).flatten(1)
    return bool((rows == rows[:, :1]).all())


def _has_bias(network: Network, node: fx.Node) -> bool:
    layer = network.layer(node)
    position = 2
    return (
        getattr(layer, "bias", None) is not None
        if layer is not None
        else network.argument(node, position, "bias") is not None
    )


def dropout_before(e: Examination) -> Iterator[Finding]:
    """Find Dropout before BN, which changes the variance in training alone (Li et al. 2019, "variance shift").

    Test: the standard deviation of each layer's input with Dropout on, over that with Dropout off, on the same batches.
    Threshold: 5 % in the median channel (`SHIFTED`), and over three standard errors of the mean log ratio. Over 10 %
    (`STRONG`) by Dropout layers is a warning. By other noise, such as stochastic depth, it is a note.
    """
    if not e.training.held or not e.layers:
        return
    dropouts = any(isinstance(layer, AnyDropout) and layer.p > 0 for layer in e.model.modules())
    quiet = _stds(e, lambda _layer: False)
    by_dropout = _ratios(e, quiet, _stds(e, lambda layer: isinstance(layer, AnyDropout))) if dropouts else {}
    strong = {name: ratio for name, ratio in by_dropout.items() if max(ratio, 1 / ratio) > STRONG}
    by_any = by_dropout or _by_any_noise(e, quiet)
    slight = {name: ratio for name, ratio in by_any.items() if name not in strong}
    levels: tuple[tuple[Severity, dict[str, float]], ...] = (("warning", strong), ("note", slight))
    for severity, found in levels:
        if found:
            name = max(found, key=lambda each: abs(found[each] - 1))
            evidence = (
                f"{name}: in training the standard deviation of its input is {found[name]:.2f} times that in eval"
            )
            reason = "Dropout and other noise add variance in training; eval normalizes by statistics of another input"
            remedy = "move Dropout behind the last BN; or bn.recalibrate(model, batches), which keeps Dropout off"
            yield Finding("dropout before BN", severity, tuple(found), evidence, reason, remedy)


def _by_any_noise(e: Examination, quiet: dict[str, Tensor]) -> dict[str, float]:
    """Return the ratios with all of the network in training mode, where detection networks want targets too."""
    try:
        return _ratios(e, quiet, _stds(e, lambda _layer: True))
    except BatchNormError as error:
        e.unexamined.append(f"Noise in training was not examined: {first_line(error)}")
        return {}


def _stds(e: Examination, on: Any) -> dict[str, Tensor]:
    """Return the sum over batches of each layer's variance, (C,), with the chosen modules in training mode."""
    model = copied(e.model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, AnyBatchNorm)}
    sums: dict[str, Tensor] = {}

    def add(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        var = x.double().transpose(0, 1).flatten(1).var(1, unbiased=False)
        sums[name] = sums.get(name, torch.zeros_like(var)) + var

    for name, layer in layers.items():
        layer.register_forward_pre_hook(partial(add, name), with_kwargs=True)
    with on_batch_statistics(model, tracked(layers, e.kept)), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.modules():
            module.training = module not in layers.values() and bool(on(module))
        torch.manual_seed(0)
        for batch in e.training.held[:_BATCHES]:
            run(model, batch)
    return sums


def _ratios(e: Examination, quiet: dict[str, Tensor], noisy: dict[str, Tensor]) -> dict[str, float]:
    """Return the ratio of the standard deviations where it is noticeable and no chance, by layer."""
    found = {}
    for name in e.measured:
        if name not in quiet or name not in noisy:
            continue
        alive = (quiet[name] > 0) & (noisy[name] > 0)
        logs = 0.5 * (noisy[name][alive] / quiet[name][alive]).log()
        if len(logs) < 2:
            continue
        ratio = float(logs.median().exp())
        error = float(logs.std() / len(logs) ** 0.5)
        if max(ratio, 1 / ratio) > SHIFTED and float(logs.mean().abs()) > 3 * error:
            found[name] = ratio
    return found


def last_layer(e: Examination) -> Iterator[Finding]:
    """Find BN whose output is the network's output, or the logits of it.

    Test: the graph; reshapes, Dropout, softmax and sigmoid behind it do not count. There is no threshold.
    """
    found = tuple(network.label(node) for network, node in _norms(e) if _reaches_output_alone(network, node))
    if found:
        evidence = f"{found[0]}: no layer follows it"
        reason = "gamma alone sets the scale of the outputs: logits do not grow with confidence"
        yield Finding("last layer", "note", found, evidence, reason, "leave BN out behind the last layer")


def _reaches_output_alone(network: Network, node: fx.Node) -> bool:
    users = network.data_users(node)
    passing = RESHAPES | IDENTITIES_IN_EVAL | _PROBABILITIES
    return bool(users) and all(
        user.op == "output" or (network.op(user) in passing and _reaches_output_alone(network, user)) for user in users
    )


def normalized_twice(e: Examination) -> Iterator[Finding]:
    """Find BN whose input another normalization has just normalized.

    Test: the graph; Dropout and calls that move values between the two do not count. There is no threshold.
    """
    pairs = [
        (network.label(node), network.label(source))
        for network, node in _norms(e)
        if (source := _source(network, node)[0]) is not None and network.op(source) in _NORMS
    ]
    if pairs:
        evidence = f"{pairs[0][0]} normalizes the output of {pairs[0][1]}"
        reason = "the second normalization undoes what the first one gives a channel, such as its gamma and beta"
        remedy = f"leave out {pairs[0][1]}"
        yield Finding("normalized twice", "note", tuple(name for name, _ in pairs), evidence, reason, remedy)


def weight_decay(e: Examination) -> Iterator[Finding]:
    """Find weight decay on gamma and beta.

    Test: the parameter groups of the optimizer. There is no threshold: it is a note, with what a step takes.
    """
    if e.optimizer is None:
        return
    decay = {
        id(p): (float(group["weight_decay"]), float(group.get("lr", 0)))
        for group in e.optimizer.param_groups
        if group.get("weight_decay")
        for p in group["params"]
    }
    found = {
        name: rates
        for name in e.layers
        for p in e.given.get_submodule(name).parameters(recurse=False)
        if (rates := decay.get(id(p))) is not None
    }
    if found:
        name, (strength, rate) = next(iter(found.items()))
        evidence = (
            f"{name}: weight_decay {strength:g} pulls gamma and beta to 0, by {strength * rate:.2g} of them a step"
        )
        reason = "BN cancels the scale of the weights before it, but not that of gamma: decay shrinks the channels"
        remedy = "a group of its own for BN: {'params': [gamma and beta], 'weight_decay': 0}"
        yield Finding("weight decay", "note", tuple(found), evidence, reason, remedy)


def unfolded(e: Examination) -> Iterator[Finding]:
    """Find BN that `bn.fold` would remove at inference, or that `bn.fuse` would speed up in training.

    Test: the graph. In eval mode: BN behind an affine layer that nothing else reads. In training mode: BN before an
    activation that the fused layers have, and that alone reads it. There is no threshold.
    """
    if e.model.training:
        names = tuple(network.label(node) for network, node in _norms(e) if _fusible(e, network, node))
        call, gain = "bn.fuse(model, example)", "BN and its activation are one pass in training"
    else:
        names = tuple(network.label(node) for network, node in _norms(e) if _foldable(network, node))
        call, gain = (
            "bn.fold(model, example)",
            "inference needs no BN: it is an affine map, which the weights can take in",
        )
    if names:
        evidence = f"{len(names)} of {len(e.layers)} BN layers, the first is {names[0]}"
        yield Finding("unfolded", "note", (), evidence, gain, call)


def _foldable(network: Network, node: fx.Node) -> bool:
    source = network.input_or_none(node)
    return source is not None and network.is_affine(source) and network.is_stock(source) and len(source.users) == 1


def _fusible(e: Examination, network: Network, node: fx.Node) -> bool:
    users = network.data_users(node)
    if isinstance(e.layers.get(network.label(node)), FusedBatchNorm):
        return False
    return len(users) == 1 and network.op(users[0]) in FUSIBLE


def _norms(e: Examination) -> Iterator[tuple[Network, fx.Node]]:
    """Yield every call of one of the BN layers in the graph."""
    if e.network is not None:
        for node in e.network.graph.nodes:
            if e.network.is_batch_norm(node) and e.network.label(node) in e.layers:
                yield e.network, node
