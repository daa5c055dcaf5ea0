"""Where a command's result goes: a file and its settings, or standard output alone."""

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tracin.errors import OutputError, RunFileError
from tracin.extras import install_line


class Format(StrEnum):
    """How a table is written; as a file's suffix, too, but for the one on a screen."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


Out = Annotated[
    Path | None,
    typer.Option("--out", help="A folder, or a .parquet, .csv, .json or .html file."),
]
FileFormat = Annotated[
    Format | None,
    typer.Option("--format", help="Without --out: to standard output, and no file is written."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]


@dataclass(frozen=True)
class Destination:
    """Where one command's result goes.

    Attributes:
        command: Its name.
        folder: Where the command keeps what it may take up again.
        path: The table's file; None for standard output alone.
        format: What standard output takes.
        overwrite: Whether an earlier result may be replaced.
    """

    command: str
    folder: Path
    path: Path | None
    format: Format
    overwrite: bool = False

    @property
    def is_for_programs(self) -> bool:
        """Whether standard output is read by a program, and must hold the table alone."""
        return self.path is None and self.format != Format.TABLE

    def free(self, path: Path) -> Path:
        """`path`, or the next name of its kind where another command wrote it during the work."""
        free, number = path, 1
        while not self.overwrite and any(map(os.path.lexists, (free, settings_path(free)))):
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        return free


@dataclass(frozen=True)
class Output:
    """What the command line says of the result's place.

    Attributes:
        out: A file, or a folder; None for the run's folder of results.
        format: None for what `out` says.
        overwrite: Whether an earlier result may be replaced.
    """

    out: Path | None = None
    format: Format | None = None
    overwrite: bool = False

    def destination(self, command: str, results: Path) -> Destination:
        """Where the result goes, checked before hours of work.

        Args:
            command: Names the file in a folder.
            results: The run's folder of results.

        Raises:
            OutputError: An earlier result is there, the format contradicts, or a terminal would get
                bytes.
            RunFileError: The folder cannot be written to, or pyarrow is not installed.
        """
        if self.out is None and self.format is not None:
            self._check_stdout()
            return Destination(command, results, None, self.format)
        path = self._file(command, results)
        if path.suffix.lower() in (".parquet", ".csv"):
            check_pyarrow()
        check_writable(path.parent)
        for each in (path, settings_path(path)):
            check_new(each, self.overwrite)
        return Destination(command, path.parent, path, Format.TABLE, self.overwrite)

    def _check_stdout(self) -> None:
        if self.format in (Format.CSV, Format.PARQUET):
            check_pyarrow()
        if self.format is Format.PARQUET and sys.stdout.isatty():
            raise OutputError(
                "Parquet is bytes, which a terminal cannot show. Redirect them "
                "(--format parquet > result.parquet), name a file with --out result.parquet, or "
                "take --format table."
            )

    def _file(self, command: str, results: Path) -> Path:
        if self.out is None:
            return results / f"{command}.parquet"
        if self.format is Format.TABLE:
            raise OutputError(
                "--format table is for a screen, and --out names a file. Leave --out out, or take "
                "csv, json or parquet."
            )
        _check_name(self.out)
        suffix = self.out.suffix.lower()
        # A folder may have a dot in its name, as in results.v2.
        if self.out.is_dir() or not suffix[1:].isalpha():
            return self.out / f"{command}.{'parquet' if self.format is None else self.format.value}"
        # Imported late: a mistake in a run file is reported before NumPy is imported.
        from tracin.results.saving import WRITERS

        if suffix not in WRITERS:
            raise OutputError(
                f"--out {self.out} ends in {suffix}, and tables are written as "
                f"{', '.join(WRITERS)}. For a folder of this name, make it first."
            )
        if self.format is not None and suffix != f".{self.format.value}":
            raise OutputError(
                f"--format {self.format.value} contradicts --out {self.out}, which ends in "
                f"{suffix}. Leave --format out, or end the file in .{self.format.value}."
            )
        return self.out


def check_writable(folder: Path) -> None:
    """Refuse, before hours of work, a folder that cannot take the result."""
    _check_name(folder)
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise RunFileError(f"{folder} cannot be written to: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunFileError(f"{folder} cannot be written to: {existing} does not allow it.")


def check_new(path: Path, overwrite: bool) -> None:
    """Refuse, before hours of work, to replace a file that is there."""
    if not overwrite and os.path.lexists(path):
        raise OutputError(
            f"{path} is already there and is not overwritten. Add --overwrite, or name another "
            "file with --out."
        )


def check_pyarrow() -> None:
    """Refuse, before hours of work, a result that needs pyarrow where it is not installed."""
    if find_spec("pyarrow") is None:
        raise RunFileError(
            "Parquet and CSV files are written by pyarrow, which is not installed: "
            f"{install_line('cli')}. --format table and --format json do without."
        )


def settings_path(path: Path) -> Path:
    """Where the settings go that made the table of a file.

    Readers look for those of a Parquet file by its stem; of x.csv they are x.csv.settings.json, so
    that both can lie in one folder.
    """
    name = path.stem if path.suffix.lower() == ".parquet" else path.name
    return path.with_name(f"{name}.settings.json")


def _check_name(path: Path) -> None:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # a possible name; the caller reports what is in its way
    except (OSError, ValueError) as error:  # too long, or with a NUL or half a character
        raise RunFileError(f"{str(path)!r} cannot be a folder: {error}.") from error
