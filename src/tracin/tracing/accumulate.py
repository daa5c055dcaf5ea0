"""Adds what each step did to the scores: every example's share of the queries' loss drops."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from tracin.errors import NonFiniteError, TracingWarning
from tracin.gradients.forms import PerExampleGradient, ProductCache, checked_squared_norm
from tracin.tracing.folder import add_rows
from tracin.tracing.gradient_use import guessed_use, measured_use
from tracin.tracing.live_queries import LiveQueryGradients
from tracin.tracing.micro_batches import MicroBatch
from tracin.tracing.paths import Quadrature
from tracin.tracing.raw_gradients import RawGradients
from tracin.tracing.resume import ResumableTrace
from tracin.tracing.step import StepInputs, StepParts
from tracin.tracing.step_queries import StepQueries
from tracin.tracing.step_table import PARTS, StepRow
from tracin.tracing.traced_parameters import TracedParameters
from tracin.tracing.updates import StepTaken, rule_of

# How far the sum over examples may be from the gradient's own product, for one query per step.
AGREED = 1e-4

# The share of a gradient's length above which a warning says that it belongs to no example.
NOTICED = 0.01

# While nothing changes the gradients on their way, they are compared every so many steps.
COMPARED_EVERY = 10


@final
class ScoreAccumulator:
    """Shares out one step after the other; `ids` name an example in errors."""

    def __init__(
        self,
        trace: ResumableTrace,
        optimizer: Optimizer,
        parameters: TracedParameters,
        raw: RawGradients,
        queries: StepQueries,
        paths: Sequence[Quadrature],
        ids: np.ndarray,
    ) -> None:
        self._trace, self._optimizer, self._rule = trace, optimizer, rule_of(optimizer)
        self._parameters, self._raw, self._queries = parameters, raw, queries
        self._paths, self._ids = tuple(paths), ids
        self._positions = sorted({position for path in paths for position, _ in path.points})
        self._has_warned = False
        self._is_new = True

    def expect_new_parameters(self) -> None:
        """Other parameters are traced from the next step on."""
        self._is_new = True

    def add(self, inputs: StepInputs, batches: list[MicroBatch]) -> None:
        """Add a step that was just taken."""
        parts = self._parts(inputs, batches)
        rows = []
        for chunk in self._queries.chunks:
            try:
                row, parts = self._add_chunk(chunk, parts, batches)
            except NonFiniteError:
                # What a training example did to the weights is the reason that helps.
                self._refuse_non_finite([_squared_lengths(each) for each in batches], batches)
                raise
            rows.append(row)
        self._warn_unattributed(parts)
        self._add_self_influence(parts, batches)
        self._trace.tables.steps.append(
            StepRow(
                self._trace.step,
                sum(len(batch) for batch in batches),
                int(batches[0].positions[0]),
                _concatenated([row.before for row in rows]),
                _concatenated([row.after for row in rows]),
                _concatenated([row.buffers for row in rows]),
                {
                    path: {
                        part: _concatenated([row.parts[path][part] for row in rows])
                        for part in PARTS
                    }
                    for path in self._paths
                },
            )
        )

    def _parts(self, inputs: StepInputs, batches: list[MicroBatch]) -> StepParts:
        """Take the step apart by the optimizer's rule and the use that it made of each gradient."""
        traced, before, raw = self._parameters.traced, self._parameters.before, self._raw.latest
        updates = {
            name: self._rule(
                StepTaken(
                    inputs.options[name],
                    self._optimizer.state[traced[name]],
                    before[name],
                    gradient / inputs.scale if inputs.scale != 1 else gradient,
                )
            )
            for name, gradient in inputs.gradients.items()
        }
        uses = {
            name: measured_use(batches, name, gradient)
            if self._is_new or name not in raw
            else guessed_use(raw[name], gradient, inputs.versions[name])
            for name, gradient in inputs.gradients.items()
        }
        self._is_new = False
        return StepParts(inputs, updates, uses)

    def _add_chunk(
        self, chunk: range, parts: StepParts, batches: list[MicroBatch]
    ) -> "tuple[_ChunkRow, StepParts]":
        """Add what a step did for some queries to the scores, and return its parts."""
        queries = self._queries.along(chunk, self._positions)
        gradients = queries.at
        scores = {at: _scores(gradients[at], parts, batches) for at in self._positions}
        for found in scores.values():
            self._refuse_non_finite(found, batches)
        first = self._positions[0]
        if not self._adds_up(gradients[first], scores[first], parts):
            parts = parts.measured(batches)
            scores = {at: _scores(gradients[at], parts, batches) for at in self._positions}
        own = {
            at: {part: gradients[at].along(terms) for part, terms in parts.own.items()}
            for at in self._positions
        }
        sums: dict[Quadrature, dict[str, Tensor]] = {}
        for path in self._paths:
            total = torch.zeros(len(chunk), dtype=torch.float64)
            for number, batch in enumerate(batches):
                rows = _weighted([(weight, scores[at][number]) for at, weight in path.points])
                table = self._trace.tables.scores(path)[:, chunk.start : chunk.stop]
                add_rows(table, batch.positions, rows)
                total += rows.sum(0).cpu().double()
            sums[path] = {
                part: torch.stack([weight * own[at][part] for at, weight in path.points]).sum(0)
                for part in PARTS[1:]
            }
            sums[path][PARTS[0]] = total
        row = _ChunkRow(queries.before, queries.after, queries.before - queries.start, sums)
        return row, parts

    def _adds_up(
        self, gradients: LiveQueryGradients, scores: list[Tensor], parts: StepParts
    ) -> bool:
        """Whether the examples' parts add up to the whole gradient's, for one query per step."""
        step = self._trace.step
        is_settled = parts.is_untouched and step >= COMPARED_EVERY and not self._has_warned
        if is_settled and step % COMPARED_EVERY:
            return True
        query = step % len(gradients.losses)
        total = sum(float(each[:, query].sum()) for each in scores)
        size = sum(float(each[:, query].abs().sum()) for each in scores)
        expected = float(gradients.only(query).along(parts.directions())[0])
        return abs(total - expected) <= AGREED * size + 1e-12

    def _warn_unattributed(self, parts: StepParts) -> None:
        """Say once that gradients hold something that no example brought."""
        if parts.rest > NOTICED and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{parts.rest:.0%} of the gradient at step {self._trace.step} came from no traced "
                "batch: a penalty in the loss, noise, or a backward pass outside of tracer.batch. "
                "It is listed apart as 'unattributed' (goodness()), and belongs to no example.",
                TracingWarning,
                stacklevel=2,
            )

    def _refuse_non_finite(self, found: list[Tensor], batches: Sequence[MicroBatch]) -> None:
        """Name the example whose numbers are NaN or infinite, before they enter the tables."""
        for batch, rows in zip(batches, found, strict=True):
            wrong = ~torch.isfinite(rows).reshape(len(batch), -1).all(1)
            if bool(wrong.any()):
                one = int(batch.positions[int(wrong.nonzero()[0])])
                raise NonFiniteError(
                    f"The gradient of training example {self._ids.tolist()[one]!r} is NaN or "
                    f"infinite in step {self._trace.step}, as are those of {int(wrong.sum())} of "
                    f"its batch of {len(batch)}: the training data or the loss is, or training "
                    "diverges. Leave the example out, or lower the learning rate; the trace holds "
                    "what was saved before."
                )

    def _add_self_influence(self, parts: StepParts, batches: list[MicroBatch]) -> None:
        for batch in batches:
            total = torch.zeros(len(batch), dtype=torch.float64)
            for name, form in batch.forms.items():
                if name in parts.scales:
                    scale = parts.scales[name]
                    if isinstance(scale, Tensor):
                        norms = form.squared_norm_under(scale.flatten())
                    else:
                        norms = checked_squared_norm(form).mul_(scale)
                    total += norms.cpu().double()
            self._refuse_non_finite([total], [batch])
            if batch.weights is None or self._trace.unweighed:
                return
            # An example that has weight 0 has no share.
            own = torch.where(total > 0, total / (batch.weights * batch.scale), 0.0)
            add_rows(self._trace.tables.self_influence, batch.positions, own)


