"""K-FAC on an index's rows, against the matrices written out in float64."""

import logging

import numpy as np
import pytest
import torch
from test_index import CLASSES, QUERIES, ROWS, TEST, TRAIN, data, mlp, pictures
from torch import nn

import tracin
from built_once import index_of
from tracin import KFAC, IndexingError, Projection, QueryError
from tracin.errors import PreconditionerError
from tracin.index import curvatures, row_moments
from tracin.index.index import Index
from tracin.index.row_curvature import RowCurvature
from tracin.index.row_moments import ColumnMoments, count_of_numbers
from tracin.index.store.shard import Shard
from tracin.preconditioners.fit_data import spread_evenly
from tracin.run import open_data
from tracin.sketches import Columns, Dot, Product, Side


def deep(seed=0):
    """Three layers with factors, one without a bias."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 30),
        nn.Tanh(),
        nn.Linear(30, 20, bias=False),
        nn.Tanh(),
        nn.Linear(20, CLASSES),
    )


class Wide(nn.Module):
    """A convolution alone, whose columns are all sketched."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, CLASSES * 8, 3)

    def forward(self, x):
        found = torch.tanh(self.conv(x.repeat(1, 5).view(-1, 1, 5, 5))).mean((2, 3))
        return found.view(-1, CLASSES, 8).sum(2)


def wide(seed=0):
    torch.manual_seed(seed)
    return Wide()


def run_of(build=deep, preconditioner=None, seeds=(1, 2), **options):
    checkpoints = [
        tracin.Checkpoint(build(seed).state_dict(), name=f"epoch {seed}") for seed in seeds
    ]
    options = {"learning_rates": "equal", **options}
    return tracin.TracIn(
        build(), "cross_entropy", checkpoints, preconditioner=preconditioner, **options
    )


def built(folder, run, dim, train=TRAIN, **options):
    options = {"shard_size": 16, "number_format": "float32", "recall_queries": 0, **options}
    return index_of(run, train, folder, Projection(dim), **options)


def assert_near(found, wanted, tolerance):
    apart = float((found.double() - wanted.double()).abs().max())
    assert apart < tolerance * float(wanted.abs().max())


def written_out(index, damping, row_damping, examples=None):
    """The scores of all rows by inverses of whole matrices, block by block, in float64."""
    sketched = index._needed_run().sketched(open_data(index.run, TEST, "queries"), "auto")
    total = torch.zeros(len(index), QUERIES, dtype=torch.float64)
    for key, queries, weights in zip(sketched.keys, sketched.rows, sketched.weights, strict=True):
        rows = torch.cat([shard.rows() for shard in index.store.shards(key)]).double()
        for block in index.plan.columns.blocks:
            weight = weights[block.group]
            total += weight * scores_of_block(
                block, rows, queries.double(), damping, row_damping, examples
            )
    return total


def inverse(vectors, added):
    moments = vectors.mT @ vectors / len(vectors)
    return torch.linalg.inv(moments + added * torch.eye(len(moments), dtype=torch.float64))


def scores_of_block(block, rows, queries, damping, row_damping, examples):
    fit = rows if examples is None else rows[spread_evenly(len(rows), examples, 1)]
    if isinstance(block, Dot):
        cut = slice(block.side.start, block.side.stop)
        trace = float(fit[:, cut].square().sum()) / len(fit)
        metric = inverse(fit[:, cut], row_damping * trace / min(block.side.numbers, len(fit)))
        return rows[:, cut] @ metric @ queries[:, cut].mT
    product = torch.ones(1, dtype=torch.float64)
    for side, has_constant in ((block.left, False), (block.right, block.has_bias)):
        cut = slice(side.start, side.stop)

        def vectors(some, cut=cut, has_constant=has_constant):
            ones = torch.ones(len(some), int(has_constant), dtype=torch.float64)
            return torch.cat([some[:, cut], ones], 1)

        trace = float(vectors(fit).square().sum()) / len(fit)
        whole = max(side.numbers, side.width) + int(has_constant)
        metric = inverse(vectors(fit), damping * trace / whole)
        product = product * (vectors(rows) @ metric @ vectors(queries).mT)
    return product


