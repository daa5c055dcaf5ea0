"""Engines run the units of a long job: in this process, in several, on ranks, or on a mesh."""

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
