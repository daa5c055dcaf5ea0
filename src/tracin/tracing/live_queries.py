"""The queries' gradients and losses at the weights of a training step, or between two of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, Examples, content_of, copied, move
from tracin.data.batches import leaves
from tracin.errors import DeviceError, NonFiniteError
from tracin.gradients import Gradients, until_settled
from tracin.gradients.compute import Compute, checked_losses
from tracin.gradients.fast import Pass
from tracin.gradients.forms import Dense, PerExampleGradient, ProductCache, as_query, pairs
from tracin.guards import untouched, use_eval
from tracin.random_state import same_random_state
from tracin.scoring.query_loss import QueryLoss, naming, what_is_asked

# Numbers of scaled query gradients written out at once: 256 MB in float32.
MAX_DENSE_NUMEL = 1 << 26


@final
@dataclass(frozen=True, eq=False)
class LiveQueryGradients:
    """The losses and gradients of some queries at the weights of one moment.

    Attributes:
        losses: [queries], float64 on the CPU.
        forms: Parameter -> the queries' gradients.
    """

    losses: Tensor
    forms: Mapping[str, list[tuple[int, PerExampleGradient]]]

    def products(
        self, name: str, form: PerExampleGradient, scale: Tensor | None, cache: ProductCache
    ) -> Tensor | None:
        """The products of examples' shares with queries: [examples, queries]; None if zero.

        Args:
            name: The parameter.
            form: The examples' shares of its gradient.
            scale: What each entry is multiplied by, if not all by the same number.
            cache: Shared by all parameters.
        """
        if name not in self.forms:
            return None
        total = None
        for row, query in self.forms[name]:
            if scale is None:
                each = pairs(form, query, cache)
            else:
                each = _scaled_products(form, query, scale)
            if row == 0 and each.shape[1] == len(self.losses):
                return each
            if total is None:
                total = each.new_zeros(each.shape[0], len(self.losses))
            total[:, row : row + each.shape[1]] += each
        return total

    def only(self, query: int) -> "LiveQueryGradients":
        """One of them."""
        forms = {
            name: [
                (0, form.part(query - row, query - row + 1))
                for row, form in each
                if row <= query < row + form.examples
            ]
            for name, each in self.forms.items()
        }
        return LiveQueryGradients(self.losses[query : query + 1], forms)

    def along(self, directions: Mapping[str, Tensor]) -> Tensor:
        """The products of the queries' gradients with one direction in weight space: [queries]."""
        result = torch.zeros(len(self.losses), dtype=torch.float64)
        for name, direction in directions.items():
            for row, query in self.forms.get(name, []):
                # As many examples as there are queries, and the direction as the only query.
                products = pairs(query, Dense(direction.reshape(1, -1)))[:, 0]
                result[row : row + len(products)] += products.cpu().double()
        return result


def _scaled_products(form: PerExampleGradient, query: PerExampleGradient, scale: Tensor) -> Tensor:
    """An entry-wise scale goes to the queries, so that the examples' shares stay in factors."""
    flat = scale.reshape(1, -1)
    step = max(1, MAX_DENSE_NUMEL // query.numbers)
    blocks = []
    for start in range(0, query.examples, step):
        rows = query.part(start, start + step).dense() * flat
        blocks.append(pairs(form, Dense(rows)))
    return torch.cat(blocks, 1)


@final
class LiveQueries:
    """All queries of a trace, in chunks that are held one at a time.

    Args:
        model: The model that is trained.
        compute: What is explained of the queries, as a loss.
        queries: The queries; None for none.
        at_once: How many make a chunk; None for all.
        asked: The target that `compute` is made of, to be named in errors; None for their loss.
    """

    def __init__(
        self,
        model: Module,
        compute: Compute,
        queries: Examples | None,
        at_once: int | None,
        asked: QueryLoss | None = None,
    ) -> None:
        self._model = model
        self._compute = compute
        self._queries = queries
        self._asked = asked
        count = 0 if queries is None else len(queries)
        step = at_once or max(1, count)
        if queries is not None and queries.alone is not None:
            step = 1  # no two of them make a batch
        self.chunks = [range(start, min(start + step, count)) for start in range(0, count, step)]
        self._kept: Batch | None = None  # the only chunk, where the model is
        self._gradients: Gradients | None = None

    def select(self, parameters: Mapping[str, Tensor]) -> None:
        """Take gradients of these parameters from now on, after checking them on one batch."""
        if self._queries is None:
            return
        self._gradients = Gradients(self._model, self._compute, parameters)
        with self._in_eval():
            batch = self._batch(self.chunks[0])
            with self._gradients.tracing():
                self._gradients.check(batch)

    def gradients(self, chunk: range) -> LiveQueryGradients:
        """Gradients and losses at the weights in place."""
        if self._gradients is None:
            raise RuntimeError("gradients before select")
        gradients, forms = self._gradients, dict[str, list[tuple[int, PerExampleGradient]]]()

        def keep(name: str, form: PerExampleGradient, row: int) -> None:
            forms.setdefault(name, []).append((row, as_query(form)))

        def visit(batch: Batch) -> Pass:
            forms.clear()
            gradients.begin(len(chunk))
            return gradients.visit(batch, keep, is_last=True)

        with self._in_eval():
            batch = self._batch(chunk)
            with gradients.tracing(), torch.enable_grad():
                result = until_settled(partial(visit, batch))
        return LiveQueryGradients(self._checked(result.losses, chunk), forms)

    def losses(self, chunk: range) -> Tensor:
        """The losses alone at the weights in place: [queries], float64 on the CPU."""
        with self._in_eval(), torch.no_grad():
            batch = self._batch(chunk)
            outcome = self._compute(self._model, content_of(copied(batch)))
        return self._checked(checked_losses(outcome, len(chunk)), chunk)

    @property
    def _given(self) -> Examples:
        if self._queries is None:
            raise RuntimeError("there are no queries")
        return self._queries

    def _checked(self, losses: Tensor, chunk: range) -> Tensor:
        losses = losses.detach().cpu().double()
        if not bool(torch.isfinite(losses).all()):
            row = int((~torch.isfinite(losses)).nonzero()[0])
            name = self._given.ids.tolist()[chunk[row]]
            raise NonFiniteError(
                f"The {what_is_asked(self._asked)} of query {name!r} is {losses[row].item()}: "
                "training diverges, or the query has no finite loss at these weights. It "
                "cannot be scored: leave it out, or lower the learning rate."
            )
        return losses

    def _batch(self, chunk: range) -> Batch:
        if len(self.chunks) > 1:
            return self._moved(chunk)
        if self._kept is None:
            self._kept = self._moved(chunk)
        return self._kept

    def _moved(self, positions: Sequence[int]) -> Batch:
        with same_random_state():
            batch = self._given.take(positions)
        if any(getattr(leaf, "is_meta", False) for _, leaf in leaves(batch)):
            raise DeviceError(
                'The queries are on the device "meta", which holds no numbers. Give them on any '
                "other device: they are moved to the model's."
            )
        return move(batch, next(iter(self._model.parameters())).device)

    @contextmanager
    def _in_eval(self) -> Iterator[None]:
        with untouched(self._model):
            use_eval(self._model)
            with naming(self._asked):
                yield
