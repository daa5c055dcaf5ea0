import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tracin.engines import Processes, Ranks, Serial
from tracin.engines.hardware import gpu_of, use_threads, visible_gpus
from tracin.engines.shares import UnitShares, stretches
from tracin.errors import IndexingError


class StubbornError(Exception):
    """Cannot be unpickled: its arguments are not those of its constructor."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Toy:
    """Writes a file per unit, and notes who did it; some units kill, hurt, or take their time."""

    folder: Path
    kills: tuple[str, ...] = ()
    always_kills: tuple[str, ...] = ()
    hurts: tuple[str, ...] = ()
    stubborn: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    code: int = 0
    seconds: float = 0.0
    is_shut: bool = False
    extra: object = None

    @contextmanager
    def open(self):
        if self.is_shut:
            raise FileNotFoundError("no such model")
        self.note("opened")
        yield self.build
        self.note("closed")

    def build(self, unit):
        marker = self.folder / f"marker-{unit}"
        if unit in self.always_kills or (unit in self.kills and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if unit in self.exits and not marker.exists():
            marker.touch()
            sys.exit(self.code)
        if unit in self.stubborn:
            raise StubbornError(1, 2)
        if unit in self.hurts:
            raise ValueError(f"unit {unit} hurts")
        time.sleep(self.seconds)
        self.note(f"unit {unit}")
        unfinished = self.folder / f".{unit}"
        unfinished.write_text(f"rows of {unit}")
        unfinished.rename(self.folder / f"{unit}.rows")

    def note(self, what):
        with (self.folder / "notes").open("a") as notes:
            notes.write(f"{os.getpid()} {what}\n")

    def weight(self, unit):
        return 10

    def is_done(self, unit):
        return (self.folder / f"{unit}.rows").exists()

    def notes(self):
        path = self.folder / "notes"
        return (
            [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def built(self):
        """Units in the order in which they were done."""
        return [what.split()[1] for _, what in self.notes() if what.startswith("unit")]

    def files(self):
        return {path.stem: path.read_text() for path in self.folder.glob("*.rows")}


UNITS = [f"{checkpoint}{rows}" for checkpoint in "abc" for rows in range(4)]
RESULT = {unit: f"rows of {unit}" for unit in UNITS}


def test_serial_does_all_units_once_and_in_order(tmp_path):
    toy = Toy(tmp_path)

    Serial().run(toy, UNITS)

    assert toy.built() == UNITS
    assert toy.files() == RESULT


def test_serial_skips_what_is_done_and_opens_nothing_when_all_is(tmp_path):
    toy = Toy(tmp_path)
    Serial().run(toy, UNITS[3:5])

    Serial().run(toy, UNITS)
    Serial().run(Toy(tmp_path, is_shut=True), UNITS)

    assert toy.built() == UNITS[3:5] + UNITS[:3] + UNITS[5:]


def test_a_unit_that_raises_is_named_and_the_same_call_goes_on(tmp_path):
    with pytest.raises(IndexingError, match=r"b1 could not.*\n?.*unit b1 hurts") as caught:
        Serial().run(Toy(tmp_path, hurts=("b1",)), UNITS)
    assert isinstance(caught.value.__cause__, ValueError)

    toy = Toy(tmp_path)
    Serial().run(toy, UNITS)

    assert toy.built() == UNITS


def test_the_bar_counts_examples_and_begins_with_those_that_are_done(tmp_path, capsys):
    Serial().run(Toy(tmp_path), UNITS[:6], progress=False)
    assert "120" not in capsys.readouterr().err

    Serial().run(Toy(tmp_path), UNITS, progress=True)

    said = capsys.readouterr().err
    assert " 50%" in said
    assert "60.0/120" in said
    assert "120/120" in said


@pytest.mark.parametrize("parts", range(1, 9))
def test_stretches_are_disjoint_complete_and_even(parts):
    for count in range(30):
        weights = [3] * count

        found = stretches(weights, parts)

        assert [place for one in found for place in one] == list(range(count))
        assert len(found) == parts
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_stretches_go_by_weight_and_bear_units_without_examples():
    assert stretches([8, 1, 1, 1, 1, 4], 2) == [range(0, 1), range(1, 6)]
    assert stretches([0, 0, 0, 0], 2) == [range(0, 2), range(2, 4)]
    assert stretches([], 2) == [range(0, 0), range(0, 0)]


def test_shares_hand_out_neighbours_and_help_from_the_far_end():
    shares = UnitShares(list("abcdefgh"), [1] * 8, 2)  # type: ignore

    assert [shares.take(0) for _ in range(4)] == list("abcd")
    assert shares.take(1) == "e"
    assert [shares.take(0), shares.take(0)] == ["g", "h"]
    shares.give_back(1, "e")  # type: ignore
    assert [shares.take(1), shares.take(0), shares.take(0)] == ["e", "f", None]


def test_processes_do_all_units_once_and_outlive_killed_workers(tmp_path):
    toy = Toy(tmp_path, kills=("a1", "c2"))

    Processes(2).run(toy, UNITS, progress=False)

    assert sorted(toy.built()) == UNITS
    assert toy.files() == RESULT
    opened = {pid for pid, what in toy.notes() if what == "opened"}
    assert len(opened) == 4
    assert sum(what == "closed" for _, what in toy.notes()) == 2


def test_a_worker_killed_from_outside_does_not_change_the_result(tmp_path):
    toy = Toy(tmp_path, seconds=0.15)
    over = threading.Event()

    def kill_once():
        while len(toy.built()) < 3 and not over.wait(0.02):
            pass
        os.kill(int(toy.notes()[-1][0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()

    Processes(2).run(toy, UNITS)
    over.set()
    killer.join()

    assert toy.files() == RESULT


def test_a_unit_that_always_kills_gives_an_error_after_the_retries(tmp_path):
    toy = Toy(tmp_path, always_kills=("a0",))

    with pytest.raises(IndexingError, match=r"a0 ended its worker 2 times.*code -9.*out of memory"):
        Processes(1, retries=1).run(toy, UNITS)

    assert len([what for _, what in toy.notes() if what == "opened"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hurts": ("a0",)}, r"a0 could not be built(.|\n)*Traceback(.|\n)*unit a0 hurts"),
        ({"is_shut": True}, r"could not open the job(.|\n)*no such model"),
        ({"extra": threading.Lock()}, r"cannot be: .*lock.*must hold no locks"),
    ],
    ids=["a unit raises", "the job does not open", "the job cannot be pickled"],
)
def test_processes_say_what_went_wrong_and_leave_no_child(tmp_path, changes, message):
    with pytest.raises(IndexingError, match=message):
        Processes(1).run(Toy(tmp_path, **changes), UNITS)

    assert not [pid for pid, _ in Toy(tmp_path).notes() if is_alive(int(pid))]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_engines import UNITS, Toy
from tracin.engines import Processes, Serial
from tracin.integrations.ray import RayCluster

{guard}
    {engine}.run(Toy(Path({folder!r}), seconds=0.3), UNITS)
"""


