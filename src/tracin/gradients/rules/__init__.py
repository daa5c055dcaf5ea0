"""Rules: how each torch function's parameters get their per-example gradients."""

from tracin.gradients.rules import (  # noqa: F401  # importing a file registers its rules
    broadcast,
    contraction,
    convolution,
    embedding,
    linear,
    local,
    normalisation,
)
from tracin.gradients.rules.rule import Leaf, NoRule, Step, Use, mark, plain, rule_for
from tracin.gradients.rules.steps import steps_of

__all__ = ["Leaf", "NoRule", "Step", "Use", "mark", "plain", "rule_for", "steps_of"]
