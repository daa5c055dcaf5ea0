"""Takes the next batch while a device computes the present one, in the same thread.

A device computes what it was given while the host goes on, so no second thread is needed: data is
read by one thread in its order, and random numbers are drawn in the order that they have without.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class OneAhead(Generic[T]):
    """Hands on what another iterator gives, of which one may be taken beforehand.

    Args:
        items: The other iterator.

    Example:
        >>> ahead = OneAhead(iter("ab"))
        >>> ahead.prepare()
        >>> "".join(ahead)
        'ab'
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._ready: list[T | Exception] = []

    def prepare(self) -> None:
        """Take the next one, if it is not taken yet; its error comes when its turn comes."""
        if self._ready:
            return
        try:
            self._ready.append(next(self._items))
        except Exception as error:
            self._ready.append(error)

    def __iter__(self) -> "OneAhead[T]":
        return self

    def __next__(self) -> T:
        if not self._ready:
            return next(self._items)
        found = self._ready.pop()
        if isinstance(found, Exception):
            raise found
        return found
