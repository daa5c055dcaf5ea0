"""The measured error of the per-example gradients and scores, against plain autograd."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from tracin.gradients import Coverage
from tracin.plain_text import plain
from tracin.precision import FLOAT64, Precision
from tracin.printed import Printed


def allowed(precision: Precision) -> float:
    """The error that rounding explains, relative to a whole gradient."""
    return 1e-10 if precision == FLOAT64 else precision.tolerance


@final
@dataclass(frozen=True, repr=False)
class Verification(Printed):
    """How far gradients and scores are from one ordinary backward pass per example.

    Errors are relative to the length of the example's whole gradient, over all traced parameters:
    a parameter whose true gradient is zero, such as the bias of the keys in attention, has only
    rounding errors of its own.

    Attributes:
        errors: Parameter name -> largest error over examples and checkpoints.
        scores: The largest error of a score between two of the examples, relative to the product
            of their lengths.
        coverage: How each parameter's gradients are computed.
        precision: The lowest that the model computes in; errors up to `allowed` are explained by
            it.
        compared: How the other gradients were computed, in words.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 1).double()
        >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
        >>> data = torch.ones(4, 2).double(), torch.zeros(4).double()
        >>> run.verify(data).is_exact
        True
    """

    errors: Mapping[str, float]
    scores: float
    coverage: Coverage
    precision: Precision
    compared: str

    @property
    def allowed(self) -> float:
        """The largest error that rounding explains."""
        return allowed(self.precision)

    @property
    def worst(self) -> float:
        """The largest error of all."""
        return max(self.scores, *self.errors.values())

    @property
    def is_exact(self) -> bool:
        """Whether every error is one that rounding explains."""
        return self.worst <= self.allowed

    def __str__(self) -> str:
        width = max(len(plain(name)) for name in [*self.errors, "(scores)"])
        lines = [
            f"{plain(name):<{width}}  {error:8.1e}  {self.coverage.entries[name].method}"
            for name, error in self.errors.items()
        ]
        verdict = "exact" if self.is_exact else "NOT exact"
        return "\n".join(
            [
                *lines,
                f"{'(scores)':<{width}}  {self.scores:8.1e}",
                f"relative to each example's whole gradient, by autograd {plain(self.compared)}",
                f"largest {self.worst:.1e}, allowed {self.allowed:.0e} since the model computes in "
                f"{self.precision.name}: {verdict}",
            ]
        )
