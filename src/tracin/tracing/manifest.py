"""What a trace's folder says of itself: what is traced, by which ids, and what was saved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from torch.optim import Optimizer

from tracin.data import Examples
from tracin.data.ids import checked_ids
from tracin.errors import DataError, TracingError
from tracin.files import checked_fields, ids_fingerprint, read_sealed, replacing, sealed
from tracin.scoring.parameters import Selection
from tracin.tracing.fingerprints import query_fingerprint
from tracin.tracing.paths import Quadrature

FORMAT = 4
ABOUT, IDS, STEPS, SELF, SAVED, SAVE = (
    "trace.json",
    "ids.json",
    "steps.f64",
    "self_influence.f64",
    "saved",
    "saved.json",
)

FLOAT32, FLOAT64 = np.dtype("<f4"), np.dtype("<f8")


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
        target: What is explained of the queries, in words; empty for their loss.
    """

    train: int
    train_ids: str
    queries: int
    query_data: str
    optimizer: str
    paths: tuple[str, ...]
    every: int
    parameters: tuple[str, ...] = ()
    target: str = ""

    @classmethod
    def of(
        cls,
        train: Examples,
        queries: Examples | None,
        optimizer: Optimizer,
        paths: Sequence[Quadrature],
        every: int,
        parameters: Selection,
        target: str,
    ) -> "About":
        """What a Tracer is given; see there."""
        chosen = () if parameters is None else parameters
        return cls(
            len(train),
            ids_fingerprint(train.ids),
            0 if queries is None else len(queries),
            "" if queries is None else query_fingerprint(queries),
            type(optimizer).__name__,
            tuple(path.value for path in paths),
            every,
            (chosen,) if isinstance(chosen, str) else tuple(chosen),
            target,
        )

    @property
    def members(self) -> tuple[Quadrature, ...]:
        """The paths themselves."""
        return tuple(Quadrature(name) for name in self.paths)


@final
@dataclass(frozen=True)
class Save:
    """The state of a trace at one step.

    Attributes:
        step: How many optimizer steps were taken.
        rows: How many of them were traced.
        skipped: How many traced batches were dropped, since no step followed.
        weights: A fingerprint of the model's weights.
        unweighed: Why self-influence was not known for all steps so far; empty where it was.
        is_final: Whether the Tracer was closed with it, and not broken off later.
        files: Table -> its checksum.
    """

    step: int
    rows: int
    skipped: int
    weights: str
    unweighed: str
    is_final: bool = False
    files: Mapping[str, str] = field(default_factory=dict)


def scores_name(path: Quadrature) -> str:
    """The name of the table of one path's scores."""
    return f"scores-{path.value}.f32"


def tables_of(about: About) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """The name, shape and type of each table."""
    paths = about.members if about.queries else ()
    scores = [(scores_name(path), (about.train, about.queries), FLOAT32) for path in paths]
    return [*scores, (SELF, (about.train,), FLOAT64)]


def read_about(folder: Path) -> About:
    """What the trace in a folder is of."""
    if not (folder / ABOUT).is_file():
        raise TracingError(f"{folder} holds no trace ({ABOUT}). Give the folder of a Tracer.")
    content = read_sealed(folder / ABOUT, FORMAT, TracingError)
    try:
        fields = checked_fields(
            content,
            train=int,
            train_ids=str,
            queries=int,
            query_data=str,
            optimizer=str,
            paths=list,
            every=int,
            parameters=list,
            target=str,
        )
        values: list[Any] = [tuple(one) if isinstance(one, list) else one for one in fields]
        about = About(*values)
        if about.train < 1 or about.queries < 0 or about.every < 1 or not about.members:
            raise ValueError("its numbers cannot be")
    except (TypeError, ValueError) as error:
        raise TracingError(
            f"{folder / ABOUT} is not as a Tracer writes it ({error}). Restore it from a backup."
        ) from error
    return about


def read_trace_ids(folder: Path, about: About) -> tuple[np.ndarray, np.ndarray]:
    """The ids of training examples and queries."""
    content = read_sealed(folder / IDS, FORMAT, TracingError)
    try:
        train, queries = checked_fields(content, train=list, queries=list)
        if (len(train), len(queries)) != (about.train, about.queries):
            raise ValueError(f"there are {len(train)} and {len(queries)} ids")
        return checked_ids(train), checked_ids(queries)
    except (TypeError, ValueError, DataError) as error:
        raise TracingError(
            f"{folder / IDS} is not as a Tracer writes it ({error}). Restore it from a backup."
        ) from error


def read_saves(folder: Path, about: About) -> list[Save]:
    """What was saved in a folder, oldest first."""
    saves = []
    for file in (folder / SAVED).glob(f"[0-9]*/{SAVE}"):
        content = read_sealed(file, FORMAT, TracingError)
        try:
            save = Save(
                *checked_fields(
                    content,
                    step=int,
                    rows=int,
                    skipped=int,
                    weights=str,
                    unweighed=str,
                    is_final=bool,
                    files=dict,
                )
            )
            wanted = {STEPS, *(name for name, _, _ in tables_of(about) if save.rows)}
            if save.files.keys() != wanted or not 0 <= save.rows <= save.step:
                raise ValueError("its tables or numbers cannot be")
            if file.parent.name != str(save.step):
                raise ValueError(f"it is of step {save.step}")
        except (TypeError, ValueError) as error:
            raise TracingError(
                f"{file} is not as a Tracer writes it ({error}). Restore it from a backup, or "
                f"delete {file.parent}: the other save is whole."
            ) from error
        saves.append(save)
    return sorted(saves, key=lambda save: save.step)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file with its checksum, whole or not at all."""
    # Through JSON once, so that what is summed is what will be read.
    plain = json.loads(json.dumps(dict(content)))
    with replacing(path) as unfinished:
        unfinished.write_text(sealed({"format": FORMAT, **plain}), encoding="utf-8")


def refuse_other_trace(there: About, here: About, folder: Path) -> None:
    """A run is resumed with what it was begun with."""
    labels = {
        "train": "number of training examples",
        "train_ids": "training ids",
        "queries": "number of queries",
        "query_data": "queries",
        "optimizer": "optimizer",
        "paths": "paths",
        "every": "traced steps",
        "parameters": "choice of parameters",
        "target": "target",
    }
    for name, label in labels.items():
        was, now = getattr(there, name), getattr(here, name)
        if was != now:
            is_fingerprint = name in ("train_ids", "query_data")
            values = "" if is_fingerprint else f" (was {was!r}, now {now!r})"
            raise TracingError(
                f"Cannot resume the trace in {folder}: the {label} changed{values}. Use those that "
                "it was begun with, or a new folder."
            )
