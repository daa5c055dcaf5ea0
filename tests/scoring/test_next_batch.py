"""The next batch is read while a device computes the present one, with nothing else changed."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import tracin
from tracin import host
from tracin.scoring.one_ahead import OneAhead

SIZE = 4


class Recorded(Dataset[tuple[Tensor, Tensor]]):
    """Writes down what is read; draws a number for each example, as augmentation does."""

    def __init__(self, log: list[Any], fails_at: int | None = None) -> None:
        self.log, self.fails_at = log, fails_at

    def __len__(self) -> int:
        return 24

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        if at == self.fails_at:
            raise ValueError(f"example {at} is missing")
        if at % SIZE == 0:
            self.log.append(at)
        return torch.arange(3.0) + at + torch.rand(3), torch.tensor(at % 2)


def run_of(log: list[Any]) -> tracin.TracIn:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Take the CPU for a device; what is noted when the host waits for it."""
    log: list[Any] = []
    brought = host._brought

    def waits(tensors: Any, meanwhile: Any) -> Any:
        log.append("computing")
        found = brought(tensors, meanwhile)
        log.append("there")
        return found

    monkeypatch.setattr(host, "LOCAL", frozenset())
    monkeypatch.setattr(host, "_brought", waits)
    return log


@pytest.mark.filterwarnings("ignore:The data changes")
def test_a_batch_is_read_while_the_one_before_is_computed(on_a_device: list[Any]) -> None:
    run_of(on_a_device).self_influence(Recorded(on_a_device), batch_size=SIZE)

    # Each is read after the one before it was sent to the device and before the host waits for it.
    ends = ["computing", 16, "there", "computing", 20, "there", "computing", "there"]
    assert on_a_device[-len(ends) :] == ends


@pytest.mark.filterwarnings("ignore:The data changes")
def test_scores_and_random_numbers_are_those_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def scores() -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        found = run_of([]).self_influence(Recorded([]), batch_size=SIZE)
        return found, torch.get_rng_state()

    expected, state = scores()
    monkeypatch.setattr(host, "LOCAL", frozenset())
    found, there = scores()

    assert torch.equal(found, expected)
    assert torch.equal(there, state)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.filterwarnings("ignore:The data changes")
def test_an_error_comes_when_its_batch_comes_and_no_thread_is_left() -> None:
    run, log = run_of([]), []
    threads = threading.active_count()
    walk = tracin.run.checkpoint_pass(run)
    train = tracin.data.open_examples(Recorded(log, fails_at=14))
    request = tracin.scoring.score_request.ScoreRequest(norms=True)
    steps = walk.steps(train, range(24), request, SIZE, False, "self")
    seen = []

    def take() -> None:
        for step in steps:
            seen.append(step.positions.stop)

    with pytest.raises(ValueError, match="example 14 is missing"):
        take()

    assert seen[-1] == 12
    assert threading.active_count() == threads


def test_one_ahead_takes_one_and_no_more() -> None:
    taken: list[int] = []

    def numbers() -> Any:
        for number in range(3):
            taken.append(number)
            yield number

    ahead = OneAhead(numbers())
    ahead.prepare()
    ahead.prepare()

    assert taken == [0]
    assert list(ahead) == [0, 1, 2]
    ahead.prepare()
    assert list(ahead) == []
