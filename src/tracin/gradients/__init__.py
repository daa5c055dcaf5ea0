"""Per-example gradients and their algebra, for any model, never materialised unless cheaper."""

from tracin.gradients.coverage import Coverage, Covered, Way
from tracin.gradients.engine import ChangedPlacesError, Gradients, LateError

__all__ = ["ChangedPlacesError", "Coverage", "Covered", "Gradients", "LateError", "Way"]
