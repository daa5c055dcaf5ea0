"""What an index holds: `manifest.json`, and the errors where another index is expected."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, final

from tracin.errors import IndexingError

FILE = "manifest.json"
FORMAT = 1


@final
@dataclass(frozen=True)
class Unit:
    """One unit of work, and one file: rows `start` to `stop` at one checkpoint."""

    checkpoint: str
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Where it is kept."""
        return f"rows/{self.checkpoint}/{self.start:012d}-{self.stop:012d}.safetensors"


@final
@dataclass(frozen=True)
class Entry:
    """One checkpoint of an index.

    Attributes:
        key: A fingerprint of its weights.
        name: What results call it.
        number: Counted from 0 as checkpoints came, also those dropped since: that of its random
            numbers.
        weights: [groups]: what it weighed when the index was built.
    """

    key: str
    name: str
    number: int
    weights: tuple[float, ...]


@final
@dataclass(frozen=True)
class Manifest:
    """All that describes an index but its rows.

    Attributes:
        about: What the rows are of, as JSON; two builds of one index must agree in all of it.
        width: Numbers in a row.
        pieces: Columns (start, stop) that have scales of their own.
        number_format: The name of how numbers are kept.
        rows_a_shard: Rows in a file, but for the last before each append.
        extents: How many rows there were after each build, rising.
        checkpoints: In the order of the results.
        numbers: How many checkpoints have come so far.
    """

    about: Mapping[str, Any]
    width: int
    pieces: tuple[tuple[int, int], ...]
    number_format: str
    rows_a_shard: int
    extents: tuple[int, ...]
    checkpoints: tuple[Entry, ...]
    numbers: int

    @property
    def rows(self) -> int:
        """How many rows there are at each checkpoint."""
        return self.extents[-1] if self.extents else 0

    def ranges(self) -> list[range]:
        """The rows of each file."""
        return [
            range(start, min(start + self.rows_a_shard, after))
            for before, after in pairwise((0, *self.extents))
            for start in range(before, after, self.rows_a_shard)
        ]

    def units(self) -> list[Unit]:
        """All units, one checkpoint after the other."""
        ranges = self.ranges()
        return [Unit(e.key, at.start, at.stop) for e in self.checkpoints for at in ranges]

    def entry(self, key: str) -> Entry:
        """The checkpoint with these weights.

        Raises:
            IndexingError: There is none.
        """
        for each in self.checkpoints:
            if each.key == key:
                return each
        raise IndexingError(
            f"The index holds no checkpoint with the weights {key}; it holds "
            f"{', '.join(f'{each.name} ({each.key})' for each in self.checkpoints)}."
        )

    def extended(
        self, rows: int, checkpoints: Sequence[tuple[str, str, tuple[float, ...]]]
    ) -> "Manifest":
        """With more rows, and more or other weights of checkpoints, (key, name, weights) each.

        Raises:
            IndexingError: Fewer rows than there are.
        """
        if rows < self.rows:
            raise IndexingError(
                f"The index holds {self.rows} rows, but the data have {rows}: rows are only ever "
                "added. Give the data that it was built from, and more; or another folder."
            )
        extents = self.extents if rows == self.rows else (*self.extents, rows)
        entries = {each.key: each for each in self.checkpoints}
        numbers = self.numbers
        for key, name, weights in checkpoints:
            if key in entries:
                entries[key] = replace(entries[key], name=name, weights=weights)
            else:
                entries[key] = Entry(key, name, numbers, weights)
                numbers += 1
        return replace(self, extents=extents, checkpoints=tuple(entries.values()), numbers=numbers)

    def without(self, key: str) -> "Manifest":
        """Without a checkpoint."""
        dropped = self.entry(key)
        return replace(
            self, checkpoints=tuple(each for each in self.checkpoints if each != dropped)
        )

    def to_bytes(self) -> bytes:
        """As the file holds it; equal for equal manifests."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Manifest":
        """Read the file.

        Raises:
            IndexingError: It is damaged, or another release wrote it.
        """
        try:
            held = json.loads(content)
            if held.pop("format") != FORMAT:
                raise IndexingError(
                    f"{where} was written by another release of tracin. Read it with that one."
                )
            return cls(
                held["about"],
                int(held["width"]),
                tuple((int(start), int(stop)) for start, stop in held["pieces"]),
                held["number_format"],
                int(held["rows_a_shard"]),
                tuple(map(int, held["extents"])),
                tuple(
                    Entry(e["key"], e["name"], e["number"], tuple(map(float, e["weights"])))
                    for e in held["checkpoints"]
                ),
                int(held["numbers"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexingError(
                f"{where} cannot be read ({error!r}): it was damaged or changed by hand. Put it "
                "back from a copy, or build the index in a new folder."
            ) from error


def refuse_other(there: Manifest, here: Manifest, where: str) -> None:
    """Two builds of one index must be of the same.

    Raises:
        IndexingError: They are not; every field that differs is named.
    """
    fixed = ("width", "pieces", "number_format", "rows_a_shard")
    ours = {**{name: getattr(here, name) for name in fixed}, **flat(here.about)}
    theirs = {**{name: getattr(there, name) for name in fixed}, **flat(there.about)}
    differing = [
        f"{name} is {short(theirs.get(name))} there and {short(ours.get(name))} here"
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        more = f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise IndexingError(
            f"{where} holds another index: {'; '.join(differing[:6])}{more}. Give what it was "
            "built with, or a new folder."
        )


def flat(content: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names.

    >>> flat({"plan": {"seed": 0}})
    {'plan.seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{within}{name}"
        found |= flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return found


def short(value: Any) -> str:
    """A value in a few characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
