"""The store of an index: what is kept, what is checked, and what survives faults and each other."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load
from torch import nn

import tracin
from built_once import index_of
from tracin import IndexingError, Projection, TracIn, WithIds
from tracin.engines import Serial
from tracin.index import data as index_data
from tracin.index.index import Index
from tracin.index.store import (
    Added,
    Column,
    Entry,
    Manifest,
    Store,
    delete_stale,
    number_format,
    open_storage,
)
from tracin.index.store.folder import Folder
from tracin.index.store.layout import FileLayout
from tracin.index.store.mounts import is_on_network, kind_of
from tracin.index.store.number_format import NumberFormat

ROWS, CLASSES = 40, 3


def mlp(seed=0, activation=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, CLASSES))


def data(examples=ROWS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 5, generator=generator)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


TRAIN = data()


def run_of(rates=(0.1, 0.05), seeds=(1, 2), loss="cross_entropy", activation=nn.ReLU):
    checkpoints = [tracin.Checkpoint(mlp(at).state_dict(), name=f"epoch {at}") for at in seeds]
    return TracIn(mlp(0, activation), loss, checkpoints, learning_rates=list(rates))


def built(folder, run=None, train=TRAIN, dim=24, **options):
    options = {"shard_size": 16, "number_format": "float32", "batch_size": 16, **options}
    return index_of(run or run_of(), train, folder, Projection(dim), **options)


def first(train, count):
    return tuple(one[:count] for one in train)


def files(folder):
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def shards(folder):
    return sorted((folder / "rows").rglob("*.safetensors"))


def bare(checkpoints=("a",), rows=40, **options):
    entries = tuple(Entry(key, key, int(key, 16), (1.0,)) for key in checkpoints)
    return replace(Manifest({}, 4, ((0, 4),), "float32", 16, (rows,), entries), **options)


# The table of rows.


def test_a_complete_index_has_its_table_in_a_file(tmp_path):
    run = run_of()
    index = built(tmp_path, run, dim=1000)

    kept, table = parquet.read_table(tmp_path / "table.parquet"), index.table()
    assert kept.column_names == list(table)
    for name, column in table.items():
        np.testing.assert_array_equal(kept[name].to_numpy(), column)
    exact = run.self_influence(TRAIN).numpy()
    np.testing.assert_allclose(table["self_influence"], exact, rtol=1e-5)
    np.testing.assert_array_equal(table["self_influence"], index.self_influence().numpy())
    # All numbers fit, so that the sketch is exact as well.
    np.testing.assert_allclose(table["self_influence_sketched"], exact, rtol=1e-4)


def test_the_sketched_column_is_what_the_rows_say(tmp_path):
    run = run_of()
    index = built(tmp_path, run)

    scores = index.with_run(run).influence(TRAIN).diagonal().numpy()
    np.testing.assert_allclose(index.table()["self_influence_sketched"], scores, rtol=1e-4)


def test_the_table_follows_rows_checkpoints_and_weights(tmp_path):
    def kept():
        return parquet.read_table(tmp_path / "table.parquet").to_pydict()

    one = run_of(rates=(0.1,), seeds=(1,))
    built(tmp_path, one, first(TRAIN, 20))
    assert len(kept()["id"]) == 20
    built(tmp_path, one)
    assert len(kept()["id"]) == ROWS
    for run in (run_of(), run_of(rates=(0.3, 0.7))):
        built(tmp_path, run)
        np.testing.assert_allclose(
            kept()["self_influence"], run.self_influence(TRAIN).numpy(), rtol=1e-5
        )
    index = Index.open(tmp_path).drop("epoch 1")
    assert "stale: table.parquet" in str(index)
    second = run_of(rates=(0.7,), seeds=(2,))
    built(tmp_path, second)
    np.testing.assert_allclose(
        kept()["self_influence"], second.self_influence(TRAIN).numpy(), rtol=1e-5
    )


def test_an_unfinished_index_has_no_table(tmp_path):
    class Half:
        def run(self, job, units, progress=None):
            with job.open() as build:
                build(units[0])

    index = built(tmp_path, engine=Half())
    assert not (tmp_path / "table.parquet").exists()
    with pytest.raises(IndexingError, match="is missing: the index is not complete"):
        index.table()


# Fingerprints of data, model and loss.


@pytest.mark.parametrize("at", [0, 13, ROWS - 1])
def test_data_that_changed_anywhere_looked_at_is_refused(tmp_path, at):
    built(tmp_path)
    places = [int(one) for one in Store.open(tmp_path).manifest.added[0].examples]
    assert len(places) == 8
    place = min(places, key=lambda one: abs(one - at))
    other = TRAIN[0].clone()
    other[place, 2] += 1

    with pytest.raises(IndexingError, match=f"other data: example {place} is not the one"):
        built(tmp_path, train=(other, TRAIN[1]))


def test_appended_rows_that_differ_later_are_refused(tmp_path):
    built(tmp_path, train=first(TRAIN, 20))
    built(tmp_path)
    other = TRAIN[1].clone()
    other[20:] = (other[20:] + 1) % CLASSES

    with pytest.raises(IndexingError, match=r"other data: example 20 is not .* new rows after the"):
        built(tmp_path, train=(TRAIN[0], other))
    longer = tuple(torch.cat(pair) for pair in zip(TRAIN, data(5, 9), strict=True))
    assert len(built(tmp_path, train=longer)) == ROWS + 5


@pytest.fixture(params=["activation", "loss"])
def other_run(request):
    """A run of the same weights whose scores are others."""
    if request.param == "activation":
        return run_of(activation=nn.GELU)
    return run_of(
        loss=lambda m, b: 2 * nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    )


def test_another_model_of_these_shapes_or_another_loss_is_refused(tmp_path, other_run):
    built(tmp_path)

    with pytest.raises(IndexingError, match=r"another model or loss: at epoch 2, .* the losses"):
        built(tmp_path, other_run)


def test_another_model_or_loss_is_no_questioner(tmp_path, other_run):
    index = built(tmp_path)
    opened = Index.open(tmp_path, train=TRAIN)

    for asked in (index, opened):
        other = asked.with_run(other_run)
        for _ in range(2):  # it is not forgotten
            with pytest.raises(IndexingError, match="another model or loss: at epoch 2"):
                other.explain(first(TRAIN, 3), k=2)
    with pytest.raises(IndexingError, match="another model or loss"):
        opened.with_run(other_run).influence(first(TRAIN, 3))
    with pytest.raises(IndexingError, match="another model or loss"):
        opened.with_run(other_run).measure_recall()
    opened.with_run(run_of()).explain(first(TRAIN, 3), k=2, exact=True)


def test_other_data_do_not_make_scores_exact(tmp_path):
    built(tmp_path)
    other = TRAIN[0] + 1, TRAIN[1]

    index = Index.open(tmp_path, run=run_of(), train=other)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(IndexingError, match="rows of other data: example 0 is not the one"):
            index.explain(first(TRAIN, 3), k=2, exact=True)


def test_rounding_is_no_other_loss(tmp_path):
    def rounded(model, batch):
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses * 1.005

    built(tmp_path)
    assert len(built(tmp_path, run_of(loss=rounded))) == ROWS


def test_a_new_checkpoint_alone_is_taken_and_its_losses_known_after(tmp_path):
    built(tmp_path, run_of(rates=(1,), seeds=(1,)))
    built(tmp_path, run_of(rates=(1,), seeds=(2,)))

    assert all(each.losses for each in Store.open(tmp_path).manifest.checkpoints)
    with pytest.raises(IndexingError, match="another model or loss: at epoch 2"):
        built(tmp_path, run_of(rates=(1,), seeds=(2,), activation=nn.Tanh))


def test_the_fingerprint_of_a_dataset_is_kept_and_told(tmp_path):
    class Named(torch.utils.data.Dataset):
        def __init__(self, columns, name):
            self.columns, self._fingerprint = columns, name

        def __len__(self):
            return ROWS

        def __getitem__(self, at):
            return tuple(one[at] for one in self.columns)

    built(tmp_path, train=WithIds(Named(TRAIN, "abc"), range(ROWS)))
    assert Store.open(tmp_path).manifest.added[0].source == "abc"
    built(tmp_path, train=Named(TRAIN, "of equal data"))
    with pytest.raises(IndexingError, match=r"the data set was abc, and is xyz"):
        built(tmp_path, train=Named(data(seed=3), "xyz"))


def test_few_examples_are_looked_at(tmp_path, monkeypatch):
    seen = []
    real = index_data.example_fingerprint
    monkeypatch.setattr(
        index_data, "example_fingerprint", lambda data, at: seen.append(at) or real(data, at)
    )
    monkeypatch.setattr(index_data, "MOST", 5)
    built(tmp_path, engine=Serial())
    assert seen == [0, 5, 11, 16, 22, 27, 33, 39]
    seen.clear()
    built(tmp_path)
    assert len(seen) == 5


def test_a_wide_layer_is_the_same_plan_when_read_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 200), nn.Linear(200, 3))
    run = TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1])

    built(tmp_path, run)
    assert len(built(tmp_path, run)) == ROWS


# Files that are not as they were.


def test_a_shard_is_a_safetensors_file_whose_length_is_known(tmp_path):
    for kept in ("float16", "int8", "float32"):
        store = built(tmp_path / kept, number_format=kept).store
        for unit in store.manifest.units():
            content = (tmp_path / kept / unit.file).read_bytes()
            assert len(content) == store.size_of(unit)
            for name, one in load(content).items():
                assert torch.equal(one, store.read(unit).tensors[name])


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_built_again(tmp_path, length):
    built(tmp_path)
    whole = files(tmp_path)
    path = shards(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:length])

    index = Index.open(tmp_path)
    assert "5 of 6 files built" in str(index)
    assert "truncated" in str(index.verify())
    with pytest.raises(IndexingError, match=r"bytes, and should have .* tracin index verify"):
        index.with_run(run_of()).influence(TRAIN)
    built(tmp_path)

    assert files(tmp_path) == whole


@pytest.mark.parametrize("at", [20, 300, -20])
def test_a_flipped_bit_is_an_error_of_the_search(tmp_path, at):
    built(tmp_path)
    path = shards(tmp_path)[1]
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)

    with pytest.raises(IndexingError, match=r"cannot be read .* tracin index verify"):
        Index.open(tmp_path, run=run_of()).influence(TRAIN)
    assert not Index.open(tmp_path).verify().is_sound


def test_rows_are_compared_with_their_checksum_once(tmp_path, monkeypatch):
    built(tmp_path)
    store = Index.open(tmp_path).store
    count = []
    monkeypatch.setattr(FileLayout, "refuse_changed_rows", lambda layout, content: count.append(1))
    for _ in range(3):
        store.read(store.manifest.units()[0]).rows(0, 2)

    assert len(count) == 1


def test_a_damaged_manifest_is_told(tmp_path):
    built(tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    for content in (b"", whole[:100], b"[]", whole.replace(b'"width"', b'"breadth"')):
        path.write_bytes(content)
        with pytest.raises(IndexingError, match=r"manifest\.json cannot be read .* from a copy"):
            Index.open(tmp_path)
    for number in (1, 99):
        path.write_bytes(whole.replace(b'"format": 3', b'"format": %d' % number))
        with pytest.raises(IndexingError, match=r"by another release .* Build the index again"):
            built(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PAR1", "changed"])
def test_damaged_ids_are_told_and_written_again(tmp_path, content):
    built(tmp_path)
    whole = files(tmp_path)
    (path,) = (tmp_path / "ids").iterdir()
    if content is None:
        path.unlink()
    elif content == "changed":
        table = parquet.read_table(path)
        parquet.write_table(table.slice(0, 39), path)
    else:
        path.write_bytes(content)

    with pytest.raises(IndexingError, match=r"ids.* cannot be read .* Build again"):
        _ = Index.open(tmp_path).ids
    assert not Index.open(tmp_path).verify().is_sound
    built(tmp_path)

    assert files(tmp_path) == whole


# Several builders.


def test_of_two_that_begin_at_once_with_unlike_options_one_is_refused(tmp_path):
    here, other = bare(), bare(number_format="int8")
    calls = []

    def proposed(there):
        calls.append(there)
        if there is None:
            Store.create(tmp_path, other, np.arange(40))  # comes first
            return here
        raise IndexingError("refused")

    with pytest.raises(IndexingError, match="refused"):
        Store.agreed(tmp_path, proposed, np.arange(40))

    assert len(calls) == 2
    assert Store.open(tmp_path).manifest.number_format == "int8"


def test_of_two_that_begin_at_once_with_unlike_ids_one_is_refused(tmp_path):
    def proposed(there):
        if there is None:
            Store.create(tmp_path, bare(), np.arange(40))
        return bare()

    with pytest.raises(IndexingError, match="row 0 has the id 0 there and 100 here"):
        Store.agreed(tmp_path, proposed, np.arange(100, 140))

    assert (Store.open(tmp_path).ids() == np.arange(40)).all()


def test_two_that_add_at_once_both_have_what_they_added(tmp_path):
    Store.create(tmp_path, bare("a"), np.arange(40))
    calls = []

    def proposed(there):
        calls.append(there)
        if len(calls) == 1:
            Store.create(tmp_path, bare("ac"), np.arange(40))
        return there.extended(bare("ab", rows=50))

    Store.agreed(tmp_path, proposed, np.arange(50))

    manifest = Store.open(tmp_path).manifest
    assert [each.key for each in manifest.checkpoints] == ["a", "c", "b"]
    assert manifest.extents == (40, 50)


def test_a_drop_keeps_what_others_added(tmp_path):
    early = Store.create(tmp_path, bare("ab"), np.arange(40))
    Store.create(tmp_path, bare("abc"), np.arange(40))

    early.drop("a")

    assert [each.key for each in Store.open(tmp_path).manifest.checkpoints] == ["b", "c"]


@pytest.mark.parametrize("url", ["", "memory://"])
def test_of_two_first_writes_one_wins(tmp_path, url, monkeypatch):
    place = open_storage(f"{url}{tmp_path}/new")
    assert place.create("manifest.json", b"one")
    monkeypatch.setattr(type(place), "size", lambda self, name: None)  # as both had looked
    assert not place.create("manifest.json", b"two")
    assert bytes(place.read("manifest.json")) == b"one" or url == ""


def test_a_checkpoint_that_comes_again_has_the_rows_it_had(tmp_path):
    run = run_of()
    built(tmp_path, run)
    rows = files(tmp_path / "rows")
    Index.open(tmp_path).drop("epoch 1")

    index = built(tmp_path, run)  # its files are still there

    assert files(tmp_path / "rows") == rows
    fresh = built(tmp_path / "fresh", run)
    torch.testing.assert_close(index.with_run(run).influence(TRAIN), fresh.influence(TRAIN))


# What is deleted, and what is said.


def test_gc_leaves_the_files_of_builders_at_work(tmp_path):
    store = built(tmp_path).store
    folder = shards(tmp_path)[0].parent
    host = socket.gethostname()
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        f".a.{host}-{os.getpid()}-0123abcd.unfinished": True,
        f".a.{host}-{gone.pid}-0123abcd.unfinished": False,
        f".a.else-where-{gone.pid}-0123abcd.unfinished": True,
        ".old.else-where-1-0123abcd.unfinished": False,
    }
    for name in names:
        (folder / name).write_bytes(b"x")
    old = time.time() - 4000
    os.utime(folder / ".old.else-where-1-0123abcd.unfinished", (old, old))
    assert "stale: 2 files, 2 bytes, which tracin index gc" in str(Index(store))

    removed = delete_stale(store)

    assert len(removed.files) == 2
    assert {name for name in names if (folder / name).exists()} == {
        name for name, stays in names.items() if stays
    }


def test_gc_of_an_index_opened_earlier_keeps_what_came_since(tmp_path):
    early = built(tmp_path, train=first(TRAIN, 20)).store
    built(tmp_path)
    whole = files(tmp_path)

    assert delete_stale(early).files == ()
    assert files(tmp_path) == whole


def test_info_says_format_projection_bytes_and_what_is_stale(tmp_path):
    index = built(tmp_path)
    size = sum(map(len, files(tmp_path).values()))
    said = str(index)
    assert "(float32)" in said
    assert "projection dim=24, seed=0" in said
    assert f"{size:,} bytes in {len(files(tmp_path))} files" in said
    assert "stale" not in said

    assert "stale: 3 files" in str(index.drop("epoch 1"))


# Faults of disks.


@contextmanager
def mounted(folder, options):
    """A small file system in memory, where this process may mount one."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_loses_nothing(tmp_path):
    whole = files(built(tmp_path / "whole", dim=1000).store.place.path)
    disk = tmp_path / "disk"
    with mounted(disk, "size=40k"):
        with pytest.raises(IndexingError, match=r"No space left on device\. Finished files"):
            built(disk, dim=1000, engine=Serial())
        assert not list(disk.rglob("*.unfinished"))
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        built(disk, dim=1000)
        assert files(disk) == whole


