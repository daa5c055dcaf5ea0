"""The MNIST experiment runs on the real images and hands in what the paper shows."""

from pathlib import Path

import pytest

from experiments import mnist

pytestmark = pytest.mark.slow  # trains a dozen nets


def row_of(findings: str, name: str) -> list[str]:
    """The cells of the first row of this name."""
    line = next(line for line in findings.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_a_quick_run_finds_wrong_labels(data_folder: Path, tmp_path: Path):
    mnist.main(["--quick", "--folder", str(tmp_path)])

    folder = tmp_path / "quick"
    findings = (folder / "findings.md").read_text()
    for name in ("TracIn, every step", "TracInCP", "EL2N", "loss", "margin"):
        cells = row_of(findings, name)
        assert 0.3 < float(cells[1]) <= 1, name  # found in the first tenth: by chance a tenth
        assert 0.7 < float(cells[4]) <= 1, name  # AUROC
    for name in ("influence functions", "representer points", "confident learning",
                 "TracInCP, random projection", "TracInCP, equal weights"):  # fmt: skip
        assert 0.6 < float(row_of(findings, name)[4]) <= 1, name
    assert row_of(findings, "right labels: test accuracy")[1] == "97.55 %"
    assert "every label right from the start" in findings
    assert {file.name for file in folder.glob("*.png")} == {"mnist-found.png", "mnist-figure-3.png"}
