"""torchvision's detection networks take a list of images: what works with them, and what says how to go on."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import batchnorm as bn

ADVICE = r"A network that takes a list of tensors takes it as \(\[a, b\],\)\.$"


def image(height, width, seed):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


IMAGES = [image(64, 80, 0), image(70, 64, 1)]
BATCHES = [(IMAGES, [{}, {}]), ([image(64, 64, 2)], [{}])]


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96
    ).eval()


@pytest.mark.parametrize("kind", [list, tuple])
def test_recalibrate_gives_a_list_of_images_as_it_is(detector, kind):
    name, layer = next((n, m) for n, m in detector.named_modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].double().numpy()))
    result = bn.recalibrate(detector, [(kind(images), targets) for images, targets in BATCHES])
    hook.remove()
    assert (result.recalibrated, result.kept) == (46, 0)
    assert result.rows[0].name == name
    values = np.concatenate([x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1) for x in seen], axis=1)
    # float32, merged in double
    np.testing.assert_allclose(layer.get_buffer("running_mean").numpy(), values.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.get_buffer("running_var").numpy(), values.var(1, ddof=1), rtol=1e-5)


def test_recalibrate_takes_any_other_batch_by_forward(detector):
    pairs = [[(image, {}) for image in images] for images, _ in BATCHES]
    with pytest.raises(
        bn.BatchNormError, match=r"input of a batch of type list; wanted .* list of tensors\. .*forward="
    ):
        bn.recalibrate(detector, pairs)
    result = bn.recalibrate(detector, pairs, forward=lambda model, batch: model([image for image, _ in batch]))
    assert result.recalibrated == 46


def test_a_bare_list_of_images_says_how_to_give_it(detector):
    with pytest.raises(bn.BatchNormError, match=rf"FasterRCNN does not run on a batch of \(3, 64, 80\).*{ADVICE}"):
        bn.recalibrate(detector, [IMAGES])


def test_the_usual_input_and_target_get_no_advice_about_lists():
    with pytest.raises(bn.BatchNormError, match=r"minimum height and width\.$"):
        bn.recalibrate(nn.Sequential(nn.BatchNorm1d(2)), [[torch.zeros(4, 3), torch.zeros(4)]])


@pytest.mark.parametrize("step", [bn.fold, bn.fuse, bn.insert])
def test_a_list_given_as_arguments_says_how_to_give_it(detector, step):
    with pytest.raises(bn.BatchNormError, match=rf"FasterRCNN does not run on example_inputs of .*{ADVICE}"):
        step(detector, IMAGES)


@pytest.mark.parametrize("inputs", [(IMAGES,), torch.rand(1, 3, 64, 64)], ids=["list", "tensor"])
@pytest.mark.parametrize("step", [bn.fold, bn.fuse, bn.insert])
def test_a_network_that_cannot_be_traced_is_one_line_that_says_to_give_a_part(detector, step, inputs, capfd):
    with pytest.raises(bn.BatchNormError, match=r"^FasterRCNN cannot be traced.*give a part of the network") as error:
        step(detector, inputs)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # torch.export prints its graph


def test_the_backbone_folds_and_the_detector_finds_the_same(detector):
    bn.recalibrate(detector, BATCHES)
    with torch.no_grad():
        wanted = detector(IMAGES)
        result = bn.fold(detector.backbone, torch.rand(2, 3, 64, 96))
        detector.backbone = result.model
        got = detector(IMAGES)
    assert (result.folded, result.kept) == (46, 0)
    # The boxes go through float32 in another order of operations; both runs find as many.
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


class Sum(nn.Module):
    """A network that takes a list of tensors, and can be traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        return self.norm(self.conv(images[0])).relu() + self.norm(self.conv(images[1])).relu()


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_is_one_argument_of_a_network_that_can_be_traced(kind):
    torch.manual_seed(0)
    model, pair = Sum(), kind([torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)])
    assert bn.recalibrate(model, [(pair, None)]).recalibrated == 1
    model.eval()
    folded = bn.fold(model, (pair,))
    assert folded.kept == 0
    # two float32 layers, in another order of operations
    torch.testing.assert_close(folded.model(pair), model(pair), rtol=1e-5, atol=1e-5)
    assert bn.fuse(model.train(), (pair,)).kept == 0


def test_insert_measures_on_lists():
    torch.manual_seed(0)
    model, pair = Sum(), [torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)]
    model.add_module("norm", nn.Identity())
    result = bn.insert(model, (pair,), batches=[(pair, None)])
    assert result.inserted == 2
    assert result.max_error is not None
    assert result.max_error < 1e-5
