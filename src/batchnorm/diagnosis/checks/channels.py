"""Channels that are dead, gammas out of all proportion, and values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import sqrt

import torch
from torch import Tensor, fx

from ...graph.network import Network
from ...graph.ops import IDENTITIES_IN_EVAL, MAXIMA, RESHAPES, SUMS
from ...torch_private import AnyBatchNorm
from ..examination import Examination
from ..finding import Finding, Severity
from ..measurement import Measured
from .stale import RECALIBRATE

MANY = 0.1  # share of a layer's channels
OUT_OF_PROPORTION = 50.0  # times the typical |gamma| of the network
LARGE = 10.0
_BETWEEN = MAXIMA | RESHAPES | IDENTITIES_IN_EVAL  # they give no value that is not between their inputs
TYPICAL = (0.1, 5.0)  # what counts as typical at least, at most


def not_finite(e: Examination) -> Iterator[Finding]:
    """Find NaN and infinity in parameters, buffers, data and activations, and variances below 0.

    Test: every value. There is no threshold. Of parameters and buffers all modules are named, of activations the first
    layer that gets one.
    """
    bad: dict[str, str] = {}
    for name, tensor in [*e.model.named_parameters(), *e.model.named_buffers()]:
        if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
            bad.setdefault(name.rpartition(".")[0], f"{count} of {tensor.numel()} values of {name}")
    if bad:
        evidence = f"{next(iter(bad.values()))} are NaN or infinite"
        reason = "one of them makes every output of its channel NaN or infinite"
        remedy = f"load an older checkpoint; if only statistics are bad, model.reset_running_stats() and {RECALIBRATE}"
        yield Finding("not finite", "error", tuple(bad), evidence, reason, remedy)
    negative = {
        n: float(v.running_var.min())
        for n, v in e.layers.items()
        if v.running_var is not None and (v.running_var < 0).any()
    }
    if negative:
        name = min(negative, key=lambda each: negative[each])
        evidence = f"{name}: running variance of {negative[name]:.3g}"
        reason = "a variance below 0 comes from E[x^2] - E[x]^2 in float32, or from an edited checkpoint"
        yield Finding("not finite", "error", tuple(negative), evidence, reason, RECALIBRATE)
    for bad_batch in [each for each in e.training.bad if "finite" in each.reason][:1]:
        evidence = f"batch {bad_batch.batch} (the first is 0): the input of {bad_batch.layer} is not finite"
        reason = "torch's running statistics are lost for good after one such batch; this package's layers skip it"
        remedy = "look for inf or NaN in that batch, and for overflow (float16) in the layers before"
        severity: Severity = "error" if not e.training.held else "warning"
        yield Finding("not finite", severity, (bad_batch.layer,), evidence, reason, remedy)


def dead_channels(e: Examination) -> Iterator[Finding]:
    """Find channels whose output is one constant, whatever the example.

    Test: the range of the output over all values of all batches, in training. Where the graph shows that an activation
    alone takes the output, the range behind it. Three kinds:

    - gamma is exactly 0: dead for certain.
    - |x^| <= sqrt(m - 1) for m values per channel. If the activation is constant on beta +- |gamma| sqrt(m - 1), the
      channel is dead for every batch of this size. That is proved.
    - constant on all batches, or a constant input: with n examples the share of live ones is below 3 / n (95 %).

    Threshold: the first two are a warning. The third is a note up to a tenth of the layer (`MANY`) or one channel,
    since trained ReLU networks have some such channels. A layer whose gammas are all 0 before an addition is a note:
    residual networks start so. What only such a layer feeds is a note as well.
    """
    activations = _activations(e.network) if e.network is not None else {}
    resting = {n for n, layer in e.layers.items() if _all_zero(layer) and _may_rest(e.network, n)}
    if resting:
        evidence = f"{min(resting)}: gamma is 0 in all {e.layers[min(resting)].num_features} channels"
        reason = "residual networks start so; after training it means that the branch gives nothing"
        yield Finding("dead channels", "note", tuple(sorted(resting)), evidence, reason, "none before training")
    sure, seen = {}, {}
    for name, measured in e.measured.items():
        if name in resting:
            continue
        dead = _constant(activations.get(name), measured.low, measured.high, e.network)
        dead |= _without_input(measured)  # rounding may give it another constant in a batch of another size
        proved = dead & _proved(e, name, activations.get(name))
        if proved.any():
            sure[name] = proved
        if (dead & ~proved).any():
            seen[name] = dead & ~proved
    if sure:
        yield _dead(sure, "warning", "gamma 0, or an activation out of reach of every batch")
    if seen:
        fed_by_resting = bool(resting) and all((d & ~_without_input(e.measured[n])).sum() == 0 for n, d in seen.items())
        many = any(int(dead.sum()) > max(1, MANY * len(dead)) for dead in seen.values())
        severity: Severity = "warning" if many and not fed_by_resting else "note"
        examples = next(iter(e.measured.values())).means.examples.count
        yield _dead(seen, severity, f"constant in all {examples} examples: live in under {3 / max(examples, 3):.2%}")


def _dead(dead: dict[str, Tensor], severity: Severity, how: str) -> Finding:
    ranked = sorted(dead, key=lambda name: -float(dead[name].float().mean()))
    name = ranked[0]
    channels = dead[name].nonzero().flatten().tolist()
    listed = ", ".join(map(str, channels[:8])) + (", …" if len(channels) > 8 else "")
    evidence = f"{name}: {len(channels)} of {len(dead[name])} channels give one constant (channels {listed}); {how}"
    reason = "a constant channel gets no gradient through its activation, and computes nothing"
    remedy = "reset gamma to 1 and beta to 0 in these channels and train on, or prune them; see what feeds them"
    return Finding("dead channels", severity, tuple(ranked), evidence, reason, remedy)


def _all_zero(layer: AnyBatchNorm) -> bool:
    return layer.weight is not None and bool((layer.weight == 0).all())


def _may_rest(network: Network | None, name: str) -> bool:
    """Return True if an addition takes the output of the layer before another affine layer does."""
    if network is None:
        return True
    waiting = [node for node in network.graph.nodes if network.is_batch_norm(node) and network.label(node) == name]
    seen = set(waiting)
    while waiting:
        for user in network.data_users(waiting.pop()):
            if network.op(user) in SUMS:
                return True
            if user.op != "output" and not network.is_affine(user) and user not in seen:
                seen.add(user)
                waiting.append(user)
    return False


def _activations(network: Network) -> dict[str, fx.Node]:
    """Return, by the name of the BN layer, the nonlinearity that alone takes its output, or the maxima of it."""
    found = {}
    for node in network.graph.nodes:
        if network.is_batch_norm(node):
            users = network.data_users(node)
            while len(users) == 1 and network.op(users[0]) in _BETWEEN:
                users = network.data_users(users[0])
            if len(users) == 1 and network.is_nonlinearity(users[0]):
                found[network.label(node)] = users[0]
    return found


def _constant(activation: fx.Node | None, low: Tensor, high: Tensor, network: Network | None) -> Tensor:
    """Return the channels, (C,) bool, whose values between low and high are one constant behind the activation."""
    if activation is None or network is None:
        return low == high
    points = torch.stack([low + (high - low) * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)]).float()
    source = network.input_or_none(activation)
    if source is not None:
        with suppress(Exception):  # an activation with a parameter per channel, of another shape
            out = network.run(activation, {source: points.to(low.device).clone()})
            return (out == out[0]).all(0)
    return low == high


def _without_input(measured: Measured) -> Tensor:
    """Return the channels, (C,) bool, whose input is constant up to rounding."""
    return measured.var <= (measured.mean.abs() * torch.finfo(measured.dtype).eps).square()


def _proved(e: Examination, name: str, activation: fx.Node | None) -> Tensor:
    """Return the channels, (C,) bool, that are dead for every batch of this size: |x^| <= sqrt(m - 1)."""
    layer, measured = e.layers[name], e.measured[name]
    if layer.weight is None:
        return torch.zeros_like(measured.mean, dtype=torch.bool)
    reach = layer.weight.detach().abs() * sqrt(max(measured.values - 1, 1))
    bias = torch.zeros_like(reach) if layer.bias is None else layer.bias.detach()
    return _constant(activation, bias - reach, bias + reach, e.network)


def gammas(e: Examination) -> Iterator[Finding]:
    """Find gammas that are out of all proportion.

    Test: |gamma| against the median of the layers' medians. A median below 0.1 or above 5 counts as these (`TYPICAL`),
    since all gammas of a network may vanish or explode; for exploding ones it counts as 1 at least. Threshold: a factor
    of 50 (`OUT_OF_PROPORTION`), which is a choice: there is no standard error for a parameter. Exploding is a warning,
    and a note from a factor of 10 (`LARGE`). Vanishing is a warning for a layer as a whole, and a note for single
    channels, which weight decay makes. Exactly 0 belongs to `dead_channels`.
    """
    sizes = {n: layer.weight.detach().abs().double() for n, layer in e.layers.items() if layer.weight is not None}
    medians = [float(size[size > 0].median()) for size in sizes.values() if (size > 0).any()]
    if not medians:
        return
    typical = sorted(medians)[len(medians) // 2]
    unit = min(max(typical, 1.0), TYPICAL[1])
    most = {name: float(size.max()) / unit for name, size in sizes.items()}
    yield from _exploding("warning", {n: m * unit for n, m in most.items() if m > OUT_OF_PROPORTION}, typical)
    yield from _exploding("note", {n: m * unit for n, m in most.items() if LARGE < m <= OUT_OF_PROPORTION}, typical)
    low = max(typical, TYPICAL[0]) / OUT_OF_PROPORTION
    small = {name: float((size[size > 0] < low).double().mean()) for name, size in sizes.items() if (size > 0).any()}
    groups: tuple[tuple[Severity, list[str]], ...] = (
        ("warning", [name for name, share in small.items() if share > 0.5]),
        ("note", [name for name, share in small.items() if 0 < share <= 0.5]),
    )
    for severity, names in groups:
        if names:
            name = max(names, key=lambda each: small[each])
            evidence = (
                f"{name}: {small[name]:.0%} of the gammas are below {low:.2g}, the network's median is {typical:.3g}"
            )
            reason = "these channels give next to nothing; weight decay on gamma makes them"
            yield Finding("gamma", severity, tuple(names), evidence, reason, "no weight decay on gamma, or prune them")


def _exploding(severity: Severity, large: dict[str, float], typical: float) -> Iterator[Finding]:
    if large:
        name = max(large, key=lambda each: large[each])
        evidence = f"{name}: |gamma| up to {large[name]:.3g}, the network's median is {typical:.3g}"
        reason = "the channel drowns the others in every sum, and half precision overflows"
        yield Finding("gamma", severity, tuple(large), evidence, reason, "a lower learning rate; clip or reset it")
