import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from test_engines import RESULT, UNITS, Toy, is_alive, started
from test_engines_fan import PARTS, Squares, right

from tracin.errors import IndexingError
from tracin.integrations.ray import RayCluster


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(IndexingError, match=r"pip install '\.\[ray\]' in a checkout"):
        RayCluster().run(Toy(tmp_path), UNITS)


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"cpus_per_worker": 0}, {"retries": -1}])
def test_numbers_are_checked(numbers):
    with pytest.raises(IndexingError, match=r"must be .*; got"):
        RayCluster(**numbers)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        "local", num_cpus=2, object_store_memory=2**27, include_dashboard=False, log_to_driver=False
    )
    # Ray's own would be inherited by processes that later tests fork, which then outlive SIGTERM.
    signal.signal(signal.SIGTERM, handler)
    yield ray
    ray.shutdown()


def test_ray_does_all_units_once_and_a_killed_worker_comes_back(tmp_path, ray):
    toy = Toy(tmp_path, kills=("a1",))

    RayCluster().run(toy, UNITS, progress=False)

    assert sorted(toy.built()) == UNITS
    assert toy.files() == RESULT
    assert len({pid for pid, what in toy.notes() if what == "opened"}) == 3
    assert ray.is_initialized()


def test_finished_units_are_skipped_and_a_failed_one_is_named(tmp_path, ray):
    toy = Toy(tmp_path, hurts=("a3",))

    with pytest.raises(IndexingError, match=r"a3 could not be built(.|\n)*unit a3 hurts"):
        RayCluster(workers=1).run(toy, UNITS)
    RayCluster(workers=1).run(replace(toy, hurts=()), UNITS)

    assert toy.built() == UNITS


def test_a_unit_that_always_kills_gives_an_error(tmp_path, ray):
    with pytest.raises(IndexingError, match="a0 ended its worker 2 times"):
        RayCluster(workers=1, retries=1).run(Toy(tmp_path, always_kills=("a0",)), UNITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_shut": True}, r"could not open the job(.|\n)*no such model"),
        ({"extra": threading.Lock()}, "cannot be: .*must hold no locks"),
    ],
)
def test_a_job_that_workers_cannot_have_is_refused(tmp_path, ray, changes, message):
    with pytest.raises(IndexingError, match=message):
        RayCluster(workers=1).run(Toy(tmp_path, **changes), UNITS)


def test_results_come_back_and_a_killed_workers_part_is_done_again(tmp_path, ray):
    found = RayCluster(workers=2).gather(Squares(tmp_path, kills=1), PARTS, progress=False)
    with pytest.raises(IndexingError, match=r"Part 5 of 6 failed"):
        RayCluster(workers=1).gather(Squares(tmp_path, hurts=4), PARTS, progress=False)

    assert (tmp_path / "marker-1").exists()
    assert len(found) == len(PARTS)
    assert right(found)


# From here on no session is open; `test_index_faults.py` has one that the engine opens and closes.


def test_a_cluster_that_is_not_there_is_named(tmp_path, ray):
    ray.shutdown()

    with pytest.raises(IndexingError, match=r"No Ray cluster answers at 'auto'.*ray start --head"):
        RayCluster("auto").run(Toy(tmp_path), UNITS)


def test_ctrl_c_ends_the_workers_and_keeps_finished_units(tmp_path, ray):
    toy = Toy(tmp_path)
    process = started(tmp_path, "RayCluster(workers=1)")
    while len(toy.built()) < 2 and process.poll() is None:
        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]

    workers = {int(pid) for pid, _ in toy.notes()}
    for _ in range(500):
        if not any(is_alive(pid) for pid in workers):
            break
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in workers)
    assert "KeyboardInterrupt" in said
    assert 0 < len(toy.files()) < len(UNITS)
