"""Build networks for several test files."""

from torch import nn


class Call(nn.Module):
    """A network whose forward is a function of (layers, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.run = forward

    def forward(self, x):
        return self.run(self.layers, x)
