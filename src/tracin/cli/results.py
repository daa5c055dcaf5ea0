"""Writes a command's result, and the settings that made it."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tracin import __version__
from tracin.cli.settings import Settings
from tracin.errors import RunFileError
from tracin.extras import install_line


def check_writable(folder: Path) -> None:
    """Refuse, before hours of work, a folder that cannot take the result."""
    if find_spec("pyarrow") is None:
        raise RunFileError(
            "Results are written as Parquet files, but pyarrow is not installed: "
            f"{install_line('cli')}."
        )
    _check_name(folder)
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise RunFileError(f"{folder} cannot be written to: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFileError(f"{folder} cannot be written to: {existing} does not allow it.")


def _check_name(folder: Path) -> None:
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # a possible name; the caller reports what is in its way
    except (OSError, ValueError) as error:  # too long, or with a NUL or half a character
        raise RunFileError(f"{str(folder)!r} cannot be a folder: {error}.") from error


def write(
    folder: Path, save: Callable[[Path], None], settings: Settings, command: str, **arguments: Any
) -> Path:
    """Save a table as `command`.parquet, and its settings next to it: each whole or not at all.

    The settings carry the command's name too: a folder holds the results of several commands, and
    what one was made with must not be taken for another's.
    """
    from tracin.files import replacing

    path = folder / f"{command}.parquet"
    made_by = {"command": command, "version": __version__, **arguments, **settings.model_dump()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(path)
        with replacing(folder / f"{command}.settings.json") as unfinished:
            unfinished.write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{folder} cannot be written to: {error.strerror}.") from error
    return path
