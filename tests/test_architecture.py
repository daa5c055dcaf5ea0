"""The page on the architecture names what is there, and a public name means one thing."""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import tracin

ROOT = Path(__file__).parent.parent
SOURCE = Path(tracin.__file__).parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "architecture.md").read_text()

# Public names that two files define. The list only gets shorter: rename one of the two, or merge
# them, and delete the line. Never add to it.
TWICE = {
    "Guard",
    "TracInCallback",  # one per trainer, in the module that is named after it
    "add",  # of rules, like div, matmul, mul and sub: named after the torch function
    "div",
    "matmul",
    "mul",
    "plain",
    "scaled",
    "sub",
    "summed",
}


@pytest.fixture
def make_layers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "make_layers", raising=False)
    import make_layers

    return make_layers


def definitions() -> dict[str, set[str]]:
    """The files that define each public class or function on their top level."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "templates":
            continue  # programs for users, each complete by itself
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name].add(str(path.relative_to(SOURCE)))
    return {name: files for name, files in found.items() if not name.startswith("_")}


def table_under(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its own heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" |") for line in section.splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_the_page_names_every_folder():
    folders = {str(path.parent.relative_to(SOURCE)) for path in SOURCE.glob("*/**/__init__.py")}

    assert folders
    assert folders <= set(re.findall(r"`([\w/]+)`", PAGE))


def test_the_tree_of_the_readme_names_every_folder():
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}

    tree = (ROOT / "README.md").read_text().split("```text\n")[1].split("```")[0]

    assert folders == set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))


def test_the_page_names_every_layer_of_the_contract(make_layers):
    parts = {part for row in make_layers.layers() for part in row}

    named = {row[0].strip("`") for row in table_under("Layers")}

    assert len(parts) > 10
    assert parts <= named
    assert {name for name in named if not (SOURCE / name).is_dir()} == {
        name for name in named if (SOURCE / f"{name}.py").is_file()
    }


def test_the_picture_is_that_of_the_code(make_layers):
    assert make_layers.PICTURE.read_text() == make_layers.picture(), (
        "The layers or their imports changed: run `python docs/make_layers.py`."
    )


def test_the_picture_leaves_out_what_a_longer_way_shows(make_layers):
    assert make_layers.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {
        "a": {"b"},
        "b": {"c"},
        "c": set(),
    }


def test_the_names_of_the_glossary_are_those_of_the_code():
    named = {name for row in table_under("Glossary") for name in re.findall(r"`(\w+)`", row[1])}

    aliases = re.compile(r"^([A-Z]\w+)(?:: TypeAlias)? = ", re.MULTILINE)
    known = {name for path in SOURCE.rglob("*.py") for name in aliases.findall(path.read_text())}

    assert len(named) > 40
    assert named - known - definitions().keys() == set()


def test_no_public_name_is_defined_in_two_files():
    twice = {name: files for name, files in definitions().items() if len(files) > 1}

    assert {name: twice[name] for name in twice.keys() - TWICE} == {}
    assert TWICE - twice.keys() == set(), "Defined once now: delete it from TWICE."
