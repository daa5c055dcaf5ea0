"""The benchmark for accelerators runs here in a small form, and loses no row to another's error."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.device import main
from benchmarks.report import Report


@pytest.mark.slow
@pytest.mark.parametrize("subjects", ["mlp*", "gpt2"])
def test_it_runs_on_the_cpu_in_a_small_form(tmp_path: Path, subjects: str, capsys):
    path = tmp_path / "device.json"
    asked = ["--quick", "--device", "cpu", "--json", str(path), "--subjects", subjects]

    code = main([*asked, "--zoo", "mlp*"])

    rows = {row["work"]: row for row in json.loads(path.read_text())["rows"]}
    assert [row for row in rows.values() if "error" in row] == []
    assert code == 0
    for setting in ("TF32 as torch has it", "no TF32", "float64"):
        assert rows[f"zoo, {setting}"]["scored"] > 0
        assert rows[f"zoo, {setting}"]["wrong"] == {}
    ratios = [row for row in rows.values() if "ratio" in row]
    assert len(ratios) == 8
    assert "self-influence" in capsys.readouterr().out


def test_a_row_that_fails_or_comes_too_late_is_noted_and_the_others_are_kept(tmp_path: Path):
    said: list[str] = []
    report = Report({"device": "none"}, 60.0, tmp_path / "rows.json", said.append)

    def broken() -> dict[str, float]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    report.add("first", lambda: {"ratio": 1.5, "memory": None})
    report.add("second", broken)
    report.add("third", lambda: {"wrong": {"gru": "1e-2"}})
    late = Report({}, 0.0, tmp_path / "late.json", said.append)
    late.add("fourth", broken)

    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[0]["ratio"] == 1.5
    assert rows[1]["error"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert rows[2]["wrong"] == {"gru": "1e-2"}
    assert late.rows[0]["skipped"] == "no time was left"
    assert any("1 (gru)" in line for line in said)
