"""The measured error of the per-example gradients, parameter by parameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tracin.data import Examples, move
from tracin.gradients import Coverage
from tracin.gradients.forms import Form
from tracin.gradients.loop import loop_pass
from tracin.influence.walk import Walk
from tracin.plain_text import plain

# Half precision anywhere (autocast) makes errors of a few per cent; the user sees the figures.
ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-4}


@final
@dataclass(frozen=True)
class Verification:
    """For each parameter, the largest relative error against one backward pass an example.

    Attributes:
        errors: Parameter name -> largest error over examples and checkpoints, relative to the
            largest length of that parameter's gradients.
        coverage: The way that each parameter takes.
        dtype: The precision of the computation.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(2, 1).double()
        >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
        >>> data = torch.ones(4, 2).double(), torch.zeros(4).double()
        >>> run.verify(data).is_exact
        True
    """

    errors: Mapping[str, float]
    coverage: Coverage
    dtype: torch.dtype

    @property
    def allowed(self) -> float:
        """The largest error that rounding explains."""
        return ALLOWED[self.dtype]

    @property
    def worst(self) -> float:
        """The largest error of all."""
        return max(self.errors.values())

    @property
    def is_exact(self) -> bool:
        """Whether every error is one that rounding explains."""
        return self.worst <= self.allowed

    def __str__(self) -> str:
        width = max(len(plain(name)) for name in self.errors)
        lines = [
            f"{plain(name):<{width}}  {error:8.1e}  {self.coverage.entries[name].way}"
            for name, error in self.errors.items()
        ]
        verdict = "exact" if self.is_exact else "NOT exact"
        return "\n".join(
            [*lines, f"largest {self.worst:.1e}, allowed {self.allowed:.0e}: {verdict}"]
        )


def verified(walk: Walk, checkpoints: int, data: Examples, examples: int) -> dict[str, float]:
    """The largest relative error of each parameter over the first examples and all checkpoints."""
    gradients = walk.gradients
    errors = dict.fromkeys(gradients.parameters, 0.0)
    for number in range(checkpoints):
        with walk.at(number) as device:
            batch = move(data.take(range(examples)), device)
            gradients.check(batch)
            found: dict[str, Tensor] = {}

            def keep(name: str, form: Form, row: int, found: dict[str, Tensor] = found) -> None:
                rows = form.dense()
                found.setdefault(name, rows.new_zeros(examples, rows.shape[1]))
                found[name][row : row + form.examples] += rows

            gradients.visit(batch, keep)
            expected: dict[str, Tensor] = {}

            def expect(name: str, form: Form, expected: dict[str, Tensor] = expected) -> None:
                expected[name] = form.dense()

            loop_pass(gradients.model, gradients.compute, batch, gradients.parameters, expect)
            largest = max(float(rows.norm(dim=1).max()) for rows in expected.values())
            for name, rows in expected.items():
                gap = rows - found[name].to(rows) if name in found else rows
                # Below a millionth of the whole gradient a parameter's own is rounding noise.
                size = max(float(rows.norm(dim=1).max()), 1e-6 * largest)
                error = float(gap.norm(dim=1).max()) / size if size else 0.0
                errors[name] = max(errors[name], error)
    return errors
