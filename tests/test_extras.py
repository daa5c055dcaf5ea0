"""Install lines work today: tracin is on no package index, so they begin in a checkout."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "notebooks").glob("*.ipynb"),
    *(
        file
        for folder in ("src", "examples", "experiments", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
    ),
]


def test_no_line_installs_tracin_from_a_package_index():
    # Words of a message may stand on two lines.
    from_index = re.compile(r"install[\s\"'f]*'tracin\b")

    assert [file.name for file in FILES if from_index.search(file.read_text())] == []


def test_every_extra_that_is_named_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.compile(r"install_line\(\"(\w+)\"\)|install_line\('(\w+)'\)|'\.\[([\w,]+)\]'")

    found = {
        extra
        for file in FILES
        for groups in named.findall(file.read_text())
        for extra in "".join(groups).split(",")
    }

    assert len(found) > 8
    assert found <= project["optional-dependencies"].keys()
