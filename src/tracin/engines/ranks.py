"""One of many processes that torchrun, a SLURM array or srun starts. They never communicate."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tracin.engines.job import Job, Unit, job_bar, missing
from tracin.engines.serial import build_unit
from tracin.engines.shares import stretches
from tracin.errors import IndexingError

if TYPE_CHECKING:
    import torch
    from tqdm.auto import tqdm


@final
@dataclass(frozen=True)
class Ranks:
    """Does this rank's share of the units, and then what others have not done yet.

    Ranks never communicate: each cuts the same list in the same way. A rank that has finished
    helps: it goes through the other shares from their far ends and does what is missing. A unit
    done twice gives the same file. So when `run` returns, all units of all ranks are done, also
    those of ranks that died; without `is_helping`, only this rank's own.

    Attributes:
        rank: This process, from 0.
        size: How many processes.
        local: This process among those on its machine.
        is_helping: Whether to do what other ranks have not done.

    Raises:
        IndexingError: `rank` does not lie between 0 and `size`.

    Example:
        >>> import tracin.engines
        >>> tracin.engines.Ranks.from_environment({"RANK": "2", "WORLD_SIZE": "8"})
        Ranks(rank=2, size=8, local=0, is_helping=True)
    """

    rank: int
    size: int
    local: int = 0
    is_helping: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise IndexingError(
                f"Ranks count from 0 to size - 1; got rank {self.rank} of {self.size}."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """The rank that torchrun, a SLURM array or srun gave this process, tried in this order.

        Args:
            environment: The variables; None takes those of this process.

        Raises:
            IndexingError: The variables are missing, or make no sense.
        """
        env = os.environ if environment is None else environment
        if "RANK" in env or "WORLD_SIZE" in env:
            rank, size = _whole_number("RANK", env), _whole_number("WORLD_SIZE", env)
            local = _whole_number("LOCAL_RANK", env) if "LOCAL_RANK" in env else 0
            return _checked_ranks(rank, size, local, ("RANK", "WORLD_SIZE"), env)
        if "SLURM_ARRAY_TASK_ID" in env:
            return _array_ranks(env)
        if "SLURM_PROCID" in env:
            rank, size = (
                _whole_number("SLURM_PROCID", env),
                _whole_number("SLURM_NTASKS", env),
            )
            local = _whole_number("SLURM_LOCALID", env) if "SLURM_LOCALID" in env else 0
            return _checked_ranks(rank, size, local, ("SLURM_PROCID", "SLURM_NTASKS"), env)
        raise IndexingError(
            "Ranks come from the environment: RANK and WORLD_SIZE (torchrun), SLURM_ARRAY_TASK_ID "
            "and the like (sbatch --array), or SLURM_PROCID and SLURM_NTASKS (srun); none is set. "
            "Start the program with one of these, or use tracin.engines.Processes."
        )

    def device(self) -> "torch.device":
        """A GPU of this rank's own on its machine, or the CPU; for `TracIn(device=...)`."""
        import torch

        count = torch.cuda.device_count()
        return torch.device("cuda", self.local % count) if count else torch.device("cpu")

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do this rank's share, then help.

        Raises:
            IndexingError: A unit raised an error, which is the cause of this one.
        """
        cuts = stretches([job.weight(unit) for unit in units], self.size)
        shares = [units[cut.start : cut.stop] for cut in cuts]
        own = shares[self.rank]
        places = missing(job, own)
        if not places and next(self.others(job, shares), None) is None:
            return
        # Many ranks often share one terminal: by default only one draws on it.
        is_shown = progress if progress is not None or self.rank == 0 else False
        with job_bar(job, own, places, is_shown) as shown, job.open() as build:
            for unit in (own[place] for place in places):
                _do(build, job, unit, shown)
            for unit in self.others(job, shares):
                shown.total += job.weight(unit)
                _do(build, job, unit, shown)

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """Refused: ranks never communicate.

        Raises:
            IndexingError: Always.
        """
        raise IndexingError(
            "Ranks never communicate, so none of them could collect the results of the others. "
            "Use tracin.integrations.ray.RayCluster, or tracin.engines.Processes on this machine."
        )

    def others(self, job: Job, shares: Sequence[Sequence[Unit]]) -> Iterator[Unit]:
        """The units that other ranks have not done, each checked when its turn comes."""
        if not self.is_helping:
            return
        for distance in range(1, self.size):
            share = shares[(self.rank + distance) % self.size]
            left = [unit for unit in reversed(share) if not job.is_done(unit)]
            # Helpers begin at different places, the nearest at the far end from the owner.
            start = (distance - 1) * len(left) // max(1, self.size - 1)
            for unit in left[start:] + left[:start]:
                if not job.is_done(unit):
                    yield unit


def _do(build: Callable[[Unit], object], job: Job, unit: Unit, shown: "tqdm[Any]") -> None:
    """Do a unit unless another rank has, and advance the bar."""
    if not job.is_done(unit):
        build_unit(build, unit)
    shown.update(job.weight(unit))


def _array_ranks(env: Mapping[str, str]) -> Ranks:
    """The rank of a SLURM array's task."""
    if env.get("SLURM_PROCID", "0") != "0":
        raise IndexingError(
            f"SLURM_PROCID is {env['SLURM_PROCID']} in task {env['SLURM_ARRAY_TASK_ID']} of an "
            "array, whose tasks are one process each. Use --ntasks=1 with --array, or srun alone."
        )
    first, step = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"
    start = _whole_number(first, env) if first in env else 0
    stride = _whole_number(step, env) if step in env else 1
    rank, rest = divmod(_whole_number("SLURM_ARRAY_TASK_ID", env) - start, max(1, stride))
    names = ("SLURM_ARRAY_TASK_ID", first, step, "SLURM_ARRAY_TASK_COUNT")
    return _checked_ranks(-1 if rest else rank, _whole_number(names[-1], env), 0, names, env)


def _whole_number(name: str, env: Mapping[str, str]) -> int:
    """A variable as a whole number."""
    if name not in env:
        raise IndexingError(f"{name} is not set, but related variables are. Set it as well.")
    try:
        return int(env[name])
    except ValueError as error:
        raise IndexingError(f"{name} must be a whole number; got {env[name]!r}.") from error


def _checked_ranks(
    rank: int, size: int, local: int, names: Sequence[str], env: Mapping[str, str]
) -> Ranks:
    """A rank from 0 to size - 1, or an error that names the variables."""
    if not 0 <= rank < size:
        shown = ", ".join(f"{name}={env.get(name, '')}" for name in names)
        raise IndexingError(
            f"The variables {shown} give no rank from 0 to size - 1. An array must be regular, "
            "such as --array=0-31 or --array=0-62:2."
        )
    return Ranks(rank, size, local)
