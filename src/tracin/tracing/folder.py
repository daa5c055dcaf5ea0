"""A trace's folder: tables on the disk, saved at the user's checkpoints, resumed after a crash.

    trace.json            what is traced: the fields that a resumed run must share
    ids.json              the ids of the training examples and of the queries
    steps.f64             one row per step (step_table.py), only ever added to
    scores-PATH.f32       [train, queries] for each path, memory-mapped while training continues
    self_influence.f64    [train]
    saved/STEP/           copies of the tables as they were at that step, and saved.json

A save is a folder that appears whole, by one rename; the last two are kept. Readers see saves
alone, never the tables that are being written. The first save is made before the first step: its
tables are zeros, and no files stand for them.
"""

import os
import secrets
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checkpoints.folder_lock import FolderLock
from tracin.errors import TracingError
from tracin.files import file_blocks, flush, made_folder, remove_unfinished, text_of, writing
from tracin.tracing.manifest import (
    ABOUT,
    FLOAT64,
    IDS,
    SAVE,
    SAVED,
    SELF,
    STEPS,
    About,
    Save,
    read_about,
    read_saves,
    refuse_other_trace,
    scores_name,
    tables_of,
    write_json,
)
from tracin.tracing.paths import Quadrature
from tracin.tracing.step_table import StepWriter, has_steps, row_width

KEPT = 2  # saves; a crash between the user's own save and this one leaves one that fits


@final
class Tables:
    """The tables of a trace that is being written; one writer per folder."""

    def __init__(
        self, folder: str | Path, about: About, ids: np.ndarray, query_ids: np.ndarray
    ) -> None:
        self.folder, self.about = made_folder(folder, TracingError), about
        self._steps: StepWriter | None = None
        self._tables: dict[str, np.ndarray] = {}
        with writing(self.folder, TracingError):
            self._lock = FolderLock(self.folder, "Tracer", TracingError)
            try:
                self._begin(ids, query_ids)
            except BaseException:
                self.release()
                raise

    def trim(self) -> None:
        """Give back the room for steps that were not taken."""
        if self._steps is not None:
            self._steps.trim()

    def release(self) -> None:
        """Let others write to the folder."""
        self._lock.release()

    def saves(self) -> list[Save]:
        """What was saved, oldest first."""
        return read_saves(self.folder, self.about)

    def has_unsaved_steps(self) -> bool:
        """Whether a run that broke off took steps, whatever was saved of them."""
        return has_steps(self.folder / STEPS, self.about.queries, self.about.members)

    def open(self, save: Save) -> None:
        """Bring the tables to where they were at a save, and reserve their space on the disk."""
        for name, shape, kind in tables_of(self.about):
            place = self.folder / name
            place.unlink(missing_ok=True)
            if save.rows:
                source = self.folder / SAVED / str(save.step) / name
                if _copied(source, place) != save.files.get(name):
                    raise _damaged(source)
            reserve(place, int(np.prod(shape)) * kind.itemsize)
        self._tables = {
            name: np.memmap(self.folder / name, kind, "r+", shape=shape)
            for name, shape, kind in tables_of(self.about)
        }
        self._steps = StepWriter(
            self.folder / STEPS,
            self.about.queries,
            self.about.members,
            save.rows,
            save.files.get(STEPS, text_of(0)),
        )
        for later in self.saves():
            if later.step > save.step:  # training repeats what came after
                shutil.rmtree(self.folder / SAVED / str(later.step))

    def scores(self, path: Quadrature) -> np.ndarray:
        """The scores of one path, to be added to: [train, queries]."""
        return self._tables[scores_name(path)]

    @property
    def self_influence(self) -> np.ndarray:
        """Self-influence, to be added to: [train]."""
        return self._tables[SELF]

    @property
    def rows(self) -> int:
        """How many steps were noted."""
        return self._steps.rows if self._steps is not None else 0

    @property
    def steps(self) -> StepWriter:
        """The steps, to be added to."""
        if self._steps is None:
            raise RuntimeError("add to tables before they are open")
        return self._steps

    def reserve_step(self) -> None:
        """Take the space of one more row of steps on the disk."""
        if missing := self.steps.missing:
            reserve(self.folder / STEPS, missing)
            self.steps.grown(missing)

    def save(self, save: Save) -> None:
        """Keep the tables as they are now."""
        root = self.folder / SAVED
        root.mkdir(exist_ok=True)
        unfinished = root / f".{secrets.token_hex(6)}"
        try:
            whole = self._copy(save, unfinished, is_kept=True)
            write_json(unfinished / SAVE, asdict(whole))
            final = root / str(save.step)
            if final.exists():  # of this very step; the one before it is kept, too
                os.replace(final, unfinished.with_name(unfinished.name + "-old"))
            os.replace(unfinished, final)
            flush(root)
        finally:
            for leftover in root.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        for old in self.saves()[:-KEPT]:
            shutil.rmtree(root / str(old.step), ignore_errors=True)

    def view(self, save: Save) -> tuple[Save, dict[str, np.ndarray]]:
        """The tables as they are now, for a reader that keeps them while they change."""
        (self.folder / SAVED).mkdir(exist_ok=True)
        place = self.folder / SAVED / f".{secrets.token_hex(6)}"
        try:
            whole = self._copy(save, place, is_kept=False)
            return whole, open_tables(self.folder, self.about, whole, place)
        finally:
            # What is mapped stays readable, until its last reader lets go of it.
            shutil.rmtree(place, ignore_errors=True)

    def _begin(self, ids: np.ndarray, query_ids: np.ndarray) -> None:
        if (self.folder / ABOUT).is_file():
            refuse_other_trace(read_about(self.folder), self.about, self.folder)
        elif (self.folder / SAVED).is_dir():
            raise TracingError(
                f"{self.folder} holds saves of a trace, but {ABOUT}, which says of what, is gone. "
                "Restore it from a backup, or give a new folder."
            )
        else:
            named = {"train": ids.tolist(), "queries": query_ids.tolist()}
            write_json(self.folder / IDS, named)
            write_json(self.folder / ABOUT, asdict(self.about))
        remove_unfinished(self.folder)
        for leftover in (self.folder / SAVED).glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _copy(self, save: Save, place: Path, *, is_kept: bool) -> Save:
        """Copy the tables, and take down their checksums."""
        place.mkdir()
        files = {STEPS: self.steps.checksum}
        for table in self._tables.values() if is_kept else ():
            if isinstance(table, np.memmap):
                table.flush()
        if save.rows:
            for name in self._tables:
                files[name] = _copied(self.folder / name, place / name)
                if is_kept:
                    flush(place / name)
        if is_kept:
            flush(self.folder / STEPS)
        return replace(save, files=files)


