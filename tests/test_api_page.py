"""docs/api.md shows every public name: those of the package, and of the packages that it offers."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import tracin
from tracin import errors

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
DIRECTIVE = re.compile(
    r"^\.\. (currentmodule|automodule|autoclass|autofunction):: ([\w.]+)\n((?:   :.*\n)*)", re.M
)
# The results that others hold: calls return them, and nobody makes them.
HELD = ["explanations.Explanation", "explanations.TopInfluences", "explanations.Influence"]
PACKAGES = ["analysis", "baselines", "engines", "evaluate", "report", "tracing", "view"]


def found(name: str, module: str) -> Any:
    """The object of a directive: named in full, or in the current module."""
    place, _, last = name.rpartition(".")
    return getattr(import_module(place or module), last)


def public(module: Any) -> dict[str, Any]:
    """The classes and functions that a package's __init__ names for its users."""
    named = getattr(module, "__all__", None) or [
        alias.asname
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    values = {name: getattr(module, name) for name in named}
    return {name: value for name, value in values.items() if not inspect.ismodule(value)}


@pytest.fixture(scope="module")
def shown() -> set[int]:
    """What the page shows, by identity: a name may be shown where it is at home or at the top."""
    module, objects = "", []
    for kind, name, options in DIRECTIVE.findall(PAGE):
        if "module" not in kind:
            objects.append(found(name, module))
            continue
        module = name
        members = re.search(r"^   :members:(.*)$", options, re.M)
        if members and name.startswith("tracin.integrations"):
            continue  # each needs a library of its own
        if members and members[1].strip():
            objects += [found(f"{name}.{one.strip()}", "") for one in members[1].split(",")]
        elif members:
            its = public(import_module(name)) if ":imported-members:" in options else vars(errors)
            objects += its.values()
    return {id(one) for one in objects}


def missing(names: dict[str, Any], shown: set[int]) -> list[str]:
    return sorted(name for name, value in names.items() if id(value) not in shown)


def test_every_name_of_the_package_is_shown(shown: set[int]):
    assert missing(public(tracin), shown) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_a_public_package_is_shown(package: str, shown: set[int]):
    names = public(import_module(f"tracin.{package}"))

    assert names
    assert missing(names, shown) == []


def test_what_results_hold_is_shown(shown: set[int]):
    held = [*HELD, "suspects.Suspect"]

    assert missing({name: found(f"tracin.results.{name}", "") for name in held}, shown) == []


def test_each_heading_is_followed_by_names():
    sections = PAGE.split("\n## ")[1:]

    assert [one.split("\n")[0] for one in sections if not DIRECTIVE.search(one)] == []
