"""Rules: how each torch function's parameters get their per-example gradients."""

from tracin.gradients.rules import (  # noqa: F401  # importing a file registers its rules
    broadcast,
    convolution,
    embedding,
    linear,
    local,
    normalisation,
)
from tracin.gradients.rules.rule import Leaf, NoRule, Use, mark, plain, rule_for

__all__ = ["Leaf", "NoRule", "Use", "mark", "plain", "rule_for"]