@pytest.mark.parametrize(
    ("kept", "tolerance", "options"),
    [
        ("float32", 1e-4, {}),
        ("float32", 1e-4, {"damping": 3.0}),
        ("float32", 1e-4, {"at": "last"}),
        ("float32", 1e-4, {"examples": 40}),
        ("float16", 5e-3, {}),
        ("int8", 0.1, {"examples": 40}),
    ],
)
def test_where_factors_are_kept_whole_scores_are_those_of_the_model(
    tmp_path, kept, tolerance, options
):
    run = run_of(preconditioner=KFAC(**options))
    index = built(tmp_path / "index", run, 150, number_format=kept)
    assert all(isinstance(block, Product) for block in index.plan.columns.blocks)

    assert_near(index.influence(TEST), run.influence(TRAIN, TEST), tolerance)


def test_the_strongest_are_those_of_the_model(tmp_path):
    run = run_of(preconditioner=KFAC())
    index = built(tmp_path / "index", run, 150)

    found, exact = index.explain(TEST, k=4), run.explain(TRAIN, TEST, k=4)

    for side in ("proponents", "opponents"):
        here, there = getattr(found, side), getattr(exact, side)
        assert (here.positions == there.positions).all()
        assert_near(here.by_checkpoint, there.by_checkpoint, 1e-4)
        assert not here.errors.any()
    assert "K-FAC of 3 layers with factors kept whole" in str(found)


@pytest.mark.parametrize("build", [deep, pictures, mlp])
@pytest.mark.parametrize(
    ("dim", "damping"), [(40, (0.1, 10.0)), (60, (0.3, 1.0)), (1000, (0.1, 10.0))]
)
def test_scores_are_those_of_the_matrices_written_out(tmp_path, build, dim, damping):
    plain = run_of(build)
    index = built(tmp_path / "index", plain, dim)
    run = run_of(build, KFAC(damping=damping[0], row_damping=damping[1]))

    assert_near(index.with_run(run).influence(TEST), written_out(index, *damping), 1e-4)


def test_groups_of_parameters_weigh_apart(tmp_path):
    names = [name for name, _ in deep().named_parameters()]
    rates = [
        {name: first if name[0] == "0" else other for name in names}
        for first, other in ((1.0, 0.1), (0.5, 0.7))
    ]
    plain = run_of(learning_rates=rates)
    index = built(tmp_path / "index", plain, 60)
    run = run_of(preconditioner=KFAC(), learning_rates=rates)

    assert index.plan.columns.groups == 2
    assert_near(index.with_run(run).influence(TEST), written_out(index, 0.3, 1.0), 1e-4)


@pytest.mark.parametrize("build", [deep, pictures])
def test_neither_files_nor_blocks_matter(tmp_path, build, monkeypatch):
    run = run_of(build, KFAC())
    once = built(tmp_path / "once", run, 60, shard_size=1000).influence(TEST)
    monkeypatch.setattr(row_moments, "BLOCK_ROWS", 3)

    assert_near(built(tmp_path / "many", run, 60, shard_size=7).influence(TEST), once, 1e-5)


def test_a_few_rows_at_a_time_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(row_moments, "BLOCK_ROWS", 5)
    run = run_of(preconditioner=KFAC())
    index = built(tmp_path / "index", run, 60)
    read = []
    chosen = Shard.chosen
    monkeypatch.setattr(
        Shard, "chosen", lambda shard, places: read.append(len(places)) or chosen(shard, places)
    )

    index.influence(TEST)

    assert max(read) == 5
    assert sum(read) == 2 * ROWS


def test_the_model_makes_the_rows_of_other_data(tmp_path):
    plain = run_of(pictures)
    index = built(tmp_path / "index", plain, 60)
    by_rows = index.with_run(run_of(pictures, KFAC())).influence(TEST)

    same = index.with_run(run_of(pictures, KFAC(fit=TRAIN))).influence(TEST)
    other = index.with_run(run_of(pictures, KFAC(fit=data(50, 9)))).influence(TEST)

    assert_near(same, by_rows, 1e-4)
    assert float((other - by_rows).abs().max()) > 0.01 * float(by_rows.abs().max())


def test_one_index_serves_every_preconditioner(tmp_path):
    run = run_of(preconditioner=KFAC())
    index = built(tmp_path / "index", run, 150)
    plain = run_of()

    assert_near(index.with_run(plain).influence(TEST), plain.influence(TRAIN, TEST), 1e-4)
    for damping in (0.05, 2.0):
        other = run_of(preconditioner=KFAC(damping=damping))
        assert_near(index.with_run(other).influence(TEST), other.influence(TRAIN, TEST), 1e-4)


