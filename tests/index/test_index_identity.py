"""Files of an index know what they are: swapped, foreign, lost, hostile, of equal checkpoints."""

import json
import pathlib
import random
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from experiments.index_damage import built as damage_of
from experiments.index_damage import mutations, same
from torch import nn

import tracin
from built_once import index_of
from tracin import IndexingError, Projection, TracIn, WithIds
from tracin.index import search as index_search
from tracin.index.index import Index
from tracin.index.store import Column, Manifest, Store, open_storage, sealed_json
from tracin.index.store.layout import FileLayout, new_file

ROWS, CLASSES = 40, 3


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def data(examples=ROWS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 5, generator=generator)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


TRAIN, QUERIES = data(), data(6, 2)


def twice(model, batch):
    return 2 * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def run_of(rates=(0.1, 0.05), seeds=(1, 2), names=None, loss="cross_entropy"):
    names = names or [f"epoch {seed}" for seed in seeds]
    checkpoints = [
        tracin.Checkpoint(mlp(seed).state_dict(), name=name)
        for seed, name in zip(seeds, names, strict=True)
    ]
    return TracIn(mlp(), loss, checkpoints, learning_rates=list(rates))


def built(folder, run=None, train=TRAIN, dim=24, **options):
    options = {"shard_size": 10, "batch_size": 10, "recall_queries": 0, **options}
    return index_of(run or run_of(), train, folder, Projection(dim), progress=False, **options)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


def shards(folder):
    return sorted((folder / "rows").rglob("*.safetensors"))


def one_other_label():
    """The same data but for one label, where no example is looked at by itself."""
    labels = TRAIN[1].clone()
    labels[1] = (labels[1] + 1) % CLASSES
    return TRAIN[0], labels


def assert_refused(folder, message):
    """No answer rests on the files, whoever asks, and `verify` names them."""
    run = run_of()
    asks = (
        lambda index: index.with_run(run).explain(QUERIES, k=2),
        lambda index: Index(index.store, run, TRAIN).explain(QUERIES, k=2, exact=True),
        lambda index: index.with_run(run).influence(QUERIES),
        lambda index: index.self_influence(),
        lambda index: index.with_run(run).self_influence(),
        lambda index: index.table(),
    )
    for ask in asks:
        with pytest.raises(IndexingError, match=message):
            ask(Index.open(folder))
    assert not Index.open(folder).verify().is_sound


# Files that are another's.


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


# The next rows; the same rows of the other checkpoint; neither.
@pytest.mark.parametrize("pair", [(0, 1), (0, 4), (0, 7)])
def test_swapped_files_are_refused_by_name_and_built_again(tmp_path, pair):
    built(tmp_path)
    whole = files(tmp_path)
    swap(*(shards(tmp_path)[at] for at in pair))

    assert_refused(tmp_path, r"it holds rows \d+-\d+ of checkpoint .*, where rows .* should be")
    assert len(Index.open(tmp_path).verify().problems) == 2
    built(tmp_path)

    assert files(tmp_path) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": data(ROWS, 7)}, "it holds rows of another index"),
        ({"train": one_other_label()}, "it holds rows of other data"),
        ({"train": WithIds(TRAIN, range(100, 100 + ROWS))}, "it holds rows of other data"),
        ({"seed": 1}, "it holds rows of another index"),
        ({"number_format": "int8"}, "it has .* bytes, and should have"),
    ],
)
def test_files_of_another_index_are_refused(tmp_path, options, message):
    here, there = tmp_path / "here", tmp_path / "there"
    built(here)
    whole = files(here)
    options = dict(options)
    projection = Projection(24, options.pop("seed", 0))
    options = {"shard_size": 10, "batch_size": 10, "recall_queries": 0, **options}
    run_of().index(options.pop("train", TRAIN), there, projection, **options)
    shutil.copy(shards(there)[2], shards(here)[2])

    with pytest.raises(IndexingError, match=message):
        Index.open(here, run=run_of()).explain(QUERIES, k=2)
    assert list(Index.open(here).verify().problems) == [
        shards(here)[2].relative_to(here).as_posix()
    ]
    built(here)

    assert files(here) == whole


