"""The latency of networks, measured side by side."""

import torch
from torch import nn

from batchnorm.cli import latency


class Call(nn.Module):
    """A network that takes the next of `durations` on the clock."""

    def __init__(self, clock, durations):
        super().__init__()
        self.clock = clock
        self.durations = iter(durations)

    def forward(self, _x):
        self.clock.append(self.clock[-1] + next(self.durations))


def test_latencies_are_medians_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 3)
    clock = [0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[-1])
    models = [Call(clock, [100, 100, 100, 1, 9, 2]), Call(clock, [500, 500, 500, 30, 10, 20])]
    assert latency.latencies(models, torch.zeros(1)) == [2, 20]


def test_latencies_alternate(monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 4)
    calls = []

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, _x):
            calls.append((self.name, torch.is_grad_enabled()))

    latency.latencies([Named("a"), Named("b")], torch.zeros(1))
    assert calls == [("a", False), ("b", False)] * 7
