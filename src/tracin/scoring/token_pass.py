"""A pass over checkpoints that gives the share of each token in the scores of some pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, final

import torch
from torch import Tensor

from tracin.checkpoints import by_parameter
from tracin.checkpoints.rate import Rate
from tracin.data import Batch, Examples, content_of, move
from tracin.data.batches import structure
from tracin.errors import LossError, PreconditionerError
from tracin.gradients.compute import Compute
from tracin.gradients.directions import Direction
from tracin.gradients.forms import real_shape
from tracin.gradients.token_products import TokenProducts, sum_of_products
from tracin.gradients.wording import worded
from tracin.precision import in_double
from tracin.preconditioners import JointMetric, Metric
from tracin.preconditioners.kfac import CurvatureMetric
from tracin.progress import bar
from tracin.results.token_shares import PairTokens, TextShares
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.crossing import refuse_crossing
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.named_examples import examples_named
from tracin.scoring.query_gradients import QueryGradients

CHECKED = 4  # examples on which gradient methods are settled
Decode = Callable[[list[int]], str]


@final
@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of one text's loss at one checkpoint, written out.

    Attributes:
        batch: The text, in a batch of its own.
        plain: The gradient.
        weighted: The same times the preconditioner's metric and the checkpoint's weight.
        where: The text in words, for errors.
    """

    batch: Batch
    plain: Direction
    weighted: Direction
    where: str


