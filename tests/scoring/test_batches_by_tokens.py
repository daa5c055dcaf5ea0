"""Batches of texts of like length, by tokens: the same results, in the order of the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

import tracin
from tracin import baselines
from tracin.cli.settings import read_settings
from tracin.data import Tokens, open_examples
from tracin.errors import DataError, DataWarning, NonFiniteError, RunFileError

LENGTHS = [3, 9, 2, 5, 9, 1, 4, 7, 3, 6, 2, 8]
QUERIES = [4, 2, 6]


class Reader(nn.Module):
    """A tiny causal model: each position sees the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, dtype=torch.float64)
        self.inner = nn.Linear(6, 6, dtype=torch.float64)
        self.head = nn.Linear(6, 11, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embed(tokens)
        steps = torch.arange(1, tokens.shape[1] + 1).view(1, -1, 1)
        return self.head(torch.tanh(self.inner(found.cumsum(1) / steps)))


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["input_ids"])[:, :-1].transpose(1, 2)
    targets = batch["labels"][:, 1:]
    each = nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    return each.sum(1) + 0 * model.head.weight.sum()  # a text of one token has no target


def texts(lengths: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, 11, (n,), generator=draw)} for n in lengths]


def padded(some: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [torch.as_tensor(one["input_ids"]) for one in some]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(ids, batch_first=True, padding_value=-100),
    }


def data(lengths: list[int] = LENGTHS, seed: int = 0) -> DataLoader:
    return DataLoader(texts(lengths, seed), collate_fn=padded)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run() -> tracin.TracIn:
    torch.manual_seed(0)
    states = [Reader().state_dict() for _ in range(2)]
    return tracin.TracIn(Reader(), loss, states, learning_rates=[0.1, 0.2])


def test_batches_hold_texts_of_like_length_up_to_the_limit() -> None:
    examples = open_examples(data())
    groups = examples.groups(Tokens(16), examples.order(Tokens(16), range(12)))
    assert groups == [[1], [4], [11, 7], [9, 3], [6, 0, 8, 2], [10, 5]]
    found = [tuple(batch["input_ids"].shape) for _, batch in examples.batches(Tokens(16))]
    assert found == [(1, 9), (1, 9), (2, 8), (2, 6), (4, 4), (2, 2)]
    # In order, as queries are taken: no batch is above the limit.
    assert examples.groups(Tokens(16), range(5, 12)) == [
        range(5, 7),
        range(7, 9),
        range(9, 11),
        range(11, 12),
    ]


@pytest.mark.parametrize("limit", [1, 16, 1000])
def test_scores_are_those_of_plain_batches(run: tracin.TracIn, limit: int) -> None:
    train, queries, size = data(), data(QUERIES, 1), Tokens(limit)
    for ask in (
        lambda size: run.self_influence(train, batch_size=size),
        lambda size: run.influence(train, queries, batch_size=size),
        lambda size: run.influence(train, queries, group="sum", batch_size=size),
        lambda size: tracin.analysis.checkpoint_losses(run, train, size),
        lambda size: torch.from_numpy(
            tracin.baselines.GraNd(run).scores(train, batch_size=size).values
        ),
    ):
        torch.testing.assert_close(ask(size), ask(1), rtol=1e-12, atol=1e-14)
    one, other = (run.explain(train, queries, k=4, batch_size=each) for each in (size, 1))
    assert np.array_equal(one.proponents.positions, other.proponents.positions)
    assert np.array_equal(one.opponents.positions, other.opponents.positions)
    assert one.proponents.facts is not None
    assert other.proponents.facts is not None
    torch.testing.assert_close(one.proponents.facts.losses, other.proponents.facts.losses)


def test_curvature_keeps_its_examples_in_order(run: tracin.TracIn) -> None:
    model, states = run.model, [each.source for each in run.checkpoints]
    under = tracin.TracIn(
        model, loss, states[:1], learning_rates=[1.0], preconditioner=tracin.Kernel(landmarks=12)
    )
    train, queries = data(), data(QUERIES, 1)
    one, other = (under.influence(train, queries, batch_size=each) for each in (Tokens(16), 5))
    torch.testing.assert_close(one, other)


