"""The command line: what it writes runs, what it refuses it explains."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tracin.cli.main import main

HEAVY = ["torch", "numpy", "pyarrow", "matplotlib", "sklearn", "transformers"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(SystemExit) as stop:
        main(["init", str(folder)])
    assert stop.value.code == 0
    return folder / "run.toml"


def altered(begun: Path, tmp_path: Path, **texts: str) -> Path:
    """A copy of the template with other texts for run.toml (run=) or task.py (task=)."""
    (tmp_path / "task.py").write_text(texts.get("task", (begun.parent / "task.py").read_text()))
    (tmp_path / "run.toml").write_text(texts.get("run", begun.read_text()))
    return tmp_path / "run.toml"


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from tracin.cli.main import main\n"
        "try:\n    main(['explain', '--help'])\n"
        "except SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "--query" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_explain_writes_a_table_and_the_settings_that_made_it(begun, capsys, tmp_path):
    code, out, _ = call(capsys, "explain", begun, "--query", "0,3", "-k", 4, "--out", tmp_path)

    table = pq.read_table(tmp_path / "explain.parquet")
    settings = json.loads((tmp_path / "explain.json").read_text())
    assert code == 0
    assert "query 3" in out
    assert "proponent" in out
    assert table.num_rows == 2 * 2 * 4
    assert set(table["query"].to_pylist()) == {0, 3}
    assert settings["explain"]["k"] == 4
    assert settings["command"] == "explain"


def test_mislabelled_ranks_every_training_example(begun, capsys, tmp_path):
    code, out, _ = call(
        capsys, "mislabelled", begun, "--out", tmp_path, "--set", "mislabelled.rank_by=loss"
    )

    assert code == 0
    assert "ranked by loss" in out
    assert pq.read_table(tmp_path / "mislabelled.parquet").num_rows == 300


def test_self_influence_is_written_in_the_order_of_the_data(begun, capsys, tmp_path):
    code, _, _ = call(capsys, "self-influence", begun, "--out", tmp_path)

    table = pq.read_table(tmp_path / "self-influence.parquet")
    assert code == 0
    assert table["position"].to_pylist() == list(range(300))
    assert min(table["self_influence"].to_pylist()) >= 0


def test_results_go_beside_the_run_file_by_default(begun, capsys, tmp_path):
    run = altered(begun, tmp_path)

    call(capsys, "self-influence", run)

    assert (tmp_path / "results" / "self-influence.parquet").is_file()


def test_verify_shows_every_parameters_way_and_error(begun, capsys):
    code, out, _ = call(capsys, "verify", begun)

    assert code == 0
    assert "2.bias    fast" in out
    assert "exact" in out


def test_settings_can_be_changed_for_once(begun, capsys, tmp_path):
    code, _, _ = call(
        capsys, "self-influence", begun, "--out", tmp_path,
        "--set", 'tracin.parameters=["2.*"]', "--set", "tracin.learning_rates=equal",
    )  # fmt: skip

    settings = json.loads((tmp_path / "self-influence.json").read_text())
    assert code == 0
    assert settings["tracin"]["parameters"] == ["2.*"]
    assert settings["tracin"]["learning_rates"] == "equal"


def test_init_overwrites_nothing(begun, capsys):
    code, _, err = call(capsys, "init", begun.parent)

    assert code == 2
    assert "already there and is not overwritten" in err


def test_the_version_is_told(capsys):
    assert call(capsys, "--version")[:2] == (0, "tracin 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--query", "99"], "holds 20 examples, at positions 0 to 19"),
        (["--query", "one"], "takes positions such as 3,17, not 'one'"),
        (["--query", "1,1"], "a position comes twice"),
        (["--query", "0", "-k", "301"], "train holds 300 examples"),
        (["--query", "0", "--set", "explain.kk=1"], "no setting 'explain.kk'; there are 'k'"),
        (["--query", "0", "--set", "explain.k=none"], "'explain.k' = 'none': input should be"),
        (["--query", "0", "--set", "explain"], "such as explain.k=5, not 'explain'"),
        (["--query", "0", "--set", "tracin.parameters=nothing"], "no parameter has such a name"),
        (["--query", "0", "--set", "task.function=task.py"], "'file.py:function' or"),
        (["--query", "0", "--set", "task.function=task.py:no"], "has no function 'no'"),
        (["--query", "0", "--set", "task.function=no.py:task"], "which is not there"),
        (["--query", "0", "--set", "task.function=no.such:task"], "'no.such', which is not there"),
    ],
)
def test_bad_input_is_explained_in_one_message(begun, capsys, arguments, words):
    code, _, err = call(capsys, "explain", begun, *arguments)

    assert code == 2
    assert err.startswith("error: ")
    assert words in err


def test_a_missing_or_broken_run_file_is_explained(capsys, tmp_path):
    (tmp_path / "broken.toml").write_text("[task\n")
    (tmp_path / "empty.toml").write_text("")

    assert "tracin init FOLDER" in call(capsys, "verify", tmp_path / "none.toml")[2]
    assert "is no TOML" in call(capsys, "verify", tmp_path / "broken.toml")[2]
    assert "the setting 'task' is missing" in call(capsys, "verify", tmp_path / "empty.toml")[2]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "must return a dict with 'model', 'loss', 'train', 'checkpoints', not a int"),
        ("return {'model': 1, 'loss': 1, 'train': 1}", "'checkpoints' is missing"),
        (
            "return dict(model=1, loss=1, train=1, checkpoints=1, trian=1)",
            "'trian' is unknown",
        ),
    ],
)
def test_what_a_task_returns_is_checked(begun, capsys, tmp_path, body, words):
    run = altered(begun, tmp_path, task=f"def task():\n    {body}\n")

    code, _, err = call(capsys, "verify", run)

    assert code == 2
    assert words in err


def test_an_error_in_the_users_task_keeps_its_traceback(begun, tmp_path):
    run = altered(begun, tmp_path, task="def task():\n    return 1 / 0\n")

    with pytest.raises(ZeroDivisionError):
        main(["verify", str(run)])


def test_ctrl_c_leaves_nothing_half_written(begun, capsys, tmp_path):
    run = altered(begun, tmp_path, task="def task():\n    raise KeyboardInterrupt\n")

    code, _, err = call(capsys, "self-influence", run)

    assert code == 130
    assert "nothing half-written" in err
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_to_is_named(begun, capsys, tmp_path):
    (tmp_path / "file").write_text("")

    code, _, err = call(capsys, "self-influence", begun, "--out", tmp_path / "file")

    assert code == 2
    assert "cannot be written to" in err
