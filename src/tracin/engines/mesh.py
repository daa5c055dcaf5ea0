"""All ranks of a torchrun together, for a model that is too large for one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from tracin.engines.job import Job, Unit, missing
from tracin.engines.serial import build_units
from tracin.errors import IndexingError


@final
@dataclass(frozen=True)
class Mesh:
    """Does the units with a model that `torch.distributed.fsdp.fully_shard` has sharded.

    All ranks do all units together, in order: each takes part of a unit's examples, and rank 0
    writes the files. Every rank must make the same calls. An error that all ranks can detect is
    raised on all; one in the middle of a pass (out of memory) ends its rank, and the launcher,
    such as torchrun, ends the others.

    Example:
        >>> import tracin.engines
        >>> engine = tracin.engines.Mesh()  # run.index(train, folder, engine=engine)
    """

    def run(self, job: Job, units: Sequence[Unit], progress: bool | None = None) -> None:
        """Do the units that are not done.

        Raises:
            IndexingError: torch.distributed is not initialised, or a unit raised an error.
        """
        from torch import distributed

        from tracin.sharding import by_first, is_first

        if not distributed.is_available() or not distributed.is_initialized():
            raise IndexingError(
                "tracin.engines.Mesh needs all ranks of a torchrun, but torch.distributed is not "
                "initialised here. Start the program by torchrun, and call "
                "torch.distributed.init_process_group() and fully_shard(model) in it."
            )
        # Many ranks often share one terminal: by default only one draws on it.
        is_shown = progress if progress is not None or is_first() else False
        build_units(job, units, by_first(partial(missing, job, units)), is_shown)
