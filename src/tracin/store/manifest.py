"""What an index holds: `manifest.json`, and the errors where another index is expected."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, final

from tracin.errors import IndexingError
from tracin.store.shard import Column

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
        number: Of its random numbers. It follows from the weights, so that rows that were dropped
            and come again are the same.
        weights: [groups]: what it weighed when the index was built.
        losses: Of the first rows' chosen examples, where they were taken down: a second build
            compares them, to know another model or loss.
    """

    key: str
    name: str
    number: int
    weights: tuple[float, ...]
    losses: tuple[float, ...] = ()


@final
@dataclass(frozen=True)
class Added:
    """What is known of the rows that came at one time.

    Attributes:
        ids: A checksum of their ids.
        examples: Position -> a fingerprint of the example there, for some of them.
        source: The data set's own fingerprint, if it has one; kept for people, never compared.
    """

    ids: str
    examples: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None


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
        beside: What is kept of each row beside it, by name.
        added: What is known of the rows of each extent.
    """

    about: Mapping[str, Any]
    width: int
    pieces: tuple[tuple[int, int], ...]
    number_format: str
    rows_a_shard: int
    extents: tuple[int, ...]
    checkpoints: tuple[Entry, ...]
    beside: Mapping[str, Column] = field(default_factory=dict)
    added: tuple[Added, ...] = ()

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

    def extended(self, later: "Manifest") -> "Manifest":
        """With the rows and checkpoints of a later build, which come to those that are there.

        Raises:
            IndexingError: Fewer rows than there are.
        """
        if later.rows < self.rows:
            raise IndexingError(
                f"The index holds {self.rows} rows, but the data have {later.rows}: rows are only "
                "ever added. Give the data that it was built from, and more; or another folder."
            )
        extents = self.extents if later.rows == self.rows else (*self.extents, later.rows)
        added = (*self.added, *later.added[len(self.added) :])
        entries = {each.key: each for each in self.checkpoints}
        for each in later.checkpoints:
            losses = entries[each.key].losses if each.key in entries else each.losses
            entries[each.key] = replace(each, losses=losses or each.losses)
        return replace(self, extents=extents, added=added, checkpoints=tuple(entries.values()))

    def spans(self) -> list[range]:
        """The rows of each extent."""
        return [range(*pair) for pair in pairwise((0, *self.extents))]

    def with_checkpoints(self, checkpoints: Sequence[Entry]) -> "Manifest":
        """With these checkpoints in place of its own."""
        return replace(self, checkpoints=tuple(checkpoints))

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
                tuple(map(_entry, held["checkpoints"])),
                {
                    name: Column(each["dtype"], tuple(map(int, each["shape"])))
                    for name, each in held["beside"].items()
                },
                tuple(
                    Added(each["ids"], dict(each["examples"]), each["source"])
                    for each in held["added"]
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexingError(
                f"{where} cannot be read ({error!r}): it was damaged or changed by hand. Put it "
                "back from a copy, or build the index in a new folder."
            ) from error


def _entry(content: Mapping[str, Any]) -> Entry:
    weights, losses = (tuple(map(float, content[name])) for name in ("weights", "losses"))
    return Entry(content["key"], content["name"], int(content["number"]), weights, losses)


def refuse_other(there: Manifest, here: Manifest, where: str) -> None:
    """Two builds of one index must be of the same.

    Raises:
        IndexingError: They are not; every field that differs is named.
    """
    fixed = ("width", "pieces", "number_format", "rows_a_shard", "beside")
    about = json.loads(json.dumps(here.about))  # as the other was read: lists, not tuples
    ours = {**{name: getattr(here, name) for name in fixed}, **flat(about)}
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
