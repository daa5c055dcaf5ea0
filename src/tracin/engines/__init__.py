"""Engines: who does the units of a long job: this process, several, ranks, or a mesh."""

from tracin.engines.gather import Gatherer
from tracin.engines.job import Engine, Job, Unit
from tracin.engines.mesh import Mesh
from tracin.engines.processes import Processes
from tracin.engines.ranks import Ranks
from tracin.engines.serial import Serial

__all__ = [
    "Engine",
    "Gatherer",
    "Job",
    "Mesh",
    "Processes",
    "Ranks",
    "Serial",
    "Unit",
]
