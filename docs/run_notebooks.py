"""Runs docs/notebooks/*.ipynb and keeps what they print: `python docs/run_notebooks.py`.

Run it after an edit. Each notebook runs in an empty folder, so that none leaves files behind. It
needs the extras `docs`, `demo` and `transformers`, and the package `datasets`.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent / "notebooks"


def printed(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs without warnings, and of a progress bar what is left when it is done."""
    kept: list[NotebookNode] = []
    for one in outputs:
        if one.output_type != "stream":
            kept.append(one)
        elif one.name == "stdout" and kept and kept[-1].output_type == "stream":
            kept[-1].text += one.text
        elif one.name == "stdout":
            kept.append(one)
    for one in kept:
        if one.output_type == "stream":
            lines = one.text.replace("\r\n", "\n").split("\n")
            one.text = "\n".join(line.rpartition("\r")[2] for line in lines).lstrip("\n")
    return kept


def run(path: Path) -> None:
    """Run a notebook and write it with its outputs, without times and warnings."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, timeout=300).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = printed(cell.outputs)
    # With the lexer of notebooks, since that of Python does not know lines such as "!tracin".
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for one in chosen:
        run(one)
        print(f"{one.name}: {one.stat().st_size // 1000} kB")
