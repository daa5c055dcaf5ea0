"""The table of an index's rows: in memory, and in `table.parquet` once the index is complete."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tracin.index.store import Column, Manifest, Store, Unit
from tracin.index.store.checksums import checksum
from tracin.index.store.parquet import parquet_bytes, read_parquet
from tracin.index.store.store import TABLE
from tracin.schema import parsed
from tracin.sketches import Columns

OF = "tracin"  # the key of what a table is of, in the file's own metadata


def build_weights(manifest: Manifest) -> dict[str, list[float]]:
    """What each group weighs in the build, by key: weights of equal checkpoints add."""
    found: dict[str, list[float]] = {}
    for each in manifest.checkpoints:
        add_weights(found, each.key, each.weights)
    return found


def add_weights(found: dict[str, list[float]], key: str, weights: Sequence[float]) -> None:
    """Add a checkpoint's weights to those of others with its key."""
    before = found.get(key, [0.0] * len(weights))
    found[key] = [one + other for one, other in zip(before, weights, strict=True)]


def extra_columns(groups: int) -> dict[str, Column]:
    """The columns that an index stores with each row."""
    return {
        "squared_norms": Column("F32", (groups,)),
        "sketched_squared_norms": Column("F32", (groups,)),
        "loss": Column("F32"),
        "label": Column("I64"),
        "is_right": Column("I32"),
    }


def sketched_squared_norms(columns: Columns, rows: Tensor) -> Tensor:
    """What the rows themselves say of the squared lengths, by group: [examples, groups]."""
    single_groups = torch.eye(columns.groups).tolist()
    return torch.stack([columns.squared_lengths(rows, one) for one in single_groups], 1)


def table_of(store: Store) -> dict[str, np.ndarray]:
    """The table of a complete index, column by column; its sums have the weights of the build.

    Raises:
        IndexingError: The index is incomplete, or a file is damaged.
    """
    manifest = store.manifest
    store.refuse_missing()
    last = manifest.checkpoints[-1].key
    kept: dict[str, list[Tensor]] = {"label": [], "is_right": [], "loss": []}
    sums = {"self_influence": "squared_norms", "self_influence_sketched": "sketched_squared_norms"}
    totals = {name: torch.zeros(manifest.rows, dtype=torch.float64) for name in sums}
    for key, each in build_weights(manifest).items():
        factors = torch.tensor(each, dtype=torch.float64)
        for span in manifest.ranges():
            found = store.columns(Unit(key, span.start, span.stop))
            for name, source in sums.items():
                totals[name][span.start : span.stop] += found[source].double() @ factors
            if key == last:
                for name, pieces in kept.items():
                    pieces.append(found[name])
    columns = {name: torch.cat(pieces).numpy() for name, pieces in kept.items()}
    columns |= {name: total.float().numpy() for name, total in totals.items()}
    return {"id": store.ids(), **columns}


def exact_self_influence(store: Store, weights: Mapping[str, list[float]] | None) -> Tensor:
    """Each row's influence on itself, from the exact squared norms in the files: [rows].

    Args:
        store: The files.
        weights: [groups] by the key of each checkpoint; None for those of the build.

    Raises:
        IndexingError: The index is incomplete, or a file is damaged.
    """
    weights = build_weights(store.manifest) if weights is None else weights
    return _weighted_sums(store, weights, "squared_norms")


def sketched_self_influence(store: Store) -> Tensor:
    """The same as the rows themselves say, with the weights of the build: [rows].

    The score of two rows by the product of the roots of these is the cosine of the two.

    Raises:
        IndexingError: The index is incomplete, or a file is damaged.
    """
    return _weighted_sums(store, build_weights(store.manifest), "sketched_squared_norms")


def _weighted_sums(store: Store, weights: Mapping[str, list[float]], name: str) -> Tensor:
    store.refuse_missing()
    total = torch.zeros(store.manifest.rows, dtype=torch.float64)
    for key, each in weights.items():
        factors = torch.tensor(each, dtype=torch.float64)
        for span in store.manifest.ranges():
            found = store.columns(Unit(key, span.start, span.stop))
            total[span.start : span.stop] += found[name].double() @ factors
    return total.float()


def write_table(store: Store) -> None:
    """Write the table, unless the one that is there is of the same; equal indexes, equal bytes."""
    if table_is_fresh(store):
        return
    store.place.write(TABLE, parquet_bytes(table_of(store), {OF: json.dumps(of(store.manifest))}))


def table_is_fresh(store: Store) -> bool:
    """Whether the table is there, undamaged, and of these rows, checkpoints and weights."""
    if not store.place.size(TABLE):
        return False
    try:
        about = read_parquet(bytes(store.place.read(TABLE))).metadata.metadata
        return parsed(about[OF.encode()]) == of(store.manifest)
    except (KeyError, ValueError):
        return False


def of(manifest: Manifest) -> dict[str, str | int]:
    """What a table is of: it is stale where this differs."""
    return {"rows": manifest.rows, "manifest": checksum(manifest.to_bytes())}
