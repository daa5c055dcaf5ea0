"""A trace's folder: tables on the disk, saved at the user's checkpoints, resumed after a crash.

    trace.json            what is traced: the fields that a resumed run must share
    ids.json              the ids of the training examples and of the queries
    steps.f64             one row a step (step_table.py)
    scores-PATH.f32       [train, queries] for each path, memory-mapped while training goes on
    self_influence.f64    [train]
    saved/STEP/           copies of the tables as they were at that step, and saved.json

A save is a folder that appears whole, by one rename; the last two are kept.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.checkpoints.atomic import flush, replacing
from tracin.checkpoints.checksum import read_object
from tracin.data.ids import checked_ids
from tracin.errors import TracingError
from tracin.tracing.paths import Path
from tracin.tracing.step_table import Steps, StepWriter, read_steps

FORMAT = 1
ABOUT, IDS, STEPS, SELF, SAVED, SAVE = (
    "trace.json",
    "ids.json",
    "steps.f64",
    "self_influence.f64",
    "saved",
    "saved.json",
)
KEPT = 2  # saves; a crash between the user's own save and this one leaves one that fits


@final
@dataclass(frozen=True)
class About:
    """What a trace is of. Texts that name what differs when a run is resumed with another.

    Attributes:
        train: How many training examples.
        train_ids: A fingerprint of their ids.
        queries: How many queries.
        query_data: A fingerprint of the queries and their ids.
        optimizer: The class of the optimizer.
        paths: The names of the paths.
        every: Which steps are traced.
        parameters: Which parameters were asked for; none for all that are trained.
    """

    train: int
    train_ids: str
    queries: int
    query_data: str
    optimizer: str
    paths: tuple[str, ...]
    every: int
    parameters: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[Path, ...]:
        """The paths themselves."""
        return tuple(Path(name) for name in self.paths)


@final
@dataclass(frozen=True)
class Save:
    """The state of a trace at one step.

    Attributes:
        step: How many optimizer steps were taken.
        rows: How many of them were traced.
        skipped: How many traced batches were dropped, since no step followed.
        factor: What a probe found of the loss: its factor to the mean over the batch; or None.
        weights: A fingerprint of the model's weights.
        has_self: Whether self-influence was known for all steps so far.
    """

    step: int
    rows: int
    skipped: int
    factor: float | None
    weights: str
    has_self: bool


@final
class Tables:
    """The tables of a trace that is being written."""

    def __init__(
        self, folder: FilePath, about: About, ids: np.ndarray, query_ids: np.ndarray
    ) -> None:
        self.folder, self.about = folder, about
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / ABOUT).is_file():
            _refuse_other(read_about(folder), about, folder)
        else:
            write_json(folder / IDS, {"train": ids.tolist(), "queries": query_ids.tolist()})
            write_json(folder / ABOUT, {"format": FORMAT, **asdict(about)})

    def saves(self) -> list[Save]:
        """What was saved, oldest first."""
        return read_saves(self.folder)

    def open(self, save: Save | None) -> None:
        """Begin afresh, or as things were at a save."""
        shape = (self.about.train, self.about.queries)
        for name in self._names():
            place = self.folder / name
            if save is None:
                place.unlink(missing_ok=True)
            else:
                shutil.copyfile(self.folder / SAVED / str(save.step) / name, place)
        self.scores = {path: _table(self._scores(path), shape) for path in self._paths}
        self.self_influence = _table(self.folder / SELF, (self.about.train,), np.float64)
        rows = 0 if save is None else save.rows
        self.steps = StepWriter(self.folder / STEPS, self.about.queries, self.about.members, rows)

    def save(self, save: Save) -> None:
        """Keep the tables as they are now."""
        self.flush()
        root = self.folder / SAVED
        root.mkdir(exist_ok=True)
        unfinished = root / f".{save.step}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name in self._names():
            shutil.copyfile(self.folder / name, unfinished / name)
            flush(unfinished / name)
        flush(self.folder / STEPS)
        write_json(unfinished / SAVE, asdict(save))
        final = root / str(save.step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        flush(root)
        for old in self.saves()[:-KEPT]:
            shutil.rmtree(root / str(old.step), ignore_errors=True)

    def flush(self) -> None:
        """Hand what was written to the system."""
        for table in (*self.scores.values(), self.self_influence):
            table.flush()

    def _names(self) -> list[str]:
        return [*(self._scores(path).name for path in self._paths), SELF]

    @property
    def _paths(self) -> tuple[Path, ...]:
        return self.about.members if self.about.queries else ()

    def _scores(self, path: Path) -> FilePath:
        return scores_file(self.folder, path)


def scores_file(folder: FilePath, path: Path) -> FilePath:
    """Where the scores of one path are."""
    return folder / f"scores-{path.value}.f32"


def read_about(folder: FilePath) -> About:
    """What the trace in a folder is of.

    Raises:
        TracingError: There is none, or another release wrote it.
    """
    if not (folder / ABOUT).is_file():
        raise TracingError(f"{folder} holds no trace ({ABOUT}). Give the folder of a Tracer.")
    content = read_object(folder / ABOUT)
    if content.pop("format", None) != FORMAT:
        raise TracingError(f"The trace in {folder} was written by another release of tracin.")
    lists = {name: tuple(content.get(name, ())) for name in ("paths", "parameters")}
    return About(**{**content, **lists})


def read_ids(folder: FilePath) -> tuple[np.ndarray, np.ndarray]:
    """The ids of training examples and queries."""
    content = read_object(folder / IDS)
    return checked_ids(content["train"]), checked_ids(content["queries"])


def read_saves(folder: FilePath) -> list[Save]:
    """What was saved in a folder, oldest first."""
    files = (folder / SAVED).glob(f"[0-9]*/{SAVE}")
    return sorted((Save(**read_object(file)) for file in files), key=lambda save: save.step)


def open_steps(folder: FilePath, about: About, rows: int) -> Steps:
    """The steps that were noted."""
    return read_steps(folder / STEPS, about.queries, about.members, rows)


def open_scores(folder: FilePath, about: About, path: Path) -> np.ndarray:
    """The scores of one path, memory-mapped: [train, queries]."""
    shape = (about.train, about.queries)
    if about.queries == 0:
        return np.zeros(shape, np.float32)
    return np.memmap(scores_file(folder, path), np.float32, "r", shape=shape)


def open_self_influence(folder: FilePath, about: About) -> np.ndarray:
    """Self-influence along the trajectory: [train]."""
    return np.memmap(folder / SELF, np.float64, "r", shape=(about.train,))


def write_json(path: FilePath, content: Mapping[str, Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def add_rows(table: np.ndarray, positions: Tensor, rows: Tensor) -> None:
    """Add rows to those at `positions`, of which one may come twice."""
    torch.from_numpy(table).index_add_(0, positions, rows.cpu().to(_KINDS[table.dtype.name]))


_KINDS = {"float32": torch.float32, "float64": torch.float64}


def _table(path: FilePath, shape: tuple[int, ...], kind: type = np.float32) -> np.memmap:
    mode = "r+" if path.is_file() else "w+"  # new ones are holes in the disk, read as zeros
    return np.memmap(path, kind, mode, shape=shape)


def _refuse_other(there: About, here: About, folder: FilePath) -> None:
    words = {
        "train": "number of training examples",
        "train_ids": "training ids",
        "queries": "number of queries",
        "query_data": "queries",
        "optimizer": "optimizer",
        "paths": "paths",
        "every": "traced steps",
        "parameters": "choice of parameters",
    }
    for name, said in words.items():
        was, now = getattr(there, name), getattr(here, name)
        if was != now:
            values = (
                "" if name in ("train_ids", "query_data") else f" ({was!r} there, {now!r} here)"
            )
            raise TracingError(
                f"{folder} holds a trace that cannot be gone on with: field '{name}' differs, for "
                f"its {said} changed{values}. Give what it was begun with, or a new folder."
            )
