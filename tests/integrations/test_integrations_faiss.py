"""faiss's candidates against scoring every row; its file through appends, changes and damage."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from built_once import index_of
from tracin import IndexingError, Projection, QueryError, TracIn
from tracin.index.row_scan import SketchedQueries
from tracin.index.store import Store
from tracin.integrations.faiss import FILE, Nearest
from tracin.sketches import Columns, Dot, Product, Side
from tracin.sketches.flat import Flat

pytest.importorskip("faiss")

ROWS, QUERIES, TOP = 3000, 20, 10


def data(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (ROWS,), generator=generator)
    centres = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    inputs = centres[labels] + torch.randn(ROWS, 12, generator=generator)
    return inputs[:examples], labels[:examples]


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def run_of(seeds=(1, 2)):
    checkpoints = [tracin.Checkpoint(net(seed).state_dict(), name=f"of {seed}") for seed in seeds]
    return TracIn(net(), "cross_entropy", checkpoints, learning_rates=[0.1, 0.02][: len(seeds)])


def built(folder, run=None, rows=400, dim=100):
    options = {"shard_size": 128, "recall_queries": 0}
    return index_of(run or run_of(), data(rows, 1), folder, Projection(dim=dim), **options)


def asked_of(index, run, queries):
    """By the rows of an index in which the queries are the last."""
    entries = index.store.manifest.checkpoints
    places = torch.arange(len(index) - queries, len(index))
    rows = tuple(index.store.rows_at(each.key, places) for each in entries)
    weights = [list(each.weights) for each in entries]
    return SketchedQueries(
        tuple(e.key for e in entries), tuple(range(len(entries))), rows, tuple(weights)
    )


def recall(found, scores):
    top = scores.topk(TOP, dim=0).indices.T.numpy()
    return np.mean([np.isin(*pair).mean() for pair in zip(top, found, strict=True)])


@pytest.mark.parametrize("has_bias", [True, False])
def test_dot_products_of_flat_vectors_are_scores(has_bias):
    blocks = (
        Dot(Side(0, 3, 9)),
        Product(Side(3, 5, 2), Side(5, 9, 4), has_bias=has_bias, group=1),
        Dot(Side(9, 11, 2), group=1),
    )
    columns = Columns(blocks, 11)
    rows, queries, weights = torch.randn(6, 11), torch.randn(4, 11), [0.5, 3.0]
    flat = Flat(columns)

    found = flat.vectors(rows) @ flat.vectors(queries, weights).T

    torch.testing.assert_close(found, columns.scores(rows, queries, weights))
    assert flat.vectors(rows).shape[1] == flat.width == 5 + 2 * (4 + has_bias)


def test_large_products_are_sketched_without_bias():
    products = (
        Product(Side(0, 20, 20), Side(20, 60, 40), has_bias=True),
        Product(Side(60, 90, 30), Side(90, 120, 30), has_bias=False),
    )
    columns = Columns(products, 120)
    torch.manual_seed(0)
    rows, queries = torch.randn(5, 120), torch.randn(4, 120)
    exact = columns.scores(rows, queries)
    drawn = [Flat(columns, 256, seed) for seed in range(300)]

    found = torch.stack([one.vectors(rows) @ one.vectors(queries).T for one in drawn])

    assert drawn[0].width == 256
    error = found.std(0) / len(drawn) ** 0.5
    assert float(((found.mean(0) - exact) / error).abs().max()) < 4
    lengths = columns.squared_lengths(rows)[:, None] * columns.squared_lengths(queries)
    assert float((found.var(0) / (lengths / 256)).mean()) < 2


def test_the_strongest_are_among_the_candidates(tmp_path):
    run = run_of()
    index = built(tmp_path, run, rows=ROWS)
    asked, scores = (
        asked_of(index, run, QUERIES),
        index.with_run(run).influence(data(ROWS, 1))[:, -QUERIES:],
    )

    for probes, least in ((None, 0.9), (10_000, 0.99)):
        high, low = Nearest.open(index, probes=probes).candidates(asked, 5 * TOP)
        assert recall(high, scores) > least
        assert recall(low, -scores) > least


def test_an_index_takes_it_as_a_finder(tmp_path):
    run = run_of()
    index, queries = built(tmp_path, run), tuple(each[:4] for each in data(400, 2))

    found = index.with_run(run).explain(queries, k=3, finder=Nearest.open(index, probes=100))
    known = index.with_run(run).explain(queries, k=3)

    assert (found.proponents.positions == known.proponents.positions).all()
    assert (found.opponents.positions == known.opponents.positions).all()


def test_weights_and_checkpoints_are_chosen_by_the_query(tmp_path):
    run = run_of()
    index = built(tmp_path, run)
    asked, nearest = asked_of(index, run, 5), Nearest.open(index, probes=100)
    last = SketchedQueries(asked.keys[1:], (0,), asked.rows[1:], ([7.0],))
    scores = index.plan.columns.scores(
        index.store.rows_at(asked.keys[1], torch.arange(len(index))), asked.rows[1]
    )

    assert recall(nearest.candidates(last, 5 * TOP)[0], scores) > 0.95
    with pytest.raises(QueryError, match="asked for at other, but their vectors are of the check"):
        nearest.candidates(SketchedQueries(("other",), (0,), asked.rows[:1], ([1.0],)), TOP)


def test_more_lists_are_searched_where_too_few_rows_are_found(tmp_path):
    run = run_of()
    index = built(tmp_path, run)

    high, low = Nearest.open(index, lists=10, probes=1).candidates(asked_of(index, run, 3), 400)

    assert (np.sort(high, 1) == np.arange(400)).all()
    assert (np.sort(low, 1) == np.arange(400)).all()


def read_by(monkeypatch):
    """The first row of each range whose rows are read."""
    seen, read = [], Store.read_range
    monkeypatch.setattr(
        Store,
        "read_range",
        lambda self, key, rows: seen.append(rows.start) or read(self, key, rows),
    )
    return seen


def test_an_append_adds_only_the_new_rows(tmp_path, monkeypatch):
    run = run_of()
    Nearest.open(built(tmp_path, run))
    longer = built(tmp_path, run, rows=500)
    seen = read_by(monkeypatch)

    nearest = Nearest.open(longer, probes=100)

    assert set(seen) == {400}
    assert len(nearest) == 500
    asked = asked_of(longer, run, 5)
    scores = longer.influence(data(500, 1))[:, -5:]
    assert recall(nearest.candidates(asked, 5 * TOP)[0], scores) > 0.95
    seen.clear()
    Nearest.open(longer)
    assert not seen


@pytest.mark.parametrize("change", ["checkpoint", "lists", "widest"])
def test_what_is_stale_is_made_again(tmp_path, change):
    index = built(tmp_path, run_of((1,)))
    Nearest.open(index)
    before = (tmp_path / FILE).read_bytes()
    if change == "checkpoint":
        index = built(tmp_path, run_of((1, 2)))
    options = {"lists": {"lists": 3}, "widest": {"widest": 40}}.get(change, {})

    assert len(Nearest.open(index, **options)) == 400
    assert (tmp_path / FILE).read_bytes() != before


def test_gc_and_verify_leave_the_file(tmp_path):
    index = built(tmp_path)
    Nearest.open(index)
    before = (tmp_path / FILE).read_bytes()

    assert not index.gc().files
    index.verify()

    assert (tmp_path / FILE).read_bytes() == before


def test_the_file_of_another_index_is_refused(tmp_path):
    one, other = built(tmp_path / "one"), built(tmp_path / "other", dim=90)
    Nearest.open(one)
    other.store.place.write(FILE, bytes(one.store.place.read(FILE)))

    with pytest.raises(IndexingError, match=r"vectors of another index.*Delete it, and open again"):
        Nearest.open(other)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    index = built(tmp_path)
    Nearest.open(index)
    held = bytearray((tmp_path / FILE).read_bytes())
    held[len(held) // 2] ^= 1
    kept = {"truncated": held[:-9], "flipped": held, "emptied": b""}[damage]
    (tmp_path / FILE).write_bytes(kept)

    with pytest.raises(IndexingError, match=r"cannot be read .*truncated or changed\. Delete it"):
        Nearest.open(index)


@pytest.mark.parametrize("given", [{"lists": 0}, {"probes": 1.5}, {"widest": -1}])
def test_other_than_counts_are_refused(tmp_path, given):
    with pytest.raises(IndexingError, match=f"{next(iter(given))} is .*whole number"):
        Nearest.open(built(tmp_path, rows=20), **given)


def test_without_faiss_the_error_names_the_extra(tmp_path, monkeypatch):
    index = built(tmp_path, rows=20)
    monkeypatch.setitem(sys.modules, "faiss", None)

    with pytest.raises(IndexingError, match=r"pip install '\.\[faiss\]' in a checkout of"):
        Nearest.open(index)


def test_the_strongest_of_a_trained_net_are_among_the_candidates(tmp_path):
    """A trained net on the digits that come with scikit-learn."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for rows in torch.randperm(len(labels)).repeat(8).split(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    run = TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.2])
    index = run.index((images, labels), tmp_path, Projection(dim=128), recall_queries=0)
    scores = index.with_run(run).influence((images[-QUERIES:], labels[-QUERIES:]))

    high, low = Nearest.open(index).candidates(asked_of(index, run, QUERIES), 5 * TOP)

    assert recall(high, scores) > 0.9
    assert recall(low, -scores) > 0.85
