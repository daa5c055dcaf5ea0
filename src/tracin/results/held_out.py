"""How well each checkpoint does on held-out data, and which do best."""

from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.printed import Printed
from tracin.results.table import aligned

BEST = 3  # checkpoints that are averaged over


@final
@dataclass(frozen=True, eq=False, repr=False)
class HeldOut(Printed):
    """How well each checkpoint does on data that it was not trained on. Printing it gives a table.

    Attributes:
        names: The checkpoints' names.
        losses: [checkpoints]; the mean loss.
        accuracies: [checkpoints]; the share of examples whose label scores highest; None for
            targets that are numbers.

    Example:
        >>> found = HeldOut(("a", "b"), np.array([0.5, 0.4]), np.array([0.75, 0.875]))
        >>> print(found)
        checkpoint  accuracy  loss
        b              0.875   0.4  averaged over
        a               0.75   0.5  averaged over
    """

    names: tuple[str, ...]
    losses: np.ndarray
    accuracies: np.ndarray | None

    @property
    def best(self) -> tuple[int, ...]:
        """The places of the best three checkpoints, or of all where there are fewer, in order.

        Those with the highest accuracy, of equal ones those with the lower loss; for numbers those
        with the lowest loss.
        """
        return tuple(sorted(self._order()[:BEST]))

    def __str__(self) -> str:
        best = set(self.best)
        columns = {"checkpoint": self.names, "accuracy": self.accuracies, "loss": self.losses}
        shown = {name: each for name, each in columns.items() if each is not None}
        rows = [
            [*(column[at] for column in shown.values()), "averaged over" if at in best else ""]
            for at in self._order()
        ]
        return aligned([*shown, ""], rows)

    def _order(self) -> list[int]:
        keys = (self.losses,) if self.accuracies is None else (self.losses, -self.accuracies)
        return np.lexsort(keys).tolist()
