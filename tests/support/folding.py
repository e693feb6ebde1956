"""Networks to fold, and the error of what folding makes of them, against the network itself in float64."""

import copy

import torch
from torch.nn.modules.batchnorm import _BatchNorm

IMAGE, SEQUENCE, VOLUME, FLAT = (2, 4, 7, 7), (2, 4, 9), (2, 4, 5, 5, 5), (5, 4)
# Folded weights are rounded to float32 once: 2^-24 relative each, and a few layers add up.
ROUNDED = 1e-6


def randomized(model, seed=0):
    """Set random statistics and affine parameters, with a negative first gamma. Return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            for tensor, low, high in (
                (layer.running_mean, -1.0, 1.0),
                (layer.running_var, 0.5, 2.0),
                (layer.weight, 0.2, 1.0),
                (layer.bias, -1.0, 1.0),
            ):
                if tensor is not None:
                    uniform(tensor, low, high)
            if layer.affine:
                layer.weight.data[0] *= -1
    return model.eval()


def error(model, other, *inputs):
    """Return the largest difference in float64, relative to the largest output."""
    inputs = [x.double() for x in inputs]
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().eval()(*inputs)
        return difference(copy.deepcopy(other).double()(*inputs), wanted)


def difference(got, wanted):
    """Return the largest difference of two tensors, relative to the largest value of the second."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
