"""The pass over the queries at one checkpoint: as many as memory holds are taken together."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from tracin.data import Tokens, move
from tracin.data.batches import structure
from tracin.gradients import Gradients
from tracin.gradients.forms import real_shape
from tracin.out_of_memory import is_out_of_memory
from tracin.preconditioners import JointMetric, Metric
from tracin.scoring.batch_reader import BatchReader, spread
from tracin.scoring.batch_size import MOST
from tracin.scoring.crossing import refuse_crossing
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.free_memory import room
from tracin.scoring.named_examples import examples_named
from tracin.scoring.query_gradients import QueryGradients
from tracin.scoring.query_loss import QueryLoss, naming, what_is_asked
from tracin.scoring.score_request import ScoreRequest
from tracin.sharding import each_says

# Gradients of queries that may always be written out, if the request allows as much.
SMALL_BYTES = 1 << 30

# Beyond that, they are written out if they take this part of what they may take.
PART = 4


@final
class QueryPass:
    """Takes the gradients of a request's queries, run by run, at the checkpoint in place.

    Args:
        gradients: The engine.
        request: What is asked, with its queries.
        weights: What each parameter's share of the scores is multiplied by.
        metric: The preconditioner's, at the checkpoint.
        reader: Of the training examples: queries come in batches of its size.
        checkpoint: What messages call it.
        asked: What takes the place of the queries' loss, if anything does.
    """

    def __init__(
        self,
        gradients: Gradients,
        request: ScoreRequest,
        weights: Mapping[str, float],
        metric: Metric | JointMetric | None,
        reader: BatchReader,
        checkpoint: str,
        asked: QueryLoss | None,
    ) -> None:
        if request.queries is None:
            raise RuntimeError("no queries; a bug in tracin")
        self._gradients, self._request = gradients, request
        self._queries = request.queries
        self._weights, self._metric = weights, metric
        self._reader, self._checkpoint = reader, checkpoint
        self._asked = asked
        chosen = spread(request.span.start, len(request.span))[: self._largest(request.span)]
        few = move(self._queries.few(chosen), reader.device)
        if asked is not None or structure(few) != reader.structure:
            with examples_named(self._queries, chosen, few), naming(self._asked):
                gradients.check_in_pass(few, is_first=False)
        if asked is None:
            refuse_crossing(gradients, self._queries, reader.device)

    def take(self, left: range) -> tuple[QueryGradients, range]:
        """The gradients of the first of these queries, and which they are: at least one.

        Raises:
            NonFiniteError: A query's loss or gradient is NaN or infinite.
            SteppedDownError: An audit failed.
        """
        request, reader = self._request, self._reader
        memory = room(reader.device) if request.memory is None else request.memory
        if self._gradients.is_sharded:
            memory = min(each_says(memory))
        queries = QueryGradients(
            self._weights,
            together=request.together,
            metric=self._metric,
            most=len(left),
            is_roomy=self._is_roomy(len(left), memory),
            form=request.form,
        )
        self._gradients.begin(len(left))
        # The first batch shows what a query takes; until then it may be all of its gradient.
        size = first = self._largest(left)
        if not request.together:
            first = max(1, min(size, memory // max(1, self._written(1))))
        stop = left.start
        while True:
            try:
                if stop == left.start and first < size:
                    stop = self._read(queries, left[:first], left, first, memory)
                    size = max(1, min(size, self._end(queries, left, memory) - stop))
                stop = self._read(queries, left[stop - left.start :], left, size, memory)
                return queries, range(left.start, stop)
            except Exception as error:
                is_whole = self._gradients.is_sharded or request.together
                if is_whole or not is_out_of_memory(error):
                    raise
                stop = left.start + len(queries)
                if size == 1 and stop == left.start:
                    raise
                queries.cut()
                memory //= 2
            torch.cuda.empty_cache()
            if size == 1:
                return queries, range(left.start, stop)
            size //= 2
            first = min(first, size)

    def _read(
        self, queries: QueryGradients, rest: range, left: range, size: int, memory: int
    ) -> int:
        """Add batches for as long as memory lasts; returns where the last one ended."""
        stop = rest.start
        if not rest or stop >= self._end(queries, left, memory):
            return stop
        most = size if self._queries.alone is None else 1
        groups = self._queries.groups(self._reader.batch_size, rest, most)
        ends = {group[0]: group[-1] + 1 for group in groups}
        for positions, batch in self._queries.read(groups):
            after = positions[-1] + 1
            if after > self._end(queries, left, memory):
                break  # what the first batch took shows that a second one does not fit
            following = ends.get(after, min(after + len(positions), left.stop))
            # The last batch is audited, so it must be known beforehand.
            is_last = after == left.stop or following > self._end(queries, left, memory)
            with examples_named(self._queries, positions, batch), naming(self._asked):
                found = move(batch, self._reader.device)
                losses, norms = queries.add(self._gradients, found, is_last=is_last)
            self._refuse_non_finite(positions, losses, norms)
            stop, end = after, self._end(queries, left, memory)
            if is_last or stop >= end:
                break
            queries.most = end - left.start
        return stop

    def _largest(self, left: range) -> int:
        """How many of these queries a batch has at most."""
        size = self._reader.batch_size
        if not isinstance(size, Tokens):
            return size
        return max(map(len, self._queries.groups(size, left, MOST)))

    def _is_roomy(self, queries: int, memory: int) -> bool:
        """Whether the gradients of so many may be written out."""
        return self._written(queries) <= max(memory // PART, min(SMALL_BYTES, memory))

    def _written(self, queries: int) -> int:
        """The bytes of the gradients of so many, written out."""
        return queries * sum(
            real_shape(one).numel() * one.real.element_size()
            for one in self._gradients.parameters.values()
        )

    def _end(self, queries: QueryGradients, left: range, memory: int) -> int:
        """Where the queries end that fit, by what those held so far take."""
        if len(queries) == 0 or queries.bytes == 0 or self._request.together:
            return left.stop
        fitting = len(queries) * memory // queries.bytes
        return min(left.stop, left.start + max(1, fitting))

    def _refuse_non_finite(
        self, positions: Sequence[int], losses: Tensor, norms: Tensor | None
    ) -> None:
        ids, name = self._queries.ids, self._checkpoint
        refuse_non_finite(losses, positions, ids, name, what_is_asked(self._asked), "query")
        if norms is not None:
            refuse_non_finite(norms, positions, ids, name, "gradient", "query")