def test_a_limit_of_file_sizes_is_told(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with pytest.raises(IndexingError, match=r"File too large\. Finished files are kept"):
            built(tmp_path, dim=1000, engine=Serial())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.rglob("*.unfinished"))
    assert len(built(tmp_path, dim=1000)) == ROWS


def test_a_read_only_disk_is_told_and_can_be_asked(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=10m"):
        built(disk, run_of(rates=(1,), seeds=(1,)))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(IndexingError, match=r"cannot be written: Read-only file system"):
            built(disk)
        index = Index.open(disk)
        assert len(index.table()["id"]) == ROWS
        del index


def test_a_file_where_the_folder_should_be_is_told(tmp_path):
    (tmp_path / "index").write_text("no folder")

    with pytest.raises(IndexingError, match="cannot be written: "):
        built(tmp_path / "index")


# Network disks.

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /data rw - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /data/own\040disk rw - xfs /dev/sdb rw
32 22 0:42 / /mnt/bucket rw - fuse.gcsfuse bucket rw
broken line
"""


def test_the_kind_of_a_file_system_is_known(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO)
    kinds = {
        "/somewhere": "ext4",
        "/data/index": "nfs4",
        "/data": "nfs4",
        "/database": "ext4",
        "/data/own disk/index": "xfs",
        "/mnt/bucket/x": "fuse",
    }
    assert {path: kind_of(Path(path), mounts) for path in kinds} == kinds
    assert kind_of(Path("/data"), tmp_path / "nothing") == ""
    assert not is_on_network(tmp_path)


def test_on_a_network_files_are_read_into_memory(tmp_path, monkeypatch):
    run = run_of()
    local = built(tmp_path, run).with_run(run).influence(TRAIN)
    monkeypatch.setattr("tracin.index.store.folder.is_on_network", lambda path: True)
    monkeypatch.setattr("tracin.index.store.folder._PIECE", 100)
    with monkeypatch.context() as patched:
        patched.setattr(np, "memmap", None)
        torch.testing.assert_close(built(tmp_path, run).with_run(run).influence(TRAIN), local)
    place = Folder(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    assert bytes(place.read("manifest.json", 3, 250)) == whole[3:250]
    assert bytes(place.read("manifest.json", 3)) == whole[3:]
    with pytest.raises(IndexingError, match="cannot be read: No such file"):
        place.read("nothing")


# How numbers are kept.


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("outlier", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("name", "error"),  # of a number, in parts of the largest of its row; of the row's length
    [("float16", 2**-11), ("int8", 0.5 / 127), ("float32", 0.0)],
)
def test_formats_keep_rows_of_all_sizes(name, error, scale, outlier, monkeypatch):
    # Several blocks make the 20 rows.
    monkeypatch.setattr(sys.modules[NumberFormat.__module__], "_BLOCK", 7 * 64)
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * scale
    rows[:, 5] *= outlier
    rows[3] = 0
    pieces = ((0, 32), (32, 64))
    how = number_format(name)

    coded, scales = torch.empty(20, 64, dtype=how.dtype), torch.empty(20, 2 * how.has_scale)

    how.encode(rows, pieces, coded, scales)
    found = how.decode(coded, scales, pieces)

    for start, stop in pieces:
        piece, kept = rows[:, start:stop], found[:, start:stop]
        largest = piece.abs().amax(1, keepdim=True)
        assert bool(((kept - piece).abs() <= 1.001 * error * largest).all())
        lengths = piece.norm(dim=1)
        assert bool(((kept.norm(dim=1) - lengths).abs() <= 6 * error * lengths).all())
    assert bool((found[3] == 0).all())


@pytest.mark.parametrize(
    ("rows", "beside", "message"),
    [
        (torch.zeros(16, 5), {"loss": torch.zeros(16)}, r"takes \[16, 4\] numbers; got \[16, 5\]"),
        (torch.zeros(15, 4), {"loss": torch.zeros(15)}, r"takes \[16, 4\] numbers; got \[15, 4\]"),
        (torch.zeros(16, 4), {}, r"keeps .*loss.* next to its rows; got \{\}"),
        (torch.zeros(16, 4), {"loss": torch.zeros(16, 1)}, "keeps .* next to its rows"),
        (torch.zeros(16, 4), {"loss": torch.zeros(1)}, "has 16 rows; loss came for 1"),
        (torch.full((16, 4), torch.inf), {"loss": torch.zeros(16)}, "must be finite"),
    ],
)
def test_what_is_not_as_the_manifest_says_is_not_written(tmp_path, rows, beside, message):
    manifest = bare(extra_columns={"loss": Column("F32")})
    store = Store.create(tmp_path, manifest, np.arange(40))

    with pytest.raises(IndexingError, match=message):
        store.write(manifest.units()[0], rows, beside)

    assert store.missing() == manifest.units()


def test_equal_manifests_are_equal_bytes_and_come_back():
    manifest = built_manifest()
    content = manifest.to_bytes()

    assert Manifest.from_bytes(content, "here") == manifest
    assert json.loads(content)["extents"] == [40]
    assert io.BytesIO(content).read() == replace(manifest).to_bytes()


def built_manifest():
    return bare("ab", about={"projection": {"dim": 4}}, added=(Added("0" * 32),))
