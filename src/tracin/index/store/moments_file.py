"""The second moments of an index's rows at one checkpoint, kept next to the rows."""

import json
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracin.errors import IndexingError
from tracin.index.store.checksums import body_of, headed
from tracin.index.store.manifest import Manifest
from tracin.index.store.storage import Storage
from tracin.schema import parsed

FOLDER = "curvature/"
FORMAT = 2  # 1 was of every k-th row
_log = logging.getLogger(__name__)


def moments_file(key: str) -> str:
    """Where those of a checkpoint are."""
    return f"{FOLDER}{key}.moments"


def write_moments(place: Storage, manifest: Manifest, key: str, rows: int, numbers: Tensor) -> None:
    """Keep them: a line with a checksum of all that follows, a line of JSON, float64 numbers.

    Where the folder cannot be written to, they are computed again by whoever asks next.

    Args:
        place: The index.
        manifest: What it holds.
        key: The checkpoint.
        rows: How many rows were summed.
        numbers: [numbers], float64.
    """
    head = json.dumps(_head(manifest, key, rows)).encode() + b"\n"
    body = numbers.numpy().astype("<f8", copy=False).tobytes()
    try:
        place.write(moments_file(key), headed(head, body))
    except IndexingError as error:
        _log.info("curvature is computed again next time: %s", error)


def read_moments(
    place: Storage, manifest: Manifest, key: str, rows: int, size: int
) -> Tensor | None:
    """Those that are kept, [size]; None where none are, or those of other rows, or damaged ones."""
    name = moments_file(key)
    if place.size(name) is None:
        return None
    try:
        body = body_of(place.read(name))
        end = bytes(body[: 1 << 16]).index(b"\n") + 1
        head = parsed(bytes(body[:end]))
        if head != _head(manifest, key, rows):
            _log.info("%s/%s is of other rows: computed again", place.url, name)
            return None
        found = np.frombuffer(body[end:], "<f8").astype(np.float64)
        if len(found) != size or not np.isfinite(found).all():
            raise ValueError(f"it has {len(found)} numbers, and should have {size} finite ones")
    except (ValueError, IndexingError) as error:
        _log.warning("%s/%s cannot be read (%s): computed again", place.url, name, error)
        return None
    return torch.from_numpy(found)


def _head(manifest: Manifest, key: str, rows: int) -> dict[str, Any]:
    """What they are of: the index with all its examples, the checkpoint, and how many rows."""
    entry = manifest.entry(key)
    return {
        "format": FORMAT,
        "index": manifest.of,
        "checkpoint": key,
        "number": entry.number,
        "rows": rows,
    }