def test_an_index_has_the_same_rows_and_resumes(run: tracin.TracIn, tmp_path: Path) -> None:
    train, queries = data(), data(QUERIES, 1)
    built = [
        run.index(
            train,
            tmp_path / name,
            tracin.Projection(32),
            number_format="float32",
            shard_size=5,
            recall_queries=0,
            batch_size=size,
        )
        for name, size in (("tokens", Tokens(16)), ("plain", 4))
    ]
    one, other = (each.influence(queries) for each in built)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    shard = next(iter(sorted((tmp_path / "tokens").rglob("*.safetensors"))))
    shard.unlink()
    resumed = run.index(
        train,
        tmp_path / "tokens",
        tracin.Projection(32),
        number_format="float32",
        shard_size=5,
        recall_queries=0,
        batch_size=Tokens(30),
    )
    torch.testing.assert_close(resumed.influence(queries), one, rtol=1e-4, atol=1e-5)


def test_errors_name_the_example(run: tracin.TracIn) -> None:
    def broken(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        is_broken = (batch["labels"] != -100).sum(1) == 5
        return loss(model, batch) + torch.where(is_broken, torch.nan, 0.0)

    named = tracin.WithIds(data(), [f"text {at}" for at in range(12)])
    states = [each.source for each in run.checkpoints]
    other = tracin.TracIn(run.model, broken, states, learning_rates="equal")
    with pytest.raises(NonFiniteError, match="'text 3' is nan"):
        other.self_influence(named, batch_size=Tokens(16))


def test_batches_are_halved_where_memory_runs_out(run: tracin.TracIn) -> None:
    seen: list[int] = []

    def greedy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        seen.append(batch["input_ids"].numel())
        if seen[-1] > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, batch)

    states = [each.source for each in run.checkpoints]
    other = tracin.TracIn(run.model, greedy, states, learning_rates=[0.1, 0.2])
    # Texts of a like length: the first batch, of which few are audited, fits.
    train = data([3, 3, 3, 2, 2, 2, 2, 1, 1])
    found = other.self_influence(train, batch_size=Tokens(24))
    torch.testing.assert_close(found, run.self_influence(train, batch_size=1))
    assert max(seen) > 12


def test_lengths_are_asked_for_once(run: tracin.TracIn) -> None:
    asked: list[int] = []

    def length(example: dict[str, Tensor]) -> int:
        asked.append(len(example["input_ids"]))
        return asked[-1]

    run.self_influence(data(), batch_size=Tokens(16, length))
    assert asked == LENGTHS  # at two checkpoints


def test_lengths_of_a_table_are_read_from_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": one["input_ids"].tolist(), "label": 1} for one in texts(LENGTHS)]
    table = datasets.Dataset.from_list(rows).select(range(11, -1, -1))
    some = Subset(table, list(range(2, 12)))  # pyright: ignore[reportArgumentType]
    for dataset, expected in ((table, LENGTHS[::-1]), (some, LENGTHS[9::-1])):
        examples = open_examples(DataLoader(dataset, collate_fn=padded))

        def no_reading(position: int) -> None:
            raise AssertionError("an example was read")

        monkeypatch.setattr(examples._source, "example", no_reading)
        ordered = examples.order(Tokens(16), range(len(expected)))
        assert [expected[at] for at in ordered] == sorted(expected, reverse=True)


def test_padded_columns_count_with_their_padding(run: tracin.TracIn) -> None:
    columns = padded(texts(LENGTHS))
    examples = open_examples(columns)
    positions = examples.order(Tokens(18), range(12))
    assert positions == range(12)
    assert examples.groups(Tokens(18), positions)[0] == range(2)
    torch.testing.assert_close(
        run.self_influence(columns, batch_size=Tokens(18)), run.self_influence(columns)
    )


