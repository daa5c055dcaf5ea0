"""An index is the same whoever builds it, in what order and batches, and however often killed."""

import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import tracin
from own_process import run_script
from tracin.engines import Job, Processes, Unit
from tracin.integrations.ray import RayCluster

ROOT = Path(__file__).parents[2]
ROWS, FEATURES, CLASSES = 90, 12, 4
KILLS = """
import os, sys
os.fsync = os.fstat  # a killed process loses nothing that it wrote
sys.path.insert(0, sys.argv[1])
from experiments import index_faults
sys.exit(index_faults.main(["--kills", "5", "--rows", "60"]))
"""


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 20), nn.Tanh(), nn.Linear(20, CLASSES))


def data():
    some = torch.Generator().manual_seed(3)
    inputs = torch.randn(ROWS, FEATURES, generator=some)
    return inputs, torch.randint(CLASSES, (ROWS,), generator=some)


RUN = tracin.TracIn(
    net(), "cross_entropy", [net(1).state_dict(), net(2).state_dict()], learning_rates=[1, 1]
)


def rows_of(folder, **options):
    """Everything that is kept, shard after shard."""
    index = RUN.index(
        data(),
        folder,
        tracin.Projection(40),
        number_format="float32",
        progress=False,
        **{"shard_size": 13, **options},
    )
    keys = [entry.key for entry in index.store.manifest.checkpoints]
    shards = [shard for key in keys for shard in index.store.shards(key)]
    names = ("squared_norms", "loss", "label", "is_right")
    return [
        torch.cat([shard.rows() for shard in shards]),
        *(torch.cat([shard.tensors[name] for shard in shards]) for name in names),
    ]


class Shuffled:
    """Units in an order of chance."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        units = list(units)
        random.Random(self.seed).shuffle(units)
        with job.open() as build:
            for unit in units:
                build(unit)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return rows_of(tmp_path_factory.mktemp("plain"))


def assert_same(found, expected):
    assert len(found[0]) == 2 * ROWS
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_rows_do_not_depend_on_the_batch_size(tmp_path, plain, batch_size):
    assert_same(rows_of(tmp_path, batch_size=batch_size), plain)


@pytest.mark.parametrize("rows", [1000, 4])
def test_rows_do_not_depend_on_the_size_of_files(tmp_path, plain, rows):
    assert_same(rows_of(tmp_path, shard_size=rows), plain)


def test_rows_do_not_depend_on_the_order_of_units(tmp_path, plain):
    for seed in range(3):
        assert_same(rows_of(tmp_path / str(seed), engine=Shuffled(seed)), plain)


def test_rows_do_not_depend_on_processes(tmp_path, plain):
    assert_same(rows_of(tmp_path, engine=Processes(2)), plain)


def test_rows_and_answers_do_not_depend_on_ray(tmp_path, plain):
    ray = pytest.importorskip("ray")
    engine = RayCluster(workers=2)
    handler = signal.getsignal(signal.SIGTERM)

    with engine.session(ray, 0):
        assert_same(rows_of(tmp_path, engine=engine), plain)
        index, queries = tracin.Index.open(tmp_path, train=data()), tuple(one[:3] for one in data())
        alone = index.with_run(RUN).explain(queries, k=2, exact=True)
        divided = index.with_run(RUN).explain(queries, k=2, exact=True, engine=engine)
        for side in ("proponents", "opponents"):
            one, other = getattr(alone, side), getattr(divided, side)
            assert (one.positions == other.positions).all()
            assert (one.scores == other.scores).all()

    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the script reads /proc")
def test_killed_builders_leave_what_an_undisturbed_one_does(tmp_path):
    done = run_script(KILLS, ROOT, folder=tmp_path)

    assert done.code == 0, done.stdout + done.stderr
    assert "serial: 5 kills" in done.stdout
    assert "all bytes equal" in done.stdout
