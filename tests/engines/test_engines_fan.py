"""Engines that bring back what the parts of some work give."""

import os
import signal
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import numpy as np
import pytest

from tracin.engines import Processes, Ranks, Serial
from tracin.errors import IndexingError

PARTS = list(range(6))


@dataclass(frozen=True)
class Squares:
    """The squares up to a part; one part kills its worker the first time, one always raises."""

    folder: Path
    kills: int = -1
    hurts: int = -1

    def __call__(self, part):
        marker = self.folder / f"marker-{part}"
        if part == self.kills and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if part == self.hurts:
            raise ValueError(f"part {part} hurts")
        return np.arange(part) ** 2


def right(found):
    return all((one == np.arange(part) ** 2).all() for part, one in enumerate(found))


@pytest.mark.parametrize("engine", [Serial(), Processes(2)])
def test_results_come_in_the_order_of_the_parts(tmp_path, engine):
    found = engine.gather(Squares(tmp_path), PARTS, progress=False)

    assert [len(one) for one in found] == PARTS
    assert right(found)
    assert engine.gather(Squares(tmp_path), []) == []


def test_a_killed_workers_part_is_done_again(tmp_path):
    found = Processes(2).gather(Squares(tmp_path, kills=3), PARTS, progress=False)

    assert (tmp_path / "marker-3").exists()
    assert len(found) == len(PARTS)
    assert right(found)


@dataclass(frozen=True)
class DiesWhileSending:
    """Ends its worker, once, when half of its result is written."""

    folder: Path

    def __call__(self, part):
        marker = self.folder / f"marker-{part}"
        if not marker.exists():
            marker.touch()
            connection.Connection._send = self.send_half
        return bytes(100_000)

    @staticmethod
    def send_half(self, buffer, write=os.write):
        is_head = len(buffer) < 100
        write(self.fileno(), buffer if is_head else buffer[: len(buffer) // 2])
        if not is_head:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_the_middle_of_a_result_is_replaced(tmp_path):
    found = Processes(1).gather(DiesWhileSending(tmp_path), [0], progress=False)

    assert found == [bytes(100_000)]


def test_a_part_that_fails_is_named(tmp_path):
    with pytest.raises(IndexingError, match=r"Part 3 of 6 failed\. (.|\n)*2 hurts"):
        Processes(1).gather(Squares(tmp_path, hurts=2), PARTS, progress=False)
    with pytest.raises(IndexingError, match=r"Part 1 of 1 ended its worker 1 times; .*code -9\. E"):
        Processes(1, retries=0).gather(Squares(tmp_path, kills=0), [0], progress=False)
    with pytest.raises(IndexingError, match=r"this one cannot be: .*generator"):
        Processes(1).gather(str, [(part for part in PARTS)])


def test_ranks_refuse(tmp_path):
    with pytest.raises(IndexingError, match=r"Ranks never communicate.*RayCluster"):
        Ranks(0, 2).gather(Squares(tmp_path), PARTS)
