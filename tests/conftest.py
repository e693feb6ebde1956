"""Small runs stay in one thread, since the suite shares its machine; property tests draw the same cases every time."""

import pytest
import torch
from hypothesis import settings

from batchnorm.kernels import dispatch

settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


@pytest.fixture(autouse=True, scope="session")
def _one_thread_from_the_start():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_tensors_too(monkeypatch):
    """Make the kernel run small tensors in inference too, where torch is faster."""
    monkeypatch.setattr(dispatch, "FEWEST_IN_INFERENCE", 1)