def open_saved(folder: Path, about: About, save: Save) -> dict[str, np.ndarray]:
    """The tables of a save, memory-mapped; they stay readable when the save is deleted."""
    return open_tables(folder, about, save, folder / SAVED / str(save.step))


def open_tables(folder: Path, about: About, save: Save, place: Path) -> dict[str, np.ndarray]:
    """The tables in `place`, and the steps, which lie in the trace's folder."""
    width = row_width(about.queries, about.members)
    tables = {STEPS: _mapped(folder / STEPS, (save.rows, width), FLOAT64, is_longer=True)}
    for name, shape, kind in tables_of(about):
        # Before the first step all is zero, and takes no memory.
        zeros = np.broadcast_to(np.zeros((), kind), shape)
        tables[name] = _mapped(place / name, shape, kind) if save.rows else zeros
    return tables


def check_table(folder: Path, name: str, table: np.ndarray, save: Save) -> None:
    """Compare a table with its checksum."""
    crc = 0
    if save.rows and table.size:
        step = max(1, (1 << 22) // table[:1].nbytes)
        for start in range(0, len(table), step):
            crc = zlib.crc32(np.ascontiguousarray(table[start : start + step]).data, crc)
    if save.rows and text_of(crc) != save.files[name]:
        raise _damaged(folder / name)


def reserve(path: Path, size: int) -> None:
    """Make a file at least so long, of zeros, and take the space on the disk now.

    A file with holes would end the process (SIGBUS) where a mapped page finds the disk full.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size_before = os.fstat(descriptor).st_size
        if size > 0 and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
        for start in range(size_before, size, 1 << 22):  # macOS, Windows
            os.lseek(descriptor, start, os.SEEK_SET)
            os.write(descriptor, bytes(min(1 << 22, size - start)))
    finally:
        os.close(descriptor)


def add_rows(table: np.ndarray, positions: Tensor, rows: Tensor) -> None:
    """Add rows to those at `positions`, of which one may come twice."""
    torch.from_numpy(table).index_add_(0, positions, rows.cpu().to(_KINDS[table.dtype.name]))


_KINDS = {"float32": torch.float32, "float64": torch.float64}


def _copied(source: Path, target: Path) -> str:
    """Copy a file, and give its checksum."""
    crc = 0
    with target.open("xb") as file:
        for block in file_blocks(source, 0, source.stat().st_size):
            crc = zlib.crc32(block, crc)
            file.write(block)
    return text_of(crc)


def _mapped(
    path: Path, shape: tuple[int, ...], kind: np.dtype[Any], *, is_longer: bool = False
) -> np.ndarray:
    size = int(np.prod([int(one) for one in shape], dtype=object)) * kind.itemsize
    size_now = path.stat().st_size if path.is_file() else -1
    if size_now < size or (size_now > size and not is_longer):
        raise TracingError(
            f"{path} has {max(size_now, 0)} bytes, but {size} were saved: it was cut off, replaced "
            "or deleted. Restore it from a backup."
        )
    if not size:
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", shape=shape)


def _damaged(path: Path) -> TracingError:
    return TracingError(
        f"{path} is damaged: its content does not match the checksum that was saved with it. "
        "Restore it from a backup, or trace again."
    )
