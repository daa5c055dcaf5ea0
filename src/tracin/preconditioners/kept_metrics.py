"""Curvature that was computed once serves the next questions about the same data."""

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from torch import Tensor

from tracin.data import Examples, examples_fingerprint

_log = logging.getLogger(__name__)

MOST = 1 << 28  # numbers: 1 GiB in float32

T = TypeVar("T")


@final
class KeptMetrics:
    """The metrics of a run that were used last, by all that they depend on.

    What is kept is known by the weights in place, the preconditioner, the data of the fit, and how
    losses and gradients are computed: where any of it differs, a metric is made anew.

    Args:
        most: How many numbers they have together, at most.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._held: OrderedDict[tuple[str, ...], tuple[Any, int]] = OrderedDict()

    def __reduce__(self) -> tuple[type["KeptMetrics"], tuple[int]]:
        """A run that goes to another process takes none along."""
        return (KeptMetrics, (self._most,))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, about: Callable[[], str], data: Examples, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, or returned for the same weights, methods and data.

        Args:
            about: A fingerprint of weights, code and methods, which `make` may settle.
            data: What the metric is computed from.
            name: The checkpoint, for the log.
            make: Computes the metric.
        """
        content = examples_fingerprint(data)
        if content is None:
            return make()
        key = (about(), content)
        if key in self._held:
            self._held.move_to_end(key)
            _log.info("the curvature at checkpoint '%s' is that of an earlier question", name)
            return self._held[key][0]
        metric = make()
        size = numbers_in(metric)
        self._held[about(), content] = (metric, size)
        while self._held and sum(each for _, each in self._held.values()) > self._most:
            self._held.popitem(last=False)
        return metric


@runtime_checkable
class CountsNumbers(Protocol):
    """What knows how many numbers it holds."""

    @property
    def held(self) -> int:
        """How many."""
        ...


def numbers_in(held: Any) -> int:
    """How many numbers the tensors in dataclasses, mappings and lists have together."""
    if isinstance(held, CountsNumbers):
        return held.held
    if isinstance(held, Tensor):
        return held.numel()
    if isinstance(held, Mapping):
        return sum(map(numbers_in, held.values()))
    if isinstance(held, tuple | list):
        return sum(map(numbers_in, held))
    if dataclasses.is_dataclass(held):
        return sum(numbers_in(getattr(held, each.name)) for each in dataclasses.fields(held))
    return 0
