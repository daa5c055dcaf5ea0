"""The gradient index against scores without one: built, broken off, lengthened, asked."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from built_once import index_of
from own_process import fork_workers
from tracin import IndexingError, Projection, QueryError, TracIn, WithIds
from tracin.index import index as index_module
from tracin.index.index import Index
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.search import Search
from tracin.index.store import Entry, Manifest, Store
from tracin.sketches import Columns, Dot, Plan, Side

ROWS, QUERIES, CLASSES = 70, 6, 3


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = x.repeat(1, 5).view(-1, 1, 5, 5)
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def pictures(seed=0):
    torch.manual_seed(seed)
    return Pictures()


def data(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 5, generator=generator)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


TRAIN, TEST = data(ROWS, 1), data(QUERIES, 2)


def run_of(build=mlp, rates=(0.1, 0.05), seeds=(1, 2)):
    checkpoints = [
        tracin.Checkpoint(build(seed).state_dict(), name=f"epoch {seed}") for seed in seeds
    ]
    return TracIn(build(), "cross_entropy", checkpoints, learning_rates=list(rates))


def built(tmp_path, run=None, train=TRAIN, dim=200, **options):
    options = {"shard_size": 16, "number_format": "float32", "recall_queries": 0, **options}
    return index_of(run or run_of(), train, tmp_path / "index", Projection(dim), **options)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("build", [mlp, pictures])
@pytest.mark.parametrize(
    ("kept", "tolerance"),
    [("float32", 1e-5), ("float16", 2e-3), ("int8", 5e-2)],
)
def test_where_all_numbers_fit_scores_are_those_without_an_index(tmp_path, build, kept, tolerance):
    run = run_of(build)
    index = built(tmp_path, run, dim=1000, number_format=kept)

    exact = run.influence(TRAIN, TEST)
    largest = float(exact.abs().max())
    torch.testing.assert_close(index.influence(TEST), exact, rtol=0, atol=tolerance * largest)
    torch.testing.assert_close(index.self_influence(), run.self_influence(TRAIN), rtol=1e-5, atol=0)


def test_the_strongest_are_those_without_an_index(tmp_path):
    run = run_of()
    found = built(tmp_path, run).explain(TEST, k=5)
    exact = run.explain(TRAIN, TEST, k=5)

    for one, other in ((found.proponents, exact.proponents), (found.opponents, exact.opponents)):
        assert (one.positions == other.positions).all()
        torch.testing.assert_close(one.by_checkpoint, other.by_checkpoint, rtol=1e-4, atol=1e-6)
    assert found.checkpoints == exact.checkpoints
    assert float(found.proponents.errors.max()) < 1e-3 * float(found.proponents.scores.max())


@pytest.mark.parametrize("group", ["sum", "mean"])
def test_the_influence_on_a_group_is_that_on_each_query_summed_or_averaged(tmp_path, group):
    index = built(tmp_path)
    each = index.influence(TEST)

    found = index.influence(TEST, group=group)

    assert torch.allclose(found, each.sum(1) if group == "sum" else each.mean(1), rtol=1e-4)
    with pytest.raises(QueryError, match="group is None or one of"):
        index.influence(TEST, group="max")


def test_factors_of_a_layer_are_not_added_up_for_a_group(tmp_path, monkeypatch):
    """A row keeps both factors of a wide layer; the product of sums is no sum of products."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(120, 80), nn.Tanh(), nn.Linear(80, 3))
    data = torch.randn(30, 120), torch.randint(0, 3, (30,))
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    index = run.index(data, tmp_path / "index", tracin.Projection(512), recall_queries=0)
    assert index.plan.columns.has_factors
    monkeypatch.setattr(index_module, "TOGETHER", 4)

    each = index.influence((data[0][:9], data[1][:9]))
    found = index.influence((data[0][:9], data[1][:9]), group="sum")

    torch.testing.assert_close(found, each.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [1, 10_000, 1 << 28])
