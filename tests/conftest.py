"""What every test shares: two threads, and the folder of real data where there is one."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)


@pytest.fixture
def data_folder() -> Path:
    folder = os.environ.get("TRACIN_DATA")
    if not folder:
        pytest.skip("TRACIN_DATA is not set: it names the folder of real data")
    return Path(folder)