@final
class TokenPass:
    """Gives the shares of tokens in the scores of pairs, added up over all checkpoints.

    A score is a product of two gradients, and either is the sum of the gradients of its tokens'
    losses. So the share of a token is the product of its own gradient with the other side, which
    is the derivative of its loss along the other side's gradient.

    Args:
        walk: The checkpoints, with the run's loss.
        tokens: The loss's tokens(model, batch) -> [examples, positions].
        weights: What each checkpoint weighs.
        train: The training examples.
        queries: The queries.
        decode: Makes a text of a list of token ids; None shows the ids.
    """

    def __init__(
        self,
        walk: CheckpointPass,
        tokens: Compute,
        weights: Sequence[Rate],
        train: Examples,
        queries: Examples,
        decode: Decode | None,
    ) -> None:
        gradients = walk.gradients
        self._walk = walk
        self._products = TokenProducts(gradients.model, worded(tokens), gradients.parameters)
        self._weights = weights
        self._train, self._queries = train, queries
        self._decode = decode

    def shares(self, pairs: Sequence[tuple[int, int]], progress: bool | None) -> list[PairTokens]:
        """The shares of the tokens of each pair.

        Args:
            pairs: (position in queries, position in train), sorted.
            progress: None shows a bar on a terminal alone.

        Raises:
            LossError: The tokens' losses do not add up to the loss.
            NonFiniteError: A loss or a gradient is NaN or infinite.
            PreconditionerError: The preconditioner is not applied to gradients.
            SteppedDownError: An audit failed: begin again, as `until_settled` does.
        """
        walk = self._walk
        sums = [_Sums(0.0, torch.zeros(()), torch.zeros(())) for _ in pairs]
        metric, is_made = walk.metric_of_all(self._train, None)
        with bar(walk.checkpoints * len(pairs), "tokens", progress, "pair") as shown:
            for number in range(walk.checkpoints):
                with walk.at(number) as device:
                    if not is_made:
                        metric = walk.metric_at(number, self._train, None, device)
                    applied = self._refuse_joint(number, metric)
                    self._check(pairs, device)
                    at = 0
                    for row, several in groupby(pairs, key=lambda pair: pair[0]):
                        query = self._gradient(number, self._queries, row, applied, device, "query")
                        for _, position in several:
                            train = self._gradient(
                                number, self._train, position, applied, device, "example"
                            )
                            found = self._pair(query, train)
                            sums[at] = sums[at].plus(found)
                            shown.update()
                            at += 1
        return [self._named(pair, each) for pair, each in zip(pairs, sums, strict=True)]

    def _pair(self, query: Gradient, train: Gradient) -> "_Sums":
        """What one checkpoint adds to a pair."""
        score = float(sum_of_products(train.weighted, query.plain))
        size = _size(train.weighted, query.plain) + _size(query.weighted, train.plain)
        of_query = self._shares(query, train.weighted, score, size)
        of_train = self._shares(train, query.weighted, score, size)
        return _Sums(score, of_query, of_train)

    def _shares(self, text: Gradient, direction: Direction, score: float, size: float) -> Tensor:
        """What each token adds to a score, which another way has given: [positions]."""
        allowed = self._walk.gradients.tolerance * size + 1e-30
        shares = in_double(self._products.products(text.batch, direction)).cpu()
        if not abs(float(shares.sum()) - score) <= allowed:
            shares = in_double(self._products.one_by_one(text.batch, direction)).cpu()
        if not abs(float(shares.sum()) - score) <= allowed:
            raise LossError(
                f"The tokens of {text.where} do not add up to its loss: along the gradient of the "
                f"other text their shares sum to {float(shares.sum()):.6g}, and the score is "
                f"{score:.6g}. tokens(model, batch) has to return [examples, positions] whose sum "
                "over positions is the loss, with nothing detached."
            )
        return shares

    def _gradient(
        self,
        number: int,
        examples: Examples,
        position: int,
        metric: Metric | None,
        device: torch.device,
        what: str,
    ) -> Gradient:
        gradients = self._walk.gradients
        checkpoint = self._walk.names[number]
        batch = move(examples.few([position]), device)
        with examples_named(examples, [position], batch):
            plain, losses = self._written(batch, None)
            refuse_non_finite(losses, [position], examples.ids, checkpoint, "loss", what)
            under = plain if metric is None else self._written(batch, metric)[0]
        total = torch.stack([each.sum() for each in plain.values()]).sum().view(1)
        refuse_non_finite(total, [position], examples.ids, checkpoint, "gradient", what)
        weights = by_parameter(self._weights[number], gradients.parameters)
        weighted = {name: weights[name] * one for name, one in under.items()}
        where = f"{what} {_id(examples, position)!r}"
        return Gradient(batch, plain, weighted, where)

    def _written(self, batch: Batch, metric: Metric | None) -> tuple[Direction, Tensor]:
        """The gradient of a single text, times the metric; and its loss."""
        gradients = self._walk.gradients
        shapes = {name: real_shape(one) for name, one in gradients.parameters.items()}
        held = QueryGradients(dict.fromkeys(shapes, 1.0), together=False, metric=metric, most=1)
        losses, _ = held.add(gradients, batch, is_last=False)
        written = held.directions(shapes)[0]
        return {
            name: one.to(gradients.parameters[name].device) for name, one in written.items()
        }, losses

    def _check(self, pairs: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Settle how gradients are computed, on the first few of both sides."""
        gradients, seen = self._walk.gradients, []
        rows = sorted({row for row, _ in pairs})
        positions = sorted({position for _, position in pairs})
        for examples, chosen in ((self._train, positions), (self._queries, rows)):
            few = move(examples.few(chosen[:CHECKED]), device)
            if structure(few) in seen:
                continue
            seen.append(structure(few))
            with examples_named(examples, chosen[:CHECKED], few):
                gradients.check(few)
        for examples in (self._train, self._queries):
            refuse_crossing(gradients, examples, device)
        gradients.begin(len(rows) + len(pairs))

    def _refuse_joint(self, number: int, metric: Metric | JointMetric | None) -> Metric | None:
        if isinstance(metric, JointMetric):
            raise PreconditionerError(
                "Shares of tokens need a gradient times the preconditioner, and "
                f"{self._walk.preconditioner!r} corrects scores instead. Use a run without "
                "preconditioner, or with tracin.Adam(), tracin.KFAC() or tracin.EKFAC()."
            )
        if isinstance(metric, CurvatureMetric):
            self._walk.refuse_parted(number, metric)
        return metric

    def _named(self, pair: tuple[int, int], sums: "_Sums") -> PairTokens:
        row, position = pair
        return PairTokens(
            _id(self._queries, row),
            _id(self._train, position),
            position,
            sums.score,
            TextShares(self._texts(self._queries, row, len(sums.query)), sums.query),
            TextShares(self._texts(self._train, position, len(sums.train)), sums.train),
        )

    def _texts(self, examples: Examples, position: int, positions: int) -> tuple[str, ...]:
        """The tokens of a text; none where the batch does not show them."""
        ids = _token_ids(content_of(examples.few([position])), positions)
        if self._decode is None:
            return tuple(map(str, ids))
        return tuple(str(self._decode([each])) for each in ids)


@final
@dataclass(frozen=True, eq=False)
class _Sums:
    """The score of a pair and the shares of both texts, over the checkpoints so far."""

    score: float
    query: Tensor
    train: Tensor

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(self.score + other.score, self.query + other.query, self.train + other.train)


def _size(one: Direction, other: Direction) -> float:
    """What rounding in the product of two gradients is relative to."""
    sizes = [one[name].norm() * other[name].norm() for name in one]
    return float(torch.stack(sizes).sum())


def _token_ids(batch: Any, positions: int) -> list[int]:
    """The token at each position of a batch of one text; none where it does not hold them so."""
    found: Any = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if isinstance(found, list | tuple) and len(found) > 0:
        found = found[0]
    if not isinstance(found, Tensor) or found.is_floating_point():
        return []
    return found[0].tolist() if found.shape == (1, positions) else []


def _id(examples: Examples, position: int) -> Any:
    found = examples.ids[position]
    return found.item() if hasattr(found, "item") else found
