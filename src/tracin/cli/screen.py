"""Colours on a terminal that shows them, as https://no-color.org asks."""

import os
import re
import sys
from typing import TextIO

import typer

# What a line begins or ends with, and its colour; nothing is told by colour alone.
_COLOURS = (
    (re.compile(r"^proponent\b", re.MULTILINE), "green"),
    (re.compile(r"^opponent\b", re.MULTILINE), "red"),
    (re.compile(r"\bNOT exact$", re.MULTILINE), "red"),
    (re.compile(r"^error:"), "red"),
    (re.compile(r"^written to\b", re.MULTILINE), "cyan"),
)


def show(text: str, *, err: bool = False) -> None:
    """Print text on standard output, or on standard error, in colours where they show."""
    is_coloured = shows_colours(sys.stderr if err else sys.stdout)
    typer.echo(coloured(text) if is_coloured else text, err=err, color=is_coloured)


def shows_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal with colours, and the user did not ask for none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def coloured(text: str) -> str:
    r"""The text with its marks in colour.

    Example:
        >>> coloured("error: no such file")
        '\x1b[31merror:\x1b[0m no such file'
    """
    for pattern, colour in _COLOURS:
        text = pattern.sub(lambda found, colour=colour: typer.style(found[0], fg=colour), text)
    return text
