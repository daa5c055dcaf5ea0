"""The files of an index: what is there, what is missing, and what is in it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.index.store import sealed_json
from tracin.index.store.checksums import body_of
from tracin.index.store.ids import ids_checksum, ids_file, read_ids, write_ids
from tracin.index.store.manifest import FILE, Added, Manifest, Unit, refuse_other, short
from tracin.index.store.number_format import is_finite, number_format
from tracin.index.store.parquet import read as read_parquet
from tracin.index.store.shard import (
    NAMES,
    ROWS,
    Column,
    Layout,
    damaged,
    new_file,
    refuse_non_finite,
)
from tracin.index.store.storage import (
    UNFINISHED,
    File,
    Storage,
    absolute,
    is_abandoned,
    is_missing,
    open_storage,
)
from tracin.plain_text import plain

SCALES = "scales"
TABLE = "table.parquet"
RECALL = "recall.json"
# Seconds after which an unfinished file of another machine is taken to be abandoned.
ABANDONED = 3600.0
_TRIES = 100


@final
@dataclass(frozen=True)
class Shard:
    """What one file holds; rows are decoded when asked for.

    Attributes:
        unit: Which rows, at which checkpoint.
        tensors: By name: "rows", "scales", and what was written beside them.
        manifest: Of the index.
        check: Compares the rows with their checksum, if that was not done since the file changed.
        name: Of the file, for errors.
    """

    unit: Unit
    tensors: Mapping[str, Tensor]
    manifest: Manifest
    check: Callable[[], None]
    name: str

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop`, counted from its first: [n, width], float32.

        Raises:
            IndexingError: The rows are not as they were written.
        """
        self.check()
        return self._decoded(self.tensors[ROWS][start:stop], self.tensors[SCALES][start:stop])

    def unscaled(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Rows `start` to `stop` before each piece is multiplied by its scale, and the scales.

        Returns:
            [n, width], float32, and [n, pieces], or None where the format has no scales.

        Raises:
            IndexingError: The rows are not as they were written.
        """
        self.check()
        has_scale = number_format(self.manifest.number_format).has_scale
        scales = self.tensors[SCALES][start:stop] if has_scale else None
        return self.tensors[ROWS][start:stop].float(), scales

    def chosen(self, places: Tensor) -> Tensor:
        """The rows at these places: [places, width], float32; a few, so nothing is compared."""
        return self._decoded(self.tensors[ROWS][places], self.tensors[SCALES][places])

    def refuse_non_finite(self, numbers: Tensor) -> None:
        """What is made of the rows must be finite, as all is that is written.

        Raises:
            IndexingError: It is not.
        """
        if not is_finite(numbers):
            raise damaged(self.name, "its rows hold NaN or infinity, or their scores overflow")

    def _decoded(self, kept: Tensor, scales: Tensor) -> Tensor:
        how = number_format(self.manifest.number_format)
        rows = how.decode(kept, scales, self.manifest.pieces)
        self.refuse_non_finite(rows)
        return rows


@final
class Store:
    """An index's folder.

    Attributes:
        place: Where it is.
        manifest: What it holds.
    """

    def __init__(self, place: Storage, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self._columns = columns_of(manifest)
        self._sizes: dict[tuple[int, int], int] = {}
        self._checked: dict[str, object] = {}  # file -> what it was when its rows were compared

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[str, Manifest]]:
        """Another process opens the same files anew, and sees them by the same manifest."""
        return _reopened, (absolute(self.place.url), self.manifest)

    @classmethod
    def create(cls, folder: str | os.PathLike[str], manifest: Manifest, ids: np.ndarray) -> "Store":
        """Begin an index, or go on with one: more rows, more checkpoints.

        Args:
            folder: A folder or URL.
            manifest: What it is to hold, with the rows and checkpoints of this build.
            ids: [rows] of all rows, also those that are there.

        Raises:
            IndexingError: The folder holds another index, or rows with other ids.
        """
        where = open_storage(folder).url

        def proposed(there: Manifest | None) -> Manifest:
            if there is None:
                return manifest
            refuse_other(there, manifest, where)
            return there.extended(manifest)

        return cls.agreed(folder, proposed, ids)

    @classmethod
    def agreed(
        cls,
        folder: str | os.PathLike[str],
        proposed: Callable[[Manifest | None], Manifest],
        ids: np.ndarray,
    ) -> "Store":
        """Begin an index, or go on with one, whoever else may do so at the same moment.

        Args:
            folder: A folder or URL.
            proposed: What the manifest is to be where this one is there, or none; called again
                where another builder came first.
            ids: [rows] of all rows, also those that are there.

        Raises:
            IndexingError: `proposed` refuses, or the folder holds rows with other ids.
        """
        place = open_storage(folder)
        there = manifest_at(place)
        for _ in range(_TRIES):
            if there is None:
                refuse_lost_manifest(place)
            else:
                cls(place, there).refuse_other_ids(ids)
            manifest = with_ids(proposed(there), ids)
            spans = list(zip(manifest.spans(), manifest.added, strict=True))
            for span, added in spans:
                if not has_ids(place, span, added.ids):
                    write_ids(place, span, ids[span.start : span.stop])
            if manifest == there:
                return cls(place, manifest)
            with place.locked():
                now = manifest_at(place)
                if there is not None and now == there:
                    forget(place, manifest, there.rows)
                # Last: an index whose manifest is there has all its ids.
                if now == there and put(place, manifest, is_new=there is None):
                    return cls(place, manifest)
            there = manifest_at(place)
        raise IndexingError(
            f"{place.url}/{FILE} was changed by others {_TRIES} times while this build began. Run "
            "it again."
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Store":
        """Open an index, complete or not.

        Raises:
            IndexingError: There is none.
        """
        place = open_storage(folder)
        manifest = manifest_at(place)
        if manifest is None:
            refuse_lost_manifest(place)
            raise IndexingError(
                f"{place.url} holds no index: it has no {FILE}. Build one by run.index(train, "
                "folder), or tracin index build."
            )
        return cls(place, manifest)

    def size_of(self, unit: Unit) -> int:
        """How long a unit's file is, to the byte."""
        identity = self.manifest.identity(unit)
        # All that it depends on: an index may have a million files.
        key = unit.stop - unit.start, sum(map(len, identity.values()))
        if key not in self._sizes:
            self._sizes[key] = self._layout(unit).size
        return self._sizes[key]

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit's file is there, as long as it must be, and says that it is this one.

        Files are written whole, but a disk may fail, or a copy of the folder be broken off.
        """
        layout = self._layout(unit)
        if self.place.size(unit.file) != layout.size:
            return False
        try:
            layout.refuse_other(self.place.read(unit.file, 0, len(layout.header)))
        except ValueError:
            return False
        return True

    def _layout(self, unit: Unit) -> Layout:
        return Layout(self._columns, unit.stop - unit.start, self.manifest.identity(unit))

    def missing(self) -> list[Unit]:
        """The units that are still to be built, those with a file of another length too."""
        return self._missing(self.place.files())

    def _missing(self, files: Mapping[str, File]) -> list[Unit]:
        return [
            unit
            for unit in self.manifest.units()
            if unit.file not in files or files[unit.file].size != self.size_of(unit)
        ]

    def write(self, unit: Unit, rows: Tensor, beside: Mapping[str, Tensor]) -> None:
        """Write a unit's file.

        Args:
            unit: Which.
            rows: [stop - start, width], float32.
            beside: What else is kept of each row, [stop - start, ...] each.

        Raises:
            IndexingError: Rows that are not finite; a full disk.
        """
        if rows.shape != (unit.stop - unit.start, self.manifest.width):
            raise IndexingError(
                f"{unit.file} takes [{unit.stop - unit.start}, {self.manifest.width}] numbers; "
                f"{list(rows.shape)} were given."
            )
        declared = self.manifest.beside
        found = {
            name: Column(NAMES[one.dtype], tuple(one.shape[1:])) for name, one in beside.items()
        }
        if set(found) != set(declared) or any(
            found[name].shape != one.shape for name, one in declared.items()
        ):
            raise IndexingError(
                f"{unit.file} keeps {short(declared)} beside its rows; {short(found)} was given."
            )
        for name, one in beside.items():
            if len(one) != len(rows):
                raise IndexingError(
                    f"{unit.file} has {len(rows)} rows; {name} came for {len(one)}."
                )
        layout = self._layout(unit)
        content, tensors = new_file(layout)
        how = number_format(self.manifest.number_format)
        how.encode(rows, self.manifest.pieces, tensors[ROWS], tensors[SCALES])
        for name, one in beside.items():
            tensors[name].copy_(one)
        with telling(self._name(unit)):
            refuse_non_finite(beside)
        layout.finish(content)
        self.place.write(unit.file, content)

    def read(self, unit: Unit) -> Shard:
        """A unit's file; on a disk it is mapped, and read where it is looked at.

        Its header is compared with what it must be, and what is beside the rows with its checksum,
        now; the rows when `Shard.rows` is first asked for some of them, and again once the file was
        replaced.

        Raises:
            IndexingError: It is missing, truncated, changed, or another file.
        """
        version = self.place.version(unit.file)
        content, layout = self._opened(unit)

        def check() -> None:
            if version is None or self._checked.get(unit.file) != version:
                with telling(self._name(unit)):
                    layout.refuse_changed_rows(content)
                self._checked[unit.file] = version

        return Shard(unit, layout.tensors(content), self.manifest, check, self._name(unit))

    def columns(self, unit: Unit) -> Mapping[str, Tensor]:
        """What a unit's file holds beside its rows; the rows are not even fetched.

        Raises:
            IndexingError: It is missing, truncated, changed, or another file.
        """
        content, layout = self._opened(unit, has_rows=False)
        return layout.tensors(content, has_rows=False)

    def _opened(self, unit: Unit, *, has_rows: bool = True) -> tuple[memoryview, Layout]:
        name, layout = self._name(unit), self._layout(unit)
        self._refuse_other_size(unit, layout)
        content = self.place.read(unit.file, 0, None if has_rows else layout.front)
        with telling(name):
            if len(content) != (layout.size if has_rows else layout.front):
                raise ValueError("it was truncated while it was read")
            layout.refuse_changed_columns(content)
            refuse_non_finite(layout.tensors(content, has_rows=False))
        return content, layout

    def refuse_missing(self) -> None:
        """All files must be there: before memory is taken for what they hold.

        Raises:
            IndexingError: One is not, or is too short.
        """
        for unit in self.missing():
            self._refuse_other_size(unit, self._layout(unit))

    def _refuse_other_size(self, unit: Unit, layout: Layout) -> None:
        name, size = self._name(unit), self.place.size(unit.file)
        if size is None:
            raise IndexingError(
                f"{name} is missing: the index is not complete. Build again; what is there stays."
            )
        if size != layout.size:
            raise damaged(name, f"it has {size} bytes, and should have {layout.size}")

    def _name(self, unit: Unit) -> str:
        return f"{self.place.url}/{unit.file}"

    def read_range(self, checkpoint: str, rows: range) -> Shard:
        """The file that holds these rows, one of `manifest.ranges()`."""
        return self.read(Unit(checkpoint, rows.start, rows.stop))

    def shards(self, checkpoint: str) -> Iterator[Shard]:
        """The files of one checkpoint, in the order of the rows."""
        return (self.read_range(checkpoint, rows) for rows in self.manifest.ranges())

    def rows_at(self, checkpoint: str, positions: Tensor) -> Tensor:
        """Some rows, at rising positions: [positions, width], float32."""
        if len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < self.manifest.rows:
            raise IndexingError(
                f"The index has rows 0 to {self.manifest.rows - 1}; rows {int(positions[0])} to "
                f"{int(positions[-1])} were asked for."
            )
        found = torch.empty(len(positions), self.manifest.width)
        ranges = self.manifest.ranges()
        ends = torch.tensor([rows.stop for rows in ranges])
        cuts = torch.searchsorted(positions, ends).tolist()
        for rows, start, stop in zip(ranges, [0, *cuts], cuts, strict=False):
            if start < stop:
                shard = self.read_range(checkpoint, rows)
                found[start:stop] = shard.chosen(positions[start:stop] - rows.start)
        return found

    def ids(self) -> np.ndarray:
        """The ids of all rows."""
        pieces = [
            read_ids(self.place, span, added.ids)
            for span, added in zip(self.manifest.spans(), self.manifest.added, strict=True)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def refuse_other_ids(self, ids: np.ndarray) -> None:
        """The rows that are there must have these ids.

        Raises:
            IndexingError: One has another.
        """
        is_same = all(
            added.ids == ids_checksum(ids[span.start : span.stop])
            for span, added in zip(self.manifest.spans(), self.manifest.added, strict=True)
            if span.stop <= len(ids)
        )
        if is_same and self.manifest.rows <= len(ids):
            return
        there = self.ids()
        rows = min(len(there), len(ids))
        differing = np.flatnonzero(there[:rows] != ids[:rows])
        if len(differing):
            at = int(differing[0])
            was, now = (one[at : at + 1].tolist()[0] for one in (there, ids))
            raise IndexingError(
                f"{self.place.url} holds rows of other data: row {at} has the id {was!r} "
                f"there and {now!r} here. Give the data that it was built from, with new rows "
                "after the old ones; or another folder."
            )

    def drop(self, key: str, name: str | None = None) -> "Store":
        """Take a checkpoint out; its files stay until `gc`.

        Args:
            key: A fingerprint of its weights.
            name: Which of several with these weights; None for the first.
        """
        with self.place.locked():
            # What others have added meanwhile stays.
            manifest = (manifest_at(self.place) or self.manifest).without(key, name)
            put(self.place, manifest)
        return Store(self.place, manifest)

    def verify(self) -> "Report":
        """Read every byte of every file that belongs to the index.

        Returns:
            What is wrong: file -> why. Missing files are told apart: they are just not built yet.
        """
        files = self.place.files()
        checks = self._checks(files)
        problems: dict[str, str] = {}
        for name, check in checks.items():
            try:
                check()
            except (IndexingError, ValueError) as error:
                problems[name] = str(error.__cause__ or error)
        gone = tuple(unit.file for unit in self.manifest.units() if unit.file not in files)
        size = sum(files[name].size for name in checks if name in files)
        return Report(len(checks), size, problems, gone)

    def _checks(self, files: Mapping[str, File]) -> dict[str, Callable[[], object]]:
        """What reads each file, and raises where it is not as it was written."""
        others: dict[str, Callable[[bytes], object]] = {
            FILE: partial(Manifest.from_bytes, where=FILE),
            TABLE: read_parquet,
            RECALL: sealed_json.unsealed,
            **{name: body_of for name in files if name.startswith("candidates/")},
        }
        found: dict[str, Callable[[], object]] = {
            name: partial(self._read_by, name, read)
            for name, read in others.items()
            if name in files and not name.endswith(UNFINISHED)
        }
        for span, added in zip(self.manifest.spans(), self.manifest.added, strict=True):
            found[ids_file(span, added.ids)] = partial(read_ids, self.place, span, added.ids)
        there = (unit for unit in self.manifest.units() if unit.file in files)
        return found | {unit.file: partial(self._read_whole, unit) for unit in there}

    def _read_by(self, name: str, read: Callable[[bytes], object]) -> None:
        read(bytes(self.place.read(name)))

    def _read_whole(self, unit: Unit) -> None:
        content, layout = self.place.read(unit.file), self._layout(unit)
        if len(content) >= len(layout.header):
            layout.refuse_other(content)
        if len(content) != layout.size:
            raise ValueError(f"it was truncated: it has {len(content)} of {layout.size} bytes")
        layout.refuse_changed_columns(content)
        layout.refuse_changed_rows(content)
        refuse_non_finite(layout.tensors(content))

    def stale(self, abandoned: float = ABANDONED) -> dict[str, int]:
        """The files that belong to no index, with their sizes: what `gc` deletes."""
        # Listed before the manifest is read: a unit's file comes only after its manifest.
        files = self.place.files()
        manifest = manifest_at(self.place) or self.manifest
        known = {unit.file for unit in manifest.units()}
        spans = zip(manifest.spans(), manifest.added, strict=True)
        known |= {ids_file(span, added.ids) for span, added in spans}
        return {
            name: file.size
            for name, file in sorted(files.items())
            if (
                is_abandoned(name, file, abandoned)
                if name.endswith(UNFINISHED)
                # Ids come before their manifest.
                else name not in known
                and (name.startswith("rows/") or (name.startswith("ids/") and is_old(file)))
            )
        }

    def gc(self) -> "Removed":
        """Delete what belongs to no index: abandoned files, and those of dropped checkpoints.

        Others may build meanwhile. An unfinished file goes only if its process, on this machine,
        is gone, or if it is more than an hour old, while writing one takes moments.
        """
        stale = self.stale()
        for name in stale:
            self.place.delete(name)
        return Removed(tuple(stale), sum(stale.values()))


def _reopened(folder: str, manifest: Manifest) -> Store:
    return Store(open_storage(folder), manifest)


def columns_of(manifest: Manifest) -> dict[str, Column]:
    """What the files of an index hold."""
    how = number_format(manifest.number_format)
    return {
        ROWS: Column(NAMES[how.dtype], (manifest.width,)),
        SCALES: Column("F32", (len(manifest.pieces) if how.has_scale else 0,)),
        **manifest.beside,
    }


def manifest_at(place: Storage) -> Manifest | None:
    """The manifest there; None where there is none."""
    size = place.size(FILE)
    if size is None:
        return None
    if size > sealed_json.MOST:
        raise IndexingError(
            f"{place.url}/{FILE} has {size:,} bytes, and a manifest has at most "
            f"{sealed_json.MOST:,}: it is no manifest. Put it back from a copy, or build the index "
            "in a new folder."
        )
    return Manifest.from_bytes(bytes(place.read(FILE)), f"{place.url}/{FILE}")


def refuse_lost_manifest(place: Storage) -> None:
    """Where there are rows there is a manifest, or nothing says any more which rows they are.

    Raises:
        IndexingError: There are rows alone.
    """
    try:
        left = [
            name
            for name in place.names()
            if name.startswith("rows/") and not name.endswith(UNFINISHED)
        ]
    except IndexingError as error:
        if is_missing(error.__cause__):  # such as a bucket
            return
        raise
    # A builder that began at this moment has written its manifest before its rows.
    if left and place.size(FILE) is None:
        raise IndexingError(
            f"{place.url} holds files of rows ({len(left)}), but no {FILE}: it was lost, and with "
            f"it which data the rows are of. Put {FILE} back from a copy; or delete "
            f"{place.url}/rows, or take a new folder, and build again."
        )


def forget(place: Storage, manifest: Manifest, rows: int) -> None:
    """Delete files of rows from `rows` on: the manifest that is there never knew them.

    They are left of an index whose manifest was put back from an earlier copy.
    """
    if manifest.rows == rows:
        return
    files = place.files()
    for unit in manifest.units():
        if unit.start >= rows and unit.file in files:
            place.delete(unit.file)


def put(place: Storage, manifest: Manifest, *, is_new: bool = False) -> bool:
    """Write a manifest; a new one only where there is none: whether it was written."""
    if is_new:
        return place.create(FILE, manifest.to_bytes())
    place.write(FILE, manifest.to_bytes())
    return True


def with_ids(manifest: Manifest, ids: np.ndarray) -> Manifest:
    """With the checksums of the ids of all extents."""
    spans = manifest.spans()
    added = [*manifest.added, *[Added("") for _ in spans[len(manifest.added) :]]]
    found = [
        one if one.ids else replace(one, ids=ids_checksum(ids[span.start : span.stop]))
        for span, one in zip(spans, added, strict=True)
    ]
    return replace(manifest, added=tuple(found))


def has_ids(place: Storage, span: range, sum_of_ids: str) -> bool:
    """Whether these rows' ids are there, undamaged."""
    if place.size(ids_file(span, sum_of_ids)) is None:
        return False
    try:
        read_ids(place, span, sum_of_ids)
    except IndexingError:
        return False
    return True


def is_old(file: File) -> bool:
    """Whether nobody can be about to use a file that the manifest does not name."""
    return file.age is not None and file.age > ABANDONED


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Say which shard is damaged."""
    try:
        yield
    except ValueError as error:
        raise damaged(name, str(error)) from error


@final
@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        files: How many were read.
        bytes: How long they are together.
        problems: File -> what is wrong with it.
        missing: Files that are still to be built.
    """

    files: int
    bytes: int
    problems: Mapping[str, str]
    missing: Sequence[str]

    @property
    def is_sound(self) -> bool:
        """Whether all files are there, as they were written."""
        return not self.problems and not self.missing

    def __str__(self) -> str:
        said = [f"{self.files} files read, {self.bytes:,} bytes."]
        said += [f"{plain(name)}: {plain(why)}" for name, why in self.problems.items()]
        if self.problems:
            said.append(
                f"Put {FILE} back from a copy."
                if FILE in self.problems
                else "Delete these files and build again: only they are built."
            )
        if self.missing:
            said.append(f"{len(self.missing)} files are still to be built: build again.")
        return "\n".join(said if len(said) > 1 else [*said, "All as written."])


@final
@dataclass(frozen=True)
class Removed:
    """What `gc` deleted.

    Attributes:
        files: Their names.
        bytes: How long they were together.
    """

    files: Sequence[str]
    bytes: int

    def __str__(self) -> str:
        return f"{len(self.files)} files deleted, {self.bytes:,} bytes."
