"""Forms: how per-example gradients are held, and the products between them."""

from tracin.gradients.forms.aligned import aligned_products
from tracin.gradients.forms.cancellation import cancelled, checked_squared_norm
from tracin.gradients.forms.computed import Computed
from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import PerExampleGradient
from tracin.gradients.forms.growing import Growing
from tracin.gradients.forms.low_rank import at_rank
from tracin.gradients.forms.outer import OuterProduct
from tracin.gradients.forms.patches import ConvFactors, Geometry
from tracin.gradients.forms.products import ProductCache, added, as_query, pairs
from tracin.gradients.forms.real import in_real_numbers, is_complex, real_part, real_shape
from tracin.gradients.forms.rows import SparseRows
from tracin.gradients.forms.scaled import scaled, scaled_factors, scaled_in_parts
from tracin.gradients.forms.scaled_entries import ScaledEntries
from tracin.gradients.forms.scaled_rows import ScaledRows
from tracin.gradients.forms.slot import Slot
from tracin.gradients.forms.stacked import Stacked
from tracin.gradients.forms.streamed import Streamed
from tracin.gradients.forms.summed_products import HALF, full
from tracin.gradients.forms.total import SumOf, total

__all__ = [
    "HALF",
    "Computed",
    "ConvFactors",
    "Dense",
    "Geometry",
    "Growing",
    "OuterProduct",
    "PerExampleGradient",
    "ProductCache",
    "ScaledEntries",
    "ScaledRows",
    "Slot",
    "SparseRows",
    "Stacked",
    "Streamed",
    "SumOf",
    "added",
    "aligned_products",
    "as_query",
    "at_rank",
    "cancelled",
    "checked_squared_norm",
    "full",
    "in_real_numbers",
    "is_complex",
    "pairs",
    "real_part",
    "real_shape",
    "scaled",
    "scaled_factors",
    "scaled_in_parts",
    "total",
]
