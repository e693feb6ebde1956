"""Make the table of what BN changes, from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from statistics import mean, median, stdev

from ..inception.shift.records import ShiftRecords, last_values, layer_medians, stable_rates

SHIFT_TITLE = "What BN changes: the median of the layers, mean and deviation over seeds"
NETWORKS = ("inception", "bn-baseline")


def shift_table(records: ShiftRecords) -> list[list[str]]:
    """Return a header and a line for each quantity: the plain network's value, then BN-baseline's.

    A value is the median over the layers of one seed, or of the whole network. Dead feature maps are the mean.
    """
    table = [["", "without BN", "with BN"]]
    for label, column in (("drift of the mean", "mean"), ("drift of the spread", "spread")):
        values = [_over_layers(median, layer_medians(records.drifts, network, column)) for network in NETWORKS]
        table.append([f"{label} a step, in deviations", *(_spread(each, "{:.2g}") for each in values)])
        raw = _over_layers(median, layer_medians(records.drifts, "bn-baseline", f"raw_{column}"))
        table.append([f"{label}, before BN", "", _spread(raw, "{:.2g}")])
    dead = [_over_layers(mean, last_values(records.drifts, network, "dead")) for network in NETWORKS]
    table.append(["dead feature maps at the end", *(_spread([100 * v for v in each], "{:.1f}%") for each in dead)])
    rates = [_over_layers(median, last_values(records.rates, network, "rates")) for network in NETWORKS]
    table.append(["largest stable rate of a layer at the end", *(_spread(each, "{:.3g}") for each in rates)])
    whole = [stable_rates(records.trainings, network) for network in NETWORKS]
    table.append(["largest stable rate of the whole network", *(_spread(each, "{:.3g}") for each in whole)])
    return table


def _over_layers(pick: Callable[[Sequence[float]], float], layers: Sequence[Sequence[float]]) -> list[float]:
    """Return the `pick` over the layers of each seed. Leave out layers that have no finite value."""
    seeds = [[value for value in values if isfinite(value)] for values in zip(*layers, strict=True)]
    return [pick(values) for values in seeds if values]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    spread = f" ± {form.format(stdev(values)).rstrip('%')}" if len(values) > 1 else ""
    return form.format(mean(values)) + spread
