"""`tracin evaluate`: one table from a run file, trainings that continue, and what it refuses."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tracin.cli.main import main

FEW = [
    "--set", "evaluate.subsets=6", "--set", "evaluate.seeds=1", "--set", "evaluate.queries=5",
    "--set", "evaluate.resamples=50",
]  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(SystemExit):
        main(["init", str(folder)])
    task = (folder / "task.py").read_text()
    (folder / "task.py").write_text(task.replace("data(300", "data(60").replace("= 5", "= 2"))
    return folder / "run.toml"


def altered(begun: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the run whose task has another text in one place."""
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    text = (begun.parent / "task.py").read_text()
    assert old in text
    (tmp_path / "task.py").write_text(text.replace(old, new))
    (tmp_path / "run.toml").write_text(begun.read_text())
    return tmp_path / "run.toml"


def test_it_writes_a_table_and_a_recommendation(begun, capsys, tmp_path):
    code, out, _ = call(capsys, "evaluate", begun, "--out", tmp_path, *FEW)

    table = pq.read_table(tmp_path / "evaluate.parquet").to_pydict()
    settings = json.loads((tmp_path / "evaluate.settings.json").read_text())
    assert code == 0
    assert out.split()[:2] == ["method", "LDS"]
    assert "KFAC" in table["method"]
    assert set(table) > {"LDS", "LDS low", "class", "copy", "patch", "shuffled", "seconds"}
    assert settings["recommendation"] in out
    assert settings["query_count"] == 5
    assert len(list((tmp_path / "evaluate-trainings").glob("*.json"))) == 6 + 1


def test_trainings_are_kept_and_others_refused(begun, capsys, tmp_path):
    call(capsys, "evaluate", begun, "--out", tmp_path, *FEW)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluate-trainings").iterdir()}

    more = [*FEW, "--set", "evaluate.subsets=8", "--overwrite"]
    code, _, _ = call(capsys, "evaluate", begun, "--out", tmp_path, *more)
    assert code == 0
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(list((tmp_path / "evaluate-trainings").iterdir())) == len(before) + 2

    other = altered(begun, tmp_path, "nn.Linear(2, 32), nn.ReLU()", "nn.Linear(2, 32), nn.Tanh()")
    code, _, err = call(capsys, "evaluate", other, "--out", tmp_path, *FEW, "--overwrite")
    assert code == 2
    assert "Cannot continue the trainings in" in err
    assert "code of fit changed" in err

    other = altered(
        begun, tmp_path, "partial(torch.optim.SGD, lr=0.5)", "partial(torch.optim.SGD, lr=0.4)"
    )
    code, _, err = call(capsys, "evaluate", other, "--out", tmp_path, *FEW, "--overwrite")
    assert code == 2
    assert "code of fit changed" in err


def test_without_a_fit_nothing_is_retrained(begun, capsys, tmp_path):
    run = altered(begun, tmp_path, '"fit": refit,', "")

    code, out, _ = call(capsys, "evaluate", run, *FEW)

    assert code == 0
    assert "LDS" not in out.splitlines()[0]
    assert "No method is recommended: only retraining" in out
    assert not (tmp_path / "results" / "evaluate-trainings").exists()


def test_texts_of_a_task_are_searched(begun, capsys, tmp_path):
    texts = '"fit": None, "texts": ["a b"] * 60, "query_texts": ["b c"] * 20,'
    run = altered(begun, tmp_path, '"fit": refit,', texts)

    code, out, _ = call(capsys, "evaluate", run, *FEW)

    assert code == 0
    assert "BM25" in out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"queries": data(20, seed=2),', "", "the task must also return 'queries'"),
        ('"fit": refit,', '"fit": 3,', "the task's 'fit' is a function that trains a new model"),
        ('"fit": refit,', '"texts": ["a"] * 60,', "must return both 'texts' (of train)"),
        (
            '"fit": refit,',
            '"texts": ["a"] * 60, "query_texts": ["b"],',
            "hold one text per example, here 60 and 20; 60 and 1 came.",
        ),
    ],
)
def test_what_a_task_lacks_is_a_message(begun, capsys, tmp_path, old, new, words):
    run = altered(begun, tmp_path, old, new)

    code, _, err = call(capsys, "evaluate", run, *FEW)

    assert code == 2
    assert words in " ".join(err.split())
