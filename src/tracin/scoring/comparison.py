"""Per-example gradients beside those of the slow twin, at the checkpoint in place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.data import Batch, copied, length
from tracin.errors import TracInError
from tracin.gradients import Gradients
from tracin.gradients.forms import Dense, PerExampleGradient, as_query, pairs
from tracin.results.verification import allowed
from tracin.scoring.finite import refuse_non_finite
from tracin.slow_twin import AS_THEY_ARE, IN_FLOAT64, THEMSELVES, Own, SlowTwin, Weights

# Numbers of the twin's gradients that are held at once: 512 MB in float64.
_HELD = 1 << 26


@final
@dataclass(frozen=True)
class Gaps:
    """How far some examples' gradients are from the twin's, relative to their lengths.

    Attributes:
        errors: The largest over the examples, by parameter.
        scores: The largest of their products with each other.
    """

    errors: Mapping[str, float]
    scores: float


@final
class Comparison:
    """The same batch by both, a few examples at a time.

    Attributes:
        precision: The lowest that the model itself computes in.
    """

    def __init__(
        self, gradients: Gradients, batch: Batch, checkpoint: str, ids: np.ndarray
    ) -> None:
        self._gradients = gradients
        self._batch = batch
        self._checkpoint, self._ids = checkpoint, ids
        twin = SlowTwin(gradients.model, gradients.compute, gradients.parameters)
        self._plain = _Willing(twin, [AS_THEY_ARE, THEMSELVES])
        self._finest = _Willing(twin, [IN_FLOAT64, AS_THEY_ARE, THEMSELVES])
        self.precision = self._plain.own(batch, 0).precision

    @property
    def compared(self) -> str:
        """How the twin computes, in words."""
        return self._finest.words

    def gaps(self) -> Iterator[Gaps]:
        """Compare the examples of the batch, as many at a time as may be held."""
        examples = length(self._batch)
        numbers = sum(parameter.numel() for parameter in self._gradients.parameters.values())
        step = max(1, _HELD // max(1, numbers))
        for start in range(0, examples, step):
            yield self._gaps(range(start, min(start + step, examples)))

    def _gaps(self, rows: range) -> Gaps:
        errors, scores = self._apart(rows, self._finest)
        most = max(float(errors.max()), float(scores.max()))
        if most > allowed(self.precision) and self._finest.weights != self._plain.weights:
            # Where rounding decides on which side of a kink an input is, or which expert it goes
            # to, float64 has another gradient, and the model's own precision may have ours.
            plain_errors, plain_scores = self._apart(rows, self._plain)
            is_nearer = plain_errors.amax(0) < errors.amax(0)
            errors = torch.where(is_nearer, plain_errors, errors)
            scores = torch.minimum(scores, plain_scores)
        largest = errors.amax(1).tolist()
        names = self._gradients.parameters
        return Gaps(dict(zip(names, largest, strict=True)), float(scores.max()))

    def _apart(self, rows: range, twin: "_Willing") -> tuple[Tensor, Tensor]:
        """The errors of gradients [parameters, rows] and of products [rows, rows]."""
        owns = [twin.own(self._batch, row) for row in rows]
        lengths = torch.tensor([own.length() for own in owns], dtype=torch.float64)
        self._refuse_non_finite(torch.stack([own.loss for own in owns]), rows, "loss")
        self._refuse_non_finite(lengths, rows, "gradient")
        beside = _Beside(owns, rows)
        self._gradients.visit(copied(self._batch), beside.visit)
        self._refuse_non_finite(beside.errors().sum(0), rows, "gradient")
        self._refuse_non_finite(beside.scores(), rows, "gradient")
        return _relative(beside.errors(), lengths), _relative(
            beside.scores(), lengths.outer(lengths)
        )

    def _refuse_non_finite(self, values: Tensor, rows: range, what: str) -> None:
        refuse_non_finite(values, rows, self._ids, self._checkpoint, what, "example")


@final
class _Beside:
    """Takes what the engine gives, and notes how far it is from the twin's gradients."""

    def __init__(self, owns: list[Own], rows: range) -> None:
        self._rows = rows
        self._truth = {
            # Each gradient goes as it is stacked: in float64 one is two models large.
            name: _stacked([own.gradient.pop(name) for own in owns])
            for name in list(owns[0].gradient)
        }
        # As if the engine gave nothing, which is right where a gradient is zero.
        self._errors = {name: _lengths(truth) for name, truth in self._truth.items()}
        self._scores = {name: -_exact(truth @ truth.mT) for name, truth in self._truth.items()}

    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take some rows of one parameter; each row comes once."""
        start, stop = max(row, self._rows.start), min(row + form.examples, self._rows.stop)
        if start >= stop:
            return
        here, truth = form.part(start - row, stop - row), self._truth[name]
        at = slice(start - self._rows.start, stop - self._rows.start)
        apart = _real(here.dense()).to(truth, copy=True).sub_(truth[at])
        self._errors[name][at] = _lengths(apart)
        del apart
        # As scores are made: forms by forms, where all the rows are there.
        is_whole = stop - start == len(self._rows)
        query = here if is_whole else Dense(truth.to(_real(here.part(0, 1).dense())))
        products = _exact(pairs(here, as_query(query)))
        self._scores[name][at] = products - _exact(truth[at] @ truth.mT)

    def errors(self) -> Tensor:
        """The length of each difference: [parameters, rows]."""
        return torch.stack(list(self._errors.values()))

    def scores(self) -> Tensor:
        """How far the sums over all parameters are apart: [rows, rows]."""
        return torch.stack(list(self._scores.values())).sum(0).abs()


@final
class _Willing:
    """The slow twin with the first of some weights that the model runs with."""

    def __init__(self, twin: SlowTwin, choices: list[Weights]) -> None:
        self._twin = twin
        self._choices = choices
        self._reasons: list[str] = []

    @property
    def weights(self) -> Weights:
        return self._choices[0]

    @property
    def words(self) -> str:
        return "; ".join([self.weights.name, *self._reasons])

    def own(self, batch: Batch, row: int) -> Own:
        while True:
            try:
                return self._twin.own(batch, row, self.weights)
            except Exception as error:  # a model that mixes precisions may raise anything
                if len(self._choices) == 1:
                    raise
                line = (str(error).strip().splitlines() or [type(error).__name__])[0]
                told = line if isinstance(error, TracInError) else line[:100]  # ours say a way out
                self._reasons.append(f"{self.weights.name}: {told}")
                self._choices = self._choices[1:]


def _stacked(rows: list[Tensor]) -> Tensor:
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)


def _relative(gaps: Tensor, sizes: Tensor) -> Tensor:
    """Where the size is zero, there is no error or it is infinite."""
    return torch.where(gaps == 0, 0.0, gaps / sizes)


def _lengths(rows: Tensor) -> Tensor:
    return _exact(torch.linalg.vector_norm(rows, dim=1))


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()  # in this order: not every device has float64


def _real(rows: Tensor) -> Tensor:
    return torch.view_as_real(rows.resolve_conj()).flatten(1) if rows.is_complex() else rows
