"""What to make of scores: how much a ranking finds, what it is worth, how far it can be trusted."""

from tracin.analysis.explained_share import ExplainedShare as ExplainedShare
from tracin.analysis.explained_share import explained_share as explained_share
from tracin.analysis.fix_and_retrain import fix_and_retrain as fix_and_retrain
from tracin.analysis.found import FoundCurve as FoundCurve
from tracin.analysis.found import found_curve as found_curve
from tracin.analysis.found_comparison import FoundComparison as FoundComparison
from tracin.analysis.found_comparison import compare_found as compare_found
from tracin.analysis.leave_one_out import LeaveOneOut as LeaveOneOut
from tracin.analysis.leave_one_out import leave_one_out as leave_one_out
from tracin.analysis.noise import ConfusionNoise as ConfusionNoise
from tracin.analysis.noise import HighestWrong as HighestWrong
from tracin.analysis.noise import NoisyLabels as NoisyLabels
from tracin.analysis.noise import UniformWrong as UniformWrong
from tracin.analysis.noise import noisy_labels as noisy_labels
from tracin.analysis.rank_stability import RankStability as RankStability
from tracin.analysis.rank_stability import rank_stability as rank_stability
from tracin.analysis.remove_and_retrain import remove_and_retrain as remove_and_retrain
from tracin.analysis.retraining_curve import RetrainingCurve as RetrainingCurve
from tracin.analysis.training_losses import checkpoint_losses as checkpoint_losses
