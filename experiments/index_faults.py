"""Kills the builders of an index at random moments; what is left must be finished, byte for byte.

python -m experiments.index_faults --engine serial --kills 100
python -m experiments.index_faults --engine processes --kills 100
python -m experiments.index_faults --engine ray --kills 100
python -m experiments.index_faults --flips 200
python -m experiments.index_faults --hostile

An undisturbed build is made first. Then builds of the same are started, broken off by SIGKILL and
started again: of several processes, now a worker is killed and now the one that gives them work.
Each build that is finished is compared, file by file, and another begins in an empty folder.
Exits with 1 at the first difference. Reads /proc: Linux alone.

The last two damage the files of a finished one, see `experiments.index_damage`.
"""

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import tracin
from experiments.index_damage import built, report
from tracin.engines import Engine, Processes, Serial
from tracin.integrations.ray import RayCluster

ROWS, FEATURES, CLASSES, CHECKPOINTS = 400, 20, 5, 3
A_SHARD = 10
ENGINES = ("serial", "processes", "ray")
WORKERS = {"processes": "multiprocessing.spawn", "ray": "ray::RayWorker"}
OUTLIVED = 1000  # times that a unit may outlive its worker: chance alone must not end a build
START = (
    6.0  # seconds that workers are given to start, or most would be killed before they do a unit
)
DRIVERS = 0.25  # of the kills are of the process that gives work


@dataclass(frozen=True)
class Building:
    """How one index is built.

    Attributes:
        engine: One of ENGINES.
        rows: How many examples.
        address: Of a Ray cluster.
    """

    engine: str
    rows: int = ROWS
    address: str | None = None

    def into(self, folder: Path) -> None:
        """Build it, or go on with it."""
        torch.set_num_threads(1)
        # Batches of one size: other sizes round otherwise, and bytes are compared.
        run_of().index(
            data(self.rows),
            folder,
            tracin.Projection(dim=64),
            shard_size=A_SHARD,
            batch_size=A_SHARD,
            engine=self.made(),
            progress=False,
        )

    def made(self) -> Engine:
        """The engine."""
        if self.engine == "processes":
            return Processes(2, retries=OUTLIVED)
        if self.engine == "ray":
            return RayCluster(self.address, workers=2, retries=OUTLIVED)
        return Serial()


@dataclass
class Toll:
    """What happened."""

    workers: int = 0
    drivers: int = 0
    finished: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All of them."""
        return self.workers + self.drivers


def main(arguments: list[str] | None = None) -> int:
    """Kill, compare, tell; 1 where something differs."""
    options = parsed(arguments)
    if options.into:
        Building(options.engine, options.rows, options.address).into(options.into)
        return 0
    if options.flips or options.hostile:
        return damaged(options.flips, options.seed, is_hostile=options.hostile)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, cluster(options.engine) as address:
        building = Building(options.engine, options.rows, address)
        toll = killed(building, Path(folder), options.kills, options.seed)
    print(
        f"{options.engine}: {toll.kills} kills ({toll.workers} of workers, {toll.drivers} of the "
        f"process that gives work), {toll.finished} builds finished and compared, "
        f"{time.perf_counter() - began:.0f} s; "
        + (f"DIFFERENT: {', '.join(toll.different)}" if toll.different else "all bytes equal")
    )
    return 1 if toll.different else 0


def damaged(flips: int, seed: int, *, is_hostile: bool) -> int:
    """Damage an index, tell; 1 where something was silently wrong, or crashed."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        damage = built(Path(folder), run_of(), data(60))
        damage.flips(flips, seed)
        if is_hostile:
            damage.hostile()
    print(f"{report(damage)}\n{time.perf_counter() - began:.0f} s")
    return 1 if damage.bad else 0


def killed(building: Building, folder: Path, kills: int, seed: int = 0) -> Toll:
    """Builds that are broken off, until there were so many kills and the last one is finished."""
    chance, toll = random.Random(seed), Toll()
    whole = folder / "whole"
    Building("serial", building.rows).into(whole)
    began = time.perf_counter()  # the first build imports modules, which builders have from here
    Building("serial", building.rows).into(folder / "timed")
    span = 1.2 * (time.perf_counter() - began)  # over which moments of kills are spread
    if building.engine in WORKERS:
        span += START
    expected = files(whole)
    at = folder / "index"
    driver = started(building, at)
    while True:
        if toll.kills < kills:
            wait(driver, chance.uniform(0, span))
        else:
            driver.join()
        if driver.is_alive():
            strike(driver, building, chance, toll)
        if driver.is_alive():
            continue
        if driver.exitcode == 0:
            toll.finished += 1
            toll.different += differences(at, expected)
            if toll.different or toll.kills >= kills:
                return toll
            shutil.rmtree(at)
        elif driver.exitcode != -signal.SIGKILL:
            log = folder.parent / "driver.log"
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            toll.different.append(f"a builder ended with {driver.exitcode}: {said}")
            return toll
        driver = started(building, at)


