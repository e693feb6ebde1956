"""Run small trainings side by side in threads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

import torch

Job = TypeVar("Job")


def in_parallel(task: Callable[[Job], None], jobs: Sequence[Job], threads: int, stop: Event) -> None:
    """Call `task` with every job, at most `threads` at once. The first failure, or Ctrl-C, sets `stop`.

    The threads are Python's. Torch releases the interpreter lock while it computes. Inside a task torch has one
    thread, because more would change the order of its sums and so the bits of the records.

    Arguments:
        task: a function that returns soon after `stop` is set.
        jobs: the arguments of `task`, in the order to start them.
        threads: the number of threads.
        stop: set by Ctrl-C and by a task that fails. Every task that has started is waited for.

    Raises:
        Exception: the error of the first job that failed.
    """

    def stop_others_on_failure(job: Job) -> None:
        try:
            task(job)
        except BaseException:
            stop.set()
            raise

    before = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    # An operation takes about 10 us. At Python's switch interval of 5 ms the threads would run one after the other.
    sys.setswitchinterval(1e-4)
    futures = []
    try:
        with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
            try:
                futures += [pool.submit(stop_others_on_failure, job) for job in jobs]
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                stop.set()
    finally:
        torch.set_num_threads(before[0])
        sys.setswitchinterval(before[1])
    for future in futures:
        future.result()
