"""The files of an index: what is there, what is missing, and what is in it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.index.store.ids import ids_checksum, read_ids, write_ids
from tracin.index.store.layout import (
    NAMES,
    ROWS,
    SCALES,
    Column,
    FileLayout,
    damaged,
    new_file,
    refuse_non_finite_columns,
)
from tracin.index.store.manifest import FILE, Manifest, Unit, refuse_other, short
from tracin.index.store.manifest_file import (
    forget,
    has_ids,
    manifest_at,
    manifest_with_ids,
    put,
    refuse_lost_manifest,
)
from tracin.index.store.number_format import number_format
from tracin.index.store.opening import absolute, open_storage
from tracin.index.store.shard import Shard
from tracin.index.store.storage import File, Storage

TABLE = "table.parquet"
RECALL = "recall.json"
_TRIES = 100


@final
class Store:
    """An index's folder.

    Attributes:
        place: Where it is.
        manifest: What it holds.
    """

    def __init__(self, place: Storage, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self._columns = _columns_of(manifest)
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
            manifest = manifest_with_ids(proposed(there), ids)
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

    def _layout(self, unit: Unit) -> FileLayout:
        return FileLayout(self._columns, unit.stop - unit.start, self.manifest.identity(unit))

    def missing(self) -> list[Unit]:
        """The units that are still to be built, those with a file of another length too."""
        return self._missing(self.place.files())

    def _missing(self, files: Mapping[str, File]) -> list[Unit]:
        return [
            unit
            for unit in self.manifest.units()
            if unit.file not in files or files[unit.file].size != self.size_of(unit)
        ]

    def write(self, unit: Unit, rows: Tensor, extra: Mapping[str, Tensor]) -> None:
        """Write a unit's file.

        Args:
            unit: Which.
            rows: [stop - start, width], float32.
            extra: The extra columns, [stop - start, ...] each.

        Raises:
            IndexingError: Rows that are not finite; a full disk.
        """
        if rows.shape != (unit.stop - unit.start, self.manifest.width):
            raise IndexingError(
                f"{unit.file} takes [{unit.stop - unit.start}, {self.manifest.width}] numbers; got "
                f"{list(rows.shape)}."
            )
        declared = self.manifest.extra_columns
        found = {
            name: Column(NAMES[one.dtype], tuple(one.shape[1:])) for name, one in extra.items()
        }
        if set(found) != set(declared) or any(
            found[name].shape != one.shape for name, one in declared.items()
        ):
            raise IndexingError(
                f"{unit.file} keeps {short(declared)} next to its rows; got {short(found)}."
            )
        for name, one in extra.items():
            if len(one) != len(rows):
                raise IndexingError(
                    f"{unit.file} has {len(rows)} rows; {name} came for {len(one)}."
                )
        layout = self._layout(unit)
        content, tensors = new_file(layout)
        how = number_format(self.manifest.number_format)
        how.encode(rows, self.manifest.pieces, tensors[ROWS], tensors[SCALES])
        for name, one in extra.items():
            tensors[name].copy_(one)
        with _naming(self._name(unit)):
            refuse_non_finite_columns(extra)
        layout.finish(content)
        self.place.write(unit.file, content)

    def read(self, unit: Unit) -> Shard:
        """Open a unit's file; on a disk it is mapped, so that only what is used is read.

        Its header is compared with what it must be, and the extra columns with their checksum,
        now; the rows when `Shard.rows` first reads some of them, and again once the file was
        replaced.

        Raises:
            IndexingError: It is missing, truncated, changed, or another file.
        """
        version = self.place.version(unit.file)
        content, layout = self._opened(unit)

        def check() -> None:
            if version is None or self._checked.get(unit.file) != version:
                with _naming(self._name(unit)):
                    layout.refuse_changed_rows(content)
                self._checked[unit.file] = version

        return Shard(unit, layout.tensors(content), self.manifest, check, self._name(unit))

    def columns(self, unit: Unit) -> Mapping[str, Tensor]:
        """The extra columns of a unit's file; the rows are not even fetched.

        Raises:
            IndexingError: It is missing, truncated, changed, or another file.
        """
        content, layout = self._opened(unit, has_rows=False)
        return layout.tensors(content, has_rows=False)

    def _opened(self, unit: Unit, *, has_rows: bool = True) -> tuple[memoryview, FileLayout]:
        name, layout = self._name(unit), self._layout(unit)
        self._refuse_other_size(unit, layout)
        content = self.place.read(unit.file, 0, None if has_rows else layout.front)
        with _naming(name):
            if len(content) != (layout.size if has_rows else layout.front):
                raise ValueError("it was truncated while it was read")
            layout.refuse_changed_columns(content)
            refuse_non_finite_columns(layout.tensors(content, has_rows=False))
        return content, layout

    def refuse_missing(self) -> None:
        """All files must be there: before memory is taken for what they hold.

        Raises:
            IndexingError: One is not, or is too short.
        """
        for unit in self.missing():
            self._refuse_other_size(unit, self._layout(unit))

    def _refuse_other_size(self, unit: Unit, layout: FileLayout) -> None:
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
                f"{int(positions[-1])} are out of range."
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

    def check(self, unit: Unit) -> None:
        """Read every byte of a unit's file.

        Raises:
            ValueError: It was truncated or changed, or is another file.
        """
        content, layout = self.place.read(unit.file), self._layout(unit)
        if len(content) >= len(layout.header):
            layout.refuse_other(content)
        if len(content) != layout.size:
            raise ValueError(f"it was truncated: it has {len(content)} of {layout.size} bytes")
        layout.refuse_changed_columns(content)
        layout.refuse_changed_rows(content)
        refuse_non_finite_columns(layout.tensors(content))


def _reopened(folder: str, manifest: Manifest) -> Store:
    return Store(open_storage(folder), manifest)


def _columns_of(manifest: Manifest) -> dict[str, Column]:
    """What the files of an index hold."""
    how = number_format(manifest.number_format)
    return {
        ROWS: Column(NAMES[how.dtype], (manifest.width,)),
        SCALES: Column("F32", (len(manifest.pieces) if how.has_scale else 0,)),
        **manifest.extra_columns,
    }


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which shard is damaged."""
    try:
        yield
    except ValueError as error:
        raise damaged(name, str(error)) from error
