"""The page: templates filled in, with one style sheet and one script, and nothing from outside."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tracin import __version__

FOLDER = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    # Whatever comes from data is escaped, and a name that is not there is an error.
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def html(
    title: str,
    parts: Sequence[tuple[Any, str]],
    facts: Sequence[tuple[str, str]],
    left_out: Sequence[str],
) -> str:
    """The page as text.

    Args:
        title: On top.
        parts: (section, its name among others of its kind or ""), in the order of the page.
        facts: (name, value), under the title.
        left_out: What the page does not show, below everything.
    """
    css, css_hash = _inline("report.css")
    js, js_hash = _inline("report.js")
    # Only this style sheet and this script may run, and the page may fetch nothing: even if text
    # from data were taken for code, a browser would not obey it.
    policy = (
        "default-src 'none'; img-src data:; media-src data:; "
        f"style-src {css_hash}; script-src {js_hash}; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    )
    template = _environment().get_template("page.html")
    return template.render(
        title=title,
        parts=parts,
        facts=facts,
        left_out=left_out,
        css=css,
        js=js,
        policy=policy,
        version=__version__,
    )


def _inline(name: str) -> tuple[Markup, str]:
    """A file of ours as it stands in the page, and its hash in a policy."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"
