"""The code blocks of a documentation page that need a package which may not be installed."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def run_blocks(page: str, *needles: str) -> dict[str, Any]:
    """Run a page's `python` blocks, and of its `py` blocks those that contain a needle.

    `test_docs.py` runs the `python` blocks everywhere.
    """
    names: dict[str, Any] = {"__name__": page}
    text = (DOCS / page).read_text()
    for fence, block in re.findall(r"^```(py|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if fence == "python" or any(needle in block for needle in needles):
            exec(compile(block, page, "exec"), names)
    return names