@final
@dataclass(frozen=True, eq=False)
class _ChunkRow:
    before: Tensor
    after: Tensor
    buffers: Tensor
    parts: Mapping[Quadrature, Mapping[str, Tensor]]


def _scores(
    gradients: LiveQueryGradients, parts: StepParts, batches: list[MicroBatch]
) -> list[Tensor]:
    """What each micro-batch's examples did for the queries: [examples, queries] each."""
    scores = []
    for batch in batches:
        cache = ProductCache()
        by_scale: dict[float, Tensor] = {}  # most parameters have the same learning rate
        for name, form in batch.forms.items():
            scale = parts.scales.get(name)
            if scale is None:
                continue
            key, scaled = (1.0, scale) if isinstance(scale, Tensor) else (scale, None)
            each = gradients.products(name, form, scaled, cache)
            if each is not None:
                by_scale[key] = by_scale[key].add_(each) if key in by_scale else each
        total: Tensor | None = None
        for scale, each in by_scale.items():
            each.mul_(scale)
            total = each if total is None else total.add_(each)
        if total is None:
            total = torch.zeros(len(batch), len(gradients.losses))
        scores.append(total)
    return scores


def _squared_lengths(batch: MicroBatch) -> Tensor:
    """The squared length of each example's gradient over all parameters: [examples]."""
    forms: Sequence[PerExampleGradient] = list(batch.forms.values())
    return torch.stack([checked_squared_norm(form).cpu().double() for form in forms]).sum(0)


def _weighted(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The sum of weight x tensor."""
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    total = terms[0][0] * terms[0][1]
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total


def _concatenated(chunks: list[Tensor]) -> Tensor:
    return torch.cat(chunks) if chunks else torch.zeros(0)
