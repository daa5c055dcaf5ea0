"""A pool whose gradients the model computes: exact scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.pool import normalised
from tracin.analysis.selection import largest
from tracin.checkpoints import Checkpoint
from tracin.data import Examples, Size
from tracin.errors import QueryError
from tracin.preconditioners import Adam, Place, Scaling
from tracin.run import (
    Asked,
    Run,
    checkpoint_pass,
    computing_pass,
    run_under,
    score_dtype,
)
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.score_request import ScoreRequest
from tracin.scoring.settled import settled


@final
@dataclass(frozen=True, eq=False)
class ModelPool:
    """Examples and targets whose gradients the model computes.

    Attributes:
        run: The run.
        examples: Those to select from.
        asked: Those to help with, and what of them to raise if it is not their loss to lower.
        batch_size: How many examples go through the model at once.
        progress: Whether to show a bar.
    """

    run: Run
    examples: Examples
    asked: Asked
    batch_size: BatchSize
    progress: bool | None

    @property
    def targets(self) -> Examples:
        """The examples to help with."""
        return self.asked.queries

    @property
    def ids(self) -> np.ndarray:
        """The ids of the examples: [pool]."""
        return self.examples.ids

    @property
    def target_ids(self) -> np.ndarray:
        """The ids of the targets: [targets]."""
        return self.targets.ids

    @property
    def dtype(self) -> torch.dtype:
        """How precise scores are."""
        return score_dtype(self.run)

    @settled
    def influence(self, members: Sequence[Tensor], normalise: str | None) -> Tensor:
        """The mean influence of every example on each group: [pool, groups], float64.

        Of the groups' mean gradients only the products are held, never [pool, targets].
        """
        run, by_checkpoint = self.run, normalise == "checkpoint_cosine"
        count = len(run.checkpoints) if by_checkpoint else 1
        own = run.preconditioner
        adam = own if by_checkpoint and isinstance(own, Adam) else None
        scores = torch.zeros(count, len(self.examples), len(members), dtype=torch.float64)
        squares = torch.zeros(count, len(self.examples), dtype=torch.float64)
        # Each target's part in each group's mean: [targets, groups].
        parts = torch.zeros(len(self.targets), len(members), dtype=torch.float64)
        for at, one in enumerate(members):
            parts[one, at] = 1 / len(one)
        is_one = len(members) == 1
        if normalise is not None:
            self._refuse_fitted()
        walk = checkpoint_pass(run, asked=self.asked.loss)
        # One group is one sum of gradients, however many targets it has.
        has_norms = normalise is not None and adam is None
        span = range(len(self.targets))
        request = ScoreRequest(self.targets, span, together=is_one, norms=has_norms)
        for step in walk.steps(self.examples, *self._whole(request, "select")):
            rows = step.rows
            at = step.checkpoint if by_checkpoint else 0
            if step.scores is not None:
                share = parts[step.queries.start : step.queries.stop]
                scores[at, rows] += step.scores.detach().cpu().double() @ share
            if step.norms is not None:
                squares[at, rows] += step.norms.cpu()
        if normalise is None:
            return scores[0]
        if adam is not None:
            squares = self._step_squares(adam)
        kernel = self._target_kernel(is_plain=adam is not None)
        sizes = [kernel[:, one][:, :, one].mean((1, 2)) for one in members]
        groups = torch.stack(sizes, 1)  # [checkpoints, groups]
        weights = [largest(each) for each in run.weights]
        if not by_checkpoint:
            groups = groups.sum(0, keepdim=True)
        return normalised(scores, squares, groups, weights, normalise)

    def products(self, some: Sequence[int], others: Sequence[int]) -> Tensor:
        """The products of plain gradients, summed over checkpoints: [some, others], float64."""
        return self._plain_products(some, Asked(self.examples.subset(others)))

    def target_products(self, some: Sequence[int]) -> Tensor:
        """The same of some examples with all targets: [some, targets], float64."""
        return self._plain_products(some, self.asked)

    @settled
    def target_squares(self) -> Tensor:
        """The squared lengths of the targets' plain gradients: [targets], float64."""
        walk, found = self._of_targets(is_plain=True), torch.zeros(len(self.targets)).double()
        span, size = range(len(self.targets)), checked_size(self.batch_size)
        for step in walk.steps(
            self.targets, span, ScoreRequest(norms=True), size, False, "lengths"
        ):
            if step.norms is not None:
                found[step.rows] += step.norms.cpu()
        return found

    @settled
    def _plain_products(self, some: Sequence[int], others: Asked) -> Tensor:
        mine = self.examples.subset(some)
        walk = computing_pass(self.run, self.run.loss, is_plain=True, asked=others.loss)
        return _kernel(walk, self.run, mine, others.queries, self.batch_size, None).sum(0)

    def _target_kernel(self, *, is_plain: bool) -> Tensor:
        """The targets' products with each other: [checkpoints, targets, targets]."""
        targets, fitted_on = self.targets, self.examples
        walk = self._of_targets(is_plain=is_plain)
        return _kernel(walk, self.run, targets, targets, self.batch_size, fitted_on)

    def _of_targets(self, *, is_plain: bool) -> CheckpointPass:
        """A pass over the targets, whose gradients are of what is asked about them."""
        asked = self.asked.loss
        if asked is None:
            return computing_pass(self.run, self.run.loss, is_plain=is_plain)
        return computing_pass(self.run, asked.compute, is_plain=is_plain, is_of_target=True)

    def _refuse_fitted(self) -> None:
        """Curvature would be fitted on the gradients of a target, which training data has not."""
        own = self.run.preconditioner
        if self.asked.loss is None or own is None or isinstance(own, Adam):
            return
        raise QueryError(
            f"normalise with target={self.asked.target} needs the lengths of the targets' "
            f"gradients under {own!r}, which is fitted on the losses of training data. Leave "
            "normalise out, or use a run without preconditioner or with tracin.Adam()."
        )

    def _step_squares(self, adam: Adam) -> Tensor:
        """The squared lengths of Adam's steps on each example: [checkpoints, pool]."""
        found = torch.zeros(len(self.run.checkpoints), len(self.examples), dtype=torch.float64)
        walk = checkpoint_pass(run_under(self.run, AdamSquared(adam)))
        for step in walk.steps(self.examples, *self._whole(ScoreRequest(norms=True), "lengths")):
            rows = step.rows
            if step.norms is not None:
                found[step.checkpoint, rows] = step.norms.cpu().double()
        return found

    def _whole(
        self, request: ScoreRequest, what: str
    ) -> tuple[range, ScoreRequest, Size | None, bool | None, str]:
        """What a pass over the whole pool takes besides it."""
        size = checked_size(self.batch_size)
        return range(len(self.examples)), request, size, self.progress, what


