"""Two cores at most are asked for, and small runs stay in one thread: the suite shares its machine."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
