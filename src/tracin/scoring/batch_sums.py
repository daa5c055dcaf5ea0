"""Adds up the scores of one batch, parameter by parameter, while its pass runs."""

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor

from tracin.gradients.fast import Pass
from tracin.gradients.forms import PerExampleGradient, ProductCache, cancelled, checked_squared_norm
from tracin.late_checks import LateChecks, look_again_if
from tracin.preconditioners import JointMetric, Metric, metric_parts
from tracin.preconditioners.joint_sums import JointSums
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.batch_scores import BatchScores
from tracin.scoring.facts_of import facts_there
from tracin.scoring.query_gradients import QueryGradients
from tracin.scoring.score_request import ScoreRequest


@final
class BatchSums:
    """Adds up what each parameter contributes to the scores of one batch.

    Args:
        examples: How many the batch has.
        weights: What each parameter's share is multiplied by.
        queries: The queries' gradients; None without queries.
        request: What is asked of the batch.
        metric: The preconditioner's, at the checkpoint; None without one.
        checks: What takes note of lengths whose terms cancel; None looks at once.
        is_written: Whether gradients are written out for lengths whose terms may cancel.
    """

    def __init__(
        self,
        examples: int,
        weights: Mapping[str, float],
        queries: QueryGradients | None,
        request: ScoreRequest,
        metric: Metric | JointMetric | None,
        *,
        checks: LateChecks | None = None,
        is_written: bool = False,
    ) -> None:
        self._examples = examples
        self._weights = weights
        self._queries = queries
        self._request = request
        self._metric, self._joint = metric_parts(metric)
        self._directions = None if self._joint is None else JointSums(examples, self._joint)
        self._cache = ProductCache()
        self._scores: Tensor | None = None
        self._norms: Tensor | None = None
        self._terms: Tensor | None = None
        self._checks = checks
        self._is_written = is_written
        self._apart: Tensor | None = None

    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Add one parameter's gradients; the first example of `form` is that row of the batch."""
        request = self._request
        is_counted = name not in request.only_apart
        if self._directions is not None:
            self._directions.add(name, form, row)
        if self._queries is not None and is_counted:
            scores = self._queries.products(name, form, self._cache)
            if scores is not None:
                self._scores = self._added(self._scores, scores, row)
        if request.norms:
            metric = self._metric
            own = metric.squared_norm(name, form) if metric else self._squared_norm(name, form, row)
            norms = self._weights[name] * own
            if is_counted:
                self._norms = self._added(self._norms, norms, row)
            if name in request.apart:
                self._apart = self._added(self._apart, norms.clone(), row)

    def refuse_cancelled(self) -> None:
        """Have the batch computed again if the terms of some length cancelled: it is rounding.

        Raises:
            LookAgainError: They did, which is known at once.
        """
        if self._terms is not None and self._norms is not None:
            look_again_if(cancelled(self._norms, self._terms).any(), self._checks)

    def _squared_norm(self, name: str, form: PerExampleGradient, row: int) -> Tensor:
        terms = form.terms()
        if terms is None:
            return form.squared_norm()
        if self._is_written:
            return form.written_norm()
        if name in self._request.apart or name in self._request.only_apart:
            return checked_squared_norm(form, self._checks)
        self._terms = self._added(self._terms, self._weights[name] * terms, row)
        return form.squared_norm()

    def scores(
        self,
        checkpoint: int,
        positions: Sequence[int],
        columns: range,
        result: Pass,
        *,
        has_facts: bool,
    ) -> BatchScores:
        """The sums over all parameters, once the pass over the batch is done.

        Args:
            checkpoint: The number of the checkpoint.
            positions: The batch's examples.
            columns: Which queries of the request these are.
            result: What the pass gave besides the gradients.
            has_facts: Whether to read labels, predictions and losses off the outcome.
        """
        request, queries = self._request, self._queries
        zeros = result.losses.new_zeros
        scores = self._scores
        if result.scores is not None:
            scores = self._added(scores, result.scores, 0)
        if queries is not None and scores is None:
            scores = zeros(self._examples, len(queries))
        norms, apart = self._norms, self._apart
        if request.norms:
            norms = zeros(self._examples) if norms is None else norms
            apart = zeros(self._examples) if apart is None else apart
        if self._joint is not None and self._directions is not None:
            own = self._directions.products(result.losses)
            scores, norms = self._under_joint(self._joint, own, scores, norms, positions)
        query_norms = None if queries is None else queries.norms
        facts = None if queries is None else queries.facts
        return BatchScores(
            checkpoint,
            positions,
            columns,
            scores,
            norms,
            apart,
            query_norms,
            result.losses,
            result.outcome,
            facts,
            ExampleFacts.of(*facts_there(result.outcome)) if has_facts else None,
            None if queries is None else queries.left_out,
        )

    def _under_joint(
        self,
        metric: JointMetric,
        own: Tensor,
        scores: Tensor | None,
        norms: Tensor | None,
        positions: Sequence[int],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Scores and squared lengths under a metric that mixes parameters, from plain ones."""
        weight = next(iter(self._weights.values()))
        if weight == 0:
            return scores, norms
        if scores is not None and self._queries is not None:
            plain = scores / weight
            scores = weight * metric.scores(plain, own, self._queries.solved, positions)
        if norms is not None:
            norms = weight * metric.squared_norms(norms / weight, own, positions)
        return scores, norms

    def _added(self, total: Tensor | None, share: Tensor, row: int) -> Tensor:
        if row == 0 and share.shape[0] == self._examples:
            return share if total is None else total.add_(share)
        if total is None:
            total = share.new_zeros(self._examples, *share.shape[1:])
        total[row : row + share.shape[0]] += share
        return total