def started(folder, engine, guard="if __name__ == '__main__':"):
    script = folder / "script.py"
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, guard=guard, engine=engine, folder=str(folder)))
    return subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def is_alive(pid):
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("Serial()", signal.SIGINT),
        ("Processes(2)", signal.SIGINT),
        ("Processes(2)", signal.SIGKILL),
    ],
    ids=["serial, Ctrl-C", "processes, Ctrl-C", "processes, parent killed"],
)
def test_when_it_is_stopped_no_child_stays_and_finished_units_do(tmp_path, engine, number):
    toy = Toy(tmp_path)
    process = started(tmp_path, engine)
    while len(toy.built()) < 3 and process.poll() is None:
        time.sleep(0.02)

    # To all processes of its session, as a terminal does.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    said = process.communicate()[1]

    workers = {int(pid) for pid, _ in toy.notes()}
    for _ in range(500):
        if not any(is_alive(pid) for pid in workers):
            break
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in workers)
    assert 0 < len(toy.files()) < len(UNITS)
    if number == signal.SIGINT:
        assert said.count("KeyboardInterrupt\n") == 1, said
    Serial().run(toy, UNITS)
    assert toy.files() == RESULT


NOTEBOOK = """
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tracin.engines import Processes

@dataclass(frozen=True)
class Result:
    value: int
    process: int

class Local:
    name: object = lambda unit: f"{{unit}}.rows"

    @contextmanager
    def open(self):
        yield lambda unit: (Path({folder!r}) / Local.name(unit)).write_text(f"rows of {{unit}}")

    def weight(self, unit):
        return 1

    def is_done(self, unit):
        return False

Processes(2).run(Local(), {units!r}, progress=False)
found = Processes(2).gather(lambda part: Result(part**2, os.getpid()), range(4), progress=False)
assert [one.value for one in found] == [0, 1, 4, 9]
assert all(isinstance(one, Result) and one.process != os.getpid() for one in found)
"""


