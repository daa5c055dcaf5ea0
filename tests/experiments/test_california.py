"""The experiment on California's homes runs, and its typing errors are what they say."""

import pytest
import torch
from experiments.typos import KINDS, with_typos

from experiments import california


@pytest.mark.slow
def test_a_quick_run_says_where_proponents_lie_and_finds_typing_errors(data_folder, tmp_path):
    california.main(["--quick", "--folder", str(tmp_path), "--threads", "1"])

    findings = (tmp_path / "quick" / "findings.md").read_text()
    shares = {row[0]: row[1:] for row in rows_of(findings)}
    assert float(shares["test"][0]) > 0.2
    assert shares["test"][1] == "0.70"
    in_region = [float(shares[name][2]) for name in (*california.REGIONS, "elsewhere")]
    assert sum(in_region) == pytest.approx(1, abs=0.01)
    auroc = {row[0]: float(row[5]) for row in rows_of(findings) if len(row) == 7}
    assert set(auroc) == set(california.SCORES.values())
    assert min(auroc.values()) > 0.5
    for figure in ("palo-alto", "self-influence", "typos"):
        file = tmp_path / "quick" / f"california-{figure}.png"
        assert 0 < file.stat().st_size < 150_000


def rows_of(findings: str) -> list[list[str]]:
    """The cells of all rows of all tables that hold numbers."""
    lines = [line for line in findings.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if any(cell.replace(".", "").isdigit() for cell in row[1:])]


def test_typing_errors_are_of_every_kind_and_change_only_what_they_say():
    dollars = torch.tensor([452_600.0, 358_500.0, 500_001.0, 112_500.0] * 50)

    typed, kinds = with_typos(dollars, 0.5, seed=0)

    assert torch.equal(typed[kinds < 0], dollars[kinds < 0])
    assert [int((kinds == kind).sum()) for kind in range(len(KINDS))] == [25] * 4
    many, few, first, swapped = (kinds == kind for kind in range(4))
    assert torch.equal(typed[many], dollars[many] * 10)
    assert torch.equal(typed[few], (dollars[few] / 10).floor())
    assert (typed[first] != dollars[first]).all()
    assert torch.equal(typed[first] % 100_000, dollars[first] % 100_000)
    assert (typed[first] >= 100_000).all()
    for before, after in zip(dollars[swapped].tolist(), typed[swapped].tolist(), strict=True):
        assert sorted(f"{int(before)}") == sorted(f"{int(after):06}")
        assert before != after


def test_a_price_of_equal_digits_still_changes():
    typed, kinds = with_typos(torch.full((8,), 222_222.0), 1.0, seed=0)

    assert (typed != 222_222).all()
    assert (kinds >= 0).all()
