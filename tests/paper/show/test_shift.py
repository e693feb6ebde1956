"""What BN changes, as a picture and a table, from made-up records."""

from PIL import Image

from batchnorm.paper.inception.shift.records import ShiftRecords, last_values, layer_medians, stable_rates
from batchnorm.paper.show.shift_figure import shift_figure
from batchnorm.paper.show.shift_table import shift_table

LAYERS = ["stem", "3c.0.0"]


def drift_row(network, seed, step, mean):
    """Return a row whose first layer drifts by `mean` and whose second drifts by twice as much."""
    row = {
        "seed": seed,
        "network": network,
        "step": step,
        "loss": 1.0,
        "mean": [mean, 2 * mean],
        "spread": [mean, mean],
    }
    raw = {"raw_mean": [10 * mean, 10 * mean], "raw_spread": [mean, None]} if network == "bn-baseline" else {}
    return {**row, "dead": [0.0, 0.5 if network == "inception" else 0.0], **raw}


def look():
    """Return two seeds of both networks, measured at three steps."""
    runs = [(network, seed) for seed in (1, 2) for network in ("inception", "bn-baseline")]
    scale = {"inception": 0.2, "bn-baseline": 0.02}
    drifts = [drift_row(n, s, step, s * step * scale[n]) for n, s in runs for step in (1, 2, 30)]
    rates = [{"seed": s, "network": n, "step": step, "rates": [step, 4.0 * step]} for n, s in runs for step in (0, 2)]
    trainings = [
        {"seed": s, "network": n, "lr": lr, "loss": 1.0, "stable": lr <= largest}
        for n, s in runs
        for largest in (0.1 if n == "inception" else 0.4,)
        for lr in (0.1, 0.2, 0.4, 0.8)
    ]
    return ShiftRecords(LAYERS, drifts, rates, trainings)


def test_medians_are_over_the_steps_of_each_seed():
    # 0.2 x the steps 1, 2 and 30: the median is 0.4 for seed 1 and 0.8 for seed 2, and twice that in the second layer.
    assert layer_medians(look().drifts, "inception", "mean") == [[0.4, 0.8], [0.8, 1.6]]


def test_last_values_are_those_of_the_last_step():
    assert last_values(look().rates, "inception", "rates") == [[2, 2], [8.0, 8.0]]


def test_stable_rates_are_the_largest_of_each_seed():
    assert stable_rates(look().trainings, "bn-baseline") == [0.4, 0.4]


def test_rows_of_a_divergence_are_left_out():
    ended = {"seed": 1, "network": "inception", "step": 31, "loss": None, "mean": [], "spread": [], "dead": []}
    assert layer_medians([*look().drifts, ended], "inception", "mean") == [[0.4, 0.8], [0.8, 1.6]]


def test_the_table_has_medians_over_the_layers():
    lines = {line[0]: line[1:] for line in shift_table(look())[1:]}
    # Seed 1: the median of 0.4 and 0.8; seed 2: of 0.8 and 1.6. Mean 0.9, deviation 0.3 * sqrt(2).
    assert lines["drift of the mean a step, in deviations"] == ["0.9 ± 0.42", "0.09 ± 0.042"]
    assert lines["drift of the spread, before BN"] == ["", "0.06 ± 0.028"]  # the first layer's: the other has none
    assert lines["dead feature maps at the end"] == ["25.0% ± 0.0", "0.0% ± 0.0"]
    assert lines["largest stable rate of the whole network"] == ["0.1 ± 0", "0.4 ± 0"]


def test_the_picture_is_drawn_as_png_and_svg(tmp_path):
    png, svg = shift_figure(look(), tmp_path)
    assert (png.name, svg.name) == ("shift.png", "shift.svg")
    with Image.open(png) as image:
        assert image.size == (1950, 1275)
    assert svg.read_text().startswith("<?xml")
