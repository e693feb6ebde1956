"""The callback in a real, tiny training of Lightning."""

import copy
import doctest
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchnorm as bn

pytest.importorskip("lightning")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the imports of Lightning
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    from batchnorm.integrations import lightning as integration
from batchnorm.integrations.lightning import BatchNormCallback

# What Lightning says about a tiny training on a CPU, and about its own use of torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1)) * 3 + 2


class Module(lightning.LightningModule):
    """Linear, BN, linear. It keeps what each validation saw."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen = []

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, _):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, *_):
        self.seen.append((copy.deepcopy(self.network.state_dict()), self.network.training))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(callbacks, folder, change=lambda _: None, **trainer):
    torch.manual_seed(0)
    module = Module()
    change(module)
    data = TensorDataset(X, X.sum(1, keepdim=True))
    shuffled = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(2))
    settings = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, callbacks=callbacks, **settings | trainer
    ).fit(module, shuffled, DataLoader(data, batch_size=32))
    return module


def holds_the_population(state, rtol=1e-5):
    """Compare the running statistics with those of all inputs of the layer, in float64."""
    values = X.double() @ state["network.0.weight"].double().T + state["network.0.bias"].double()
    torch.testing.assert_close(state["network.1.running_mean"].double(), values.mean(0), rtol=rtol, atol=1e-5)
    torch.testing.assert_close(state["network.1.running_var"].double(), values.var(0), rtol=rtol, atol=1e-5)


def test_validations_see_population_statistics(tmp_path):
    module = fit([BatchNormCallback()], tmp_path, enable_checkpointing=False, num_sanity_val_steps=0)
    assert len(module.seen) == 2
    for state, training in module.seen:
        assert not training
        holds_the_population({f"network.{name}": value for name, value in state.items()})


def test_the_sanity_check_is_left_alone(tmp_path):
    module = fit([BatchNormCallback()], tmp_path, enable_checkpointing=False, num_sanity_val_steps=1)
    assert module.seen[0][0]["1.num_batches_tracked"] == 0


def test_checkpoints_hold_population_statistics(tmp_path):
    """Steps 3, 6 and so on, which no validation comes before."""
    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=3)
    fit([saver, BatchNormCallback()], tmp_path, limit_val_batches=0)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 2
    for file in files:
        holds_the_population(torch.load(file, weights_only=False)["state_dict"])


def test_the_training_is_the_same(tmp_path):
    """Weights to the bit: order of the batches, Dropout and gradients are those of a training without the callback."""
    trained = [fit(callbacks, tmp_path, enable_checkpointing=False) for callbacks in ([], [BatchNormCallback()])]
    for mine, theirs in zip(*(module.parameters() for module in trained), strict=True):
        assert torch.equal(mine, theirs)


def test_the_doctor_looks_at_the_end(tmp_path):
    keeper = BatchNormCallback()
    module = fit([keeper], tmp_path, enable_checkpointing=False, limit_val_batches=0)
    holds_the_population(module.state_dict())
    assert keeper.result is not None
    assert [row.name for row in keeper.result.rows] == ["network.1"]


@pytest.mark.filterwarnings("ignore:Found 1 module")  # in eval mode, as a frozen layer is
def test_frozen_statistics_stay(tmp_path):
    module = fit([BatchNormCallback()], tmp_path, bn.freeze, enable_checkpointing=False)
    assert module.state_dict()["network.1.num_batches_tracked"] == 0


def test_a_network_without_bn_is_refused_at_the_start(tmp_path):
    def without(module):
        module.network[1] = nn.Identity()

    with pytest.raises(bn.BatchNormError, match="Module has no BatchNorm layer: leave this callback out"):
        fit([BatchNormCallback()], tmp_path, without, enable_checkpointing=False)


def test_the_number_of_batches_is_checked():
    with pytest.raises(bn.BatchNormError, match="batches must be 1 or more, the number to recalibrate on; got 0"):
        BatchNormCallback(batches=0)


def test_the_example_runs():
    assert doctest.testmod(integration).failed == 0
