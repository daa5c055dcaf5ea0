"""Sketches: rows of numbers whose products estimate those of gradients."""

from tracin.sketches.columns import Columns, Dot, Product, Side
from tracin.sketches.error_bars import standard_error
from tracin.sketches.plan import Plan
from tracin.sketches.planning import planned
from tracin.sketches.projection import Projection
from tracin.sketches.sketcher import Sketcher

__all__ = [
    "Columns",
    "Dot",
    "Plan",
    "Product",
    "Projection",
    "Side",
    "Sketcher",
    "planned",
    "standard_error",
]
