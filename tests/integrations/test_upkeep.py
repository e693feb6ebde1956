"""What the callbacks of all trainers share."""

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from batchnorm.integrations.upkeep import training_batches


class Augmented(Dataset):
    """Examples with noise from all three generators."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index + random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002 (as data sets do)


def draws(between):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    between()
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def test_reading_batches_leaves_all_random_numbers_as_they_were():
    def read():
        with training_batches(DataLoader(Augmented(), batch_size=2, shuffle=True), 3) as batches:
            assert len(list(batches)) == 3

    assert draws(read) == draws(lambda: None)
