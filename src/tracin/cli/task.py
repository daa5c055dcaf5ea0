"""The user's own function that returns model, loss, data and checkpoints."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracin.errors import RunFileError

NEEDED = ("model", "loss", "train", "checkpoints")
OPTIONAL = ("test",)


@dataclass(frozen=True)
class Task:
    """What a task function returned."""

    model: Any
    loss: Any
    train: Any
    checkpoints: Any
    test: Any = None


def load_task(function: str, folder: Path) -> Task:
    """Import and call the function that a RUN.toml names.

    Args:
        function: "file.py:name", relative to `folder`, or "package.module:name".
        folder: The RUN.toml's own folder.

    Raises:
        RunFileError: It is not there, or returns something else. What the function itself raises
            goes on as it is.
    """
    place, colon, name = function.rpartition(":")
    if not colon or not place or not name:
        raise RunFileError(
            f"task.function is 'file.py:function' or 'package.module:function', not {function!r}."
        )
    module = _file(folder / place) if place.endswith(".py") else _module(place, folder)
    found = getattr(module, name, None)
    if not callable(found):
        raise RunFileError(f"task.function = {function!r}: {place} has no function '{name}'.")
    returned = found()
    if not isinstance(returned, Mapping):
        raise RunFileError(
            f"{function} must return a dict with {_listed(NEEDED)}, not a "
            f"{type(returned).__name__}."
        )
    missing = [key for key in NEEDED if key not in returned]
    unknown = [str(key) for key in returned if key not in NEEDED + OPTIONAL]
    if missing or unknown:
        raise RunFileError(
            f"{function} must return a dict with {_listed(NEEDED)} and, if there are any, "
            f"{_listed(OPTIONAL)}; "
            + (f"{_listed(missing)} is missing" if missing else f"{_listed(unknown)} is unknown")
            + "."
        )
    return Task(**dict(returned))


def _file(path: Path) -> Any:
    if not path.is_file():
        raise RunFileError(f"task.function names the file {path}, which is not there.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RunFileError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    # Data loader workers and pickles look a function's module up by name.
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def _module(name: str, folder: Path) -> Any:
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise RunFileError(
            f"task.function names the module '{name}', which is not there."
        ) from error


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
