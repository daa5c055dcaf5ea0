"""The texts of a printed index."""

from tracin.index.contents import rows_under
from tracin.index.store import Store, stale_files
from tracin.index.store.store import TABLE
from tracin.index.table import table_is_fresh
from tracin.plain_text import many, plain
from tracin.results.table import aligned


def described(store: Store) -> str:
    """Rows, format, projection, bytes, checkpoints, and what is missing or stale."""
    manifest = store.manifest
    files, stale, missing = store.place.files(), stale_files(store), store.missing()
    units = manifest.units()
    state = (
        "complete" if not missing else f"{len(units) - len(missing)} of {len(units)} files built"
    )
    rows = [(e.name, " ".join(f"{weight:g}" for weight in e.weights)) for e in manifest.checkpoints]
    size = sum(each.size for name, each in files.items() if name not in stale)
    said = [
        f"{manifest.rows:,} rows of {manifest.width} numbers ({manifest.number_format}) at "
        f"{many(len(rows), 'checkpoint')}, {state}: {plain(store.place.url)}",
        f"{size:,} bytes in {len(files) - len(stale)} files of up to {manifest.shard_size:,} "
        f"rows; {projection_in_words(store)}",
    ]
    if stale:
        said.append(
            f"stale: {len(stale)} files, {sum(stale.values()):,} bytes, which tracin index gc "
            "deletes"
        )
    if TABLE in files and (missing or not table_is_fresh(store)):
        said.append(f"stale: {TABLE}, until the index is built again")
    return "\n".join([*said, aligned(("checkpoint", "weight"), rows)])


def in_one_line(store: Store) -> str:
    """What the index holds and where, by its manifest alone: no file is looked for."""
    manifest = store.manifest
    return (
        f"{many(manifest.rows, 'row')} of {many(manifest.width, 'number')} "
        f"({manifest.number_format}) at {many(len(manifest.checkpoints), 'checkpoint')}, "
        f"{plain(store.place.url)}"
    )


def projection_in_words(store: Store) -> str:
    """The projection as the caller set it."""
    projection = store.manifest.about.get("projection", {})
    found = f"projection dim={projection.get('dim')}, seed={projection.get('seed')}"
    found = found if projection.get("split") is None else f"{found}, with a split"
    return found if rows_under(store.manifest) is None else f"{found}; under tracin.Adam()"
