"""The user's own function that returns model, loss, data and checkpoints."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tracin.errors import RunFileError
from tracin.plain_text import a_kind

NEEDED = ("model", "loss", "train", "checkpoints")
OPTIONAL = (
    "queries",
    "groups",
    "target",
    "pool",
    "validation",
    "optimizer",
    "training_loss",
    "fit",
    "texts",
    "query_texts",
    "tokenizer",
)
SHOWING = ("labels", "show", "decode")


@dataclass(frozen=True)
class Task:
    """What a task function returned.

    Attributes:
        model: The model.
        loss: Its per-example loss.
        train: The training data.
        checkpoints: The checkpoints.
        queries: Where queries come from; None for the training data.
        groups: Which group, such as a validation set, each query belongs to, for `select`; None for
            one group.
        target: What `explain`, `select` and `replay` ask about queries, such as
            `tracin.Predicted()` or a function; None for their loss.
        pool: What `select` selects from; None for the training data.
        validation: Held-out examples, by which `mislabelled` chooses checkpoints; None for all.
        optimizer: As it trained the model, for a replay.
        training_loss: (model, batch) -> what was differentiated, for a replay; None for the mean
            of `loss`.
        fit: Trains a new model on a part of the training data, for `evaluate`: fit(data) -> model,
            or a `tracin.evaluate.StackedFit`.
        texts: The training examples' texts, for `evaluate`.
        query_texts: The queries' texts, for `evaluate`.
        tokenizer: Makes tokens of a question and text of tokens, for `ask`.
        labels: The classes' names, for a report.
        show: Makes a `tracin.Shown` of an example, for a report; None goes by its type.
        decode: Makes a text of token ids, for a report.
    """

    model: Any
    loss: Any
    train: Any
    checkpoints: Any
    queries: Any = None
    groups: Any = None
    target: Any = None
    pool: Any = None
    validation: Any = None
    optimizer: Any = None
    training_loss: Any = None
    fit: Any = None
    texts: Any = None
    query_texts: Any = None
    tokenizer: Any = None
    labels: Any = None
    show: Any = None
    decode: Any = None


def load_task(function: str, run: Path) -> Task:
    """Import and call the function that a RUN.toml names.

    Args:
        function: "file.py:name", relative to the RUN.toml, or "package.module:name".
        run: The RUN.toml.

    Raises:
        RunFileError: It does not exist, or returns something else. What the user's own code raises
            is passed on, with a note that names the function.
    """
    place, _, name = function.rpartition(":")
    is_file = place.endswith(".py")
    if not name or not (is_file or all(part.isidentifier() for part in place.split("."))):
        raise RunFileError(
            f"{run}: task.function is 'file.py:function' or 'package.module:function', not "
            f"{function!r}."
        )
    try:
        module = _file(run, place) if is_file else _module(run, place)
        task = getattr(module, name, None)
        if not callable(task):
            raise RunFileError(
                f"{run}: task.function = {function!r}, but {place} has no function '{name}'."
            )
        returned = task()
    except Exception as error:
        if not isinstance(error, RunFileError):
            error.add_note(f"This comes from your own {function!r}, which {run} names.")
        raise
    return _checked(returned, function, run)


def _checked(returned: Any, function: str, run: Path) -> Task:
    promised = (
        f"{run}: {function!r} must return a dict with {_listed(NEEDED)} and, where they "
        f"are needed, {_listed(OPTIONAL + SHOWING)}"
    )
    if not isinstance(returned, Mapping):
        raise RunFileError(f"{promised}; it returned {a_kind(returned)}.")
    missing = [key for key in NEEDED if key not in returned]
    unknown = [key for key in returned if key not in NEEDED + OPTIONAL + SHOWING]
    gaps = [f"{_listed(missing)} missing"] if missing else []
    gaps += [f"{_listed(unknown)} not known"] if unknown else []
    if gaps:
        raise RunFileError(f"{promised}; in what it returned, {' and '.join(gaps)}.")
    return Task(**dict(returned))


def _file(run: Path, place: str) -> ModuleType:
    path = run.parent / place
    if not path.is_file():
        raise RunFileError(f"{run}: task.function names the file {path}, which is not there.")
    _find_neighbours(path.parent)
    # Data loader workers and pickles look a function's module up by name; but a task in random.py
    # or tracin.py must not stand in for the module that others import.
    name = path.stem if path.stem not in sys.modules else f"{path.stem} of {run}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RunFileError(f"{run}: task.function names {path}, which is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _module(run: Path, name: str) -> ModuleType:
    _find_neighbours(run.parent)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Another module's name: it is an import within the user's module that fails.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise RunFileError(
            f"{run}: task.function names the module '{name}', but there is no '{error.name}' in "
            f"{run.parent} or among the installed packages."
        ) from error


def _find_neighbours(folder: Path) -> None:
    """Let a task import the modules in its folder, as a script can."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)
