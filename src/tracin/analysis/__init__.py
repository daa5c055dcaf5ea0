"""What to make of scores: how much a ranking finds, what it is worth, how far it can be trusted."""

from tracin.analysis.found import FoundCurve as FoundCurve
from tracin.analysis.found import found_curve as found_curve
from tracin.analysis.found_comparison import FoundComparison as FoundComparison
from tracin.analysis.found_comparison import compare_found as compare_found
from tracin.analysis.noise import ConfusionNoise as ConfusionNoise
from tracin.analysis.noise import HighestWrong as HighestWrong
from tracin.analysis.noise import NoisyLabels as NoisyLabels
from tracin.analysis.noise import UniformWrong as UniformWrong
from tracin.analysis.noise import noisy_labels as noisy_labels
