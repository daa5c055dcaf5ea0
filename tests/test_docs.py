"""What the documentation shows, runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tracin
from own_process import run_forked

ROOT = Path(__file__).parent.parent
SPHINX = """
import sys
from sphinx.cmd.build import main
sys.exit(main(["-W", "--keep-going", "-q", "-b", "html", *sys.argv[1:]]))
"""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = Path(tracin.__file__).parent
# Its demo is a command of its own, and its entry point has no examples.
MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(SOURCE)], "tracin.")
    if not module.name.startswith("tracin.demo")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    if page.name == "choosing.md":
        quick_start = (ROOT / "docs" / "quickstart.md").read_text()
        blocks = [*re.findall(r"^```python\n(.*?)^```", quick_start, re.DOTALL | re.M)[:1], *blocks]
    names: dict[str, object] = {"__name__": page.stem}

    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str):
    failed, _ = doctest.testmod(importlib.import_module(name))

    assert failed == 0


def test_the_documentation_builds_without_a_warning(tmp_path: Path):
    made = tmp_path / "html"

    done = run_forked(SPHINX, ROOT / "docs", made, folder=tmp_path)

    assert done.code == 0, done.stderr
    assert "influence of every training example" in (made / "api.html").read_text()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())

    missing = [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]

    assert missing == []


def test_every_decision_has_a_date_and_the_newest_is_first():
    text = (ROOT / "docs" / "decisions.md").read_text()
    dates = re.findall(r"^## (.*)$", text, re.MULTILINE)
    decisions = re.split(r"\n\n(?=\*\*)", text.split(f"## {dates[0]}")[1])[1:]

    assert dates == sorted(dates, reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert [one[:60] for one in decisions if "](../" not in one] == []


def test_readme_names_commands_that_exist():
    commands = set(re.findall(r"^\$ make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {"demo", "test"} <= commands <= targets


def test_readme_leaves_no_gap():
    assert "FIGURES" not in (ROOT / "README.md").read_text()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
