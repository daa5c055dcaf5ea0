"""What every test shares: one thread, no waiting for the disk, and the folder of real data."""

import gc
import os
import sys
from pathlib import Path

# Tests are small: a second thread gains nothing, and on a busy machine two threads that wait for
# each other were seen to take 200 times as long. Processes that tests start inherit this, and
# libraries read it when they are first imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


# Files that the fast tier leaves out as a whole: they start processes, import large libraries, or
# try hundreds of models. The front door's, the audit's and every tenth model of the zoo stay.
SLOW_FILES = frozenset(
    f"test_{name}.py"
    for name in (
        "adam", "adapters", "checkpoint_faults", "cli", "compare_methods", "demo",
        "device_benchmark", "docs", "evaluate", "engines", "engines_fan", "engines_ray",
        "index", "index_faults", "index_identity",
        "index_search", "integrations_faiss", "integrations_lightning",
        "integrations_transformers", "interrupts", "memory", "pretrained", "recorder_more",
        "recorder_safety", "replay", "selection", "sharded", "sketches", "slow_twin", "slow_ways",
        "store", "store_urls", "threads", "trace_safety", "view_browser", "view_process",
        "wrappers",
        # tests/tracing
        "accumulate", "gradient_use", "paths", "resume", "trace", "traced_parameters",
        "traced_self_influence", "training_untouched", "updates",
    )
)  # fmt: skip
EVERY = 10  # of so many models of the zoo, one is in the fast tier, in float64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the fast tier leaves out; refuse names that no two processes share."""
    models = 0
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addressed:
        raise pytest.UsageError(f"Give the parameters of these tests ids: {addressed[:3]}")
    for item in items:
        file, _, name = item.nodeid.rpartition("/")[2].partition("::")
        is_model = name.startswith("test_float64_scores_equal_the_slow_twin")
        models += is_model
        is_left_out = file in SLOW_FILES or (
            file == "test_zoo.py" and not (is_model and models % EVERY == 0)
        )
        if is_left_out:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    # Hundreds of thousands of objects of imported libraries, which the collector would visit often.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Only a loss of power shows whether `fsync` was called; thousands of calls take minutes."""
    real, os.fsync = os.fsync, os.fstat
    yield
    os.fsync = real


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
