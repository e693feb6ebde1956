"""`batchnorm recalibrate`."""

import re

import numpy as np
import pytest
from safetensors.torch import load_file


@pytest.mark.parametrize("estimator", ["pooled", "paper"])
def test_recalibrate(run, tiny, estimator):
    output = run(
        *("recalibrate", "tiny:with_norm", "--data", "tiny:batches", "--estimator", estimator),
        *("--out", "out.safetensors"),
    )
    assert re.search(r"^1 .*\b540\b", output, re.MULTILINE)
    z = [tiny.with_norm()[0](x).detach().double().numpy() for x in tiny.batches()]
    if estimator == "paper":
        var = np.mean([each.var((0, 2, 3), ddof=1) for each in z], axis=0)
    else:
        var = np.concatenate(z).var((0, 2, 3), ddof=1)
    state = load_file("out.safetensors")
    np.testing.assert_allclose(state["1.running_var"].numpy(), var, rtol=1e-6)
    assert state["1.num_batches_tracked"] == 3
