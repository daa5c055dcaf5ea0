"""What every test shares: one thread, and the folder of real data where there is one."""

import os
import sys
from pathlib import Path

import pytest
import torch

# Tests are small: a second thread gains nothing, and on a busy machine two threads that wait for
# each other were seen to take 200 times as long.
torch.set_num_threads(1)


@pytest.fixture
def data_folder() -> Path:
    folder = os.environ.get("TRACIN_DATA")
    if not folder:
        pytest.skip("TRACIN_DATA is not set: it names the folder of real data")
    return Path(folder)


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch):
    """A task's folder that the command line adds would be searched by every later process, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