class Pairs(Dataset):
    """Examples without names for their fields."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return torch.ones(position + 1), 0


def test_examples_of_unknown_length_are_refused() -> None:
    examples = open_examples(Pairs(), name="train")
    with pytest.raises(DataError, match=r"at position 0 of train has none: it is a tuple.*length="):
        examples.order(Tokens(16), range(4))
    with pytest.raises(DataError, match=r"position 0 of train it returned 1\.5"):
        examples.order(Tokens(16, lambda example: 1.5), range(4))  # pyright: ignore[reportArgumentType]
    assert examples.order(Tokens(16, lambda example: len(example[0])), range(4)) == [3, 2, 1, 0]
    with pytest.raises(DataError, match="limit is a whole number of at least 1; 0 was given"):
        Tokens(0)
    with pytest.raises(DataError, match="length is a function"):
        Tokens(4, "input_ids")  # pyright: ignore[reportArgumentType]
    unfits: list[Any] = [torch.ones(2), np.ones(2), 2**63]
    for unfit in unfits:
        with pytest.raises(DataError, match=r"position 0 of train it returned"):
            examples.order(Tokens(16, lambda example, unfit=unfit: unfit), range(4))


def test_padding_that_counts_is_still_warned_of(run: tracin.TracIn) -> None:
    def unmasked(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["input_ids"]).square().sum((1, 2))

    states = [each.source for each in run.checkpoints]
    other = tracin.TracIn(run.model, unmasked, states, learning_rates="equal")
    with pytest.warns(DataWarning, match="Padding counts: example 5 of train"):
        other.self_influence(data(), batch_size=Tokens(16))


def points(count: int, seed: int) -> list[tuple[Tensor, int]]:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    return [(row, at % 3) for at, row in enumerate(inputs)]


def numbers(answer: Any) -> Tensor:
    """What is compared of an answer, in the order of the data."""
    return torch.as_tensor(answer.values if hasattr(answer, "ids") else answer)


def suspects_by_position(found: tracin.Suspects) -> Tensor:
    columns = [found.self_influence, found.loss, found.given_labels, found.suggested_labels]
    return torch.tensor(np.stack(columns))[:, np.argsort(found.positions)]


ASKED: dict[str, Callable[[tracin.TracIn, Any, Any], Any]] = {
    "find_mislabelled": lambda run, size, train: suspects_by_position(
        run.find_mislabelled(train, validation=points(5, 1), batch_size=size)
    ),
    "contributions": lambda run, size, train: (
        tracin.contributions(run, train, points(5, 1), batch_size=size).self_influence
    ),
    "select": lambda run, size, train: (
        tracin.select(run, train, points(5, 1), 4, batch_size=size).positions
    ),
    "conflicting_duplicates": lambda run, size, train: (
        tracin.conflicting_duplicates(run, train, cosine=0.1, batch_size=size).positions
    ),
    "target": lambda run, size, train: run.influence(
        train, points(5, 1), target=tracin.Predicted(), batch_size=size
    ),
    "Loss": lambda run, size, train: baselines.Loss(run).scores(train, batch_size=size),
    "EL2N": lambda run, size, train: baselines.EL2N(run).scores(train, batch_size=size),
    "InfluenceFunctions": lambda run, size, train: baselines.InfluenceFunctions(
        run, damping=0.1
    ).influence(train, points(5, 1), batch_size=size),
    "RepresenterPoints": lambda run, size, train: baselines.RepresenterPoints(run).influence(
        train, points(5, 1), batch_size=size
    ),
    "NearestNeighbours": lambda run, size, train: baselines.NearestNeighbours(run).influence(
        train, points(5, 1), batch_size=size
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_is_in_the_order_of_the_data(name: str) -> None:
    torch.manual_seed(0)
    states = [nn.Linear(4, 3, dtype=torch.float64).state_dict() for _ in range(2)]
    run = tracin.TracIn(
        nn.Linear(4, 3, dtype=torch.float64), "cross_entropy", states, learning_rates=[0.1, 0.2]
    )
    # Made-up lengths, so that the order of reading is not that of the data.
    regrouped = Tokens(12, lambda example: 1 + int(10 * example[0][0].abs()) % 5)
    train = points(14, 0)
    found, expected = (numbers(ASKED[name](run, size, train)) for size in (regrouped, 3))
    torch.testing.assert_close(found, expected)


def test_places_that_count_as_more_tokens_make_smaller_batches() -> None:
    texts = open_examples([{"input_ids": [1] * length} for length in (4, 3, 2, 1)])
    size, order = Tokens(8), [0, 1, 2, 3]

    assert texts.groups(size, order) == [[0, 1], [2, 3]]
    # As on the ranks of a divided model: another rank has a longer text at the third place.
    assert texts.groups(size, order, lengths=np.array([4, 4, 4, 4])) == [[0, 1], [2, 3]]
    assert texts.groups(size, order, lengths=np.array([5, 3, 3, 1])) == [[0], [1, 2], [3]]


def test_a_run_file_gives_tokens(tmp_path: Path) -> None:
    file = tmp_path / "RUN.toml"
    file.write_text('[task]\nfunction = "task.py:task"\n')
    table = read_settings(file, ["tracin.batch_size={tokens = 16_384}"]).tracin
    assert table.size == Tokens(16_384)
    assert table.model_dump()["batch_size"] == {"tokens": 16_384}
    with pytest.raises(RunFileError, match=r"or a table such as \{ tokens = 16384 \}"):
        read_settings(file, ["tracin.batch_size={token = 5}"])
