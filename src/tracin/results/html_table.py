"""Columns as an HTML table without script: in a notebook, or as a page of its own."""

from html import escape
from typing import Any

import numpy as np

from tracin.plain_text import plain
from tracin.results.table import Columns, cell

SHOWN = 20  # rows in a notebook
MOST = 10_000  # rows of a page, which a browser still shows

# Only what Jupyter, VS Code and Colab leave alone; colours are the surrounding page's.
_STYLE = "text-align:{};padding:2px 8px"


def html_table(columns: Columns, shown: int = SHOWN) -> str:
    """The first rows as a table, and how many more there are.

    Args:
        columns: By name, all of one length.
        shown: How many rows.

    Example:
        >>> import numpy as np
        >>> html_table({"id": np.array(["<b>"])}).count("&lt;b&gt;")
        1
    """
    count = len(next(iter(columns.values()), ()))
    sides = ["right" if each.dtype.kind in "iuf" else "left" for each in columns.values()]
    head = "".join(
        f'<th scope="col" style="{_STYLE.format(side)}">{escape(plain(name))}</th>'
        for name, side in zip(columns, sides, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(_cell(value, side) for value, side in zip(row, sides, strict=True))}</tr>"
        for row in zip(*(each[:shown] for each in columns.values()), strict=True)
    )
    more = f"<p>{count - shown:,} more rows</p>" if count > shown else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def html_page(columns: Columns, title: str = "tracin") -> str:
    """A page of its own that holds the table."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title></head>'
        f'<body style="font-family:sans-serif">{html_table(columns, MOST)}</body></html>\n'
    )


def _cell(value: Any, side: str) -> str:
    text = cell(value.item() if isinstance(value, np.generic) else value)
    return f'<td style="{_STYLE.format(side)}">{escape(text)}</td>'
