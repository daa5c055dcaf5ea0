"""What an index holds: `manifest.json`, and the errors where another index is expected."""

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, final

from tracin.errors import IndexingError
from tracin.index.store import sealed_json
from tracin.index.store.checksums import checksum
from tracin.index.store.layout import DTYPES, Column
from tracin.index.store.number_format import FORMATS
from tracin.schema import AnyMapping, Fields, Items, Maybe, Named, Number, Text, Whole

FILE = "manifest.json"
MOST_ROWS = 1 << 36
MOST_UNITS = 1 << 20  # files: 100 checkpoints of 85 million rows, at the default size
# Names folders, so nothing that leads out of one.
KEY = r"[0-9A-Za-z_-]{1,64}"
SUM = r"[0-9a-f]{32}"
_ROWS = Whole(1, MOST_ROWS)
SCHEMA = Fields(
    {
        "about": AnyMapping(),
        "width": Whole(1, 1 << 31),
        "pieces": Items(Items(Whole(), 2, 2)),
        "number_format": Text("|".join(FORMATS)),
        "shard_size": _ROWS,
        "extents": Items(_ROWS, 1),
        "checkpoints": Items(
            Fields(
                {
                    "key": Text(KEY),
                    "name": Text(),
                    "number": Whole(),
                    "weights": Items(Number(), 1),
                    "losses": Items(Number(), most=64),
                }
            ),
            1,
        ),
        "extra_columns": Named(
            Fields(
                {"dtype": Text("|".join(DTYPES)), "shape": Items(Whole(0, 1 << 31), most=8)},
            ),
            r"(?!rows$|scales$)\w{1,64}",
        ),
        "added": Items(
            Fields(
                {
                    "ids": Text(SUM),
                    "examples": Named(Text(r"[0-9a-f]{1,64}"), r"\d{1,12}"),
                    "data": Maybe(Text(SUM)),
                    "source": Maybe(Text()),
                }
            )
        ),
        "witness": Items(Number(), most=64),
    }
)


