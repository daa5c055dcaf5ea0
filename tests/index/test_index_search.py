"""Asking an index: exact rescoring and its bound, recall, finders, filters, workers."""

import json

import numpy as np
import pytest
import torch
from test_index import QUERIES, ROWS, TEST, TRAIN, built, data, files, mlp, pictures, run_of
from torch import nn

import tracin
from built_once import index_of
from own_process import fork_workers
from tracin import IndexingError, Projection, QueryError
from tracin.engines import Processes, Ranks, Serial
from tracin.index.bounds import limits
from tracin.index.index import Index
from tracin.index.measure_recall import chosen_rows
from tracin.index.row_scan import RowScan


def strongest(scores, k):
    """The positions of the k highest and the k lowest of [train, queries]: [queries, k] each."""
    order = scores.T.argsort(dim=1, descending=True, stable=True)
    return order[:, :k].numpy(), order[:, -k:].flip(1).numpy()


def same_sets(found, true):
    return np.array([set(one) == set(other) for one, other in zip(found, true, strict=True)])


def equal_answers(one, other):
    for side in ("proponents", "opponents"):
        here, there = getattr(one, side), getattr(other, side)
        assert (here.positions == there.positions).all()
        torch.testing.assert_close(here.scores, there.scores)


class Wide(nn.Module):
    """Gradients that hundreds of columns do not hold."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 40, 3), nn.Linear(40, 3)

    def forward(self, x):
        x = x.repeat(1, 5).view(-1, 1, 5, 5)
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def wide(seed=0):
    torch.manual_seed(seed)
    return Wide()


@pytest.mark.parametrize("candidates", [1, 3])
def test_what_is_called_certain_is_so(tmp_path, candidates):
    more = data(40, 5)
    certain = wrong = asked = 0
    for seed in range(2):
        run = run_of(wide, seeds=(seed, seed + 10))
        true = strongest(run.influence(TRAIN, more), 3)
        for dim in (30, 160, 300):
            folder = tmp_path / f"{seed} {dim}"
            index = index_of(run, TRAIN, folder, Projection(dim, seed), recall_queries=0)
            found = index.explain(more, k=3, exact=True, candidates=candidates)
            for side, right in zip((found.proponents, found.opponents), true, strict=True):
                sure = side.is_certain.numpy()
                assert not (dim == 30 and sure.any())  # too few columns to be sure of anything
                wrong += int((sure & ~same_sets(side.positions, right)).sum())
                certain += int(sure.sum())
                asked += len(sure)

    assert wrong == 0
    assert 0 < certain < asked


@pytest.mark.parametrize("kept", ["float32", "float16", "int8"])
@pytest.mark.parametrize("dim", [30, 1000])
def test_exact_scores_lie_between_the_limits(tmp_path, kept, dim):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=dim, number_format=kept, recall_queries=0)
    exact = run.influence(TRAIN, TEST)

    asked = index._needed_run().sketched(tracin.data.open_examples(TEST, name="test"), "auto")
    within = []
    for block in limits(RowScan(index.store, index.plan, asked, 1)):
        true = exact[block.first : block.first + block.lower.shape[1]].T
        within.append(((block.lower <= true) & (true <= block.upper)).flatten())

    assert float(torch.cat(within).float().mean()) >= (1 if dim == 1000 else 0.99)


def test_with_all_rows_candidates_the_answer_is_certain_and_exact(tmp_path):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=24)

    found = index.explain(TEST, k=5, exact=True, candidates=ROWS)

    equal_answers(found, run.explain(TRAIN, TEST, k=5))
    assert bool(found.proponents.is_certain.all())
    assert bool(torch.isinf(found.opponents.bounds).all())
    assert f"proponents: top 5 certain for {QUERIES} of {QUERIES} queries" in str(found)
    assert found.columns()["is_certain"].all()
    assert (found.columns()["bound"][: QUERIES * 5] == -np.inf).all()
    assert found.bottom(2).sure.shape == (QUERIES, 2)


def test_certainty_is_told_hit_by_hit(tmp_path):
    run = run_of(pictures)
    found = built(tmp_path, run, dim=60).explain(TEST, k=6, exact=True, candidates=1)

    sure, bounds = found.proponents.sure, found.proponents.bounds
    assert (sure == (found.proponents.scores > bounds[:, None])).all()
    assert (found.columns()["is_certain"][: QUERIES * 6] == sure.flatten().numpy()).all()
    assert (
        found.opponents.sure == (found.opponents.scores < found.opponents.bounds[:, None])
    ).all()


def test_exact_needs_the_training_data(tmp_path):
    run = run_of()
    index = built(tmp_path, run)
    folder = tmp_path / "index"

    equal_answers(
        index.explain(TEST, k=2, exact=True),
        Index.open(folder, run=run, train=TRAIN).explain(TEST, k=2, exact=True),
    )
    with pytest.raises(
        QueryError, match=r"opened without it\. Use tracin\.Index\.open\(folder, run"
    ):
        Index.open(folder, run=run).explain(TEST, k=2, exact=True)
    with pytest.raises(
        QueryError, match=r"opened without one\. Use tracin\.Index\.open\(folder, run"
    ):
        Index.open(folder, train=TRAIN).explain(TEST, k=2)
    fewer = TRAIN[0][:9], TRAIN[1][:9]
    with pytest.raises(IndexingError, match="but train has 9 examples"):
        Index.open(folder, run=run, train=fewer).explain(TEST, k=2, exact=True)
    with pytest.raises(QueryError, match="candidates is a whole number of at least 1; 0"):
        index.explain(TEST, k=2, exact=True, candidates=0)


class Seeing:
    """Finds the true candidates among every `step`-th row, the rest are -1."""

    def __init__(self, index, step=1):
        self.index, self.step, self.counts = index, step, []

    def candidates(self, asked, count):
        self.counts.append(count)
        scores = torch.zeros(len(self.index), len(asked))
        for key, rows, weights in zip(asked.keys, asked.rows, asked.weights, strict=True):
            kept = torch.cat([shard.rows() for shard in self.index.store.shards(key)])
            scores += self.index.plan.columns.scores(kept, rows, weights)
        places = np.arange(0, len(self.index), self.step)
        sides = strongest(scores[places], min(count, len(places)))
        lacking = ((0, 0), (0, count - sides[0].shape[1]))
        top, bottom = (np.pad(places[side], lacking, constant_values=-1) for side in sides)
        return top, bottom


@pytest.mark.parametrize("exact", [False, True])
def test_a_finder_that_misses_nothing_changes_nothing(tmp_path, exact):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=40)

    found = index.explain(TEST, k=4, finder=Seeing(index), exact=exact, candidates=ROWS)

    equal_answers(found, index.explain(TEST, k=4, exact=exact, candidates=ROWS))
    assert (found.recall.proponents, found.recall.opponents, found.recall.queries) == (1, 1, 6)
    assert "finder: recall@4: 1.000 of proponents" in str(found)
    assert found.proponents.is_certain is None
    assert (found.proponents.errors is None) == exact


def test_a_finder_that_sees_every_other_row_has_its_recall_told(tmp_path):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=40)

    found = index.explain(TEST, k=8, finder=Seeing(index, 2))

    plain = index.explain(TEST, k=8)
    here = [len(np.intersect1d(*pair)) / 8 for pair in zip(
        found.proponents.positions, plain.proponents.positions, strict=True
    )]  # fmt: skip
    assert found.recall.proponents == pytest.approx(np.mean(here))
    assert 0.2 < found.recall.proponents < 0.8
    assert (found.proponents.positions % 2 == 0).all()


def test_the_recall_of_a_finder_is_measured_once(tmp_path, monkeypatch):
    index = built(tmp_path, run_of())
    finder = Seeing(index, 2)
    first = index.explain(TEST, k=8, finder=finder)
    monkeypatch.setattr("tracin.index.candidates.best_of_all", None)

    assert index.explain(TEST, k=8, finder=finder).recall == first.recall
    with pytest.raises(TypeError):
        index.explain(TEST, k=7, finder=finder)


def test_a_finder_is_asked_for_more_where_rows_are_left_out(tmp_path):
    run = run_of()
    index = built(tmp_path, run)
    keep = np.arange(ROWS) >= ROWS - 5
    finder = Seeing(index)

    found = index.explain(TEST, k=5, finder=finder, where=keep, candidates=1)

    assert finder.counts == [5, 20, ROWS]
    equal_answers(found, index.explain(TEST, k=5, where=keep))
    with pytest.raises(QueryError, match=r"The finder returned 2 candidates .* but k is 5"):
        index.explain(TEST, k=5, finder=Seeing(index, 2), where=keep)


@pytest.mark.parametrize(
    "answer",
    [np.zeros((1, 3), int), np.zeros((QUERIES, 3)), np.full((QUERIES, 3), ROWS), np.array([-2])],
)
def test_what_a_finder_gives_is_checked(tmp_path, answer):
    class Odd:
        def candidates(self, asked, count):
            return answer, answer

    run = run_of()
    with pytest.raises(QueryError, match=r"A finder returns positions of rows: \[6, "):
        built(tmp_path, run).explain(TEST, k=1, finder=Odd())


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"finder": 1}])
def test_memory_does_not_matter_for_any_way(tmp_path, options, monkeypatch):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=60)
    if "finder" in options:
        options = {"finder": Seeing(index)}
    once = index.explain(TEST, k=3, **options)
    monkeypatch.setattr("tracin.index.search.BLOCK_ROWS", 4)
    monkeypatch.setattr("tracin.index.bounds.BLOCK_ROWS", 4)

    for memory in (1, 20_000):
        found = index.explain(TEST, k=3, memory=memory, **options)

        equal_answers(found, once)
        if "exact" in options:
            torch.testing.assert_close(found.proponents.bounds, once.proponents.bounds)


def test_rows_are_kept_by_a_function_of_their_table(tmp_path):
    run = run_of()
    index = built(tmp_path, run)

    found = index.explain(TEST, k=3, where=lambda rows: rows["label"] == 1)

    assert (TRAIN[1][found.proponents.positions] == 1).all()
    equal_answers(found, index.explain(TEST, k=3, where=TRAIN[1] == 1))
    with pytest.raises(QueryError, match=r"where leaves none of the 70 rows"):
        index.explain(TEST, k=1, where=lambda rows: rows["label"] == 9)
    with pytest.raises(
        QueryError, match=r"a function of the table .* it returned \[70\] of torch\.int64"
    ):
        index.explain(TEST, k=1, where=lambda rows: rows["label"])


def test_the_recall_of_an_index_is_measured_and_told(tmp_path):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=24, recall_queries=16)

    kept = json.loads((tmp_path / "index" / "recall.json").read_text())
    own = chosen_rows(0, ROWS, 16)
    queries = TRAIN[0][own], TRAIN[1][own]
    rough, exact = index.influence(queries), run.influence(TRAIN, queries)
    for each in (rough, exact):
        each[own, np.arange(len(own))] = torch.nan  # itself: neither high nor low
    shares = []
    for sign in (1, -1):
        lists = [
            (sign * each).nan_to_num(-torch.inf).argsort(dim=0, descending=True)[:10].T.numpy()
            for each in (rough, exact)
        ]
        shares.append(
            np.mean([len(np.intersect1d(*pair)) / 10 for pair in zip(*lists, strict=True)])
        )
    found = index.explain(TEST, k=2)

    assert kept["proponents"] == pytest.approx(shares[0], abs=0.02)
    assert kept["opponents"] == pytest.approx(shares[1], abs=0.02)
    assert (kept["rows"], kept["queries"], kept["k"]) == (ROWS, 16, 10)
    assert found.recall.proponents == kept["proponents"]
    assert f"recall@10: {kept['proponents']:.3f} of proponents" in str(found)
    assert index.explain(TEST, k=2, exact=True).recall is None


def test_a_recall_that_is_missing_or_outdated_is_said_to_be(tmp_path):
    run = run_of()
    index = built(tmp_path, run, (TRAIN[0][:40], TRAIN[1][:40]), recall_queries=0)
    assert not (tmp_path / "index" / "recall.json").exists()
    assert "recall: not measured; index.measure_recall()" in str(index.explain(TEST, k=1))

    index.measure_recall()
    assert index.explain(TEST, k=1).recall is not None
    index = built(tmp_path, run, recall_queries=0)
    assert "measured when there were 40 of 70 rows" in str(index.explain(TEST, k=1))
    index = built(tmp_path, run, recall_queries=3)
    assert index.explain(TEST, k=1).recall.queries == 3
    second = run_of(rates=(0.05,), seeds=(2,))
    assert "measured at other checkpoints" in str(index.with_run(second).explain(TEST, k=1))
    assert "recall.json" not in index.gc().files
    (tmp_path / "index" / "recall.json").write_text("{")
    assert "recall: unknown; " in str(Index.open(tmp_path / "index", run=run).explain(TEST, k=1))
    with pytest.raises(QueryError, match="queries is a whole number"):
        index.measure_recall(queries=0)
    with pytest.raises(QueryError, match="k=70 results were asked for, but the index has 69"):
        index.measure_recall(k=70)


def test_building_twice_gives_the_same_recall(tmp_path):
    for name in ("one", "two"):
        run_of(pictures).index(TRAIN, tmp_path / name, Projection(24), shard_size=16)

    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (chosen_rows(0, 10**12, 16) == chosen_rows(0, 10**12, 16)).all()
    assert len(set(chosen_rows(3, 20, 16))) == 16
    assert (chosen_rows(0, 5, 16) == np.arange(5)).all()


@pytest.mark.parametrize("options", [{}, {"exact": True}])
def test_workers_that_divide_the_rows_find_the_same(tmp_path, options, monkeypatch):
    fork_workers(monkeypatch)
    run = run_of(pictures)
    index = built(tmp_path, run, dim=60)
    keep = np.arange(ROWS) % 3 > 0
    alone = index.explain(TEST, k=4, where=keep, **options)

    for engine in (Serial(), Processes(2)) if options else (Serial(),):
        found = index.explain(TEST, k=4, where=keep, engine=engine, progress=False, **options)

        equal_answers(found, alone)
        assert (found.proponents.by_checkpoint == alone.proponents.by_checkpoint).all()
        if options:
            assert (found.opponents.bounds == alone.opponents.bounds).all()


def test_an_engine_that_cannot_divide_rows_is_refused(tmp_path):
    run = run_of(mlp)
    index = built(tmp_path, run)

    with pytest.raises(IndexingError, match="Ranks never communicate"):
        index.explain(TEST, k=1, engine=Ranks(0, 2))
    with pytest.raises(QueryError, match=r"Set finder= or engine=, not both"):
        index.explain(TEST, k=1, engine=Serial(), finder=Seeing(index))
    with pytest.raises(QueryError, match="object cannot share the scan"):
        index.explain(TEST, k=1, engine=object())
