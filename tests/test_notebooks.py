"""The quick starts in docs/notebooks run, cell by cell."""

import json
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tracin.cli.main import main

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.slow


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def command(line: str) -> None:
    """What `!tracin ...` runs, in this process: a kernel would import torch once more for each."""
    name, *arguments = shlex.split(line)
    assert name == "tracin"
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


@pytest.fixture(autouse=True)
def _left_as_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of its own; what a notebook allows torch to read is allowed no longer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "task", raising=False)  # of another test's run
    allowed = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run_from_top_to_bottom(notebook: Path):
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    if "from datasets import" in sources[0] and find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed")
    names: dict[str, object] = {"__name__": notebook.stem, "command": command}

    for source in sources:
        if source.startswith("%%writefile "):
            first, text = source.split("\n", 1)
            Path(first.removeprefix("%%writefile ")).write_text(text)
        else:
            plain = re.sub(r"^!(.*)$", lambda found: f"command({found[1]!r})", source, flags=re.M)
            exec(compile(plain, str(notebook), "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_small_and_without_errors(notebook: Path):
    outputs = [one for cell in code_cells(notebook) for one in cell["outputs"]]

    assert outputs, "Run python docs/run_notebooks.py."
    assert not [one for one in outputs if one["output_type"] == "error"]
    assert notebook.stat().st_size < 50_000
