"""How good scores are, on your own problem: measures with intervals, with and without retraining.

See docs/evaluate.md.
"""

from tracin.evaluate.lds import LDS as LDS
from tracin.evaluate.lds import LDSComparison as LDSComparison
from tracin.evaluate.lds import compare_lds as compare_lds
from tracin.evaluate.lds import lds as lds
from tracin.evaluate.retrained_losses import FitsMany as FitsMany
from tracin.evaluate.retrained_losses import RetrainedLosses as RetrainedLosses
from tracin.evaluate.retrained_losses import retrained_losses as retrained_losses
from tracin.evaluate.stacked_fit import StackedFit as StackedFit
from tracin.evaluate.subsets import half_subsets as half_subsets
