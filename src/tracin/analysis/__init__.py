"""What to make of scores: how many wrong labels a ranking finds, and wrong labels to try it on."""

from tracin.analysis.found import FoundCurve as FoundCurve
from tracin.analysis.found import found_fraction as found_fraction
from tracin.analysis.noise import flip_labels as flip_labels
