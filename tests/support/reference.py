"""A float64 oracle of Alg. 1, its gradient and the activations, in numpy; it shares no code with src.

The gradient is written as the chain rule of Sec. 3, one line a partial derivative, not in the closed form that a fast
implementation uses.
"""

import numpy as np


def axes_and_shape(x):
    axes = (0, *range(2, x.ndim))
    return axes, (1, -1, *([1] * (x.ndim - 2)))


def forward(x, weight, bias, eps=1e-5, activation=None, slope=0.01, mean=None, var=None):
    """Return z = g(BN(x)), by the batch's own statistics unless mean and var are given."""
    x = np.asarray(x, np.float64)
    axes, shape = axes_and_shape(x)
    if mean is None or var is None:
        mean = x.mean(axes)
        var = ((x - mean.reshape(shape)) ** 2).mean(axes)
    x_hat = (x - np.reshape(mean, shape)) / np.sqrt(np.reshape(var, shape) + eps)
    y = np.reshape(weight, shape) * x_hat + np.reshape(bias, shape)
    return activate(y, activation, slope)


def population(x):
    """(mean, unbiased variance) per channel."""
    x = np.asarray(x, np.float64)
    columns = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return columns.mean(1), columns.var(1, ddof=1)


def backward(grad, x, weight, bias, eps=1e-5, activation=None, slope=0.01):
    """(dx, dgamma, dbeta) of a training step, term by term as the paper derives them."""
    x, grad = np.asarray(x, np.float64), np.asarray(grad, np.float64)
    axes, shape = axes_and_shape(x)
    m = x.size // x.shape[1]
    mu = x.mean(axes).reshape(shape)
    var = ((x - mu) ** 2).mean(axes).reshape(shape)
    std = np.sqrt(var + eps)
    x_hat = (x - mu) / std
    y = np.reshape(weight, shape) * x_hat + np.reshape(bias, shape)
    dy = grad * activate_slope(y, activation, slope)
    d_x_hat = dy * np.reshape(weight, shape)
    d_var = (d_x_hat * (x - mu) * -0.5 * (var + eps) ** -1.5).sum(axes).reshape(shape)
    d_mu = (-d_x_hat / std).sum(axes).reshape(shape) + d_var * (-2 * (x - mu)).mean(axes).reshape(shape)
    dx = d_x_hat / std + d_var * 2 * (x - mu) / m + d_mu / m
    return dx, (dy * x_hat).sum(axes), dy.sum(axes)


def activate(y, activation, slope=0.01):
    if activation is None:
        return y
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-y))
    return np.where(y > 0, y, y * (0 if activation == "relu" else slope))


def activate_slope(y, activation, slope=0.01):
    if activation is None:
        return np.ones_like(y)
    if activation == "sigmoid":
        return activate(y, activation) * (1 - activate(y, activation))
    return np.where(y > 0, 1.0, 0.0 if activation == "relu" else slope)
