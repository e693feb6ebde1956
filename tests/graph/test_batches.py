"""What is no network, and inputs that do not fit, are refused with what came, what was wanted and what to do."""

import pytest
import torch
from torch import nn

import batchnorm as bn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, y, scale=None):
        return self.norm(x).relu() + (y if scale is None else y * scale)


X = torch.randn(8, 4)
STEPS = {
    "fold": lambda model: bn.fold(model, X),
    "fuse": lambda model: bn.fuse(model, X),
    "insert": lambda model: bn.insert(model, X),
    "freeze": bn.freeze,
    "unfreeze": bn.unfreeze,
    "recalibrate": lambda model: bn.recalibrate(model, [X]),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", r"got str\. Give the network itself$"),
        (None, r"got NoneType\. Give the network itself$"),
        (nn.ReLU, r"got the class ReLU\. Make a network of it first, ReLU\(\.\.\.\)$"),
        (nn.ReLU().state_dict(), r"got OrderedDict\. Load the tensors into a network, model\.load_state"),
    ],
)
def test_what_is_no_network_is_refused(step, model, message):
    with pytest.raises(bn.BatchNormError, match=rf"^wanted a network, a torch\.nn\.Module; {message}"):
        STEPS[step](model)


@pytest.mark.parametrize("step", ["fold", "fuse", "insert"])
def test_one_example_for_a_network_with_two_inputs_names_both(step):
    message = r"do not fit Two\.forward: missing a required argument: 'y'\. It needs x, y: give the tuple \(x, y\) or a"
    with pytest.raises(bn.BatchNormError, match=message):
        STEPS[step](Two())


def test_one_tensor_for_a_network_with_two_inputs_names_both():
    with pytest.raises(bn.BatchNormError, match=r"Its forward needs x, y: give batches as dicts of these names\.$"):
        bn.recalibrate(Two(), [X])
    assert bn.recalibrate(Two(), [{"x": X, "y": X}]).recalibrated == 1