def test_error_bars_are_those_of_the_query_under_curvature(tmp_path):
    index = built(tmp_path / "index", run_of(wide), 24).with_run(run_of(wide, KFAC()))
    (block,) = index.plan.columns.blocks
    assert isinstance(block, Dot)
    sketched = index._needed_run().sketched(open_data(index.run, TEST, ""), "auto")

    found = index.explain(TEST, k=3).proponents

    variance = torch.zeros(QUERIES, 3)
    for key, queries in zip(sketched.keys, sketched.rows, strict=True):
        for at in range(QUERIES):
            rows = index.store.rows_at(key, torch.arange(ROWS))[found.positions[at]]
            lengths = rows.square().sum(1) * queries[at].square().sum()
            variance[at] += block.spread * (lengths + (rows @ queries[at]).square())
    assert found.errors.min() > 0
    torch.testing.assert_close(found.errors, variance.sqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("build", "dim"), [(deep, 150), (pictures, 24)])
def test_candidates_are_scored_by_the_model_with_curvature_of_all_data(tmp_path, build, dim):
    run = run_of(build, KFAC())
    index = built(tmp_path / "index", run, dim)
    exact = run.explain(TRAIN, TEST, k=3)

    found = index.explain(TEST, k=3, exact=True, candidates=20)
    few = index.explain(TEST, k=3, exact=True, candidates=1)

    for side in ("proponents", "opponents"):
        assert (getattr(found, side).positions == getattr(exact, side).positions).all()
        assert_near(getattr(found, side).scores, getattr(exact, side).scores, 1e-5)
        assert getattr(found, side).is_certain is None
        positions = torch.from_numpy(getattr(few, side).positions)
        own = run.influence(TRAIN, TEST).T.gather(1, positions)
        assert_near(getattr(few, side).scores, own, 1e-5)


