"""Queries in whatever batches and runs they come, and in whatever form they are held."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.scoring import checkpoint_pass, query_gradients, query_pass

WORDS, WIDTH = 11, 6


class Language(nn.Module):
    """A tied embedding and head, a Linear layer, a LoRA pair, and a causal convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, WIDTH, bias=False)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, words: Tensor) -> Tensor:  # [examples, length] -> [examples, length, words]
        hidden = self.words(words)
        hidden = hidden + torch.tanh(self.linear(hidden) + self.up(self.down(hidden)))
        hidden = hidden + self.conv(F.pad(hidden.mT, (2, 0))).mT
        return F.linear(self.norm(hidden), self.words.weight)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    words, following = batch
    scores = model(words).flatten(0, 1)
    losses = F.cross_entropy(scores, following.flatten(), reduction="none", ignore_index=-100)
    return losses.view(following.shape).sum(1)


def padded(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Texts of unlike lengths, filled up at the end."""
    words = nn.utils.rnn.pad_sequence([one for one, _ in examples], batch_first=True)
    labels = [one for _, one in examples]
    return words, nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)


def texts(lengths: list[int], seed: int) -> torch.utils.data.DataLoader:
    """Batches are as long as the longest of their texts."""
    some = torch.Generator().manual_seed(seed)
    data = [torch.randint(WORDS, (length + 1,), generator=some) for length in lengths]
    return torch.utils.data.DataLoader(
        [(one[:-1], one[1:]) for one in data],  # type: ignore[arg-type]  # a sequence does
        batch_size=2,
        collate_fn=padded,
    )


TRAIN = [7, 9, 9, 4, 9, 5, 8]
QUERIES = [3, 4, 9, 2, 5, 16, 9, 6, 3]


def run_of(build: Callable[..., nn.Module] = Language, **options: object) -> tracin.TracIn:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double()
    weights = [{n: v.clone() * s for n, v in model.state_dict().items()} for s in (1.0, 0.5)]
    given: dict = {"learning_rates": [0.1, 0.2], **options}
    return tracin.TracIn(model, loss, weights, **given)


def twin(run: tracin.TracIn) -> Tensor:
    total = torch.zeros(len(TRAIN), len(QUERIES), dtype=torch.float64)
    sets: list[Any] = [texts(TRAIN, 1).dataset, texts(QUERIES, 2).dataset]
    for checkpoint, weight in zip(run.checkpoints, (0.1, 0.2), strict=True):
        with torch.no_grad():
            run.model.load_state_dict(dict(checkpoint.source))  # type: ignore[arg-type]
        rows = [
            torch.stack([slow_twin_row(run.model, padded([one])) for one in each]) for each in sets
        ]
        total += weight * rows[0] @ rows[1].T
    return total


def slow_twin_row(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    found = torch.autograd.grad(loss(model, batch).sum(), list(model.parameters()))
    return torch.cat([one.flatten() for one in found])


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-9, atol=1e-12)


MEMORIES = {"all": 1 << 30, "some": 20_000, "one batch": 1}
of_any_memory = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)


@of_any_memory
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_queries_of_unlike_lengths_score_as_the_slow_twin(
    memory: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
):
    run = run_of()
    expected = twin(run)
    monkeypatch.setattr(query_pass, "room", lambda device: memory)

    found = run.influence(texts(TRAIN, 1), texts(QUERIES, 2), batch_size=batch_size)

    assert close(found, expected)


@of_any_memory
def test_an_explanation_and_its_cosines_do_not_depend_on_memory(
    memory: int, monkeypatch: pytest.MonkeyPatch
):
    run = run_of()
    train, queries = texts(TRAIN, 1), texts(QUERIES, 2)
    expected = run.explain(train, queries, k=3, normalise="cosine")
    monkeypatch.setattr(query_pass, "room", lambda device: memory)

    found = run.explain(train, queries, k=3, normalise="cosine", batch_size=2)

    assert (found.proponents.positions == expected.proponents.positions).all()
    assert close(found.proponents.scores, expected.proponents.scores)


PRECONDITIONERS = {
    "KFAC": tracin.KFAC,
    "EKFAC": tracin.EKFAC,
    "Kernel": partial(tracin.Kernel, landmarks=4),
}


@pytest.mark.parametrize("make", PRECONDITIONERS.values(), ids=PRECONDITIONERS)
def test_preconditioned_queries_do_not_depend_on_memory(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
):
    run = run_of(preconditioner=make(), learning_rates="equal")
    train, queries = texts(TRAIN, 1), texts(QUERIES, 2)
    expected = run.influence(train, queries, batch_size=9)
    monkeypatch.setattr(query_pass, "room", lambda device: 20_000)

    assert torch.allclose(run.influence(train, queries, batch_size=2), expected, rtol=1e-6)


def test_factors_under_adam_are_scaled_in_each_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, data = run_of().model, list(texts(TRAIN, 1))
    optimizer = torch.optim.Adam(model.parameters())
    with tracin.Recorder(model, optimizer, tmp_path, optimizer_state=True) as recorder:
        loss(model, data[0]).sum().backward()
        optimizer.step()
        recorder.epoch()
    run = tracin.TracIn(model, loss, tmp_path, preconditioner=tracin.Adam())
    train, queries = texts(TRAIN, 1), texts([2] * 9, 2)
    expected = run.influence(train, queries)
    monkeypatch.setattr(query_pass, "room", lambda device: 20_000)

    assert close(run.influence(train, queries, batch_size=2), expected)


def test_a_mean_of_queries_is_one_direction_whatever_the_memory(monkeypatch: pytest.MonkeyPatch):
    run = run_of()
    expected = twin(run).mean(1)
    monkeypatch.setattr(query_pass, "room", lambda device: 1)
    visited = count_visits(run, monkeypatch)

    found = run.influence(texts(TRAIN, 1), texts(QUERIES, 2), group="mean", batch_size=3)

    assert close(found, expected)
    assert visited["queries"] == 2 * len(QUERIES)


def count_visits(run: tracin.TracIn, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many queries' gradients are taken."""
    counts = {"queries": 0}
    add = query_gradients.QueryGradients.add

    def counted(self, gradients, batch, *, is_last):
        counts["queries"] += len(batch[0])
        return add(self, gradients, batch, is_last=is_last)

    monkeypatch.setattr(query_gradients.QueryGradients, "add", counted)
    return counts


def test_each_checkpoint_is_loaded_once_for_all_runs(monkeypatch: pytest.MonkeyPatch):
    run, loads = run_of(), []
    load = checkpoint_pass.loaded
    monkeypatch.setattr(
        checkpoint_pass,
        "loaded",
        lambda *given, **named: loads.append(given[1].name) or load(*given, **named),
    )
    monkeypatch.setattr(query_pass, "room", lambda device: 1)
    counts = count_visits(run, monkeypatch)

    run.influence(texts(TRAIN, 1), texts(QUERIES, 2), batch_size=2)

    assert len(loads) == 2
    assert counts["queries"] == 2 * len(QUERIES)


def test_a_batch_of_queries_too_large_for_memory_is_halved(monkeypatch: pytest.MonkeyPatch):
    run = run_of()
    expected = twin(run)
    add = query_gradients.QueryGradients._hold
    failures = []

    def limited(self, name, form, row, size, checks):
        is_third = len(self) == 4 and len(failures) < 4 and name == "linear.weight"
        if size > 2 or is_third:
            failures.append(name)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return add(self, name, form, row, size, checks)

    monkeypatch.setattr(query_gradients.QueryGradients, "_hold", limited)

    found = run.influence(texts(TRAIN, 1), texts(QUERIES, 2), batch_size=9)

    assert close(found, expected)
    assert {"norm.weight", "linear.weight"} <= set(failures)
