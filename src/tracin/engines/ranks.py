"""One of many processes that others start: torchrun, a SLURM array, srun. They never talk."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tracin.engines.job import Job, Unit, job_bar, missing
from tracin.engines.serial import done
from tracin.engines.shares import stretches
from tracin.errors import IndexingError

if TYPE_CHECKING:
    import torch
    from tqdm.auto import tqdm


@final
@dataclass(frozen=True)
class Ranks:
    """Does this rank's share of the units, and then what others have not done yet.

    Each rank cuts the same list in the same way, so they need not talk. A rank that has finished
    helps: it walks the other shares from their far ends and does what is missing. A unit done
    twice is the same file twice. So when `run` returns, all units of all ranks are done, also
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
                f"Ranks count from 0 to size - 1; rank {self.rank} of {self.size} was given."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Ranks":
        """The rank that torchrun, a SLURM array or srun gave this process, tried in this order.

        Args:
            environment: Variables; None takes this process's own.

        Raises:
            IndexingError: The variables are missing, or make no sense.
        """
        given = os.environ if environment is None else environment
        if "RANK" in given or "WORLD_SIZE" in given:
            rank, size = number("RANK", given), number("WORLD_SIZE", given)
            local = number("LOCAL_RANK", given) if "LOCAL_RANK" in given else 0
            return checked(rank, size, local, ("RANK", "WORLD_SIZE"), given)
        if "SLURM_ARRAY_TASK_ID" in given:
            return of_array(given)
        if "SLURM_PROCID" in given:
            rank, size = number("SLURM_PROCID", given), number("SLURM_NTASKS", given)
            local = number("SLURM_LOCALID", given) if "SLURM_LOCALID" in given else 0
            return checked(rank, size, local, ("SLURM_PROCID", "SLURM_NTASKS"), given)
        raise IndexingError(
            "Ranks come from the environment: RANK and WORLD_SIZE (torchrun), SLURM_ARRAY_TASK_ID "
            "and its kin (sbatch --array), or SLURM_PROCID and SLURM_NTASKS (srun); none is set. "
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
        # Many ranks often share one terminal: without being asked, only one draws on it.
        is_shown = progress if progress is not None or self.rank == 0 else False
        with job_bar(job, own, places, is_shown) as shown, job.open() as build:
            for unit in (own[place] for place in places):
                do(build, job, unit, shown)
            for unit in self.others(job, shares):
                shown.total += job.weight(unit)
                do(build, job, unit, shown)

    def gather(
        self, work: Callable[[Any], Any], parts: Sequence[Any], progress: bool | None = None
    ) -> list[Any]:
        """Refused: ranks never talk.

        Raises:
            IndexingError: Always.
        """
        raise IndexingError(
            "Ranks never talk to each other, so none of them could bring their results together. "
            "Use tracin.integrations.ray.RayCluster, or tracin.engines.Processes on this machine."
        )

    def others(self, job: Job, shares: Sequence[Sequence[Unit]]) -> Iterator[Unit]:
        """What other ranks have not done, each looked at when its turn comes."""
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


def do(build: Callable[[Unit], object], job: Job, unit: Unit, shown: "tqdm[Any]") -> None:
    """Do a unit unless another rank has, and show it."""
    if not job.is_done(unit):
        done(build, unit)
    shown.update(job.weight(unit))


def of_array(given: Mapping[str, str]) -> Ranks:
    """The rank of a SLURM array's task."""
    if given.get("SLURM_PROCID", "0") != "0":
        raise IndexingError(
            f"SLURM_PROCID is {given['SLURM_PROCID']} in task {given['SLURM_ARRAY_TASK_ID']} of an "
            "array, whose tasks are one process each. Use --ntasks=1 with --array, or srun alone."
        )
    first, step = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"
    start = number(first, given) if first in given else 0
    stride = number(step, given) if step in given else 1
    rank, rest = divmod(number("SLURM_ARRAY_TASK_ID", given) - start, max(1, stride))
    names = ("SLURM_ARRAY_TASK_ID", first, step, "SLURM_ARRAY_TASK_COUNT")
    return checked(-1 if rest else rank, number(names[-1], given), 0, names, given)


def number(name: str, given: Mapping[str, str]) -> int:
    """A variable as a whole number."""
    if name not in given:
        raise IndexingError(f"{name} is not set, though variables beside it are. Set it as well.")
    try:
        return int(given[name])
    except ValueError as error:
        raise IndexingError(f"{name} must be a whole number; it is {given[name]!r}.") from error


def checked(
    rank: int, size: int, local: int, names: Sequence[str], given: Mapping[str, str]
) -> Ranks:
    """A rank that lies in its world, or an error that names the variables."""
    if not 0 <= rank < size:
        said = ", ".join(f"{name}={given.get(name, '')}" for name in names)
        raise IndexingError(
            f"The variables {said} give no rank from 0 to size - 1. An array must be regular, such "
            "as --array=0-31 or --array=0-62:2."
        )
    return Ranks(rank, size, local)
