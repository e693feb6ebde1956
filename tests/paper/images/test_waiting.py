"""The share of the time that a loop waits for its batches."""

from batchnorm.paper.images import waiting as waiting_module
from batchnorm.paper.images.waiting import WaitTimer


def test_waiting_counts_until_a_batch_comes_not_what_is_done_with_it(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(waiting_module.time, "perf_counter", lambda: clock)

    def slow():
        nonlocal clock
        for number in range(3):
            clock += 1
            yield number

    timer = WaitTimer()
    batches = timer.timed(slow())
    for number in range(2):
        assert next(batches) == number
        clock += 3
    assert timer.share == 2 / 8
    timer.restart()
    clock += 1
    next(batches)
    assert timer.share == 1 / 2
