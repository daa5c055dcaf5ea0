"""The experiment on facts runs, and places are counted against a method that cannot decide."""

import pytest
import torch

pytest.importorskip("peft")
from experiments import facts


@pytest.mark.slow
def test_a_quick_run_asks_every_method(data_folder, tmp_path):
    facts.main(["--quick", "--answers", "--folder", str(tmp_path), "--threads", "1"])

    findings = (tmp_path / "quick" / "findings.md").read_text()
    lines = [line for line in findings.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows].count("TracIn, Adam(), cosine") == 2
    assert next(row for row in rows if row[0] == "BM25")[1] == "1.00"


def test_ties_count_against_a_method():
    scores = torch.tensor([[3.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert facts.places(scores, [0, 1]).tolist() == [1, 3]
    assert facts.places(scores, [2, 0]).tolist() == [3, 3]
