"""The callback that takes per-example gradients, the same wherever gradients are handed on."""

from collections.abc import Callable

from tracin.gradients.forms import PerExampleGradient

# visit(name, gradients, row): the parameter, its gradients for consecutive examples, and the row of
# the batch that the first of them is.
Visit = Callable[[str, PerExampleGradient, int], None]
