"""The table that decisions are about: what `tracin mislabelled` saved, or the rows of an index."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from tracin.decisions.cells import Cells
from tracin.errors import DecisionError
from tracin.extras import install_line
from tracin.files import fingerprint, read_json

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUSPECTS, ROWS = "mislabelled.parquet", "table.parquet"
PLACES = (SUSPECTS, f"results/{SUSPECTS}", ROWS, f"index/{ROWS}")
LOG = "decisions.sqlite"
# The names of the columns that are no scores, in the results and in an index.
NAMES = {
    SUSPECTS: {
        "id": "ids",
        "position": "positions",
        "given": "given_labels",
        "suggested": "suggested_labels",
    },
    ROWS: {"id": "id", "given": "label"},
}


@final
class RankedTable:
    """Training examples with their labels and scores, in the order of the data.

    Any further column of numbers is a score; columns of other kinds are left alone. Columns are
    read when they are first asked for.

    Attributes:
        path: The Parquet file.
        positions: [rows], rising: where each example is in the training data.
        ids: [rows].
        given: [rows]: the labels in the data.
        suggested: [rows]: the labels that the model suggests; None where the table has none.
        ranked: [rows]: the rows in the order of the file, the most suspicious first.
        scores: The names of the scores.
        texts: The names of further columns of texts.

    Example:
        >>> import tempfile, torch, tracin
        >>> model = torch.nn.Linear(3, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> suspects = run.find_mislabelled((torch.randn(9, 3), torch.arange(9) % 2))
        >>> path = Path(tempfile.mkdtemp()) / "mislabelled.parquet"
        >>> suspects.save(path)
        >>> table = RankedTable(path)
        >>> bool((table.positions[table.ranked] == suspects.positions).all())
        True
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._lock = _opened(path), threading.Lock()
        there = dict(zip(self._file.schema_arrow.names, self._file.schema_arrow.types, strict=True))
        kind = ROWS if "ids" not in there and "id" in there else SUSPECTS
        self._names = NAMES[kind]
        missing = [self._names[role] for role in ("id", "given") if self._names[role] not in there]
        if missing:
            raise DecisionError(
                f"{path} has no column {missing[0]!r}: it holds {sorted(there)[:8]}. Give the "
                "folder of a table that tracin mislabelled wrote, or of an index."
            )
        rows = self._file.metadata.num_rows
        if rows == 0:
            raise DecisionError(f"{path} has no rows, so there is nothing to decide about.")
        self.positions = np.arange(rows, dtype=np.int64)
        self.ranked = np.arange(rows, dtype=np.int32)
        self._back: np.ndarray | None = None
        name = self._names.get("position", "")
        if name in there:
            positions = self._read(name)
            back = None if not positions.is_whole else _order_of(positions.array())
            if back is None:
                raise DecisionError(
                    f"{path}: {name!r} must give each example a position of its own."
                )
            self._back = back
            self.positions = positions.array(back)
            self.ranked = _inverse(back)
        self.ids = self._column("id")
        self.given = self._column("given")
        suggested = self._names.get("suggested")
        self.suggested = self._column("suggested") if suggested in there else None
        roles = set(self._names.values())
        self.scores = tuple(
            name for name, each in there.items() if name not in roles and _is_number(each)
        )
        self.texts = tuple(
            name for name, each in there.items() if name not in roles and _is_text(each)
        )
        self._scores: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def log(self) -> Path:
        """Where decisions about this table are kept."""
        return self.path.with_name(LOG)

    @property
    def file(self) -> "ParquetFile":
        """The open file; for one thread at a time."""
        return self._file

    @property
    def file_rows(self) -> np.ndarray:
        """[rows]: where each row is in the file."""
        return np.arange(len(self), dtype=np.int32) if self._back is None else self._back

    def score(self, name: str) -> np.ndarray:
        """One score: [rows], float32; kept."""
        if name not in self._scores:
            values = self._in_order(self._read(name)).array()
            self._scores[name] = np.ascontiguousarray(values, dtype=np.float32)
        return self._scores[name]

    def fingerprint(self) -> str:
        """Equal for the same examples under the same labels, however they are ranked."""
        return fingerprint(
            [*self.ids.pieces(), *Cells(self.positions).pieces(), *self.given.pieces()], size=16
        )

    def _column(self, role: str) -> Cells:
        return self._in_order(self._read(self._names[role]))

    def _read(self, name: str) -> Cells:
        import pyarrow

        try:
            with self._lock:
                column = self._file.read([name], use_threads=False)[name]
            return Cells.of(column)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DecisionError(
                f"Column {name!r} of {self.path} cannot be read: {error}."
            ) from error

    def _in_order(self, cells: Cells) -> Cells:
        return cells if self._back is None else cells.taken(self._back)


def ranked_table_in(folder: str | os.PathLike[str]) -> RankedTable:
    """The table in a folder: of wrong labels, in it or in its `results`, or of an index.

    Args:
        folder: A run's folder, its results, an index, or the Parquet file itself.

    Raises:
        DecisionError: There is none, or it cannot be read.
    """
    try:
        place = Path(folder).expanduser()
        if place.is_file():
            return RankedTable(place)
        found = [place / name for name in PLACES if (place / name).is_file()]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DecisionError(f"{folder!r} cannot be the name of a folder: {error}.") from error
    if not found:
        raise DecisionError(
            f"{place} holds no ranking: none of {', '.join(PLACES)} is there. Run tracin "
            "mislabelled RUN.toml or tracin index build RUN.toml first."
        )
    return RankedTable(found[0])


def settings_of(path: Path) -> Mapping[str, Any]:
    """The settings that a command wrote beside its table; empty where there are none."""
    settings = path.with_name(f"{path.stem}.settings.json")
    if not settings.is_file():
        return {}
    return read_json(settings, DecisionError)


def id_text(value: Any) -> str:
    """An id as JSON: 7 and "7" differ.

    Example:
        >>> id_text(7), id_text("7")
        ('7', '"7"')
    """
    return json.dumps(value)


def _opened(path: Path) -> "ParquetFile":
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DecisionError(
            f"Rankings are Parquet files, but pyarrow is not installed: {install_line('view')}."
        ) from error
    try:
        # Not mapped: a file replaced under a running viewer would end it.
        return parquet.ParquetFile(path, memory_map=False, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DecisionError(
            f"{path} cannot be read as a Parquet file: {error}. Write it again."
        ) from error


def _order_of(positions: np.ndarray) -> np.ndarray | None:
    """The order that sorts the positions; None where one comes twice, or is below 0."""
    if int(positions.min()) < 0:
        return None
    if int(positions.max()) == len(positions) - 1:
        # All of them, so that nothing needs to be sorted.
        order = np.full(len(positions), -1, dtype=np.int32)
        order[positions] = np.arange(len(positions), dtype=np.int32)
        return None if int(order.min()) < 0 else order
    order = np.argsort(positions, kind="stable").astype(np.int32)
    return None if bool((np.diff(positions[order]) < 1).any()) else order


def _inverse(order: np.ndarray) -> np.ndarray:
    """Where each place went: inverse[order[i]] = i.

    Example:
        >>> _inverse(np.array([2, 0, 1])).tolist()
        [1, 2, 0]
    """
    found = np.empty_like(order)
    found[order] = np.arange(len(order), dtype=order.dtype)
    return found


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)
