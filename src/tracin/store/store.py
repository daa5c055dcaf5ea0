"""The files of an index: what is there, what is missing, and what is in it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.store.ids import ids_file, read_ids, write_ids
from tracin.store.manifest import FILE, Manifest, Unit, refuse_other
from tracin.store.number_format import number_format
from tracin.store.place import UNFINISHED, Place, place_of
from tracin.store.shard import damaged, packed, problem_in, unpacked

ROWS, SCALES = "rows", "scales"


@final
@dataclass(frozen=True)
class Shard:
    """What one file holds; rows are decoded when asked for.

    Attributes:
        unit: Which rows, at which checkpoint.
        tensors: By name: "rows", "scales", and what was written beside them.
        manifest: Of the index.
    """

    unit: Unit
    tensors: Mapping[str, Tensor]
    manifest: Manifest

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop`, counted from its first: [n, width], float32."""
        return self._decoded(self.tensors[ROWS][start:stop], self.tensors[SCALES][start:stop])

    def chosen(self, places: Tensor) -> Tensor:
        """The rows at these places: [places, width], float32."""
        return self._decoded(self.tensors[ROWS][places], self.tensors[SCALES][places])

    def _decoded(self, kept: Tensor, scales: Tensor) -> Tensor:
        how = number_format(self.manifest.number_format)
        return how.decode(kept, scales, self.manifest.pieces)


@final
class Store:
    """An index's folder.

    Attributes:
        place: Where it is.
        manifest: What it holds.
    """

    def __init__(self, place: Place, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest

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
        place = place_of(folder)
        if place.size(FILE) is not None:
            there = cls.open(folder)
            refuse_other(there.manifest, manifest, place.url)
            there.refuse_other_ids(ids)
            given = [(e.key, e.name, e.weights) for e in manifest.checkpoints]
            manifest = there.manifest.extended(manifest.rows, given)
            if manifest == there.manifest:
                return there
        before = 0
        for extent in manifest.extents:
            if place.size(ids_file(before, extent)) is None:
                write_ids(place, before, ids[before:extent])
            before = extent
        # Last: an index whose manifest is there has all its ids.
        place.write(FILE, manifest.to_bytes())
        return cls(place, manifest)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Store":
        """Open an index, complete or not.

        Raises:
            IndexingError: There is none.
        """
        place = place_of(folder)
        if place.size(FILE) is None:
            raise IndexingError(
                f"{place.url} holds no index: it has no {FILE}. Build one by run.index(train, "
                "folder), or tracin index build."
            )
        return cls(place, Manifest.from_bytes(bytes(place.read(FILE)), f"{place.url}/{FILE}"))

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit's file is there. Files are written whole, so then it is finished."""
        return self.place.size(unit.file) is not None

    def missing(self) -> list[Unit]:
        """The units that are still to be built."""
        there = set(self.place.names())
        return [unit for unit in self.manifest.units() if unit.file not in there]

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
        how = number_format(self.manifest.number_format)
        kept, scales = how.encode(rows, self.manifest.pieces)
        self.place.write(unit.file, packed({ROWS: kept, SCALES: scales, **beside}))

    def read(self, unit: Unit) -> Shard:
        """A unit's file; on a disk it is mapped, and read where it is looked at.

        Raises:
            IndexingError: It is missing or truncated.
        """
        name = f"{self.place.url}/{unit.file}"
        if not self.is_done(unit):
            raise IndexingError(
                f"{name} is missing: the index is not complete. Build again; what is there stays."
            )
        tensors = unpacked(self.place.read(unit.file), name)
        rows = tensors.get(ROWS)
        if rows is None or rows.shape != (unit.stop - unit.start, self.manifest.width):
            raise damaged(name, "it does not have the rows that its name says")
        return Shard(unit, tensors, self.manifest)

    def read_range(self, checkpoint: str, rows: range) -> Shard:
        """The file that holds these rows, one of `manifest.ranges()`."""
        return self.read(Unit(checkpoint, rows.start, rows.stop))

    def shards(self, checkpoint: str) -> Iterator[Shard]:
        """The files of one checkpoint, in the order of the rows."""
        return (self.read_range(checkpoint, rows) for rows in self.manifest.ranges())

    def rows_at(self, checkpoint: str, positions: Tensor) -> Tensor:
        """Some rows, at rising positions: [positions, width], float32."""
        found = torch.empty(len(positions), self.manifest.width)
        for rows in self.manifest.ranges():
            here = (positions >= rows.start) & (positions < rows.stop)
            if bool(here.any()):
                shard = self.read_range(checkpoint, rows)
                found[here] = shard.chosen(positions[here] - rows.start)
        return found

    def ids(self) -> np.ndarray:
        """The ids of all rows."""
        return read_ids(self.place, self.manifest.extents)

    def refuse_other_ids(self, ids: np.ndarray) -> None:
        """The rows that are there must have these ids.

        Raises:
            IndexingError: One has another, or there are fewer ids than rows.
        """
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

    def drop(self, key: str) -> "Store":
        """Take a checkpoint out; its files stay until `gc`."""
        manifest = self.manifest.without(key)
        self.place.write(FILE, manifest.to_bytes())
        return Store(self.place, manifest)

    def verify(self) -> "Report":
        """Read every byte of every file that the manifest knows.

        Returns:
            What is wrong: file -> why. Missing files are told apart: they are just not built yet.
        """
        problems: dict[str, str] = {}
        missing = self.missing()
        gone = {unit.file for unit in missing}
        units = [unit for unit in self.manifest.units() if unit.file not in gone]
        total = 0
        for unit in units:
            content = self.place.read(unit.file)
            total += len(content)
            problem = problem_in(content)
            if problem:
                problems[unit.file] = problem
        return Report(len(units), total, problems, tuple(unit.file for unit in missing))

    def gc(self) -> "Removed":
        """Delete what belongs to no index: unfinished files, and those of dropped checkpoints.

        Only while nobody builds: a file that is being written is unfinished, too.
        """
        known = {unit.file for unit in self.manifest.units()}
        stale = [
            name
            for name in self.place.names()
            if name.endswith(UNFINISHED) or (name.startswith("rows/") and name not in known)
        ]
        freed = 0
        for name in stale:
            freed += self.place.size(name) or 0
            self.place.delete(name)
        return Removed(tuple(stale), freed)


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
        said += [f"{name}: {why}" for name, why in self.problems.items()]
        if self.problems:
            said.append("Delete these files and build again: only they are built.")
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