def test_lambdas_and_the_classes_of_a_notebook_reach_the_workers(tmp_path):
    # As in a notebook, `__main__` has no file that workers could import.
    cells = NOTEBOOK.format(folder=str(tmp_path), units=UNITS)

    ran = subprocess.run([sys.executable, "-c", cells], capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    assert Toy(tmp_path).files() == RESULT


@pytest.mark.parametrize("code", [0, 3])
def test_a_unit_that_exits_ends_its_worker_and_is_done_again(tmp_path, code):
    toy = Toy(tmp_path, exits=("a1",), code=code)

    Processes(1).run(toy, UNITS, progress=False)

    assert toy.files() == RESULT
    assert [what for _, what in toy.notes() if not what.startswith("unit")] == [
        "opened", "closed", "opened", "closed"
    ]  # fmt: skip


def test_a_worker_that_is_asked_to_end_is_replaced(tmp_path):
    toy = Toy(tmp_path, seconds=0.2)

    def terminate_once():
        while not toy.notes():
            time.sleep(0.02)
        os.kill(int(toy.notes()[0][0]), signal.SIGTERM)

    killer = threading.Thread(target=terminate_once, daemon=True)
    killer.start()

    Processes(1).run(toy, UNITS[:4])
    killer.join()

    assert sorted(toy.files()) == UNITS[:4]
    assert len({pid for pid, what in toy.notes() if what == "opened"}) == 2


def test_errors_that_cannot_be_unpickled_are_shown(tmp_path):
    with pytest.raises(IndexingError, match=r"a0 could not be built(.|\n)*StubbornError: 1 and 2"):
        Processes(1).run(Toy(tmp_path, stubborn=("a0",)), UNITS)


def test_a_script_without_its_guard_is_told_so(tmp_path):
    process = started(tmp_path, "Processes(1)", guard="if True:")

    assert "put what the script does under `if __name__ == '__main__':`" in process.communicate()[1]


@pytest.mark.parametrize(("count", "retries"), [(0, 3), (2, -1)])
def test_numbers_of_processes_are_checked(count, retries):
    with pytest.raises(IndexingError, match=r"at least 1; got 0|0 or more; got -1"):
        Processes(count, retries)


def test_each_worker_sees_one_gpu_where_there_are_several(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert [gpu_of(slot, visible_gpus()) for slot in range(3)] == ["4", "6", "4"]
    assert [str(Ranks(5, 8, local).device()) for local in range(3)] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]


def test_threads_are_set_for_torch_that_is_loaded_and_torch_that_will_be(monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 20])
def test_ranks_share_all_units_without_a_word(tmp_path, size):
    toy = Toy(tmp_path)

    for rank in range(size):
        Ranks(rank, size, is_helping=False).run(toy, UNITS)

    assert toy.built() == UNITS


def test_a_rank_does_its_own_share_first_and_then_helps_from_the_far_ends(tmp_path):
    toy = Toy(tmp_path)

    Ranks(1, 3).run(toy, UNITS)

    assert toy.built()[:8] == ["b0", "b1", "b2", "b3", "c3", "c2", "c1", "c0"]
    assert sorted(toy.built()) == UNITS
    Ranks(0, 3).run(Toy(tmp_path, is_shut=True), UNITS)


def test_helpers_begin_at_different_places(tmp_path):
    toy = Toy(tmp_path)

    firsts = [next(Ranks(rank, 4).others(toy, [UNITS, [], [], []])) for rank in (3, 2, 1)]

    assert firsts == ["c3", "b3", "a3"]


TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
ARRAY = {
    "SLURM_ARRAY_TASK_ID": "7",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "5",
}
SRUN = {"SLURM_PROCID": "6", "SLURM_NTASKS": "9", "SLURM_LOCALID": "2"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        (SRUN, Ranks(6, 9, 2)),
        (ARRAY | BATCH, Ranks(2, 5)),
        (TORCHRUN | ARRAY | SRUN, Ranks(2, 4, 1)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, Ranks(1, 2)),
    ],
    ids=["srun", "array", "torchrun first", "array from 0"],
)
def test_a_rank_comes_from_the_environment(environment, rank):
    assert Ranks.from_environment(environment) == rank


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"RANK and WORLD_SIZE.*SLURM_ARRAY_TASK_ID.*SLURM_PROCID.*none is set"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK must be a whole number; got 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2 give no rank"),
        (ARRAY | {"SLURM_ARRAY_TASK_ID": "6"}, "SLURM_ARRAY_TASK_ID=6.*must be regular"),
        (ARRAY | SRUN, "SLURM_PROCID is 6 in task 7 of an array"),
        ({"SLURM_PROCID": "1"}, "SLURM_NTASKS is not set"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(environment, message):
    with pytest.raises(IndexingError, match=message):
        Ranks.from_environment(environment)


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(IndexingError, match="rank 3 of 3"):
        Ranks(3, 3)
