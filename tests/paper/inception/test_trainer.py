"""One training step, one measurement, and the records of a run."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from support.inception_runs import TINY, make_trainer, train
from support.jpegs import damage
from torch import nn

import batchnorm as bn
from batchnorm.paper.inception import trainer as trainer_module
from batchnorm.paper.inception.variants import BN_X5, BN_X30, BY_NAME


def test_a_run_learns(finished):
    rows = finished.rows()
    assert rows[-1]["loss"] < 2.3  # chance: log(10)
    assert rows[-1]["top1"] > 0.3 > rows[0]["top1"]


def test_a_run_records_steps_epochs_and_learning_rates(finished):
    rows = finished.rows()
    assert [row["step"] for row in rows] == [0, 6, 12]
    assert [row["epoch"] for row in rows] == pytest.approx([step * 16 / 150 for step in (0, 6, 12)])
    assert rows[0]["lr"] == pytest.approx(0.1)  # Five times the plain network's.
    assert all(row["top5"] >= row["top1"] for row in rows)


def test_a_run_records_how_long_it_waited_for_images(finished):
    waited = [row["waited"] for row in finished.rows()]
    assert waited[0] == 0.0
    assert all(0 < share < 1 for share in waited[1:])  # Without workers it reads its images itself.


def test_an_update_is_sgd_with_momentum_weight_decay_and_the_schedule(tree):
    trainer = make_trainer(BN_X5, tree, decay_every=0.5)  # With the recipe every 1/12 epoch.
    trainer.model.train()
    model = deepcopy(trainer.model)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(3):
        images, labels = next(trainer.prepared(trainer.batches.batches(step)))
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        rate = 0.1 * 0.96 ** int(step * 16 / 150 * 12)
        with torch.no_grad():
            for parameter, v in zip(model.parameters(), velocity, strict=True):
                assert parameter.grad is not None
                gradient = parameter.grad + (4e-5 * parameter if parameter.dim() > 1 else 0)
                v.mul_(0.9).add_(gradient)
                parameter.sub_(rate * v)
        assert trainer.update(step).item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(
        dict(trainer.model.named_parameters()), dict(model.named_parameters()), rtol=1e-4, atol=1e-6
    )


def test_accuracy_uses_population_statistics_not_moving_averages(tree):
    trainer = make_trainer(BN_X5, tree)
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, bn.BatchNorm2d)]
    means = [layer.running_mean for layer in layers if layer.running_mean is not None]
    for mean in means:
        mean.fill_(1e6)
    trainer.model.eval()
    with torch.no_grad():
        trainer.measure()
    assert len(means) == len(layers) > 0
    assert max(mean.abs().max() for mean in means) < 100


def test_dropout_is_a_function_of_the_step(tree):
    losses = []
    for disturbance in (0, 1):
        trainer = make_trainer(replace(BN_X30, dropout=0.5), tree)
        trainer.model.train()
        torch.manual_seed(disturbance)
        losses.append(trainer.update(0).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("variant", ["inception", "bn-x30", "ensemble-5"])
def test_bfloat16_and_channels_first_train_too(tree, tmp_path, variant):
    config = replace(TINY, data=tree, steps=2, eval_every=2, precision="bfloat16", channels_last=False)
    rows = train(tmp_path / "run", BY_NAME[variant], config).rows()
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[-1]["loss"] is not None


def test_activations_that_overflow_give_no_accuracy(tree):
    trainer = make_trainer(BN_X5, tree)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(3e38)  # Finite, but its sums are not.
        trainer.model.eval()
        with pytest.warns(RuntimeWarning, match="is not finite"):
            row = trainer.measure()
    assert (row["top1"], row["top5"]) == (None, None)


def test_a_measurement_skips_a_damaged_batch(damaged, monkeypatch):
    monkeypatch.setattr(trainer_module, "EVALUATION_BATCH", 3)  # The damaged image is alone in its batch.
    trainer = make_trainer(BN_X5, str(damaged))
    assert trainer.count_validation_hits()[2] == 9


def test_a_measurement_without_any_readable_image_is_an_error(damaged, tmp_path):
    damage(*(damaged / "val").rglob("*.jpg"))
    with pytest.raises(bn.BatchNormError, match="none of the 10 validation images can be read"):
        train(tmp_path / "run", BN_X5, replace(TINY, data=str(damaged)))


def test_training_on_a_damaged_batch_is_an_error(damaged):
    damage(*(damaged / "train").rglob("*.jpg"))
    trainer = make_trainer(BN_X5, str(damaged), batch_size=2)
    with pytest.raises(
        bn.BatchNormError, match=r"every image of a mini-batch is damaged, such as .*\.jpg: not an image"
    ):
        trainer.update(0)


@pytest.mark.parametrize(("processes", "warned"), [(1, False), (8, True)])
def test_resuming_with_other_processes_is_a_warning(tree, caplog, processes, warned):
    trainer = make_trainer(BN_X5, tree)
    trainer.restore({"step": 3, **trainer.state(), "processes": processes})
    message = f"this run had {processes} processes and now has 1: its mini-batches and epochs change"
    assert (message in caplog.text) == warned
    assert bool(caplog.text) == warned