def strike(driver: "Driver", building: Building, chance: random.Random, toll: Toll) -> None:
    """Kill a worker, or the driver."""
    name = WORKERS.get(building.engine)
    if name is not None and chance.random() > DRIVERS:
        found = workers(name)
        if found:
            os.kill(chance.choice(found), signal.SIGKILL)
            toll.workers += 1
        return
    driver.kill()
    driver.join()
    toll.drivers += 1


class Driver:
    """A process that builds; a fork where that is safe, since it starts at once."""

    def __init__(self, building: Building, folder: Path) -> None:
        self._fork = self._other = None
        if building.engine == "ray":
            command = [
                sys.executable, "-m", "experiments.index_faults", "--engine", "ray",
                "--rows", str(building.rows), "--into", str(folder),
                "--address", str(building.address),
            ]  # fmt: skip
            # Ray tells of each killed worker; an error of ours is looked up here.
            with (folder.parent / "driver.log").open("ab") as log:
                self._other = subprocess.Popen(command, stderr=log)
        else:
            self._fork = multiprocessing.get_context("fork").Process(
                target=building.into, args=(folder,)
            )
            self._fork.start()

    @property
    def exitcode(self) -> int | None:
        """As of a process; negative for a signal."""
        if self._fork is not None:
            return self._fork.exitcode
        return None if self._other is None else self._other.poll()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.exitcode is None

    def kill(self) -> None:
        """SIGKILL."""
        one = self._fork or self._other
        if one is not None:
            one.kill()

    def join(self) -> None:
        """Wait for its end."""
        if self._fork is not None:
            self._fork.join()
        elif self._other is not None:
            self._other.wait()


def started(building: Building, folder: Path) -> Driver:
    """A builder at work."""
    return Driver(building, folder)


def wait(driver: Driver, seconds: float) -> None:
    """So long, or until it ends."""
    end = time.perf_counter() + seconds
    while driver.is_alive() and time.perf_counter() < end:
        time.sleep(0.002)


def workers(name: str) -> list[int]:
    """Processes below this one, at any depth, whose command line holds `name`."""
    parents, commands = {}, {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                stat = (each / "stat").read_text()
                commands[int(each.name)] = (each / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            parents[int(each.name)] = int(stat.rpartition(")")[2].split()[1])
    found = []
    for number, command in commands.items():
        above = number
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and number != above and name in command:
            found.append(number)
    return found


@contextmanager
def cluster(engine: str) -> Iterator[str | None]:
    """A Ray cluster of this script's own, that outlives its drivers; nothing for other engines."""
    if engine != "ray":
        yield None
        return
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers look for tracin and this script where they are found now.
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 1024**2,
    )
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def differences(folder: Path, expected: Mapping[str, bytes]) -> list[str]:
    """The names of files that are not as expected, after what was unfinished is cleared away."""
    tracin.Index.open(folder).gc()
    found = files(folder)
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def run_of() -> tracin.TracIn:
    """A small net at a few checkpoints."""
    checkpoints = [net(seed).state_dict() for seed in range(CHECKPOINTS)]
    return tracin.TracIn(net(0), "cross_entropy", checkpoints, learning_rates=[0.1] * CHECKPOINTS)


def net(seed: int) -> nn.Module:
    """Two layers, too many numbers to be kept whole."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def data(rows: int) -> tuple[Tensor, Tensor]:
    """Noise with labels."""
    some = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, FEATURES, generator=some)
    return inputs, torch.randint(CLASSES, (rows,), generator=some)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.index_faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--engine", choices=ENGINES, default="serial")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"examples, {A_SHARD} a file")
    parser.add_argument("--flips", type=int, default=0, help="bits of each kind of file")
    parser.add_argument("--hostile", action="store_true", help="fields of a manifest")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and who is killed")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