def test_recall_is_against_all_rows_and_is_not_kept(tmp_path):
    run = run_of(pictures, KFAC())
    index = built(tmp_path / "index", run, 24)

    recall = index.measure_recall(k=3, queries=ROWS)

    found, true = (
        some.masked_fill(torch.eye(ROWS, dtype=torch.bool), -torch.inf).topk(3, 0).indices.T
        for some in (index.influence(TRAIN), run.influence(TRAIN, TRAIN))
    )
    share = np.mean(
        [len(set(a) & set(b)) / 3 for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    )
    assert recall.proponents == pytest.approx(share, abs=0.02)
    assert 0.2 < share < 1
    assert index.store.place.size("recall.json") is None
    assert built(tmp_path / "whole", run_of(preconditioner=KFAC()), 150).measure_recall(
        k=3
    ).proponents == pytest.approx(1)


def test_only_rows_that_may_be_are_listed(tmp_path):
    run = run_of(preconditioner=KFAC())
    index = built(tmp_path / "index", run, 150)
    keep = TRAIN[1].numpy() == 1

    found = index.explain(TEST, k=3, where=keep)
    scores = run.influence(TRAIN, TEST).masked_fill(~torch.from_numpy(keep)[:, None], -torch.inf)

    assert (found.proponents.positions == scores.topk(3, 0).indices.T.numpy()).all()


def test_a_finder_sees_the_query_under_curvature(tmp_path):
    class Vectors:
        """Of all rows, the strongest by the dot product of flat vectors."""

        def candidates(self, queries, count):
            from tracin.sketches.flat import Flat

            flat = Flat(index.plan.columns, 10_000)
            total = 0
            for key, rows, weights in zip(queries.keys, queries.rows, queries.weights, strict=True):
                all_rows = torch.cat([shard.rows() for shard in index.store.shards(key)])
                total = total + flat.vectors(rows, weights) @ flat.vectors(all_rows).mT
            order = total.argsort(1, descending=True).numpy()
            return order[:, :count], order[:, -count:]

    index = built(tmp_path / "index", run_of(preconditioner=KFAC()), 150)

    found, whole = (
        index.explain(TEST, k=3, finder=Vectors(), candidates=1),
        index.explain(TEST, k=3),
    )

    assert (found.proponents.positions == whole.proponents.positions).all()
    assert (found.opponents.positions == whole.opponents.positions).all()


def no_scan(*_):
    raise AssertionError("the rows were read again")


def test_rows_are_read_once_for_all_dampings(tmp_path, monkeypatch):
    run = run_of(pictures, KFAC())
    first = built(tmp_path / "index", run, 60).influence(TEST)
    monkeypatch.setattr(curvatures, "moments_of_rows", no_scan)

    again = Index.open(tmp_path / "index", run=run)
    other = Index.open(tmp_path / "index", run=run_of(pictures, KFAC(damping=1.0, row_damping=9.0)))

    assert torch.equal(again.influence(TEST), first)
    assert not torch.equal(other.influence(TEST), first)
    assert again.verify().is_sound


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_made_again(tmp_path, damage, caplog):
    run = run_of(pictures, KFAC())
    index = built(tmp_path / "index", run, 60)
    first = index.influence(TEST)
    path = next((tmp_path / "index" / "curvature").iterdir())
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    path.write_bytes({"cut": whole[:-8], "flip": flipped, "empty": b""}[damage])
    assert not index.verify().is_sound

    with caplog.at_level(logging.WARNING):
        again = Index.open(tmp_path / "index", run=run).influence(TEST)

    assert torch.equal(again, first)
    assert path.read_bytes() == whole
    assert "cannot be read" in caplog.text
    assert "computed again" in caplog.text


def test_more_rows_are_as_if_all_had_come_at_once(tmp_path):
    run = run_of(preconditioner=KFAC())
    less = TRAIN[0][:40], TRAIN[1][:40]
    built(tmp_path / "index", run, 60, less).influence(TEST)
    before = {path: path.read_bytes() for path in (tmp_path / "index" / "curvature").iterdir()}

    grown = built(tmp_path / "index", run, 60)

    at_once = built(tmp_path / "at once", run, 60)
    assert_near(grown.influence(TEST), at_once.influence(TEST), 1e-5)
    assert before.keys() == set((tmp_path / "index" / "curvature").iterdir())
    assert all(path.read_bytes() != content for path, content in before.items())


def test_the_number_of_rows_is_that_of_the_question(tmp_path):
    index = built(tmp_path / "index", run_of(pictures), 60)
    for examples in (30, 50, 30):
        run = run_of(pictures, KFAC(examples=examples))
        wanted = written_out(index, 0.3, 1.0, examples)
        assert_near(index.with_run(run).influence(TEST), wanted, 1e-4)


def test_a_folder_that_cannot_be_written_to_still_answers(tmp_path, monkeypatch, caplog):
    run = run_of(preconditioner=KFAC())
    built(tmp_path / "index", run, 150)
    index = Index.open(tmp_path / "index", run=run)

    def full(*_):
        raise IndexingError("the disk is full")

    monkeypatch.setattr(index.store.place, "write", full)
    with caplog.at_level(logging.INFO):
        found = index.influence(TEST)

    assert_near(found, run.influence(TRAIN, TEST), 1e-4)
    assert "computed again next time: the disk is full" in caplog.text


def test_a_dropped_checkpoint_takes_its_curvature_along(tmp_path):
    run = run_of(preconditioner=KFAC())
    index = built(tmp_path / "index", run, 60)
    index.influence(TEST)
    assert not index.gc().files

    removed = index.drop("epoch 1").gc().files

    assert sum(name.startswith("curvature/") for name in removed) == 1


def test_an_index_behind_a_url_keeps_its_curvature_there(tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    folder = f"memory://{tmp_path.name}/index"
    run = run_of(preconditioner=KFAC())
    index = run.index(TRAIN, folder, Projection(150), number_format="float32", recall_queries=0)
    first = index.influence(TEST)
    monkeypatch.setattr(curvatures, "moments_of_rows", no_scan)

    assert torch.equal(Index.open(folder, run=run).influence(TEST), first)
    assert_near(first, run.influence(TRAIN, TEST), 1e-4)


def test_moments_come_back_from_their_numbers():
    columns = Columns(
        (Dot(Side(0, 3, 9)), Product(Side(3, 5, 2), Side(5, 9, 4), has_bias=True)), width=9
    )
    moments = ColumnMoments(columns)
    moments.add(torch.randn(20, 9))

    numbers = moments.to_numbers()
    again = ColumnMoments.of_numbers(columns, numbers, 20)

    assert len(numbers) == count_of_numbers(columns)
    for side, one in moments.of.items():
        torch.testing.assert_close(again.of[side].products, one.products, rtol=1e-14, atol=0)
        assert torch.equal(again.of[side].sums, one.sums)
        assert torch.equal(again.of[side].count, one.count)


def test_wide_inputs_keep_their_diagonal(monkeypatch):
    for module in ("tracin.index.row_moments", "tracin.preconditioners.second_moments"):
        monkeypatch.setattr(f"{module}.WIDEST", 3)
    columns = Columns((Product(Side(0, 2, 2), Side(2, 7, 5), has_bias=True),), width=7)
    rows, queries = torch.randn(30, 7), torch.randn(4, 7)
    moments = ColumnMoments(columns)
    moments.add(rows)
    assert len(moments.to_numbers()) == count_of_numbers(columns) == 3 + 2 + 5 + 5
    again = ColumnMoments.of_numbers(columns, moments.to_numbers(), 30)

    found = RowCurvature.of(columns, again, 0.3, 1.0).times(queries)

    left, right = rows[:, :2].double(), rows[:, 2:].double()
    squares = torch.cat([right.square().mean(0), torch.ones(1, dtype=torch.float64)])
    diagonal = 1 / (squares + 0.3 * squares.mean())
    of_left = inverse(left, 0.3 * float(left.square().mean()))
    rights = (right * diagonal[:5]) @ queries[:, 2:].double().mT + diagonal[5]
    wanted = rights * (left @ of_left @ queries[:, :2].double().mT)
    assert_near(columns.scores(rows, found), wanted, 1e-5)


@pytest.mark.parametrize("constant", [0.0, -0.0, 1e-20, -1e-6, 1e8])
def test_a_constant_of_any_size_keeps_the_scores(constant):
    from tracin.index.row_curvature import _with_unit_constant

    torch.manual_seed(0)
    left, right, rows = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    last = torch.full((6,), constant, dtype=torch.float64)

    one, other = (side.float() for side in _with_unit_constant(left, right, last))

    found = ((rows.float() * other).sum(1) + 1) * one.sum(1)
    wanted = ((rows * right).sum(1) + last) * left.sum(1)
    assert_near(found, wanted, 1e-5)


def test_columns_that_no_gradient_reaches_score_nothing(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead = nn.Linear(5, CLASSES), nn.Linear(5, CLASSES)

        def forward(self, x):
            return self.used(x) + 0 * self.dead(x)

    torch.manual_seed(0)
    model = Unused()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], preconditioner=KFAC())
    index = built(tmp_path / "index", run, 20)

    assert_near(index.influence(TEST), run.influence(TRAIN, TEST), 1e-4)


@pytest.mark.parametrize(
    ("kfac", "build", "dim", "words"),
    [
        (KFAC(damping=0.0), deep, 150, r"and damping=0 would divide by their noise"),
        (KFAC(row_damping=0.0), pictures, 1000, r"and row_damping=0 would divide"),
        (KFAC(at="last"), pictures, 24, r"other random numbers at each checkpoint. Use KFAC\(at="),
        (KFAC(at="last"), deep, 40, r"other random numbers at each checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, kfac, build, dim, words):
    index = built(tmp_path / "index", run_of(build), dim).with_run(run_of(build, kfac))

    with pytest.raises(PreconditionerError, match=words):
        index.influence(TEST)


def test_too_many_columns_are_refused():
    columns = Columns((Dot(Side(0, 9000, 20_000)),), width=9000)
    with pytest.raises(PreconditionerError, match=r"9000 columns together.*Projection\(dim=8192\)"):
        ColumnMoments(columns)


@pytest.mark.parametrize("damping", [-1.0, float("inf"), float("nan"), True, "1", None])
def test_a_damping_that_makes_no_sense_is_refused(damping):
    with pytest.raises(PreconditionerError, match=r"row_damping is a number from 0 on.*was given"):
        KFAC(row_damping=damping)


def test_another_preconditioner_that_does_not_go_with_sketches_is_refused(tmp_path):
    class Other:
        follows_training, fits_sketches, is_made_once = False, False, False

        def check(self, checkpoints):
            pass

        def metric(self, place):
            raise AssertionError

    index = built(tmp_path / "index", run_of(), 60).with_run(run_of(preconditioner=Other()))

    with pytest.raises(PreconditionerError, match=r"a run with tracin\.KFAC\(\), whose curvature"):
        index.influence(TEST)


def test_self_influence_under_curvature_is_refused(tmp_path):
    index = built(tmp_path / "index", run_of(preconditioner=KFAC()), 60)
    with pytest.raises(QueryError, match=r"keeps the norms of plain gradients.*KFAC"):
        index.self_influence()
