"""The measured error of the per-example gradients and scores, against plain autograd."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from tracin.data import Examples, move
from tracin.gradients import Coverage
from tracin.influence.comparison import Comparison, allowed, copied
from tracin.influence.walk import Walk
from tracin.plain_text import plain
from tracin.precision import FLOAT64, Precision, lowest


@final
@dataclass(frozen=True)
class Verification:
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
            f"{plain(name):<{width}}  {error:8.1e}  {self.coverage.entries[name].way}"
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


def verified(
    walk: Walk,
    names: Sequence[str],
    data: Examples,
    examples: int,
    covered: Callable[[], Coverage],
) -> Verification:
    """Compare the first examples at all checkpoints.

    Args:
        walk: The model at its checkpoints.
        names: Of the checkpoints.
        data: Where the examples are from.
        examples: How many.
        covered: Gives the coverage, once the passes are done.

    Raises:
        NonFiniteError: A loss or a gradient is NaN or infinite.
    """
    errors = dict.fromkeys(walk.gradients.parameters, 0.0)
    scores, precision, compared = 0.0, FLOAT64, ""
    for number, name in enumerate(names):
        with walk.at(number) as device:
            # Examples that come alone make several batches.
            for positions, batch in data.batches(examples, stop=examples):
                batch = move(batch, device)
                ids = data.ids[positions.start : positions.stop]
                walk.gradients.check(copied(batch))
                comparison = Comparison(walk.gradients, batch, name, ids)
                for gaps in comparison.gaps():
                    scores = max(scores, gaps.scores)
                    errors = {each: max(error, gaps.errors[each]) for each, error in errors.items()}
                precision = lowest([precision, comparison.precision], device)
                compared = comparison.compared
    return Verification(errors, scores, covered(), precision, compared)
