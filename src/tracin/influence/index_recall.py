"""The recall of an index's sketched answers: measured on some of its rows, and kept beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tracin.influence.recall import Recall
from tracin.sketches.random_numbers import integers, key
from tracin.store.place import Place

FILE = "recall.json"
HITS, QUERIES = 10, 16
AGAINST = "training rows, by the model's own scores"
HOW = "index.measure_recall(run, train=...) measures it"


@final
@dataclass(frozen=True)
class Kept:
    """A recall, with what it was measured for.

    Attributes:
        recall: The figures.
        certain: For how many queries the true proponents, and opponents, were certain.
        rows: How many rows the index had.
        checkpoints: The keys of its checkpoints.
    """

    recall: Recall
    certain: tuple[int, int]
    rows: int
    checkpoints: tuple[str, ...]

    def is_of(self, rows: int, keys: Sequence[str]) -> bool:
        """Whether it holds for these rows at these checkpoints."""
        return self.rows == rows and set(self.checkpoints) == set(keys)

    def write(self, place: Place) -> None:
        """Keep it beside the rows; equal for equal figures."""
        content = {
            "k": self.recall.k,
            "queries": self.recall.queries,
            "proponents": self.recall.proponents,
            "opponents": self.recall.opponents,
            "certain proponents": self.certain[0],
            "certain opponents": self.certain[1],
            "rows": self.rows,
            "checkpoints": list(self.checkpoints),
        }
        place.write(FILE, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, place: Place) -> "Kept | None":
        """What was kept; None where nothing that can be read was."""
        if place.size(FILE) is None:
            return None
        try:
            held = json.loads(bytes(place.read(FILE)))
            return cls(
                Recall(
                    int(held["k"]),
                    int(held["queries"]),
                    float(held["proponents"]),
                    float(held["opponents"]),
                    AGAINST,
                ),
                (int(held["certain proponents"]), int(held["certain opponents"])),
                int(held["rows"]),
                tuple(map(str, held["checkpoints"])),
            )
        except (KeyError, TypeError, ValueError):
            return None


def told(kept: Kept | None, rows: int, keys: Sequence[str]) -> tuple[Recall | None, str]:
    """The recall of an answer, where it is known, and what to say of it."""
    if kept is None:
        return None, f"recall: not measured; {HOW}"
    if kept.rows != rows:
        return None, f"recall: measured when there were {kept.rows} of {rows} rows; {HOW}"
    if not kept.is_of(rows, keys):
        return None, f"recall: measured at other checkpoints than these; {HOW}"
    return kept.recall, str(kept.recall)


def chosen_rows(seed: int, rows: int, count: int) -> np.ndarray:
    """Some rows, always the same of one seed: [at most count], rising."""
    if count >= rows:
        return np.arange(rows)
    drawn = integers(key(seed, "recall"), 4 * count, rows)
    _, first = np.unique(drawn, return_index=True)
    return np.sort(drawn[np.sort(first)[:count]])


def without(positions: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Each query's hits [queries, k + 1] but itself; the last where it is not among them: k."""
    is_own = positions == own[:, None]
    is_own[~is_own.any(1), -1] = True
    return positions[~is_own].reshape(len(positions), -1)