def test_files_of_rows_that_were_added_with_other_data_are_refused(tmp_path):
    first = tuple(one[:20] for one in TRAIN)
    other = TRAIN[0].clone()
    other[27] += 1
    built(tmp_path / "here", train=first)
    built(tmp_path / "there", train=first)
    built(tmp_path / "here")
    built(tmp_path / "there", train=(other, TRAIN[1]))
    for at in (0, 2):
        shutil.copy(shards(tmp_path / "there")[at], shards(tmp_path / "here")[at])

    report = Index.open(tmp_path / "here").verify()

    assert list(report.problems.values()) == ["it holds rows of other data"]


def test_a_table_and_a_recall_of_another_index_are_not_taken_for_its_own(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    built(here, recall_queries=4)
    built(there, train=one_other_label(), recall_queries=4)
    whole = files(here)
    for name in ("table.parquet", "recall.json"):
        shutil.copy(there / name, here / name)

    index = Index.open(here)
    assert "stale: table.parquet" in str(index)
    said = str(index.with_run(run_of()).explain(QUERIES, k=1))
    assert "recall: measured in another index, or with other data" in said
    built(here, recall_queries=4)

    assert files(here) == whole


@pytest.mark.parametrize("name", ["table.parquet", "recall.json"])
def test_a_rebuild_mends_a_damaged_table_and_recall(tmp_path, name):
    built(tmp_path, recall_queries=4)
    whole = files(tmp_path)
    chance = random.Random(0)
    for _ in range(5):
        content = bytearray(whole[name])
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (tmp_path / name).write_bytes(content)

        assert list(Index.open(tmp_path).verify().problems) == [name]
        built(tmp_path, recall_queries=4)

        assert files(tmp_path) == whole


def test_a_file_that_is_replaced_while_the_index_is_open_is_compared_again(tmp_path):
    index, run = built(tmp_path, number_format="float32"), run_of()
    index.with_run(run).explain(QUERIES, k=2, exact=True)
    path = shards(tmp_path)[1]
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # of a row
    path.unlink()
    path.write_bytes(content)

    with pytest.raises(IndexingError, match=r"changed since it was written.*tracin index verify"):
        index.with_run(run).explain(QUERIES, k=2, exact=True)


def test_files_of_another_loss_are_refused_where_all_else_is_equal(tmp_path):
    built(tmp_path / "here", dim=1000)
    built(tmp_path / "there", run_of(loss=twice), dim=1000)
    for part in ("about", "added", "extents"):
        here, there = (Store.open(tmp_path / one).manifest for one in ("here", "there"))
        assert getattr(here, part) == getattr(there, part)
    shutil.copy(shards(tmp_path / "there")[0], shards(tmp_path / "here")[0])

    assert_refused(tmp_path / "here", "it holds rows of another index")


# A manifest that was lost.


def test_rows_whose_manifest_was_lost_become_nobody_elses(tmp_path):
    built(tmp_path, recall_queries=4)
    whole = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").unlink()

    for train in (TRAIN, one_other_label(), data(ROWS, 9), data(12, 3)):
        with pytest.raises(IndexingError, match=r"no manifest\.json: it was lost, .* from a copy"):
            built(tmp_path, train=train)
    with pytest.raises(IndexingError, match=r"no manifest\.json: it was lost, .* from a copy"):
        Index.open(tmp_path)
    (tmp_path / "manifest.json").write_bytes(whole)
    assert Index.open(tmp_path).verify().is_sound
    (tmp_path / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "rows")
    other = one_other_label()
    index = built(tmp_path, train=other)

    exact = run_of().self_influence(other)
    torch.testing.assert_close(index.self_influence(), exact, rtol=1e-4, atol=0)
    assert "recall: measured in another index" in str(
        index.with_run(run_of()).explain(QUERIES, k=1)
    )


def test_the_manifest_of_another_index_makes_no_rows_its_own(tmp_path):
    built(tmp_path / "here")
    built(tmp_path / "there", train=one_other_label())
    shutil.copy(tmp_path / "there" / "manifest.json", tmp_path / "here" / "manifest.json")

    assert_refused(tmp_path / "here", "holds rows of other data")


def test_an_earlier_manifest_put_back_takes_up_no_later_rows(tmp_path):
    class Fetched(torch.utils.data.Dataset):
        """Of such data a few examples alone are compared."""

        def __init__(self, columns):
            self.columns = columns

        def __len__(self):
            return len(self.columns[1])

        def __getitem__(self, at):
            return tuple(one[at] for one in self.columns)

    first = tuple(one[:20] for one in TRAIN)
    built(tmp_path, train=Fetched(first))
    early = (tmp_path / "manifest.json").read_bytes()
    built(tmp_path, train=Fetched(TRAIN))
    (tmp_path / "manifest.json").write_bytes(early)
    other = TRAIN[0].clone()
    other[21] += 1  # none of those that are compared

    index = built(tmp_path, train=Fetched((other, TRAIN[1])))

    exact = run_of().self_influence((other, TRAIN[1]))
    torch.testing.assert_close(index.self_influence(), exact, rtol=1e-4, atol=0)


def test_one_changed_label_anywhere_is_other_data(tmp_path):
    built(tmp_path)

    with pytest.raises(IndexingError, match=r"of examples 0 to 39, some are not .* in a label"):
        built(tmp_path, train=one_other_label())
    with pytest.raises(IndexingError, match="of examples 0 to 39, some are not"):
        Index.open(tmp_path, train=one_other_label(), run=run_of()).explain(QUERIES, k=1)


# Hostile files.


def sealed(folder, unit, change):
    """Write a unit's file anew with other numbers, under checksums that hold."""
    store = Store.open(folder)
    layout = store._layout(unit)
    content, tensors = new_file(layout)
    for name, one in store.read(unit).tensors.items():
        tensors[name].copy_(one)
    change(tensors)
    layout.finish(content)
    (folder / unit.file).write_bytes(content)


@pytest.mark.parametrize("name", ["rows", "scales", "squared_norms", "sketched_squared_norms"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_lead_no_list(tmp_path, name, value):
    built(tmp_path)
    unit = Store.open(tmp_path).manifest.units()[1]
    sealed(tmp_path, unit, lambda tensors: tensors[name][3].fill_(value))

    for exact in (False, True):
        with pytest.raises(IndexingError, match="NaN or infinity"):
            Index.open(tmp_path, run=run_of(), train=TRAIN).explain(QUERIES, k=2, exact=exact)
    assert "NaN or infinity" in str(Index.open(tmp_path).verify())


@pytest.mark.parametrize(
    "columns",
    [
        {"squared_norms": Column("F32", (0,))},  # would be whatever lay in memory
        {"squared_norms": Column("F64", (1,))},
        {"rows": Column("F32", (24,))},
        {"loss": Column("F32", (2,))},
        {"more": Column("F32")},
    ],
)
def test_a_header_that_asks_for_other_columns_is_refused(tmp_path, columns):
    built(tmp_path)
    store = Store.open(tmp_path)
    unit = store.manifest.units()[1]
    known = store._layout(unit)
    layout = FileLayout({**known.columns, **columns}, known.rows, known.identity)
    content, _ = new_file(layout)
    layout.finish(content)
    (tmp_path / unit.file).write_bytes(content.ljust(known.size, b"\0")[: known.size])

    assert_refused(tmp_path, "its header was changed since it was written")


def test_hostile_manifests_end_in_an_indexing_error_before_memory_is_taken(tmp_path):
    built(tmp_path)
    path = tmp_path / "manifest.json"
    held = sealed_json.unsealed(path.read_bytes())
    absurd = {
        "files": {"extents": [2 * 10**8], "shard_size": 1},
        "rows": {"extents": [10**12], "shard_size": 10**12},
        "rows that no file holds": {"extents": [10**9], "shard_size": 10**9},
        "width": {"width": 10**12, "pieces": [[0, 10**12]]},
        "zero": {"shard_size": 0},
        "null": {"about": None},
        "groups": {"extra_columns": {"squared_norms": {"dtype": "F32", "shape": [10**9]}}},
        "falling": {"extents": [40, 30]},
        "outside": {"checkpoints": [{**held["checkpoints"][0], "key": "../../elsewhere"}]},
    }
    contents = {name: sealed_json.written({**held, **each}) for name, each in absurd.items()}
    contents["depth"] = b"[" * 200_000
    deep = {}
    for _ in range(400):
        deep = {"x": deep}
    contents["moderate depth"] = sealed_json.written({**held, "about": deep})
    deep = path.read_bytes().replace(b'"about": {', b'"about": {"x": ' + b"[" * 100_000, 1)
    at = deep.index(b'"xxh3_128": "') + 13
    blank = deep[:at] + b"0" * 32 + deep[at + 32 :]
    from tracin.index.store.checksums import with_checksum as with_sum

    contents["sealed depth"] = with_sum(blank, at)
    for content in contents.values():
        path.write_bytes(content)

        with pytest.raises(IndexingError):
            Store.open(tmp_path).refuse_missing()
        with pytest.raises(IndexingError):
            Index.open(tmp_path).self_influence()
        with pytest.raises(IndexingError):
            Index.open(tmp_path, run=run_of()).explain(QUERIES, k=1)


@pytest.mark.slow
def test_no_flip_and_no_hostile_field_is_silently_wrong(tmp_path):
    damage = damage_of(tmp_path, run_of(), data(30))

    damage.flips(4)
    path = tmp_path / "manifest.json"
    held = sealed_json.unsealed(path.read_bytes())
    damage.hostile(dict(random.Random(0).sample(list(mutations(held)), 30)))

    assert not damage.bad


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    built(tmp_path)
    path = tmp_path / "manifest.json"
    held = sealed_json.unsealed(path.read_bytes())
    for odd in (float("nan"), float("inf")):
        path.write_bytes(sealed_json.written({**held, "width": odd}))
        with pytest.raises(IndexingError, match="no number in JSON"):
            Index.open(tmp_path)


def test_a_name_that_comes_twice_is_refused(tmp_path):
    content = json.dumps({"a": 1})[:-1] + ', "a": 2}'

    with pytest.raises(ValueError, match="comes twice"):
        tracin.schema.parsed(content.encode())


# Checkpoints with equal weights.


@cache
def answers_of(run):
    return (
        run.self_influence(TRAIN),
        run.influence(TRAIN, QUERIES),
        run.explain(TRAIN, QUERIES, k=3),
    )


def agree(index, run):
    """The index answers as the run does; all numbers fit, so that estimates are exact."""
    close = {"rtol": 2e-3, "atol": 2e-3}
    own, scores, true = answers_of(run)
    torch.testing.assert_close(index.with_run(run).self_influence(), own, **close)
    torch.testing.assert_close(index.with_run(run).influence(QUERIES), scores, **close)
    found = index.with_run(run).explain(QUERIES, k=3)
    assert (found.proponents.positions == true.proponents.positions).all()
    torch.testing.assert_close(
        found.proponents.by_checkpoint, true.proponents.by_checkpoint, **close
    )
    assert list(found.columns())[-1] == list(true.columns())[-1]
    sure = Index(index.store, run, TRAIN).explain(QUERIES, k=3, exact=True)
    assert (sure.opponents.positions == true.opponents.positions).all()


@pytest.mark.parametrize(
    ("seeds", "rates", "names"),
    [
        ((1, 1), (0.1, 0.3), ("epoch 10", "final")),
        ((1, 1), (0.1, 0.3), ("best", "best")),
        ((1, 2, 1), (0.1, 0.2, 0.3), ("a", "b", "a")),
        ((1, 1, 1), (0.1, 0.1, 0.1), None),
    ],
)
def test_weights_of_equal_checkpoints_add(tmp_path, seeds, rates, names):
    run = run_of(rates, seeds, names)
    index = built(tmp_path, run, dim=1000, recall_queries=4)

    agree(index, run)
    agree(Index.open(tmp_path), run)
    own = answers_of(run)[0]
    torch.testing.assert_close(index.self_influence(), own)
    torch.testing.assert_close(torch.from_numpy(index.table()["self_influence"]), own)
    assert len(shards(tmp_path)) == 4 * len(set(seeds))  # their rows are kept once
    assert index.verify().is_sound


def test_equal_checkpoints_are_added_dropped_and_come_again(tmp_path):
    one = run_of((0.1,), (1,), ("first",))
    both = run_of((0.1, 0.3), (1, 1), ("first", "again"))
    three = run_of((0.1, 0.3, 0.2), (1, 1, 2), ("first", "again", "second"))
    built(tmp_path, one, dim=1000)

    for run in (both, three):
        agree(built(tmp_path, run, dim=1000), run)
    index = Index.open(tmp_path).drop("first")
    assert index.gc().files == ()  # "again" has the same rows
    torch.testing.assert_close(
        index.self_influence(), run_of((0.3, 0.2), (1, 2)).self_influence(TRAIN)
    )
    agree(index, three)
    index = index.drop("again")
    with pytest.raises(IndexingError, match="The index has no rows at first, again"):
        index.with_run(three).influence(QUERIES)
    assert len(index.gc().files) == 4
    agree(built(tmp_path, three, dim=1000), three)


def test_a_name_that_two_checkpoints_have_is_told_apart_to_drop_one(tmp_path):
    run = run_of((0.1, 0.3), (1, 2), ("best", "best"))
    index = built(tmp_path, run).drop("best (2)")

    torch.testing.assert_close(index.self_influence(), run_of((0.1,), (1,)).self_influence(TRAIN))
    with pytest.raises(IndexingError, match="Cannot drop checkpoint"):
        index.drop("best")


def test_errors_of_equal_checkpoints_go_together(tmp_path):
    double, once = run_of((0.1, 0.3), (1, 1), ("a", "b")), run_of((0.4,), (1,))
    index = built(tmp_path, double)

    two, one = (index.with_run(run).explain(QUERIES, k=3).proponents for run in (double, once))

    torch.testing.assert_close(two.errors, one.errors)
    assert (two.positions == one.positions).all()
    two, one = (
        index.with_run(run).explain(QUERIES, k=3, exact=True).proponents.bounds
        for run in (double, once)
    )
    torch.testing.assert_close(two, one)


# The random state, and what error bars cost.


class Drawing(torch.utils.data.Dataset):
    """A dataset that draws from every generator for each example."""

    def __len__(self):
        return ROWS

    def __getitem__(self, at):
        torch.rand(1), np.random.rand(), random.random()
        return TRAIN[0][at], TRAIN[1][at]


def random_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[2], random.getstate()


def test_the_random_state_stays_where_it_was(tmp_path):
    run, train = run_of(), Drawing()
    calls = {
        "build": lambda: built(tmp_path, run, train, recall_queries=4),
        "build again": lambda: built(tmp_path, run, train),
        "explain": lambda: Index.open(tmp_path, train=train, run=run).explain(QUERIES, k=1),
        "exact": lambda: Index.open(tmp_path, train=train, run=run).explain(
            QUERIES, k=1, exact=True
        ),
        "influence": lambda: Index.open(tmp_path, train=train, run=run).influence(QUERIES),
        "recall": lambda: Index.open(tmp_path, train=train, run=run).measure_recall(k=2),
        "refused": lambda: Index.open(tmp_path, train=train, run=run).explain(QUERIES, k=ROWS + 1),
    }
    for name, call in calls.items():
        before = random_state()

        if name == "refused":
            with pytest.raises(tracin.QueryError):
                call()
        else:
            call()

        assert random_state() == before, name


def test_error_bars_are_made_of_each_querys_own_hits_alone(tmp_path, monkeypatch):
    run, many = run_of(), data(30, 5)
    index = built(tmp_path, run)
    seen = []
    real = index_search.standard_error

    def counted(columns, rows, queries, weights):
        seen.append((*rows.shape[:-1], queries.shape[-2]))
        return real(columns, rows, queries, weights)

    expected = index.with_run(run).explain(many, k=3).proponents
    monkeypatch.setattr(index_search, "standard_error", counted)
    found = index.with_run(run).explain(many, k=3)

    assert seen == [(30, 6, 1)] * 2  # both sides, at each of two checkpoints
    torch.testing.assert_close(found.proponents.errors, expected.errors)
    asked = index._needed_run().sketched(tracin.data.open_examples(many, name="test"), "auto")
    variance = torch.zeros(30, 3)
    for key, rows, weights in zip(asked.keys, asked.rows, asked.weights, strict=True):
        every = torch.cat([shard.rows() for shard in index.store.shards(key)])
        errors = real(index.plan.columns, every, rows, weights)  # [train, queries]
        variance += errors.T.gather(1, torch.from_numpy(expected.positions)).square()
    torch.testing.assert_close(expected.errors, variance.sqrt())


# Places.


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("x" * 300, "is no folder for an index: File name too long"),
        ("a\0b", "holds a NUL character"),
        ("\ud800", "holds a character that no name of a file can"),
        ("", "it is empty"),
        (7, "this is a int"),
        (None, "this is a NoneType"),
        ("s3://", "a URL needs a protocol and a name"),
        ("s3:///", "a URL needs a protocol and a name"),
        ("://", "a URL needs a protocol and a name"),
        ("://bucket/index", "a URL needs a protocol and a name"),
        (pathlib.Path("s3://bucket/index"), "two slashes after its protocol"),
        ("~nobody-of-this-name/index", "is no folder for an index"),
    ],
)
def test_what_names_no_folder_is_told_and_makes_none(tmp_path, monkeypatch, folder, message):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(IndexingError, match=message):
        Index.open(folder)
    with pytest.raises(IndexingError, match=message):
        built(folder)

    assert list(tmp_path.iterdir()) == []


def test_a_deleted_working_directory_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    for call in (lambda: Index.open("index"), lambda: built("index")):
        with pytest.raises(IndexingError, match="the working directory was deleted"):
            call()
    assert len(built(tmp_path / "index")) == ROWS  # a whole path needs none


def test_a_relative_folder_means_the_same_after_another_was_gone_to(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    made = built("index")
    opened = Index.open("index", train=TRAIN)
    monkeypatch.chdir(tmp_path / "elsewhere")

    for index in (made, opened):
        assert len(index.with_run(run_of()).explain(QUERIES, k=1, exact=True)) == 6
        assert index.verify().is_sound
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_server_that_cannot_be_reached_is_told_as_such():
    pytest.importorskip("aiohttp")

    with pytest.raises(IndexingError, match=r"manifest\.json cannot be looked up: "):
        Index.open("http://127.0.0.1:9/index")


def test_ctrl_c_while_files_are_read_stays_what_it_is(tmp_path, monkeypatch):
    index = built(tmp_path)

    def broken_off(self, name, start=0, stop=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(index.store.place), "read", broken_off)
    for call in (
        lambda: Index.open(tmp_path),
        lambda: index.with_run(run_of()).explain(QUERIES, k=1),
        index.verify,
        index.table,
        lambda: built(tmp_path),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()


def test_manifests_come_back_as_they_were_and_same_is_same():
    manifest = Manifest({}, 4, ((0, 4),), "float32", 16, (40,), (), added=())

    assert same(np.arange(3), np.arange(3))
    with pytest.raises(IndexingError, match="checkpoints has 0 entries"):
        Manifest.from_bytes(manifest.to_bytes(), "here")
    assert open_storage("/data/../data").url == "/data/../data"
