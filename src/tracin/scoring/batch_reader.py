"""Reads a span of examples batch by batch, in sizes that fit the device."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, final

import torch

from tracin.data import Batch, Examples, move, warn_if_changing
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

    Attributes:
        device: Where batches go.
        size: How many examples a batch has, at most the span.
        batch_size: What `size` was cut from, for the next reader of the same pass.
        structure: The names, types and shapes of a batch.
        first: The positions and the batch that were checked, until they are read; None for the
            ranks of a sharded model.
    """

    def __init__(
        self,
        gradients: Gradients,
        train: Examples,
        span: range,
        batch_size: int | None,
        device: torch.device,
        part: range,
    ) -> None:
        self._train, self._span = train, part
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
        self._most = len(part)
        self._ahead: OneAhead[tuple[range, Batch]] | None = None
        self.batch_size, self.size = batch_size, min(batch_size, len(part))
        self._gradients = gradients
        if train.alone is not None:
            self.size = 1
        few = min(self.size, gradients.begin(len(part)))
        # Ranks of a sharded model check the same batch, which is no rank's own first one.
        rows = spread(span.start, min(batch_size, len(span)))
        chosen = rows if self._is_sharded else range(part.start, part.start + few)
        warn_if_changing(train, chosen)
        first = move(train.few(chosen), device)
        self.first = None if self._is_sharded else (chosen, first)
        with examples_named(train, chosen, first):
            gradients.check(first)
        self.structure = structure(first)

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
        if not self._may_grow or size <= self.batch_size or self._train.alone is not None:
            return
        fitting = room(self.device) // (2 * bytes_each(self._gradients, self._two))
        self.batch_size = max(self.batch_size, min(size, fitting, MOST))
        self.size = min(self.batch_size, self._most)

    def read(self, each: Callable[[range, Batch, bool], T]) -> Iterator[T]:
        """What `each` returns for every batch, in order.

        Args:
            each: Called as each(positions, batch, is_last); called again where the batch was too
                large for memory, or where parameters stepped down in the first batch.

        Raises:
            SteppedDownError: Parameters stepped down in a later batch: drop what was yielded.
        """
        start = self._span.start
        while start < self._span.stop:
            try:
                self._ahead = OneAhead(self._batches(start))
                for positions, batch in self._ahead:
                    is_last = positions.stop == self._span.stop
                    with examples_named(self._train, positions, batch):
                        if start == self._span.start:
                            found = until_settled(partial(each, positions, batch, is_last))
                        else:
                            found = each(positions, batch, is_last)
                    yield found
                    start = positions.stop
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self._is_sharded:
                    raise DeviceError(
                        f"A rank of a sharded model ran out of memory in a batch of {self.size}: "
                        "ranks cannot take smaller batches one by one. Pass a smaller batch_size."
                    ) from error
                if self.size == 1:
                    raise
                self.size = self.batch_size = self.size // 2
                _log.info("no memory left on %s: batches of %d now", self.device, self.size)
                torch.cuda.empty_cache()

    def prepare_next(self) -> None:
        """Read the next batch and send it to the device, which computes the present one meanwhile.

        For `each` of `read` to call before it waits for the device; on a CPU it does nothing.
        """
        if self._ahead is not None and is_remote(self.device):
            self._ahead.prepare()

    def _batches(self, start: int) -> Iterator[tuple[range, Batch]]:
        """Batches from a position on; the first of the span is short: all of it is audited."""
        if start == self._span.start:
            few = self._gradients.begin(len(self._span), is_checked=self.first is not None)
            checked, self.first = self.first, None
            most = self.size if checked is None else min(self.size, len(checked[0]))
            positions = range(start, min(start + few, start + most, self._span.stop))
            if checked is None:
                yield positions, move(self._train.take(positions), self.device)
            else:
                yield positions, part_of(checked[1], slice(0, len(positions)))
            start = positions.stop
        for positions, batch in self._train.batches(
            self.size, start=start, stop=self._span.stop, as_views=True
        ):
            yield positions, move(batch, self.device)


def spread(start: int, size: int) -> list[int]:
    """A few positions from the two ends of a batch inwards: its first and last come outermost."""
    places = sorted({0, 1 % size, size // 3, 2 * size // 3, max(0, size - 2), size - 1})
    return [start + place for place in places]
