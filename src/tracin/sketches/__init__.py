"""Sketches: rows of numbers whose products estimate those of gradients."""

from tracin.sketches.columns import Columns, Dot, Product, Side
from tracin.sketches.error_bars import standard_error
from tracin.sketches.pilot import Pilot
from tracin.sketches.plan import Plan
from tracin.sketches.planning import PILOT, drafted, follows_from_shapes, planned
from tracin.sketches.projection import Projection
from tracin.sketches.sketcher import Sketcher
from tracin.sketches.spreads import Spreads

__all__ = [
    "PILOT",
    "Columns",
    "Dot",
    "Pilot",
    "Plan",
    "Product",
    "Projection",
    "Side",
    "Sketcher",
    "Spreads",
    "drafted",
    "follows_from_shapes",
    "planned",
    "standard_error",
]
