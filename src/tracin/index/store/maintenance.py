"""Verifies all files of an index, and deletes those that belong to none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

from tracin.errors import IndexingError
from tracin.index.store import sealed_json
from tracin.index.store.checksums import body_of
from tracin.index.store.ids import ids_file, read_ids
from tracin.index.store.manifest import FILE, Manifest
from tracin.index.store.manifest_file import manifest_at
from tracin.index.store.moments_file import FOLDER, moments_file
from tracin.index.store.parquet import read_parquet
from tracin.index.store.storage import UNFINISHED, File, is_abandoned
from tracin.index.store.store import RECALL, TABLE, Store
from tracin.plain_text import plain

# Seconds after which an unfinished file of another machine is taken to be abandoned.
ABANDONED = 3600.0


@final
@dataclass(frozen=True)
class Report:
    """The result of `Index.verify`.

    Attributes:
        files: The number of files read.
        bytes: Their total size.
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
    """The files that `Index.gc` deleted.

    Attributes:
        files: Their names.
        bytes: Their total size.
    """

    files: Sequence[str]
    bytes: int

    def __str__(self) -> str:
        return f"{len(self.files)} files deleted, {self.bytes:,} bytes."


def verify_files(store: Store) -> Report:
    """Read every byte of every file that belongs to the index.

    Returns:
        What is damaged, and which files are not built yet.
    """
    files = store.place.files()
    checks = _checks(store, files)
    problems: dict[str, str] = {}
    for name, check in checks.items():
        try:
            check()
        except (IndexingError, ValueError) as error:
            problems[name] = str(error.__cause__ or error)
    gone = tuple(unit.file for unit in store.manifest.units() if unit.file not in files)
    size = sum(files[name].size for name in checks if name in files)
    return Report(len(checks), size, problems, gone)


def _checks(store: Store, files: Mapping[str, File]) -> dict[str, Callable[[], object]]:
    """What reads each file, and raises where it is not as it was written."""
    others: dict[str, Callable[[bytes], object]] = {
        FILE: partial(Manifest.from_bytes, where=FILE),
        TABLE: read_parquet,
        RECALL: sealed_json.unsealed,
        **{name: body_of for name in files if name.startswith(("candidates/", FOLDER))},
    }
    found: dict[str, Callable[[], object]] = {
        name: partial(_read_by, store, name, read)
        for name, read in others.items()
        if name in files and not name.endswith(UNFINISHED)
    }
    for span, added in zip(store.manifest.spans(), store.manifest.added, strict=True):
        found[ids_file(span, added.ids)] = partial(read_ids, store.place, span, added.ids)
    there = (unit for unit in store.manifest.units() if unit.file in files)
    return found | {unit.file: partial(store.check, unit) for unit in there}


def _read_by(store: Store, name: str, read: Callable[[bytes], object]) -> None:
    read(bytes(store.place.read(name)))


def stale_files(store: Store, abandoned: float = ABANDONED) -> dict[str, int]:
    """The files that belong to no index, with their sizes: what `gc` deletes."""
    # Listed before the manifest is read: a unit's file comes only after its manifest.
    files = store.place.files()
    manifest = manifest_at(store.place) or store.manifest
    known = {unit.file for unit in manifest.units()}
    spans = zip(manifest.spans(), manifest.added, strict=True)
    known |= {ids_file(span, added.ids) for span, added in spans}
    known |= {moments_file(key) for key in manifest.keys}
    return {
        name: file.size
        for name, file in sorted(files.items())
        if (
            is_abandoned(name, file, abandoned)
            if name.endswith(UNFINISHED)
            # Ids come before their manifest.
            else name not in known
            and (name.startswith(("rows/", FOLDER)) or (name.startswith("ids/") and is_old(file)))
        )
    }


def delete_stale(store: Store) -> Removed:
    """Delete what belongs to no index: abandoned files, and those of dropped checkpoints.

    Others may build meanwhile. An unfinished file goes only if its process, on this machine,
    is gone, or if it is more than an hour old, while writing one takes moments.
    """
    stale = stale_files(store)
    for name in stale:
        store.place.delete(name)
    return Removed(tuple(stale), sum(stale.values()))


def is_old(file: File) -> bool:
    """Whether a file is too old for a build to be about to name it in a manifest."""
    return file.age is not None and file.age > ABANDONED
