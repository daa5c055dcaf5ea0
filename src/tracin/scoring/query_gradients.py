"""The gradients of the queries at one checkpoint, in the form that is cheapest to multiply."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from tracin.data import Batch, length
from tracin.gradients import Gradients
from tracin.gradients.fast import Pass
from tracin.gradients.forms import (
    Dense,
    Growing,
    OuterProduct,
    PerExampleGradient,
    ProductCache,
    SparseRows,
    Streamed,
    added,
    as_query,
    at_rank,
    checked_squared_norm,
    pairs,
    real_shape,
    total,
)
from tracin.host import to_host
from tracin.late_checks import LateChecks, LookAgainError, late_checks
from tracin.preconditioners import JointMetric, Metric, metric_parts
from tracin.preconditioners.joint_sums import JointSums
from tracin.preconditioners.preconditioner import Scaling, SolvedQueries
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.batch_scores import LeftOut
from tracin.scoring.facts_of import facts_there
from tracin.scoring.query_form import LowRank
from tracin.sharding import device_of

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
        most: How many queries will be added, at most; may be lowered after the first batch.
        is_roomy: Whether the gradients of all may be written out.
        form: How they are held; None for exactly.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        together: bool,
        metric: Metric | JointMetric | None = None,
        most: int,
        is_roomy: bool = True,
        form: LowRank | None = None,
    ) -> None:
        self.most = most
        self._weights = weights
        self._together = together
        self._is_roomy = is_roomy and form is None
        self._form = form
        self._shapes: dict[str, torch.Size] = {}
        self._left_out: list[LeftOut] = []
        self._leaving = LeftOut.none(0)  # of the batch that is being added
        self._all = most
        self._metric, self._joint = metric_parts(metric)
        self._directions: list[Tensor] = []  # products with those of the joint metric
        self._solved: SolvedQueries | None = None  # from all of these
        self._sums: dict[str, PerExampleGradient] = {}
        self._sums_under: dict[str, PerExampleGradient] = {}
        self._held: dict[str, Growing] = {}
        self._rows = 0
        self._norms: Tensor | None = torch.zeros(0)
        self._facts: list[ExampleFacts] = []

    def add(
        self, gradients: Gradients, batch: Batch, *, is_last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Add a batch of queries; returns their losses and, unless together, squared lengths.

        Returns:
            [queries] each, on the host.
        """
        self._shapes = {n: real_shape(one) for n, one in gradients.parameters.items()}
        self._leaving = LeftOut.none(length(batch))
        with late_checks(device_of(gradients.model)) as checks:
            taken = _Taken.of(batch, self._joint, checks)
            result = gradients.visit(batch, partial(self._keep, taken), is_last=is_last)
        with suppress(LookAgainError):
            return self._commit(taken, result)
        if self._together:  # all sums are right; what was found is an error of the data
            gradients.again(batch, lambda name, form, row: None)
            return self._commit(replace(taken, checks=None), result)
        self.cut()
        self._leaving = LeftOut.none(length(batch))
        taken = _Taken.of(batch, self._joint, None)
        return self._commit(taken, gradients.again(batch, partial(self._keep, taken)))

    @torch.no_grad()  # factors may still know the graph that they came from
    def _keep(self, taken: "_Taken", name: str, form: PerExampleGradient, row: int) -> None:
        if taken.sums is not None:
            taken.sums.add(name, form, row)
        if self._together:
            self._add_to_sums(name, form)
        else:
            own = self._hold(name, form, row, taken.size, taken.checks)
            taken.squares.append((row, self._weights[name] * own))

    @torch.no_grad()
    def _commit(self, taken: "_Taken", result: Pass) -> tuple[Tensor, Tensor | None]:
        """Count a batch in whose pass has come to its end."""
        directions = None if taken.sums is None else taken.sums.products(result.losses)
        norms: Tensor | None = None
        if not self._together:
            norms = result.losses.new_zeros(taken.size)
            for row, each in taken.squares:
                norms = norms.to(each)
                norms[row : row + len(each)] += each
            if directions is not None:
                norms = self._joint_norms(norms, directions)
        fetch = to_host if taken.checks is None else taken.checks.fetched
        losses, norms, *facts = fetch([result.losses, norms, *facts_there(result.outcome)])
        if losses is None:
            raise RuntimeError("queries without losses; a bug in tracin")
        if directions is not None:
            self._directions.append(directions)
            self._solved = None
        self._facts.append(ExampleFacts.of(*facts))
        self._left_out.append(self._leaving)
        self._rows = 1 if norms is None else self._rows + taken.size
        self._norms = None if norms is None else torch.cat([self.norms.to(norms), norms])
        return losses, norms

    def cut(self) -> None:
        """Forget what a batch has left that did not come to its end."""
        for each in self._held.values():
            each.cut(len(self))

    def __len__(self) -> int:
        return self._rows

    @property
    def bytes(self) -> int:
        """What the gradients of the queries take."""
        return sum(each.bytes for each in self._held.values())

    @property
    def gain_by_examples(self) -> bool:
        """Whether products cost less per example in larger batches: each writes rows out anew."""
        forms = [form for each in self._held.values() for _, form in each.forms]
        return any(
            isinstance(form, Streamed) or (isinstance(form, OuterProduct) and form.positions > 1)
            for form in forms
        )

    @property
    def norms(self) -> Tensor:
        """The weighted squared lengths, on the host: [queries]."""
        if self._norms is None:
            self._norms = self._norms_of_sums().cpu()
        return self._norms

    @property
    def facts(self) -> ExampleFacts | None:
        """What the loss says of the queries: [queries]; None where there are none."""
        return ExampleFacts.joined(self._facts)

    @property
    def left_out(self) -> LeftOut | None:
        """What is left out of the gradients: [queries]; None where they are held exactly."""
        if self._form is None or self._together:
            return None
        lost, whole = zip(*((each.lost, each.whole) for each in self._left_out), strict=True)
        return LeftOut(torch.cat(lost), torch.cat(whole))

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the scores of a batch: [examples, queries]; None if zero."""
        held = self._forms(name)
        if not held:
            return None
        weight = self._weights[name]
        if len(held) == 1 and held[0][1].examples == len(self):
            return pairs(form, held[0][1], cache).mul(weight)
        scores: Tensor | None = None
        for row, query in held:
            part = pairs(form, query)
            if scores is None:
                scores = part.new_zeros(part.shape[0], len(self))
            elif scores.dtype != part.dtype:
                scores = scores.to(torch.promote_types(scores.dtype, part.dtype))
            scores[:, row : row + part.shape[1]] += part
        assert scores is not None
        return scores.mul_(weight)

    @property
    def solved(self) -> SolvedQueries:
        """What the scores under a joint metric need."""
        if self._joint is None:
            raise RuntimeError("no joint metric; a bug in tracin")
        if self._solved is None:
            self._solved = self._joint.solved(torch.cat(self._directions), together=self._together)
        return self._solved

    def directions(self, shapes: Mapping[str, torch.Size]) -> list[dict[str, Tensor]]:
        """Every query's weighted gradient of these parameters, written out, for forward mode."""
        written = {name: torch.zeros(len(self), shape.numel()) for name, shape in shapes.items()}
        for name in shapes:
            for row, form in self._forms(name):
                dense = self._weights[name] * form.dense()
                written[name] = written[name].to(dense)
                written[name][row : row + form.examples] += dense
        return [
            {name: written[name][query].view(shape) for name, shape in shapes.items()}
            for query in range(len(self))
        ]

    def _forms(self, name: str) -> list[tuple[int, PerExampleGradient]]:
        if self._together:
            return [(0, self._sums_under[name])] if name in self._sums_under else []
        return self._held[name].forms if name in self._held else []

    def _hold(
        self,
        name: str,
        form: PerExampleGradient,
        row: int,
        size: int,
        checks: LateChecks | None,
    ) -> Tensor:
        """Keep a batch's gradients of one parameter; returns their squared lengths: [examples]."""
        most = self.most if self._rows else size  # how much a query takes shows the first batch
        metric = self._metric
        if metric is None:
            own, shares = checked_squared_norm(form, checks), {name: form}
        else:
            own = metric.squared_norm(name, form)
            if isinstance(metric, Scaling) and not self._is_roomy:
                shares = metric.factored(name, form)
            else:
                shares = metric.scaled(name, form)
        for other, share in shares.items():
            held = self._held.setdefault(other, Growing())
            if self._form is not None:
                share = self._shortened(other, share, row)
            query = as_query(
                share,
                queries=self._all,
                is_roomy=self._is_roomy,
                squares=own if metric is None and self._form is None else None,
                checks=checks,
            )
            held.add(self._rows + row, query, most)
        return own

    def _shortened(self, name: str, form: PerExampleGradient, row: int) -> PerExampleGradient:
        """The gradients of low rank, with what they leave out noted."""
        if self._form is None:
            return form
        found = at_rank(form, self._shapes[name], self._form.rank, self._form.seed)
        rows, weight = slice(row, row + form.examples), self._weights[name]
        self._leaving.lost[rows] += weight * found.lost.cpu()
        self._leaving.whole[rows] += weight * found.whole.cpu()
        return found.form

    def _add_to_sums(self, name: str, form: PerExampleGradient) -> None:
        """Add up a batch's gradients of one parameter: all queries together are one."""
        _add(self._sums, name, added(form))
        if self._metric is None:
            self._sums_under = self._sums
            return
        for other, share in self._metric.scaled_sum(name, form).items():
            _add(self._sums_under, other, share)

    def _joint_norms(self, norms: Tensor, products: Tensor) -> Tensor:
        """Weighted squared lengths under the joint metric, from those without it: [queries]."""
        weight = next(iter(self._weights.values()))
        if self._joint is None or weight == 0:
            return norms
        if self._together:
            return weight * self._joint.squared_norm_of_sum(norms / weight, products)
        return weight * self._joint.squared_norms(norms / weight, products, None)

    @torch.no_grad()
    def _norms_of_sums(self) -> Tensor:
        squares = [
            self._weights[name] * pairs(form, self._sums_under[name]).flatten()
            for name, form in self._sums.items()
            if name in self._sums_under
        ]
        norms = torch.stack(squares).sum(0) if squares else torch.zeros(1)
        return self._joint_norms(norms, torch.cat(self._directions)) if self._directions else norms


@final
@dataclass(frozen=True)
class _Taken:
    """What the pass over one batch of queries leaves besides the gradients that are held.

    Attributes:
        size: How many queries the batch has.
        checks: What takes note of what has to be looked at again; None looks at once.
        sums: Products with the directions of the joint metric; None without one.
        squares: Weighted squared lengths by one parameter, with the row of the first of them.
    """

    size: int
    checks: LateChecks | None
    sums: JointSums | None
    squares: list[tuple[int, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, batch: Batch, joint: JointMetric | None, checks: LateChecks | None) -> "_Taken":
        """Nothing yet."""
        size = length(batch)
        return cls(size, checks, None if joint is None else JointSums(size, joint))


def _add(sums: dict[str, PerExampleGradient], name: str, form: PerExampleGradient) -> None:
    if name in sums:
        before = sums[name]
        if isinstance(before, Dense) and isinstance(form, Dense):
            form = Dense(before.dense() + form.dense())
        else:
            form = total([before, form])
    if isinstance(form, SparseRows) and form.index.shape[1] > form.size:
        form = Dense(form.dense())
    sums[name] = form