@final
@dataclass(frozen=True)
class AdamSquared:
    """Adam's factors, squared: lengths under it are those of Adam's steps.

    Attributes:
        adam: What it is the square of.
    """

    adam: Adam

    @property
    def follows_training(self) -> bool:
        """As Adam's own."""
        return True

    @property
    def fits_sketches(self) -> bool:
        """It is for lengths alone."""
        return False

    @property
    def is_made_once(self) -> bool:
        """Each checkpoint has its own."""
        return False

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints without moments."""
        self.adam.check(checkpoints)

    def metric(self, place: Place) -> Scaling:
        """The squares of the factors at a checkpoint."""
        factors = self.adam.metric(place).factors
        return Scaling({name: each.square() for name, each in factors.items()})


def _kernel(
    walk: CheckpointPass,
    run: Run,
    some: Examples,
    others: Examples,
    batch_size: BatchSize,
    fitted_on: Examples | None,
) -> Tensor:
    """The products at each checkpoint, weighted: [checkpoints, some, others], float64."""
    found = torch.zeros(len(run.checkpoints), len(some), len(others), dtype=torch.float64)
    size, rows = checked_size(batch_size), range(len(some))
    request = ScoreRequest(others, range(len(others)))
    for step in walk.steps(some, rows, request, size, False, "products", fitted_on):
        if step.scores is not None:
            at = step.rows
            columns = slice(step.queries.start, step.queries.stop)
            found[step.checkpoint, at, columns] = step.scores.detach().cpu().double()
    return found