def test_memory_does_not_matter(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("tracin.index.search.BLOCK_ROWS", 4)
    run = run_of()
    index = built(tmp_path, run)

    found, once = index.explain(TEST, k=7, memory=memory), index.explain(TEST, k=7)

    assert (found.proponents.positions == once.proponents.positions).all()
    assert (found.opponents.positions == once.opponents.positions).all()


def test_equal_scores_come_in_the_order_of_the_rows(tmp_path):
    # Whole numbers: their sums are equal in any order, as those of real gradients need not be.
    entry = Entry("a", "a", 0, (1.0,))
    manifest = Manifest({}, 4, ((0, 4),), "float32", 16, (40,), (entry,))
    store = Store.create(tmp_path / "index", manifest, np.arange(40))
    for unit in store.manifest.units():
        store.write(unit, torch.arange(4.0).repeat(unit.stop - unit.start, 1), {})
    plan = Plan(0, Columns((Dot(Side(0, 4, 4)),), 4), {}, {}, {})
    asked = SketchedQueries(("a",), (0,), (torch.ones(3, 4),), ([1.0],))

    for found in Search(RowScan(store, plan, asked, 1), 20).found():
        assert (found.positions == np.arange(20)).all()


def test_sketched_scores_have_error_bars_and_can_be_made_exact(tmp_path):
    run = run_of(pictures)
    index = built(tmp_path, run, dim=24)

    rough = index.explain(TEST, k=3)
    sure = index.explain(TEST, k=3, exact=True, candidates=20)
    exact = run.explain(TRAIN, TEST, k=3)

    assert float(rough.proponents.errors.min()) > 0
    assert "error" in str(rough)
    assert "error" in rough.columns()
    assert sure.proponents.errors is None
    assert (sure.proponents.positions == exact.proponents.positions).all()
    torch.testing.assert_close(sure.opponents.scores, exact.opponents.scores)
    torch.testing.assert_close(index.self_influence(), run.self_influence(TRAIN), rtol=1e-5, atol=0)


def test_weights_may_change_when_asked(tmp_path):
    index = built(tmp_path)
    other = run_of(rates=(0.3, 0.7))

    torch.testing.assert_close(
        index.with_run(other).influence(TEST), other.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(index.with_run(other).self_influence(), other.self_influence(TRAIN))


def test_some_of_the_checkpoints_may_be_asked(tmp_path):
    index = built(tmp_path)
    second = run_of(rates=(0.05,), seeds=(2,))

    torch.testing.assert_close(
        index.with_run(second).influence(TEST), second.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )


def test_groups_of_parameters_keep_their_own_rates(tmp_path):
    state = mlp(1).state_dict()
    rates = {name: 0.1 if name.startswith("0") else 0.01 for name in state}
    run = TracIn(mlp(), "cross_entropy", [tracin.Checkpoint(state, rates, name="one")])
    index = built(tmp_path, run, dim=40)
    exact = built(tmp_path / "exact", run, dim=1000)
    twice = {name: 2 * rate for name, rate in rates.items()}
    later = TracIn(mlp(), "cross_entropy", [tracin.Checkpoint(state, twice, name="one")])

    torch.testing.assert_close(
        exact.influence(TEST), run.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(index.with_run(later).self_influence(), later.self_influence(TRAIN))
    mixed = {name: 0.1 + at for at, name in enumerate(state)}
    other = TracIn(mlp(), "cross_entropy", [tracin.Checkpoint(state, mixed, name="one")])
    with pytest.raises(IndexingError, match="had one learning rate when the index was built"):
        index.with_run(other).self_influence()


def test_rows_may_be_left_out(tmp_path):
    run = run_of()
    index = built(tmp_path, run)
    keep = index.table()["is_right"] == 1

    found = index.explain(TEST, k=3, where=keep)

    assert keep[found.proponents.positions].all()
    scores = run.influence(TRAIN, TEST)
    scores[~torch.from_numpy(keep)] = -torch.inf
    assert (found.proponents.positions[:, 0] == scores.argmax(0).numpy()).all()


def test_the_table_of_rows(tmp_path):
    run = run_of()
    table = built(tmp_path, run).table()

    model = mlp(2)
    losses = nn.functional.cross_entropy(model(TRAIN[0]), TRAIN[1], reduction="none")
    assert list(table) == [
        "id",
        "label",
        "is_right",
        "loss",
        "self_influence",
        "self_influence_sketched",
    ]
    assert (table["id"] == np.arange(ROWS)).all()
    assert (table["label"] == TRAIN[1].numpy()).all()
    assert (table["is_right"] == (model(TRAIN[0]).argmax(1) == TRAIN[1]).numpy()).all()
    np.testing.assert_allclose(table["loss"], losses.detach().numpy(), rtol=1e-5)


def test_building_again_does_nothing_and_opening_is_enough(tmp_path):
    run = run_of()
    built(tmp_path, run)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}

    built(tmp_path, run)

    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    found = Index.open(tmp_path / "index", run=run).explain(TEST, k=2)
    assert len(found) == QUERIES
    assert len(Index.open(tmp_path / "index")) == ROWS


def test_what_was_lost_is_built_again_as_it_was(tmp_path):
    run = run_of()
    built(tmp_path, run)
    whole = files(tmp_path / "index")
    for path in list((tmp_path / "index" / "rows").rglob("*.safetensors"))[::3]:
        path.unlink()

    assert "files built" in str(Index.open(tmp_path / "index"))
    with pytest.raises(IndexingError, match="is missing: the index is not complete"):
        Index.open(tmp_path / "index", run=run).explain(TEST, k=2)
    built(tmp_path, run)

    assert files(tmp_path / "index") == whole


def test_rows_are_added(tmp_path):
    run = run_of()
    built(tmp_path, run, (TRAIN[0][:40], TRAIN[1][:40]))
    first = files(tmp_path / "index" / "rows")

    index = built(tmp_path, run)

    after = files(tmp_path / "index" / "rows")
    assert {name: after[name] for name in first} == first
    assert len(index) == ROWS
    torch.testing.assert_close(
        index.influence(TEST), run.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(IndexingError, match="holds 70 rows, but the data have 40: rows are only"):
        built(tmp_path, run, (TRAIN[0][:40], TRAIN[1][:40]))


def test_checkpoints_are_added_and_dropped(tmp_path):
    built(tmp_path, run_of(rates=(0.1,), seeds=(1,)))
    both = run_of()

    index = built(tmp_path, both)
    torch.testing.assert_close(
        index.with_run(both).influence(TEST), both.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )
    index = index.drop("epoch 1")

    second = run_of(rates=(0.05,), seeds=(2,))
    torch.testing.assert_close(
        index.with_run(second).influence(TEST), second.influence(TRAIN, TEST), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(IndexingError, match="The index has no rows at epoch 1"):
        index.with_run(both).influence(TEST)
    removed = index.gc()
    assert len(removed.files) == 5
    assert removed.bytes > 0
    assert index.verify().is_sound


def test_a_flipped_bit_a_short_file_and_a_missing_one_are_found(tmp_path):
    run = run_of()
    index = built(tmp_path, run)
    shards = sorted((tmp_path / "index" / "rows").rglob("*.safetensors"))
    assert index.verify().is_sound
    flipped = bytearray(shards[0].read_bytes())
    flipped[-5] ^= 1
    shards[0].write_bytes(flipped)
    header = bytearray(shards[1].read_bytes())
    header[30] ^= 1
    shards[1].write_bytes(header)
    shards[2].write_bytes(shards[2].read_bytes()[:-9])
    shards[3].unlink()

    report = index.verify()

    names = [path.relative_to(tmp_path / "index").as_posix() for path in shards]
    assert set(report.problems) == set(names[:3])
    assert "checksum differs" in report.problems[names[0]]
    assert "truncated" in report.problems[names[2]]
    assert report.missing == (names[3],)
    assert not report.is_sound
    with pytest.raises(IndexingError, match=r"cannot be read .* tracin index verify"):
        index.explain(TEST, k=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 100}, r"projection\.dim is 200 there and 100 here"),
        ({"number_format": "int8"}, "number_format is 'float32' there and 'int8' here"),
        ({"shard_size": 8}, "shard_size is 16 there and 8 here"),
        ({"train": data(ROWS, 3)}, "holds rows of other data: example 0 is not the one"),
        ({"train": WithIds(TRAIN, range(1, ROWS + 1))}, "row 0 has the id 0 there and 1 here"),
        ({"run": run_of(pictures)}, r"parameters\.conv\.weight is None there and \[4, 1, 3, 3\]"),
    ],
)
def test_another_index_is_refused_and_names_what_differs(tmp_path, options, message):
    built(tmp_path)

    with pytest.raises(IndexingError, match=message):
        built(tmp_path, **options)


def test_a_run_of_another_model_is_refused(tmp_path):
    index = built(tmp_path)
    last = TracIn(
        mlp(), "cross_entropy", run_of().checkpoints, parameters="last", learning_rates=[1, 1]
    )

    with pytest.raises(IndexingError, match=r"is an index of other parameters: 0\.weight is"):
        index.with_run(last).influence(TEST)


def test_bad_questions_are_refused(tmp_path):
    run = run_of()
    index = built(tmp_path, run)

    with pytest.raises(QueryError, match="the index has 70 rows to choose from"):
        index.explain(TEST, k=71)
    with pytest.raises(QueryError, match=r"where must be a boolean per row, \[70\]"):
        index.explain(TEST, k=1, where=[True])
    with pytest.raises(IndexingError, match="number_format is one of 'float16'"):
        built(tmp_path / "new", run, number_format="float8")
    with pytest.raises(IndexingError, match="shard_size is a whole number"):
        built(tmp_path / "new", run, shard_size=0)
    with pytest.raises(IndexingError, match="holds no index: it has no manifest"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(IndexingError, match="Cannot drop checkpoint"):
        index.drop("epoch 9")


def test_text_ids_come_back(tmp_path):
    names = [f"row {at}" for at in range(ROWS)]
    run = run_of()
    index = built(tmp_path, run, WithIds(TRAIN, names))

    found = index.explain(TEST, k=1)

    assert found[0].proponents[0].id == names[found[0].proponents[0].position]


def test_any_url_will_do(tmp_path):
    run = run_of()
    url = f"memory://{tmp_path.name}/index"
    index = run.index(TRAIN, url, Projection(200), shard_size=16, number_format="float32")
    local = built(tmp_path, run)

    assert index.verify().is_sound
    torch.testing.assert_close(index.influence(TEST), local.with_run(run).influence(TEST))
    assert Index.open(url).gc().files == ()


def test_batch_size_and_engine_do_not_matter(tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    run = run_of(pictures)
    one = built(tmp_path / "one", run, dim=50, batch_size=5)
    two = built(tmp_path / "two", run, dim=50, batch_size=64)
    workers = built(tmp_path / "workers", run, dim=50, engine=tracin.engines.Processes(2))
    plain = built(tmp_path / "plain", run, dim=50)

    for other in (two, plain):
        torch.testing.assert_close(one.influence(TEST), other.influence(TEST), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(workers.influence(TEST), plain.influence(TEST), rtol=1e-5, atol=1e-7)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, monkeypatch):
    run = run_of()
    whole = files(built(tmp_path / "whole", run).store.place.path)
    real = os.fsync
    left = [5]

    def full(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IndexingError, match=r"No space left on device\. Finished files are kept"):
        built(tmp_path, run, engine=tracin.engines.Serial())
    monkeypatch.undo()
    assert not list((tmp_path / "index").rglob("*unfinished"))

    built(tmp_path, run)

    assert files(tmp_path / "index") == whole


def test_the_format_can_be_read_without_the_library(tmp_path):
    index = built(tmp_path, number_format="float16")
    folder = tmp_path / "index"

    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["checkpoints"]:
        rows = np.empty((manifest["extents"][-1], manifest["width"]), np.float32)
        for path in sorted((folder / "rows" / entry["key"]).iterdir()):
            start, stop = map(int, path.stem.split("-"))
            content = path.read_bytes()
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            kinds, held = {"F16": np.float16, "F32": np.float32}, {}
            for name in ("rows", "scales"):
                one = header[name]
                at, end = (8 + size + offset for offset in one["data_offsets"])
                held[name] = np.frombuffer(content[at:end], kinds[one["dtype"]])
                held[name] = held[name].reshape(one["shape"]).astype(np.float32)
            for number, (first, last) in enumerate(manifest["pieces"]):
                scale = held["scales"][:, number : number + 1]
                rows[start:stop, first:last] = held["rows"][:, first:last] * scale

        whole = torch.cat([shard.rows() for shard in index.store.shards(entry["key"])])
        np.testing.assert_array_equal(rows, whole.numpy())


def _build_in_a_loop(folder):
    torch.set_num_threads(1)
    run_of().index(
        TRAIN, folder, Projection(200), shard_size=4, number_format="float32", progress=False
    )


def test_killed_builders_and_two_at_once_leave_the_same_files(tmp_path):
    _build_in_a_loop(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    spawn = multiprocessing.get_context("fork")
    kills = 0
    for attempt in range(12):
        builders = [
            spawn.Process(target=_build_in_a_loop, args=(tmp_path / "index",)) for _ in range(2)
        ]
        for one in builders:
            one.start()
        time.sleep(0.01 * (attempt + 1))
        for one in builders:
            if one.is_alive() and one.pid is not None:
                os.kill(one.pid, signal.SIGKILL)
                kills += 1
            one.join()
    _build_in_a_loop(tmp_path / "index")
    Index.open(tmp_path / "index").gc()

    assert kills
    assert files(tmp_path / "index") == whole
