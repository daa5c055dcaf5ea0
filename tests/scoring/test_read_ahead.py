"""The next checkpoint is read while the present one is used; no thread outlives the pass."""

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracin
from tracin import host
from tracin.checkpoints import Checkpoint
from tracin.data import open_examples
from tracin.errors import CheckpointError
from tracin.run import checkpoint_pass, rows_pass
from tracin.scoring import read_ahead
from tracin.scoring.forward_pass import forward_pass
from tracin.scoring.score_request import ScoreRequest

DATA = torch.arange(24.0).view(12, 2), torch.arange(12) % 3


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU for a device."""
    monkeypatch.setattr(host, "LOCAL", frozenset())


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The checkpoints that were read, and the threads that read them."""
    found: list[tuple[str, str]] = []
    read = Checkpoint.weights

    def weights(self: Checkpoint) -> dict[str, Tensor]:
        found.append((self.name, threading.current_thread().name))
        return read(self)

    monkeypatch.setattr(Checkpoint, "weights", weights)
    return found


def run_in(folder: Path, checkpoints: int = 3) -> tracin.TracIn:
    for seed in range(checkpoints):
        torch.manual_seed(seed)
        torch.save(nn.Linear(2, 3).state_dict(), folder / f"{seed}.pt")
    paths = [folder / f"{seed}.pt" for seed in range(checkpoints)]
    return tracin.TracIn(nn.Linear(2, 3), "cross_entropy", paths, learning_rates="equal")


def ours() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "tracin reads ahead"]


def test_each_checkpoint_but_the_first_is_read_ahead_and_once(
    tmp_path: Path, readers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    expected = run.self_influence(DATA, batch_size=4)
    assert {thread for _, thread in readers} == {"MainThread"}
    readers.clear()

    monkeypatch.setattr(host, "LOCAL", frozenset())
    found = run.self_influence(DATA, batch_size=4)

    assert readers == [
        ("0.pt", "MainThread"),
        ("1.pt", "tracin reads ahead"),
        ("2.pt", "tracin reads ahead"),
    ]
    assert torch.equal(found, expected)
    assert not ours()


AHEAD = [("1.pt", "tracin reads ahead"), ("2.pt", "tracin reads ahead")]


def test_an_index_reads_ahead(
    tmp_path: Path, readers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    options: dict[str, Any] = {"recall_queries": 0, "batch_size": 4, "shard_size": 6}
    expected = run.index(DATA, tmp_path / "one", **options).influence(DATA)
    readers.clear()

    monkeypatch.setattr(host, "LOCAL", frozenset())
    index = run.index(DATA, tmp_path / "two", **options)

    assert [each for each in readers if each[1] != "MainThread"] == AHEAD
    assert not ours()
    readers.clear()
    assert torch.equal(torch.as_tensor(index.influence(DATA)), torch.as_tensor(expected))
    assert [each for each in readers if each[1] != "MainThread"] == AHEAD
    assert not ours()


@pytest.mark.usefixtures("on_a_device")
def test_forward_passes_read_ahead_in_their_own_order(
    tmp_path: Path, readers: list[tuple[str, str]]
) -> None:
    walk = rows_pass(run_in(tmp_path))

    for _ in forward_pass(walk, open_examples(DATA), [2, 0], "losses", 4, False):
        pass

    assert readers == [("2.pt", "MainThread"), ("0.pt", "tracin reads ahead")]
    assert not ours()


@pytest.mark.usefixtures("on_a_device")
def test_where_memory_is_short_each_is_read_in_its_turn(
    tmp_path: Path, readers: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "room", lambda device: 100)

    run_in(tmp_path).self_influence(DATA)

    assert {thread for _, thread in readers} == {"MainThread"}


@pytest.mark.usefixtures("on_a_device")
def test_an_error_of_a_file_comes_in_its_turn(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    steps = checkpoint_pass(run).steps(
        open_examples(DATA), range(12), ScoreRequest(norms=True), 4, False, "self"
    )
    seen = [next(steps)]
    (tmp_path / "1.pt").write_bytes(b"nothing")

    def take() -> None:
        for step in steps:
            seen.append(step)

    with pytest.raises(CheckpointError, match=r"1\.pt was rewritten"):
        take()

    assert sum(len(each.positions) for each in seen) == 12
    assert not ours()


@pytest.mark.usefixtures("on_a_device")
def test_a_pass_that_is_left_ends_its_thread(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    steps = checkpoint_pass(run).steps(
        open_examples(DATA), range(12), ScoreRequest(norms=True), 4, False, "self"
    )
    for _ in range(2):  # the second batch comes after the thread has begun
        next(steps)

    del steps
    gc.collect()

    assert not ours()
