"""A float64 oracle of Alg. 1, its gradient and the activations, in numpy; it shares no code with src.

The gradient is written as the chain rule of Sec. 3, one line a partial derivative, not in the closed form that a fast
implementation uses.
"""

import math
from typing import Any

import numpy as np


def axes_and_shape(x):
    axes = (0, *range(2, x.ndim))
    return axes, (1, -1, *([1] * (x.ndim - 2)))


def forward(x, weight, bias, eps=1e-5, activation=None, slope=0.01, mean=None, var=None, residual: Any = 0.0):
    """Return z = g(BN(x) + residual), by the batch's own statistics unless mean and var are given."""
    x = np.asarray(x, np.float64)
    axes, shape = axes_and_shape(x)
    if mean is None or var is None:
        mean = x.mean(axes)
        var = ((x - mean.reshape(shape)) ** 2).mean(axes)
    x_hat = (x - np.reshape(mean, shape)) / np.sqrt(np.reshape(var, shape) + eps)
    y = np.reshape(weight, shape) * x_hat + np.reshape(bias, shape) + residual
    return activate(y, activation, slope)


def population(x):
    """(mean, unbiased variance) per channel."""
    x = np.asarray(x, np.float64)
    columns = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return columns.mean(1), columns.var(1, ddof=1)


def backward(grad, x, weight, bias, eps=1e-5, activation=None, slope=0.01, residual: Any = 0.0):
    """(dx, dgamma, dbeta, dresidual) of a training step, term by term as the paper derives them."""
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    axes, shape = axes_and_shape(x)
    m = x.size // x.shape[1]
    mu = x.mean(axes).reshape(shape)
    var = ((x - mu) ** 2).mean(axes).reshape(shape)
    std = np.sqrt(var + eps)
    x_hat = (x - mu) / std
    y = np.reshape(weight, shape) * x_hat + np.reshape(bias, shape) + residual
    dy = grad * activate_slope(y, activation, slope)
    d_x_hat = dy * np.reshape(weight, shape)
    d_var = (d_x_hat * (x - mu) * -0.5 * (var + eps) ** -1.5).sum(axes).reshape(shape)
    d_mu = (-d_x_hat / std).sum(axes).reshape(shape) + d_var * (-2 * (x - mu)).mean(axes).reshape(shape)
    dx = d_x_hat / std + d_var * 2 * (x - mu) / m + d_mu / m
    return dx, (dy * x_hat).sum(axes), dy.sum(axes), dy


def normal_cdf(y):
    """Return the distribution function of the standard normal. erfc keeps its small values."""
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[float])(y)


def sigmoid(y):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-y))


TWICE_ROOT = 2 * math.sqrt(2 / math.pi)  # GELU's tanh form is y sigmoid(2 sqrt(2 / pi) (y + 0.044715 y^3))
FORMULAS = {  # each activation and its slope, from the formulas in torch's documentation
    None: (lambda y: y, np.ones_like),
    "relu": (lambda y: np.where(y > 0, y, 0.0), lambda y: np.where(y > 0, 1.0, 0.0)),
    "relu6": (lambda y: np.clip(y, 0, 6), lambda y: np.where((y > 0) & (y < 6), 1.0, 0.0)),
    "sigmoid": (sigmoid, lambda y: sigmoid(y) * (1 - sigmoid(y))),
    "silu": (lambda y: y * sigmoid(y), lambda y: sigmoid(y) * (1 + y * (1 - sigmoid(y)))),
    "hardswish": (
        lambda y: y * np.clip(y + 3, 0, 6) / 6,
        lambda y: np.where(y <= -3, 0.0, np.where(y < 3, y / 3 + 0.5, 1.0)),
    ),
    "gelu": (
        lambda y: y * normal_cdf(y),
        lambda y: normal_cdf(y) + y * np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": (
        lambda y: y * sigmoid(TWICE_ROOT * (y + 0.044715 * y**3)),
        lambda y: (
            (s := sigmoid(TWICE_ROOT * (y + 0.044715 * y**3)))
            + y * s * (1 - s) * TWICE_ROOT * (1 + 3 * 0.044715 * y**2)
        ),
    ),
}


def activate(y, activation, slope=0.01):
    if activation == "leaky_relu":
        return np.where(y > 0, y, y * slope)
    return FORMULAS[activation][0](y)


def activate_slope(y, activation, slope=0.01):
    if activation == "leaky_relu":
        return np.where(y > 0, 1.0, slope)
    return FORMULAS[activation][1](y)
