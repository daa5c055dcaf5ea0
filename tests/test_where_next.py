"""The lines that pass results on, in the tools themselves where they are installed."""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shown_code import run_blocks

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the tools


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def test_datalab(capsys):
    pytest.importorskip("cleanlab")
    pytest.importorskip("datasets")

    names = run_blocks("where_next.md", "from cleanlab")

    flagged = np.flatnonzero(names["issues"].is_tracin_suspect_issue)
    suspects = names["suspects"]
    margins = suspects.margin.numpy()[np.argsort(suspects.positions)]
    assert flagged.tolist() == np.flatnonzero(margins < 0).tolist()
    assert len(names["suggested"]) == 300
    assert "tracin_suspect issues" in capsys.readouterr().out


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")

    run_blocks("where_next.md", "import wandb")

    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("*.table.json")]
    assert sorted(len(table["data"]) for table in tables) == [100, 300]


def test_spotlight(monkeypatch: pytest.MonkeyPatch):
    spotlight = pytest.importorskip("renumics.spotlight")
    shown = []
    monkeypatch.setattr(spotlight, "show", lambda table, dtype: shown.append((table, dtype)))

    names = run_blocks("where_next.md", "import spotlight")

    ((table, dtype),) = shown
    assert dtype == {"image": spotlight.Image}
    assert table["image"][0] == f"images/{names['suspects'].positions[0]}.png"
    assert table["ids"].tolist() == names["suspects"].ids.tolist()


class Dataset:
    """What the lines ask of a `fiftyone.Dataset`."""

    def __init__(self):
        self.fields = {}

    def values(self, field_or_expr):
        return [f"{number:024x}" for number in range(300)]

    def set_values(self, field_name, values, key_field=None):
        self.fields[field_name, key_field] = values

    def select(self, sample_ids, ordered=False):
        return sample_ids, ordered


def test_fiftyone_by_a_stand_in(monkeypatch: pytest.MonkeyPatch):
    dataset, launched = Dataset(), []
    monkeypatch.setitem(
        sys.modules,
        "fiftyone",
        SimpleNamespace(
            load_dataset=lambda name: dataset, launch_app=lambda view: launched.append(view)
        ),
    )

    suspects = run_blocks("where_next.md", "import fiftyone")["suspects"]

    scores = dataset.fields["loss_and_margin", "id"]
    worst = f"{suspects.positions[0]:024x}"
    assert set(scores) == set(dataset.values("id"))
    assert scores[worst] == max(scores.values())
    assert launched == [(suspects.ids[:100].tolist(), True)]
    assert suspects.ids[0] == worst


@pytest.mark.parametrize("method", ["values", "set_values", "select"])
def test_the_stand_in_is_like_fiftyone(method: str):
    fiftyone = pytest.importorskip("fiftyone")
    theirs = inspect.signature(getattr(fiftyone.Dataset, method)).parameters
    ours = inspect.signature(getattr(Dataset, method)).parameters

    assert list(theirs)[: len(ours)] == list(ours)
