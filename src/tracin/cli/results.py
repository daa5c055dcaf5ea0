"""Writes a command's result, with the settings that made it beside."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracin.cli.settings import Settings
from tracin.errors import RunFileError


def write(
    folder: Path, name: str, save: Callable[[Path], None], settings: Settings, command: str
) -> Path:
    """Save a table as `name`.parquet and the resolved settings as `name`.json, each whole or not.

    Raises:
        RunFileError: The folder cannot be written to.
    """
    path = folder / f"{name}.parquet"
    resolved: dict[str, Any] = {"command": command, **settings.model_dump()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(path)
        _replace(path.with_suffix(".json"), json.dumps(resolved, indent=2) + "\n")
    except OSError as error:
        raise RunFileError(f"{folder} cannot be written to: {error.strerror}.") from error
    return path


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
