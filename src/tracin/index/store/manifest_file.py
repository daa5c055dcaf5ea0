"""Reads and writes `manifest.json`, and what must go with it."""

from dataclasses import replace

import numpy as np

from tracin.errors import IndexingError
from tracin.index.store import sealed_json
from tracin.index.store.ids import ids_checksum, ids_file, read_ids
from tracin.index.store.manifest import FILE, Added, Manifest
from tracin.index.store.remote import is_missing
from tracin.index.store.storage import UNFINISHED, Storage


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


def manifest_with_ids(manifest: Manifest, ids: np.ndarray) -> Manifest:
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
