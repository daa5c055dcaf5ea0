"""Reads a span of examples batch by batch, in sizes that fit the device."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar, final

import numpy as np
import torch

from tracin.data import Batch, Examples, Size, Tokens, move, warn_if_changing
from tracin.data import part as part_of
from tracin.data.batches import structure
from tracin.errors import DeviceError
from tracin.gradients import Gradients, until_settled
from tracin.host import is_remote
from tracin.out_of_memory import is_out_of_memory
from tracin.scoring.batch_size import MOST, bytes_each, fitting_size
from tracin.scoring.free_memory import room
from tracin.scoring.named_examples import examples_named
from tracin.scoring.one_ahead import OneAhead
from tracin.sharding import each_says

T = TypeVar("T")

_log = logging.getLogger(__name__)


@final
class BatchReader:
    """Reads a span of examples at one checkpoint, batch by batch, in halves where memory runs out.

    The ranks of a sharded model check the same first batch of the span, and each reads a part.

    Args:
        gradients: The engine.
        train: The examples.
        span: Which of them.
        batch_size: Examples or tokens per batch; None for as many examples as fit.
        device: Where batches go.
        part: What is read of the span.
        in_order: Whether examples are read in the order of the data, whatever the batch size.

    Attributes:
        device: Where batches go.
        size: How many examples a batch has at most, at most the span.
        batch_size: What `size` was cut from, or the tokens of a batch, for the next reader of the
            same pass.
        structure: The names, types and shapes of a batch.
        first: The positions and the batch that were checked, until they are read; None for the
            ranks of a sharded model.
    """

    def __init__(
        self,
        gradients: Gradients,
        train: Examples,
        span: range,
        batch_size: Size | None,
        device: torch.device,
        part: range,
        *,
        in_order: bool = False,
    ) -> None:
        self._train = train
        self._is_sharded = gradients.is_sharded
        self.device = device
        two = move(train.few(span[:2]), device)
        self._may_grow = batch_size is None and device.type == "cpu" and not self._is_sharded
        self._two = two
        with examples_named(train, span[:2], two):
            gradients.inspect(two)
            if batch_size is None:
                batch_size = fitting_size(gradients, two, device)
                if self._is_sharded:
                    batch_size = min(each_says(batch_size))
                _log.debug("batches of %d examples fit %s", batch_size, device)
        self._ahead: OneAhead[tuple[Sequence[int], Batch]] | None = None
        self.batch_size: Size = batch_size
        self._order = part if in_order else train.order(batch_size, part)
        self._lengths: np.ndarray | None = None
        if self._is_sharded and isinstance(batch_size, Tokens):
            # Ranks with other examples take batches of as many in step: each place in the order
            # counts as its longest example on any rank.
            own = train.lengths(batch_size, self._order)
            self._lengths = np.max(each_says(own), axis=0)
        self.size = min(MOST if isinstance(batch_size, Tokens) else batch_size, len(part))
        self._gradients = gradients
        if train.alone is not None:
            self.size = 1
        few = gradients.audited_whole(len(part))
        # Ranks of a sharded model check the same batch, which is no rank's own first one.
        chosen: Sequence[int] = self._next(0)[:few]
        if self._is_sharded:
            most = len(self._next(0)) if isinstance(batch_size, Tokens) else batch_size
            chosen = spread(span.start, min(most, len(span)))
        warn_if_changing(train, chosen)
        first = move(train.few(chosen), device)
        self.first = None if self._is_sharded else (chosen, first)
        with examples_named(train, chosen, first):
            gradients.check_in_pass(first)
        self.structure = structure(first)

    @property
    def of_unlike_length(self) -> tuple[Sequence[int], Batch] | None:
        """Examples of which some are padded, if any are: the first batch, or the extremes."""
        if self.first is None or not isinstance(self.batch_size, Tokens):
            return self.first
        chosen = [self._order[-1], self._order[0]]  # the shortest and the longest
        return chosen, move(self._train.few(chosen), self.device)

    def limit(self, size: int) -> None:
        """Take at most so many examples at once from here on."""
        self.size = max(1, min(self.size, size))
        if self.first is not None and len(self.first[0]) > self.size:
            # What was found out about the checked batch does not hold for a part of it.
            self.first = None

    def grow(self, size: int) -> None:
        """Take up to so many examples at once from here on, where no number was asked for.

        On a CPU a batch otherwise stays in what is kept near, which leaves memory unused.
        """
        if not self._may_grow or self._train.alone is not None:
            return
        if isinstance(self.batch_size, Tokens) or size <= self.batch_size:
            return
        fitting = room(self.device) // (2 * bytes_each(self._gradients, self._two))
        self.batch_size = max(self.batch_size, min(size, fitting, MOST))
        self.size = min(self.batch_size, len(self._order))

    def read(self, each: Callable[[Sequence[int], Batch, bool], T]) -> Iterator[T]:
        """What `each` returns for every batch, in the order of reading.

        Args:
            each: Called as each(positions, batch, is_last); called again where the batch was too
                large for memory, or where parameters stepped down in the first batch.

        Raises:
            SteppedDownError: Parameters stepped down in a later batch: drop what was yielded.
        """
        done = 0
        while done < len(self._order):
            try:
                self._ahead = OneAhead(self._batches(done))
                for positions, batch in self._ahead:
                    is_last = done + len(positions) == len(self._order)
                    with examples_named(self._train, positions, batch):
                        if done == 0:
                            found = until_settled(partial(each, positions, batch, is_last))
                        else:
                            found = each(positions, batch, is_last)
                    yield found
                    done += len(positions)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._is_sharded:
                    raise DeviceError(
                        f"A rank of a sharded model ran out of memory in a batch of {self.size}: "
                        "ranks cannot take smaller batches one by one. Pass a smaller batch_size."
                    ) from error
                if not self._halve(done):
                    raise
                torch.cuda.empty_cache()

    def prepare_next(self) -> None:
        """Read the next batch and send it to the device, which computes the present one meanwhile.

        For `each` of `read` to call before it waits for the device; on a CPU it does nothing.
        """
        if self._ahead is not None and is_remote(self.device):
            self._ahead.prepare()

    def _halve(self, done: int) -> bool:
        """Take batches half as large from here on; returns whether they can be any smaller."""
        tried = len(self._next(done))
        if tried == 1 or self.size == 1:
            return False
        while isinstance(self.batch_size, Tokens) and len(self._next(done)) == tried:
            self.batch_size = self.batch_size.halved()
        if isinstance(self.batch_size, Tokens):
            _log.info(
                "no memory left on %s: batches of %d tokens now",
                self.device,
                self.batch_size.limit,
            )
            return True
        self.size = self.batch_size = self.size // 2
        _log.info("no memory left on %s: batches of %d now", self.device, self.size)
        return True

    def _next(self, done: int) -> Sequence[int]:
        """The positions of the batch after so many examples."""
        # No batch is longer than `size`, so that those after it need not be divided.
        return self._groups(slice(done, done + self.size))[0]

    def _groups(self, some: slice) -> list[Sequence[int]]:
        """The batches of a stretch of the order."""
        lengths = None if self._lengths is None else self._lengths[some]
        return self._train.groups(self.batch_size, self._order[some], self.size, lengths)

    def _batches(self, done: int) -> Iterator[tuple[Sequence[int], Batch]]:
        """Batches after so many examples; the first of all is short where all of it is audited."""
        if done == 0:
            few = self._gradients.begin(len(self._order), is_checked=self.first is not None)
            checked, self.first = self.first, None
            positions = self._next(0)[:few]
            if checked is None:
                yield positions, move(self._train.take(positions), self.device)
                done = len(positions)
            elif len(checked[0]) >= len(positions) or few < len(self._order):
                positions = positions[: len(checked[0])]
                yield positions, part_of(checked[1], slice(0, len(positions)))
                done = len(positions)
        groups = self._groups(slice(done, None))
        for positions, batch in self._train.read(groups, as_views=True):
            yield positions, move(batch, self.device)


def spread(start: int, size: int) -> list[int]:
    """A few positions from the two ends of a batch inwards: its first and last come outermost."""
    places = sorted({0, 1 % size, size // 3, 2 * size // 3, max(0, size - 2), size - 1})
    return [start + place for place in places]
