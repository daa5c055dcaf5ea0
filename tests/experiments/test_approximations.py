"""The approximations' experiment runs on the real images, and better ones agree better."""

from pathlib import Path

import pytest

from experiments import approximations

pytestmark = pytest.mark.slow  # traces two trainings


def row_of(findings: str, name: str) -> list[str]:
    """The cells of the first row of this name."""
    line = next(line for line in findings.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_quick_run_compares_every_approximation_with_the_ideal(data_folder: Path, tmp_path: Path):
    approximations.main(["--quick", "--folder", str(tmp_path)])

    folder = tmp_path / "quick"
    findings = (folder / "findings.md").read_text()
    pooled = {
        name: float(row_of(findings, name)[0])
        for name in (
            "ideal",
            "trapezoid",
            "first order",
            "TracInCP",
            "TracInCP, projected to 64",
            "TracInCP, index (2,048)",
        )
    }
    assert pooled["ideal"] == 1
    assert pooled["trapezoid"] > 0.99
    assert pooled["trapezoid"] >= pooled["first order"] > pooled["TracInCP"] > 0
    assert abs(pooled["TracInCP, index (2,048)"] - pooled["TracInCP"]) < 0.05
    first_order, trapezoid, paper = row_of(findings, "Pearson, all steps and queries")
    assert float(trapezoid) >= float(first_order) > 0.8
    assert paper == "0.978"
    assert float(row_of(findings, "not projected")[0]) == 1
    assert len(list(folder.glob("*.png"))) == 2
