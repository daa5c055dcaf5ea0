"""Shows a command's result, or writes it with the settings that made it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tracin import __version__
from tracin.cli.destination import settings_path
from tracin.cli.opened import Opened
from tracin.cli.screen import show
from tracin.errors import RunFileError
from tracin.plain_text import plain

if TYPE_CHECKING:
    from tracin.results.table import Columns


def deliver(
    opened: Opened,
    shown: str,
    columns: "Callable[[], Columns]",
    *,
    hint: str = "",
    **arguments: Any,
) -> None:
    """Bring a result to where it goes, and the table for a person on the screen.

    Args:
        opened: The run, with the destination.
        shown: The table for a person.
        columns: Makes the table for a file or a program.
        hint: What to do with a Parquet file; its path follows.
        arguments: What else made the result, for its settings.
    """
    destination = opened.destination
    if destination.is_for_programs:
        _to_stdout(columns(), destination.format.value, opened.stdout)
    elif destination.path is None:
        show(shown)
    else:
        path = destination.free(destination.path)
        # Written first: a pager that is closed early must not cost the file.
        _write(opened, path, columns(), arguments)
        if hint and path.suffix == ".parquet":
            shown += f"\n{hint} {plain(path)}"
        show(f"{shown}\n\nwritten to {plain(path)}")
        if path != destination.path:
            show(f"another command wrote {plain(destination.path)} meanwhile, and it was kept")


def _write(opened: Opened, path: Path, columns: "Columns", arguments: dict[str, Any]) -> None:
    """Save a table, and its settings next to it: each whole or not at all.

    The settings carry the command's name too: a folder holds the results of several commands, and
    what one was made with must not be taken for another's.
    """
    from tracin.files import replacing
    from tracin.results.saving import save_columns

    made_by = {
        "command": opened.destination.command,
        "version": __version__,
        **arguments,
        **opened.settings.model_dump(),
    }
    save_columns(columns, path)
    try:
        with replacing(settings_path(path)) as unfinished:
            unfinished.write_text(json.dumps(made_by, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{path.parent} cannot be written to: {error.strerror}.") from error


def _to_stdout(columns: "Columns", file_format: str, stdout: TextIO) -> None:
    from tracin.results.saving import as_bytes

    content = as_bytes(columns, f".{file_format}")
    if stdout.isatty():  # CSV or JSON: what a terminal would obey is shown instead
        content = "\n".join(map(plain, content.decode().split("\n"))).encode()
    stdout.flush()
    stdout.buffer.write(content)
    stdout.buffer.flush()
