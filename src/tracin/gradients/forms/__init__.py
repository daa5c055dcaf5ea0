"""Forms: how per-example gradients are held, and the products between them."""

from tracin.gradients.forms.aligned import aligned
from tracin.gradients.forms.computed import Computed
from tracin.gradients.forms.dense import Dense
from tracin.gradients.forms.form import Form
from tracin.gradients.forms.outer import Outer
from tracin.gradients.forms.patches import Geometry, Patches
from tracin.gradients.forms.products import Memo, added, as_query, pairs
from tracin.gradients.forms.real import in_real_numbers, is_complex, real_part, real_shape
from tracin.gradients.forms.rows import Rows
from tracin.gradients.forms.scaled import scaled
from tracin.gradients.forms.scaled_entries import ScaledEntries
from tracin.gradients.forms.scaled_rows import ScaledRows
from tracin.gradients.forms.slot import Slot
from tracin.gradients.forms.stacked import Stacked
from tracin.gradients.forms.total import Total, total

__all__ = [
    "Computed",
    "Dense",
    "Form",
    "Geometry",
    "Memo",
    "Outer",
    "Patches",
    "Rows",
    "ScaledEntries",
    "ScaledRows",
    "Slot",
    "Stacked",
    "Total",
    "added",
    "aligned",
    "as_query",
    "in_real_numbers",
    "is_complex",
    "pairs",
    "real_part",
    "real_shape",
    "scaled",
    "total",
]
