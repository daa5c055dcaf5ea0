"""The trainings of an experiment that are done, one small file each, so that a re-run continues."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from tracin.analysis.seeded import seeded
from tracin.checks import is_int
from tracin.data import Examples, WithIds, examples_fingerprint, open_examples
from tracin.data.batches import leaves
from tracin.data.sources import ColumnSource, source_of
from tracin.errors import NonFiniteError, OutputError, QueryError
from tracin.files import (
    bytes_of,
    fingerprint,
    ids_fingerprint,
    made_folder,
    read_sealed,
    replacing,
    sealed,
    writing,
)
from tracin.plain_text import a_kind

FORMAT = 1
FEW = 16  # examples that are read twice, to see whether they stay the same
SETTINGS = "settings.json"


@final
class FinishedCells:
    """What trainings gave, in memory and, with a folder, on disk.

    A cell is known by what it was trained on and by its seed, so another fraction or another
    ranking may be added to a folder later, and trainings on the same data are done once.

    Args:
        folder: Where each finished training is written; None keeps them in memory.
        experiment: The experiment's name.
        own: What the library knows of a training beyond its data and seed, as JSON holds it.
        settings: What the user says of it, by other names than those of `own`.

    Raises:
        OutputError: The folder holds an experiment with other settings, or cannot be written.
        QueryError: A setting is nothing that JSON can hold, or has a name that is taken.
    """

    def __init__(
        self,
        folder: str | Path | None,
        experiment: str,
        own: Mapping[str, Any],
        settings: Mapping[str, Any] | None,
    ) -> None:
        told = as_json(settings or {})
        here = {"experiment": experiment, **as_json(own)}
        taken = sorted({"format", "checksum", *here} & set(told))
        if taken:
            raise QueryError(
                f"settings has the name {taken[0]!r}, under which the folder keeps something of "
                "its own. Choose another name for it."
            )
        self._known: dict[str, list[float]] = {}
        self._folder = None if folder is None else made_folder(folder, OutputError)
        if self._folder is not None:
            self._open(self._folder, {**here, **told})

    def values(self, trained_on: str, seed: int, compute: Callable[[], list[float]]) -> list[float]:
        """What this training gave: read if it is finished, computed and written if not.

        Args:
            trained_on: A fingerprint of its data.
            seed: Its seed.
            compute: Trains, and measures.

        Raises:
            OutputError: A file is damaged, or cannot be written.
        """
        name = f"{trained_on}-{seed}"
        if name in self._known:
            return self._known[name]
        path = self._path(name)
        if path is not None and path.exists():
            found = read_sealed(path, FORMAT, OutputError)["values"]
        else:
            found = compute()
            if path is not None:
                with writing(path.parent, OutputError), replacing(path) as unfinished:
                    unfinished.write_text(sealed({"format": FORMAT, "values": found}) + "\n")
        self._known[name] = found
        return found

    def has(self, trained_on: str, seed: int) -> bool:
        """Whether this training is finished, so that `values` only reads it."""
        name = f"{trained_on}-{seed}"
        path = self._path(name)
        return name in self._known or (path is not None and path.exists())

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}.json"

    def _open(self, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / SETTINGS
        if not path.exists():
            with writing(folder, OutputError), replacing(path) as unfinished:
                unfinished.write_text(sealed({"format": FORMAT, **settings}) + "\n")
            return
        before = read_sealed(path, FORMAT, OutputError)
        changed = [
            f"{name} changed (was {before.get(name)!r}, now {settings.get(name)!r})"
            for name in {**before, **settings}
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise OutputError(
                f"Cannot continue the trainings in {folder}: {'; '.join(changed)}. Use another "
                "folder for other settings, or delete this one to begin again."
            )


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a JSON file.

    Raises:
        QueryError: One is nothing that JSON can hold.
    """
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise QueryError(
            f"settings holds numbers, texts, and lists or dicts of them, by name ({error}). Give "
            "str(value) of anything else."
        ) from error


def train_fingerprint(data: Any) -> str:
    """Equal for equal examples; where these cannot be compared, for equal ids, and equally many.

    They cannot if an example holds anything else than tensors, numbers and texts, or is another
    one each time that it is read.
    """
    examples = open_examples(data, name="train")
    while isinstance(data, WithIds):
        data = data.dataset
    source = source_of(data, "train")
    pieces: list[str | bytes | memoryview] = [str(len(examples)), ids_fingerprint(examples.ids)]
    if isinstance(source, ColumnSource) and source.rows is None:
        for path, leaf in leaves(source.columns):
            is_tensor = hasattr(leaf, "detach")
            pieces += [path, bytes_of(leaf) if is_tensor else repr(leaf)]
    else:
        pieces.append(_contents(examples))
    return fingerprint(pieces)


def _contents(examples: Examples) -> str:
    few = examples.subset(range(min(FEW, len(examples))))
    one, other = _read(few), _read(few)
    return _read(examples) or "" if one == other else ""


def _read(examples: Examples) -> str | None:
    with seeded(0):  # random crops and their kin are then the same each time
        return examples_fingerprint(examples)


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds, each once.

    Raises:
        QueryError: There is none, one comes twice, or is no whole number from 0 on.
    """
    listed = tuple(seeds) if isinstance(seeds, Iterable) else ()
    if not listed or len(set(listed)) < len(listed) or not all(is_int(one, 0) for one in listed):
        raise QueryError(
            "seeds holds at least one whole number from 0 on, each once; "
            f"{seeds!r} was given. Each is one training more per cell."
        )
    return listed


def metric_value(value: Any) -> float:
    """What a metric returned, as a number.

    Raises:
        QueryError: It is no number.
        NonFiniteError: It is NaN or infinite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise QueryError(
            f"metric(model) returns one number, such as an accuracy; {a_kind(value)} came. Return "
            "float(...) of it."
        ) from error
    if not math.isfinite(number):
        raise NonFiniteError(
            f"metric(model) returned {number}: that training diverged, or the metric divides by "
            "zero. Finished trainings are kept; lower the learning rate, or leave the seed out."
        )
    return number
