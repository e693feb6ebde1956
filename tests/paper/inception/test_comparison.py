"""The records of any choice of runs are read and compared."""

import pytest
from support.records import record

import batchnorm as bn
from batchnorm.paper.inception.comparison import by_variant, read_records
from batchnorm.paper.inception.config import InceptionConfig
from batchnorm.paper.inception.settled import settled
from batchnorm.paper.inception.variants import BY_NAME
from batchnorm.paper.training.run import Run


def test_the_ensemble_comes_after_the_variants_in_its_order():
    names = list(reversed(BY_NAME))
    assert list(by_variant([record(name, 0.9) for name in names])) == list(BY_NAME)


def test_activations_that_are_not_finite_at_the_end_are_divergence():
    gone = record("bn-x5", 0.9)
    gone.rows[4] |= {"top1": None, "top5": None}
    assert gone.diverged is None  # it came back
    gone.rows[-1] |= {"top1": None, "top5": None}
    assert gone.diverged == 1000
    assert gone.best["step"] == 900


def test_runs_that_have_not_begun_are_left_out_of_a_report(tmp_path):
    for number, name in enumerate(("bn-x5", "bn-x30")):
        config = vars(settled(InceptionConfig("fashion"), BY_NAME[name]))
        run = Run.create(tmp_path / name, "inception", {"variant": name, **config})
        if number:
            run.append({"step": 0, "loss": None, "top1": 0.1, "top5": 0.5})
    assert [found.job.variant.name for found in read_records([tmp_path])] == ["bn-x30"]
    with pytest.raises(bn.BatchNormError, match="bn-x5 has no records yet; train it first"):
        read_records([tmp_path / "bn-x5"])
