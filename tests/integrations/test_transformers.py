"""The callback in a real, tiny training of Transformers' Trainer."""

import copy
import doctest

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import batchnorm as bn

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from batchnorm.integrations import transformers as integration  # noqa: E402 (it imports transformers)
from batchnorm.integrations.transformers import BatchNormCallback  # noqa: E402

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1)) * 3 + 2
DATA = [{"x": x, "labels": x.sum()[None]} for x in X]


class Model(nn.Module):
    """Linear, BN, linear, as Transformers' models are called. It keeps what each evaluation saw."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen = []

    def forward(self, x, labels):
        if not self.training and len(x) == 32:
            self.seen.append(copy.deepcopy(self.network.state_dict()))
        output = self.network(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


def train(callbacks, folder, change=lambda _: None, **settings):
    torch.manual_seed(0)
    model = Model()
    change(model)
    fixed = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "seed": 0,
        "learning_rate": 0.05,
    }
    args = transformers.TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, dataloader_pin_memory=False, **fixed | settings
    )
    transformers.Trainer(model, args, train_dataset=DATA, eval_dataset=DATA, callbacks=callbacks).train()
    return model


def holds_the_population(state, prefix=""):
    """Compare the running statistics with those of all inputs of the layer, in float64."""
    weight, bias, mean, var = (
        state[prefix + name].double() for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var")
    )
    values = X.double() @ weight.T + bias
    torch.testing.assert_close(mean, values.mean(0), rtol=1e-5, atol=1e-5)  # float32 buffers and values
    torch.testing.assert_close(var, values.var(0), rtol=1e-5, atol=1e-5)


# Two evaluations in 8 steps, which are two epochs.
@pytest.mark.parametrize("settings", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 4}])
def test_evaluations_see_population_statistics(tmp_path, settings):
    model = train([BatchNormCallback()], tmp_path, save_strategy="no", **settings)
    assert len(model.seen) == 2
    for state in model.seen:
        holds_the_population(state)


def test_saves_hold_population_statistics(tmp_path):
    train([BatchNormCallback()], tmp_path, save_strategy="steps", save_steps=3)
    files = sorted(tmp_path.glob("checkpoint-[36]/model.safetensors"))
    assert len(files) == 2
    for file in files:
        holds_the_population(load_file(file), "network.")


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_training_is_the_same(tmp_path, accumulated):
    """Weights to the bit: order of the batches, Dropout and gradients are those of a training without the callback."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    settings["gradient_accumulation_steps"] = accumulated
    trained = [train(callbacks, tmp_path, **settings) for callbacks in ([], [BatchNormCallback()])]
    for mine, theirs in zip(*(model.parameters() for model in trained), strict=True):
        assert torch.equal(mine, theirs)


def test_the_doctor_looks_at_the_end(tmp_path):
    keeper = BatchNormCallback(loss=lambda output, _: output["loss"])
    model = train([keeper], tmp_path, save_strategy="no")
    holds_the_population(model.network.state_dict())
    assert keeper.result is not None
    assert [row.name for row in keeper.result.rows] == ["network.1"]


def test_frozen_statistics_stay(tmp_path):
    model = train([BatchNormCallback()], tmp_path, bn.freeze, save_strategy="no")
    assert model.network.state_dict()["1.num_batches_tracked"] == 0


def test_a_network_without_bn_is_refused_at_the_start(tmp_path):
    def without(model):
        model.network[1] = nn.Identity()

    with pytest.raises(bn.BatchNormError, match="Model has no BatchNorm layer: leave this callback out"):
        train([BatchNormCallback()], tmp_path, without)


def test_the_example_runs():
    assert doctest.testmod(integration).failed == 0
