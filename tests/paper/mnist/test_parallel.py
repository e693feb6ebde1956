"""Small trainings side by side."""

from threading import Event

import pytest

from batchnorm.paper.mnist.parallel import in_parallel


def test_one_failure_stops_the_other_trainings():
    begun, stop = [], Event()

    def task(job):
        begun.append(job)
        assert not stop.is_set() or job > 1
        if job == 1:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        in_parallel(task, list(range(5)), 1, stop)
    assert stop.is_set()