@final
@dataclass(frozen=True, slots=True)
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
        key: A fingerprint of its weights. Checkpoints with equal weights have one key, and share
            their rows.
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
        data: A checksum of all of them, where tensors in memory held them.
        source: The data set's own fingerprint, if it has one; kept for people, never compared.
    """

    ids: str
    examples: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
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
        shard_size: Rows in a file, but for the last before each append.
        extents: How many rows there were after each build, rising.
        checkpoints: In the order of the results.
        extra_columns: What is stored with each row, by name.
        added: What is known of the rows of each extent.
        witness: Losses of a few examples as the index began; another model or loss has others.
    """

    about: Mapping[str, Any]
    width: int
    pieces: tuple[tuple[int, int], ...]
    number_format: str
    shard_size: int
    extents: tuple[int, ...]
    checkpoints: tuple[Entry, ...]
    extra_columns: Mapping[str, Column] = field(default_factory=dict)
    added: tuple[Added, ...] = ()
    witness: tuple[float, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows there are at each checkpoint."""
        return self.extents[-1] if self.extents else 0

    def ranges(self) -> list[range]:
        """The rows of each file."""
        return [
            range(start, min(start + self.shard_size, after))
            for before, after in pairwise((0, *self.extents))
            for start in range(before, after, self.shard_size)
        ]

    @property
    def keys(self) -> list[str]:
        """The keys of the checkpoints, each once."""
        return list(dict.fromkeys(each.key for each in self.checkpoints))

    def units(self) -> list[Unit]:
        """All units, one checkpoint after the other."""
        ranges = self.ranges()
        return [Unit(key, at.start, at.stop) for key in self.keys for at in ranges]

    def entry(self, key: str) -> Entry:
        """The first checkpoint with these weights.

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

    @cached_property
    def _numbers(self) -> dict[str, str]:
        return {each.key: str(each.number) for each in self.checkpoints}

    @cached_property
    def index(self) -> str:
        """A fingerprint of what all rows have in common: how they are made and kept."""
        names = (
            "about",
            "width",
            "pieces",
            "number_format",
            "shard_size",
            "extra_columns",
            "witness",
        )
        fixed = asdict(self)
        return content_fingerprint({name: fixed[name] for name in names})

    @cached_property
    def plan(self) -> str:
        """A fingerprint of how gradients become rows."""
        return content_fingerprint(self.about.get("plan"))

    @cached_property
    def data(self) -> tuple[str, ...]:
        """A fingerprint of the examples of each extent."""
        known = [{**asdict(each), "source": None} for each in self.added]
        return tuple(map(content_fingerprint, known))

    @property
    def of(self) -> str:
        """A fingerprint of how rows are made and of all their examples: what answers rest on."""
        return content_fingerprint([self.index, self.extents, self.data])

    def identity(self, unit: Unit) -> dict[str, str]:
        """What a unit's file must say of itself, or it is another's."""
        extent = bisect_right(self.extents, unit.start)
        return {
            "index": self.index,
            "plan": self.plan,
            "data": self.data[extent] if extent < len(self.data) else "",
            "checkpoint": unit.checkpoint,
            "number": self._numbers[unit.checkpoint],
            "rows": f"{unit.start}-{unit.stop}",
        }

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
        return replace(
            self, extents=extents, added=added, checkpoints=met(self.checkpoints, later.checkpoints)
        )

    def spans(self) -> list[range]:
        """The rows of each extent."""
        return [range(*pair) for pair in pairwise((0, *self.extents))]

    def with_checkpoints(self, checkpoints: Sequence[Entry]) -> "Manifest":
        """With these checkpoints in place of its own."""
        return replace(self, checkpoints=tuple(checkpoints))

    def without(self, key: str, name: str | None = None) -> "Manifest":
        """Without the first checkpoint of this key, and of this name if it is given."""
        for at, each in enumerate(self.checkpoints):
            if each.key == key and name in (None, each.name):
                return self.with_checkpoints(self.checkpoints[:at] + self.checkpoints[at + 1 :])
        return self

    def to_bytes(self) -> bytes:
        """As the file holds it; equal for equal manifests."""
        return sealed_json.written(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Manifest":
        """Read the file.

        Raises:
            IndexingError: It is damaged, or another release wrote it.
        """
        try:
            held = sealed_json.read(content, SCHEMA)
            held["checkpoints"] = tuple(Entry(**each) for each in held["checkpoints"])
            held["extra_columns"] = {
                name: Column(**each) for name, each in held["extra_columns"].items()
            }
            held["added"] = tuple(Added(**each) for each in held["added"])
            found = cls(**held)
            refuse_odd(found)
            return found
        except sealed_json.OtherFormatError as error:
            raise IndexingError(
                f"{where} was written by another release of tracin: {error}. Build the index again "
                "in a new folder, or read it with that release."
            ) from error
        except ValueError as error:
            raise IndexingError(
                f"{where} cannot be read ({error}): it was damaged or changed by hand. Put it "
                "back from a copy, or build the index in a new folder."
            ) from error


def met(there: Sequence[Entry], later: Sequence[Entry]) -> tuple[Entry, ...]:
    """Checkpoints that are there, as a later build has them, and then those that are new.

    Of several with equal weights, the one of the same name is meant, or else the next.
    """
    found, free = list(there), list(range(len(there)))
    for each in later:
        same = [at for at in free if there[at].key == each.key]
        same.sort(key=lambda at: there[at].name != each.name)
        if not same:
            found.append(each)
            continue
        at = same[0]
        free.remove(at)
        found[at] = replace(each, losses=there[at].losses or each.losses)
    return tuple(found)


def refuse_odd(manifest: Manifest) -> None:
    """Fields that are each what they should be must go together.

    Raises:
        ValueError: They do not.
    """
    if any(before >= after for before, after in pairwise((0, *manifest.extents))):
        raise ValueError("it.extents do not rise")
    each = manifest.shard_size
    files = sum(-(-(b - a) // each) for a, b in pairwise((0, *manifest.extents)))
    if files * len(manifest.checkpoints) > MOST_UNITS:
        raise ValueError(f"it names {files * len(manifest.checkpoints)} files, over {MOST_UNITS}")
    if len(manifest.added) != len(manifest.extents):
        raise ValueError("it.added has not an entry for each of it.extents")
    if any(int(at) >= manifest.rows for one in manifest.added for at in one.examples):
        raise ValueError("it.added knows examples beyond the last row")
    edges = (0, *(edge for piece in manifest.pieces for edge in piece), manifest.width)
    if any(edges[at] != edges[at + 1] for at in range(0, len(edges), 2)) or any(
        start > stop for start, stop in manifest.pieces
    ):
        raise ValueError(f"it.pieces do not divide the {manifest.width} columns")
    if len({len(one.weights) for one in manifest.checkpoints}) > 1:
        raise ValueError("it.checkpoints have different numbers of weights")
    if len({(one.key, one.number) for one in manifest.checkpoints}) > len(manifest.keys):
        raise ValueError("it.checkpoints with one key have different numbers")


def content_fingerprint(content: Any) -> str:
    """A checksum of anything that JSON can hold."""
    return checksum(json.dumps(content, sort_keys=True).encode())


def refuse_other(there: Manifest, here: Manifest, where: str) -> None:
    """Two builds of one index must be of the same.

    Raises:
        IndexingError: They are not; every field that differs is named.
    """
    fixed = ("width", "pieces", "number_format", "shard_size", "extra_columns")
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
