"""The experiments' harness keeps steps, and puts findings where they belong."""

import pytest
import torch
from matplotlib.figure import Figure

from experiments import harness


@pytest.fixture
def options(tmp_path):
    return harness.parsed("toy", "", 2, ["--folder", str(tmp_path / "toy"), "--scale", "0.5"])


def test_a_step_is_done_once_and_again_under_other_settings(options):
    done = []

    def work():
        done.append(1)
        return {"values": torch.arange(3), "names": ["a"]}

    for settings in ({"rate": 1}, {"rate": 1}, {"rate": 2}):
        found = harness.Experiment("toy", options, settings).step("train/0", work)
        assert found["values"].tolist() == [0, 1, 2]

    assert len(done) == 2


def test_a_step_that_failed_is_done_again(options):
    toy = harness.Experiment("toy", options, {})
    with pytest.raises(ZeroDivisionError):
        toy.step("a", lambda: 1 / 0)
    assert toy.step("a", lambda: 1) == 1


def test_findings_lie_in_the_folder_and_in_the_documentation(options, tmp_path, monkeypatch):
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- experiments.toy -->\nold\n<!-- /experiments.toy -->\nafter\n")
    monkeypatch.setattr(harness, "DOCS", page.parent)
    monkeypatch.setattr(harness, "RESULTS", page)
    writing = harness.parsed("toy", "", 1, ["--folder", str(tmp_path / "toy"), "--docs"])
    toy = harness.Experiment("toy", writing, {"rate": 1})

    toy.table(["score", "found"], [["loss", 0.5]])
    toy.figure(Figure(), "curve", "A curve")
    toy.finish()

    assert "| loss | 0.5 |" in (tmp_path / "toy" / "findings.md").read_text()
    assert "![A curve](toy-curve.png)" in (tmp_path / "toy" / "findings.md").read_text()
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert "![A curve](results/toy-curve.png)" in written
    assert (page.parent / "results" / "toy-curve.png").is_file()


def test_a_page_without_the_part_is_said():
    with pytest.raises(ValueError, match=r"lacks <!-- experiments\.toy -->"):
        harness.placed("nothing", "toy", "new")


@pytest.mark.parametrize("words", [["--scale", "0"], ["--scale", "2"], ["--seeds", "0"]])
def test_sizes_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        harness.parsed("toy", "", 1, words)
    assert words[0] in capsys.readouterr().err


def test_an_experiment_may_have_options_and_a_scale_of_its_own():
    def add_own(parser):
        parser.add_argument("--depth", type=int, default=20)

    found = harness.parsed("toy", "", 1, ["--depth", "56"], scale=0.25, add_own=add_own)

    assert vars(found.own) == {"depth": 56}
    assert found.scale == 0.25
