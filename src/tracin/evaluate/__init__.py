"""How good scores are, on your own problem: measures with intervals, with and without retraining.

See docs/evaluate.md. Measures that `tracin.analysis` has are here too, under the same names.
"""

from tracin.analysis.found import found_curve as found_curve
from tracin.analysis.leave_one_out import leave_one_out as leave_one_out
from tracin.analysis.rank_stability import rank_stability as rank_stability
from tracin.analysis.remove_and_retrain import remove_and_retrain as remove_and_retrain
from tracin.evaluate.compare_methods import Texts as Texts
from tracin.evaluate.compare_methods import compare_methods as compare_methods
from tracin.evaluate.duplicates import duplicates as duplicates
from tracin.evaluate.evaluation import Evaluation as Evaluation
from tracin.evaluate.evaluation import MethodResult as MethodResult
from tracin.evaluate.identical_class import IdenticalClass as IdenticalClass
from tracin.evaluate.identical_class import identical_class as identical_class
from tracin.evaluate.lds import LDS as LDS
from tracin.evaluate.lds import LDSComparison as LDSComparison
from tracin.evaluate.lds import compare_lds as compare_lds
from tracin.evaluate.lds import lds as lds
from tracin.evaluate.methods import Method as Method
from tracin.evaluate.methods import standard_methods as standard_methods
from tracin.evaluate.query_mean import QueryMean as QueryMean
from tracin.evaluate.randomised import randomised as randomised
from tracin.evaluate.randomised import randomised_run as randomised_run
from tracin.evaluate.retrained_losses import FitsMany as FitsMany
from tracin.evaluate.retrained_losses import RetrainedLosses as RetrainedLosses
from tracin.evaluate.retrained_losses import retrained_losses as retrained_losses
from tracin.evaluate.retrieval import Retrieval as Retrieval
from tracin.evaluate.retrieval import retrieval as retrieval
from tracin.evaluate.stacked_fit import StackedFit as StackedFit
from tracin.evaluate.subsets import half_subsets as half_subsets
from tracin.evaluate.tail_patch import TailPatch as TailPatch
from tracin.evaluate.tail_patch import tail_patch as tail_patch
