"""What the calls of a model do, kept from one question of a run to the next."""

from collections.abc import Sequence
from typing import final

from tracin.gradients.layouts import ShapeProbe


@final
class KeptShapes:
    """What was learned from copies of an example, by the names of the parameters in question.

    It saves two passes and proves nothing: the audit of each question's first batch finds where a
    model has changed since, and it is learned again.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], ShapeProbe] = {}

    def __reduce__(self) -> tuple[type["KeptShapes"], tuple[()]]:
        """A run that goes to another process takes none along."""
        return (KeptShapes, ())

    def get(self, names: Sequence[str]) -> ShapeProbe | None:
        """What is known of calls with these parameters."""
        return self._held.get(tuple(names))

    def put(self, names: Sequence[str], probe: ShapeProbe) -> None:
        """Keep what calls with these parameters do."""
        self._held[tuple(names)] = probe

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
