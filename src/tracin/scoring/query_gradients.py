"""The gradients of the queries at one checkpoint, in the form that is cheapest to multiply."""

from collections.abc import Mapping
from typing import TypeAlias, final

import torch
from torch import Tensor

from tracin.data import Batch, length
from tracin.gradients import Gradients
from tracin.gradients.forms import (
    PerExampleGradient,
    ProductCache,
    added,
    as_query,
    checked_squared_norm,
    pairs,
    total,
)
from tracin.preconditioners import JointMetric, Metric
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.facts_of import facts_of
from tracin.scoring.joint_sums import JointSums

Forms: TypeAlias = dict[str, list[tuple[int, PerExampleGradient]]]
"""Parameter -> gradients of some rows of a batch, each with the first of its rows."""

# Up to this many queries, forward mode is cheaper than writing fallback gradients out.
FEW = 4


@final
class QueryGradients:
    """The gradients of a set of queries, or of their sum, by parameter.

    Args:
        weights: What each parameter's share of the scores is multiplied by.
        together: Whether the queries are one, their sum.
        metric: What multiplies the queries' gradients; None for nothing. It is symmetric, and
            applied here, g . (M q) = (M g) . q: those of training examples stay factored. Of a
            joint one, the queries' products with its directions are kept.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        together: bool,
        metric: Metric | JointMetric | None = None,
    ) -> None:
        self._weights = weights
        self._together = together
        self._joint = metric if isinstance(metric, JointMetric) else None
        self._metric = None if isinstance(metric, JointMetric) else metric
        self._directions: list[Tensor] = []  # products with those of the joint metric
        self._sums: dict[str, PerExampleGradient] = {}
        self._sums_under: dict[str, PerExampleGradient] = {}
        self._blocks: list[tuple[int, Forms]] = []
        self._facts: list[ExampleFacts] = []
        self.norms = torch.zeros(0)  # [queries]: weighted squared lengths

    def add(self, gradients: Gradients, batch: Batch, *, is_last: bool) -> Tensor:
        """Add a batch of queries; returns their losses: [queries]."""
        forms: Forms = {}
        under: Forms = {}
        size = length(batch)
        sums = None if self._joint is None else JointSums(size, self._joint)

        def keep(name: str, form: PerExampleGradient, row: int) -> None:
            if sums is not None:
                with torch.no_grad():
                    sums.add(name, form, row)
            if not self._together:
                forms.setdefault(name, []).append((row, form))
                return
            forms.setdefault(name, []).append((0, added(form)))
            if self._metric is not None:
                for other, share in self._metric.scaled_sum(name, form).items():
                    under.setdefault(other, []).append((0, share))

        result = gradients.visit(batch, keep, is_last=is_last)
        self._facts.append(facts_of(result.outcome))
        with torch.no_grad():  # factors may still know the graph that they came from
            if sums is not None:
                self._directions.append(sums.products(result.losses))
            if self._together:
                self._add_up(forms, forms if self._metric is None else under)
            else:
                block = {
                    name: [(row, as_query(form)) for row, form in each]
                    for name, each in self._under_metric(forms).items()
                }
                self._blocks.append((size, block))
                norms = self._weighted_norms(forms, size, result.losses)
                if self._joint is not None:
                    norms = self._joint_norms(norms, self._directions[-1])
                self.norms = torch.cat([self.norms.to(norms), norms])
        return result.losses

    def __len__(self) -> int:
        return sum(size for size, _ in self._blocks)

    @property
    def facts(self) -> ExampleFacts | None:
        """What the loss says of the queries: [queries]; None where there are none."""
        return ExampleFacts.joined(self._facts)

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the scores of a batch: [examples, queries]; None if zero."""
        weight = self._weights[name]
        if len(self._blocks) == 1 and len(self._blocks[0][1].get(name, [])) == 1:
            _, query = self._blocks[0][1][name][0]
            if query.examples == len(self):
                return pairs(form, query, cache).mul(weight)
        columns, is_used = [], False
        for size, block in self._blocks:
            scores = None
            for row, query in block.get(name, []):
                part = weight * pairs(form, query)
                is_used = True
                if part.shape[1] == size:
                    scores = part
                else:
                    scores = part.new_zeros(part.shape[0], size) if scores is None else scores
                    scores[:, row : row + part.shape[1]] += part
            columns.append((size, scores))
        if not is_used:
            return None
        like = next(scores for _, scores in columns if scores is not None)
        return torch.cat(
            [
                like.new_zeros(like.shape[0], size) if scores is None else scores
                for size, scores in columns
            ],
            1,
        )

    @property
    def solved(self) -> Tensor:
        """What the scores under a joint metric need: [directions, queries]."""
        if self._joint is None:
            raise RuntimeError("no joint metric; a bug in tracin")
        return self._joint.solved(self._joint_products())

    def directions(self, shapes: Mapping[str, torch.Size]) -> list[dict[str, Tensor]]:
        """Every query's weighted gradient of these parameters, written out, for forward mode."""
        written: list[dict[str, Tensor]] = []
        for size, block in self._blocks:
            rows = {name: torch.zeros(size, shape.numel()) for name, shape in shapes.items()}
            for name in shapes:
                for row, form in block.get(name, []):
                    dense = self._weights[name] * form.dense()
                    rows[name] = rows[name].to(dense)
                    rows[name][row : row + form.examples] = dense
            written += [
                {name: rows[name][query].view(shape) for name, shape in shapes.items()}
                for query in range(size)
            ]
        return written

    def _joint_products(self) -> Tensor:
        """The products with the directions of the joint metric: [queries, directions]."""
        found = torch.cat(self._directions)
        return found.sum(0, keepdim=True) if self._together else found

    def _joint_norms(self, norms: Tensor, products: Tensor) -> Tensor:
        """Weighted squared lengths under the joint metric, from those without it: [queries]."""
        weight = next(iter(self._weights.values()))
        if self._joint is None or weight == 0:
            return norms
        return weight * self._joint.squared_norms(norms / weight, products, None)

    def _under_metric(self, forms: Forms) -> Forms:
        """The gradients times the metric, by the parameter that they are multiplied with."""
        if self._metric is None:
            return forms
        found: Forms = {}
        for name, each in forms.items():
            for row, form in each:
                for other, share in self._metric.scaled(name, form).items():
                    found.setdefault(other, []).append((row, share))
        return found

    def _add_up(self, forms: Forms, under: Forms) -> None:
        """Add a batch's sums to those before: all together are one query."""
        for sums, more in ((self._sums, forms), (self._sums_under, under)):
            for name, each in more.items():
                before = [sums[name]] if name in sums else []
                sums[name] = total([*before, *(form for _, form in each)])
        self._blocks = [(1, {name: [(0, form)] for name, form in self._sums_under.items()})]
        squares = [
            self._weights[name] * pairs(form, self._sums_under[name]).flatten()
            for name, form in self._sums.items()
            if name in self._sums_under
        ]
        self.norms = torch.stack(squares).sum(0) if squares else torch.zeros(1)
        if self._joint is not None:
            self.norms = self._joint_norms(self.norms, self._joint_products())

    def _weighted_norms(self, forms: Forms, size: int, like: Tensor) -> Tensor:
        metric = self._metric
        norms = torch.zeros(size).to(like)
        for name, each in forms.items():
            for row, form in each:
                own = metric.squared_norm(name, form) if metric else checked_squared_norm(form)
                squares = self._weights[name] * own
                norms = norms.to(squares)
                norms[row : row + form.examples] += squares
        return norms
