"""The command line: what it writes runs, what it refuses it explains."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from own_process import fork_workers, start_script
from tracin import Index
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
    # Bytecode of a file as long, written in the same second, would be taken for this one's.
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
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
    settings = json.loads((tmp_path / "explain.settings.json").read_text())
    assert code == 0
    assert "query 3" in out
    assert "proponent" in out
    assert table.num_rows == 2 * 2 * 4
    assert set(table["query"].to_pylist()) == {0, 3}
    assert settings["explain"]["k"] == 4
    assert settings["command"] == "explain"
    assert settings["query"] == [0, 3]
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "examples.parquet",  # for tracin view to show
        "explain.parquet",
        "explain.settings.json",
    ]


@pytest.mark.parametrize("name", ["kfac", "ekfac", "kernel"])
def test_explain_under_curvature_ranks_otherwise_than_plain(begun, capsys, tmp_path, name):
    def explained(folder, *more):
        code, _, err = call(capsys, "explain", begun, "--query", 0, "--out", folder, *more)
        assert code == 0, err
        return pq.read_table(folder / "explain.parquet")["score"].to_pylist()

    found = explained(tmp_path / "curved", "--set", f"tracin.preconditioner={name}")

    assert found != explained(tmp_path / "plain")
    settings = json.loads((tmp_path / "curved" / "explain.settings.json").read_text())
    assert settings["tracin"]["preconditioner"] == name


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_curvature_is_kept_next_to_the_run_file(begun, capsys, tmp_path, name):
    sets = "--set", f"tracin.preconditioner={name}", "--set", "tracin.curvature_folder=kept"
    run = altered(begun, tmp_path)
    shutil.copytree(begun.parent, tmp_path, dirs_exist_ok=True)

    first, second = (
        call(capsys, "self-influence", run, "--out", tmp_path / out, *sets) for out in "ab"
    )

    assert first[0] == second[0] == 0
    assert {each.suffix for each in (tmp_path / "kept").iterdir()} == {f".{name}"}
    tables = [pq.read_table(tmp_path / out / "self-influence.parquet") for out in "ab"]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("name", ["kernel", "adam"])
def test_a_curvature_folder_without_curvature_to_keep_is_refused(begun, capsys, tmp_path, name):
    sets = "--set", f"tracin.preconditioner={name}", "--set", "tracin.curvature_folder=kept"

    code, _, err = call(capsys, "self-influence", begun, "--out", tmp_path, *sets)

    assert code != 0
    assert "'tracin.curvature_folder' keeps what preconditioner" in err
    assert "Leave it out" in err


def test_mislabelled_ranks_every_training_example(begun, capsys, tmp_path):
    code, out, _ = call(
        capsys, "mislabelled", begun, "--out", tmp_path, "--set", "mislabelled.rank_by=loss"
    )

    assert code == 0
    assert "ranked by loss" in out
    assert pq.read_table(tmp_path / "mislabelled.parquet").num_rows == 300


def test_mislabelled_ranks_by_loss_and_margin_and_takes_the_tasks_validation_data(
    begun, capsys, tmp_path
):
    text = (begun.parent / "task.py").read_text()
    held = '"validation": data(40, seed=5),'
    run = altered(begun, tmp_path, task=text.replace('"queries"', f'{held}\n        "queries"'))

    plain, out, _ = call(capsys, "mislabelled", begun, "--out", tmp_path)
    code, chosen, _ = call(capsys, "mislabelled", run, "--out", tmp_path, "--overwrite")

    assert (plain, code) == (0, 0)
    assert out.startswith("ranked by loss_and_margin\n")
    assert "ranked by loss_and_margin, means over the best checkpoints: " in chosen


def test_select_expands_queries_into_a_set_of_the_pool(begun, capsys, tmp_path):
    code, out, _ = call(
        capsys, "select", begun, "--query", "0,1", "-n", 7, "--out", tmp_path,
        "--set", "select.normalise=cosine",
    )  # fmt: skip

    table = pq.read_table(tmp_path / "select.parquet")
    settings = json.loads((tmp_path / "select.settings.json").read_text())
    assert code == 0
    assert "7 of 300 examples selected" in out
    assert table.num_rows == 7
    assert table["score"].to_pylist() == sorted(table["score"].to_pylist(), reverse=True)
    assert settings["select"] == {"budget": 7, "normalise": "cosine", "duplicates": 0.98}
    assert (settings["pool"], settings["query"]) == ("train", [0, 1])


def test_select_takes_the_tasks_pool_and_keeps_duplicates_if_asked(begun, capsys, tmp_path):
    text = (begun.parent / "task.py").read_text()
    pool = '"pool": tuple(torch.cat([each, each]) for each in data(30, seed=5)),'
    run = altered(begun, tmp_path, task=text.replace('"queries"', f'{pool}\n        "queries"'))

    code, out, _ = call(capsys, "select", run, "--query", "0", "-n", 4)
    kept, every, _ = call(
        capsys, "select", run, "--query", "0", "-n", 4, "--set", "select.duplicates=none",
        "--format", "table",
    )  # fmt: skip

    assert (code, kept) == (0, 0)
    assert "4 of 60 examples selected" in out
    assert "near-duplicates left out" in out
    assert "left out" not in every


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("select.duplicates=98", "'select.duplicates' = 98, but it should be"),
        ("select.budget=0", "'select.budget' = 0, but it should be greater than 0."),
        ("select.normalise=query", "but it should be 'none', 'cosine' or 'checkpoint_cosine'."),
    ],
)
def test_what_select_cannot_do_is_a_message(begun, capsys, setting, words):
    code, _, err = call(capsys, "select", begun, "--query", "0", "--set", setting)

    assert code == 2
    assert words in err


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

    settings = json.loads((tmp_path / "self-influence.settings.json").read_text())
    assert code == 0
    assert settings["tracin"]["parameters"] == ["2.*"]
    assert settings["tracin"]["learning_rates"] == "equal"


def test_queries_of_low_rank_say_what_is_left_out_on_the_page_too(begun, capsys, tmp_path):
    form = "--set", "explain.query_form={ low_rank = 1 }"

    code, out, _ = call(capsys, "explain", begun, "--query", "0", *form, "--out", tmp_path)
    refused = call(capsys, "explain", begun, "--query", "0", *form, "--index", tmp_path)
    grouped = call(capsys, "explain", begun, "--query", "0", *form, "--set", "explain.group=sum")

    settings = json.loads((tmp_path / "explain.settings.json").read_text())
    assert code == 0
    assert settings["explain"]["query_form"] == {"low_rank": 1}
    assert settings["notes"]
    assert settings["notes"][0] in " ".join(out.split())
    assert (refused[0], grouped[0]) == (2, 2)
    assert "explain.query_form is not for it" in refused[2]
    assert "query_form=LowRank(rank=1, seed=0) out, or the group" in grouped[2]


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
        (["--query", "0", "--set", "explain.k=none"], "'explain.k' = 'none', but it should be"),
        (["--query", "0", "--set", "explain.k=true"], "'explain.k' = True, but it should be"),
        (
            ["--query", "0", "--set", "explain.normalise=l2"],
            "'explain.normalise' = 'l2', but it should be 'none', 'cosine' or 'query'.",
        ),
        (
            ["--query", "0", "--set", "tracin.batch_size=0"],
            "'tracin.batch_size' = 0, but it should be 'auto', a whole number of at least 1, or a "
            "table such as { tokens = 16384 }.",
        ),
        *(
            (
                ["--query", "0", "--set", f"explain.query_form={form}"],
                "but it should be a table such as { low_rank = 16 }, of at least 1.",
            )
            for form in ("16", "{ low_rank = 0 }", "{ rank = 16 }")
        ),
        (
            ["--query", "0", "--set", "explain=3"],
            "'explain' = 3, but it should be a table: there are 'k'",
        ),
        (["--query", "0", "--set", "tracin.parameters=['2.*'"], "is not a TOML value"),
        (["--query", "0", "--set", "task.function.name=1"], "'function' is a value, not a table"),
        (["--query", "0", "--set", "explane.k=1"], "no setting 'explane'; there are 'task'"),
        (["--query", "0", "--set", "explain"], "such as explain.k=5, not 'explain'"),
        (["--query", "0", "--set", "tracin.parameters=nothing"], "no parameter has such a name"),
        (
            ["--query", "0", "--set", "tracin.device=bogus"],
            "'bogus' was given, but there is no such device",
        ),
        (["--query", "0", "--set", "tracin.device=cuda:99"], "but there is no such device here"),
        (["--query", "0", "--set", "task.function=task.py"], "'file.py:function' or"),
        (["--query", "0", "--set", "task.function=task.py:no"], "has no function 'no'"),
        (["--query", "0", "--set", "task.function=no.py:task"], "which is not there"),
        (["--query", "0", "--set", "task.function=no.such:task"], "but there is no 'no' in"),
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
    assert "is not a TOML file" in call(capsys, "verify", tmp_path / "broken.toml")[2]
    assert (
        "empty.toml: the setting 'task' is missing; a run needs [task] function"
        in (call(capsys, "verify", tmp_path / "empty.toml")[2])
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "must return a dict with 'model', 'loss', 'train', 'checkpoints' and"),
        ("return 3", "it returned an int"),
        ("return {'model': 1, 'loss': 1, 'train': 1}", "'checkpoints' missing"),
        ("return dict(model=1, loss=1, train=1, checkpoints=1, tset=1)", "'tset' not known"),
    ],
)
def test_what_a_task_returns_is_checked(begun, capsys, tmp_path, body, words):
    run = altered(begun, tmp_path, task=f"def task():\n    {body}\n")

    code, _, err = call(capsys, "verify", run)

    assert code == 2
    assert words in err


def test_an_error_in_the_users_task_keeps_its_traceback(begun, tmp_path):
    run = altered(begun, tmp_path, task="def task():\n    return 1 / 0\n")

    done = subprocess.run(
        [sys.executable, "-c", f"from tracin.cli.main import main; main(['verify', {str(run)!r}])"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "return 1 / 0" in done.stderr
    assert "site-packages/typer" not in done.stderr
    assert done.stderr.rstrip().endswith(
        f"This comes from your own 'task.py:task', which {run} names."
    )


def test_an_error_of_the_library_in_the_users_task_is_a_message_with_its_place(
    begun, capsys, tmp_path
):
    task = "import tracin\n\n\ndef task():\n    tracin.Projection(0)\n"
    run = altered(begun, tmp_path, task=task)

    code, _, err = call(capsys, "verify", run)

    assert (code, "Traceback" in err) == (2, False)
    assert err.startswith("error: ")
    assert err.rstrip().endswith(f"This comes from your own 'task.py:task', which {run} names.")


def test_integers_for_a_model_of_floats_are_a_message(begun, capsys, tmp_path):
    text = (begun.parent / "task.py").read_text()
    text = text.replace('"train": train,', '"train": (train[0].long(), train[1]),')
    run = altered(begun, tmp_path, task=text)

    code, _, err = call(capsys, "self-influence", run)

    assert (code, "Traceback" in err) == (2, False)
    assert "batch[0] of the data is int64, but the model's weights are float32" in err


def test_an_import_that_fails_within_the_users_module_is_not_blamed_on_the_run_file(
    begun, tmp_path
):
    text = begun.read_text().replace("task.py:task", "broken_task:task")
    run = altered(begun, tmp_path, run=text)
    (tmp_path / "broken_task.py").write_text("import no_such_thing\n")

    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        main(["verify", str(run)])


def test_a_task_may_be_a_module_beside_the_run_file(begun, capsys, tmp_path):
    text = begun.read_text().replace("task.py:task", "module_task:task")
    run = altered(begun, tmp_path, run=text)
    (tmp_path / "module_task.py").write_text((begun.parent / "task.py").read_text())

    code, _, err = call(capsys, "verify", run)

    assert (code, err) == (0, "")


def test_a_task_file_does_not_stand_in_for_the_library_of_its_name(begun, capsys, tmp_path):
    run = altered(begun, tmp_path, run=begun.read_text().replace("task.py", "tracin.py"))
    (tmp_path / "tracin.py").write_text((begun.parent / "task.py").read_text())

    code, _, err = call(capsys, "verify", run)

    assert (code, err) == (0, "")


def test_without_test_data_queries_are_training_examples(begun, capsys, tmp_path):
    task = (begun.parent / "task.py").read_text().replace('"queries": data(20, seed=2),', "")
    run = altered(begun, tmp_path, task=task)

    code, _, _ = call(capsys, "explain", run, "--query", "299", "-k", 1)
    table = pq.read_table(tmp_path / "results" / "explain.parquet")

    assert code == 0
    assert table["query"].to_pylist() == [299, 299]
    assert (
        "the task's 'train' holds 300"
        in call(capsys, "explain", run, "--query", "300", "--overwrite")[2]
    )


def test_a_task_may_name_what_is_explained(begun, capsys, tmp_path):
    text = (begun.parent / "task.py").read_text()
    target = '"target": lambda model, batch: model(batch[0])[:, 1],'
    run = altered(begun, tmp_path, task=text.replace('"queries"', f'{target}\n        "queries"'))

    code, out, _ = call(capsys, "explain", run, "--query", "0", "-k", 1)
    settings = json.loads((tmp_path / "results" / "explain.settings.json").read_text())

    assert code == 0
    assert "explained: <lambda>, raised by proponents" in out
    assert settings["target"] == "<lambda>"


def test_training_that_was_broken_off_is_not_taken_for_finished(begun, capsys, tmp_path):
    task = (begun.parent / "task.py").read_text()
    run = altered(begun, tmp_path, task=task.replace("EPOCHS = 5", "EPOCHS = 2"))
    call(capsys, "verify", run)

    code, _, err = call(capsys, "verify", altered(begun, tmp_path, task=task))

    assert code == 2
    assert "checkpoints up to step 20" in err


def test_verify_fails_where_gradients_are_not_exact(begun, capsys, tmp_path, monkeypatch):
    from tracin.results import verification

    monkeypatch.setattr(verification, "allowed", lambda precision: 1e-30)

    code, out, _ = call(capsys, "verify", begun, "--out", tmp_path)

    assert code == 1
    assert "NOT exact" in out
    assert pq.read_table(tmp_path / "verify.parquet")["parameter"].to_pylist()[0] == "0.weight"


def test_the_demo_writes_where_it_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tracin.demo.run", lambda folder, say: say(f"into {folder}"))

    assert call(capsys, "demo", "--out", tmp_path)[:2] == (0, f"into {tmp_path}\n")


def test_without_typer_the_way_out_is_told(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "tracin.cli.commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)

    code, _, err = call(capsys, "--help")

    assert code == 2
    assert "needs typer: pip install '.[cli]' in a checkout of tracin." in err


def test_a_wrong_use_shows_how_it_is_used(capsys, begun):
    code, _, err = call(capsys, "explain", begun)

    assert code == 2
    assert "Missing option '--query'" in err


def test_ctrl_c_leaves_nothing_half_written(begun, capsys, tmp_path):
    run = altered(begun, tmp_path, task="def task():\n    raise KeyboardInterrupt\n")

    code, _, err = call(capsys, "self-influence", run)

    assert code == 130
    assert "nothing half-written" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["explain", "self-influence"])
def test_ctrl_c_while_an_index_is_asked_leaves_nothing(begun, capsys, tmp_path, command):
    run = altered(begun, tmp_path, task="def task():\n    raise KeyboardInterrupt\n")
    query = ("--query", "0") if command == "explain" else ()

    code, _, err = call(capsys, command, run, *query, "--index", tmp_path / "index")

    assert code == 130
    assert "nothing half-written" in err
    assert not (tmp_path / "results").exists()


MAIN = "from tracin.cli.main import main"
WAITING = """
import sys, time

def task():
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)
"""
# In the middle of a pass: a checkpoint's weights are in the model.
WAITING_IN_A_PASS = """
import sys, time

def loss(model, batch):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)

of_template = task

def task():
    return {**of_template(), "loss": loss}
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [WAITING, WAITING_IN_A_PASS], ids=["task", "pass"])
def test_a_process_that_gets_ctrl_c_ends_with_130(begun, tmp_path, moment):
    template = (begun.parent / "task.py").read_text()
    run = altered(begun, tmp_path, task=template + moment)
    process = start_script(f"{MAIN}; main()", "self-influence", run, folder=tmp_path)
    process.wait_for("begun")

    os.kill(process.pid, signal.SIGINT)
    ended = process.ended(60)

    assert ended.code == 130, ended.stderr
    assert "interrupted; nothing half-written is left behind" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("folder", ["file", "file/within"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    begun, capsys, tmp_path, folder
):
    run = altered(begun, tmp_path, task="raise RuntimeError('the work began')")
    (tmp_path / "file").write_text("")

    code, _, err = call(capsys, "self-influence", run, "--out", tmp_path / folder)

    assert code == 2
    assert f"cannot be written to: {tmp_path / 'file'} is a file, not a folder" in err


def test_replay_walks_the_training_again(begun, capsys, tmp_path):
    code, out, _ = call(capsys, "replay", begun, "--query", "0,3", "-k", 4, "--out", tmp_path)

    table = pq.read_table(tmp_path / "replay.parquet")
    settings = json.loads((tmp_path / "replay.settings.json").read_text())
    assert code == 0
    assert "Steps 0 to 50, compared with the record:" in out
    assert out.count("none") == 5
    assert "conservation ratio" in out
    assert table.num_rows == 2 * 2 * 4
    assert settings["query"] == [0, 3]
    assert settings["replay"]["path"] == "trapezoid"


def test_a_replay_that_comes_out_otherwise_exits_with_one(begun, capsys, tmp_path):
    other = (
        (begun.parent / "task.py")
        .read_text()
        .replace(
            '"optimizer": optimizer',
            '"optimizer": optimizer, "training_loss": half',
        )
    )
    other += "\n\ndef half(m, b):\n    return F.cross_entropy(m(b[0]), b[1]) / 2\n"
    run = altered(begun, tmp_path, task=other)

    with pytest.warns(UserWarning, match="is not the recorded training"):
        code, out, _ = call(capsys, "replay", run, "--query", "0", "--out", tmp_path / "out")

    assert code == 1
    assert "written to" in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('        "optimizer": optimizer,', "        #", "must return its 'optimizer' too"),
        (
            '"checkpoints": FOLDER,',
            '"checkpoints": sorted(FOLDER.glob("*.safetensors")),',
            "returned a list",
        ),
        ("recorder.batch(rows)", "pass", "has no visits"),
    ],
)
def test_a_replay_says_what_it_lacks(begun, capsys, tmp_path, old, new, message):
    task = (begun.parent / "task.py").read_text()
    assert old in task

    run = altered(begun, tmp_path, task=task.replace(old, new))
    code, _, err = call(capsys, "replay", run, "--query", "0", "--out", tmp_path / "out")

    assert code == 2
    assert message in err


def test_a_replay_on_another_device_is_refused(begun, capsys):
    code, _, err = call(capsys, "replay", begun, "--query", "0", "--set", "tracin.device=cpu")

    assert code == 2
    assert "put the model there in the task" in err


def test_an_index_is_built_looked_at_and_asked(begun, capsys, tmp_path, monkeypatch):
    fork_workers(monkeypatch)
    folder = tmp_path / "index"
    place = ("--set", f"index.folder={folder}", "--set", "index.shard_size=100")
    asked = ("--query", "0,3", "-k", 2, "--out", tmp_path / "out", "--overwrite")

    code, out, _ = call(capsys, "index", "build", begun, *place)
    assert code == 0
    assert "300 rows of 162 numbers (float16) at 6 checkpoints, complete" in out
    code, out, _ = call(capsys, "index", "append", begun, *place, "--engine", "processes")
    assert code == 0
    code, out, _ = call(capsys, "index", "info", folder)
    assert "complete" in out
    code, out, _ = call(capsys, "index", "verify", folder)
    assert (code, "All as written" in out) == (0, True)
    code, out, _ = call(capsys, "index", "gc", folder)
    assert "0 files deleted" in out

    _, rough, _ = call(capsys, "explain", begun, "--index", folder, *asked)
    _, sure, _ = call(capsys, "explain", begun, "--index", folder, "--exact", *asked)
    _, plain, _ = call(capsys, "explain", begun, *asked)
    shown, _, written = plain.rpartition("\n\n")
    assert sure.startswith(shown)
    assert "top 2 certain for" in sure
    assert sure.endswith(written)
    assert rough.splitlines()[0] == plain.splitlines()[0]
    assert "recall@10: " in rough
    spread = ("--engine", "processes", "--workers", "2")
    code, divided, _ = call(capsys, "explain", begun, "--index", folder, *asked, *spread)
    assert (code, divided) == (0, rough)
    keep = ("--keep", "label=1", "--keep", "right")
    code, _, _ = call(capsys, "explain", begun, "--index", folder, *asked, *keep)
    assert code == 0
    hits = pq.read_table(tmp_path / "out" / "explain.parquet")["position"].to_numpy()
    rows = Index.open(folder).table()
    assert (rows["label"][hits] == 1).all()
    assert (rows["is_right"][hits] != 0).all()
    settings = json.loads((tmp_path / "out" / "explain.settings.json").read_text())
    assert settings["keep"] == ["label=1", "right"]
    assert "recall@10" in settings["notes"][0]
    for wrong, words in (("colour=3", "the columns are id, label"), ("label=x", "'x' is not one")):
        code, _, err = call(capsys, "explain", begun, "--index", folder, *asked, "--keep", wrong)
        assert (code, words in err) == (2, True)
    for wanted, words in (
        (["label=7"], "--keep label=7: none of the 300 examples of the index matches. The column "),
        (["label=1", "label=0"], "--keep label=1 --keep label=0: none of the 300 examples"),
    ):
        options = [word for each in wanted for word in ("--keep", each)]
        code, _, err = call(capsys, "explain", begun, "--index", folder, *asked, *options)
        assert (code, words in err, "k from" in err) == (2, True, False)
    code, out, _ = call(capsys, "self-influence", begun, "--index", folder, "--out", tmp_path)
    assert code == 0
    _, without, _ = call(capsys, "self-influence", begun, "--out", tmp_path, "--overwrite")
    assert out == without

    next(folder.rglob("*.safetensors")).unlink()
    code, out, _ = call(capsys, "index", "verify", folder)
    assert (code, "1 files are still to be built" in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("index", "build", "RUN", "--engine", "spark"),
            "--engine must be one of serial, processes",
        ),
        (("index", "build", "RUN", "--workers", "2"), "--workers is not for --engine serial"),
        (("index", "info", "nowhere"), "holds no index"),
        (
            ("index", "verify", "RUN"),
            "is a run file, and this command takes the folder of an",
        ),
        (("index", "gc", "RUN"), "run.toml is a run file"),
        (("index", "info", __file__), "is a file, and an index is a folder or a URL"),
        (("explain", "RUN", "--query", "0", "--index", "RUN"), "For the index of this run, give "),
        (("self-influence", "RUN", "--index", "RUN"), "For the index of this run, give "),
        (("explain", "RUN", "--query", "0", "--exact"), "--exact is for --index"),
        (("explain", "RUN", "--query", "0", "--keep", "right"), "--keep and --engine are about"),
    ],
)
def test_the_index_commands_say_what_is_wrong(begun, capsys, arguments, message):
    code, _, err = call(capsys, *(begun if each == "RUN" else each for each in arguments))

    assert code == 2
    assert message in err


COMMANDS = [
    ["self-influence"],
    ["mislabelled"],
    ["explain", "--query", "0"],
    ["explain", "--query", "0", "--index", "index", "--engine", "processes"],
    ["verify"],
    ["select", "--query", "0"],
    ["replay", "--query", "0"],
    ["index", "build", "--engine", "processes"],
    ["index", "append"],
]


@pytest.mark.slow
def test_a_missing_run_is_said_before_torch_is_imported(tmp_path):
    missing = str(tmp_path / "RUN.toml")
    code = (
        "import sys\n"
        "from tracin.cli.main import main\n"
        f"for command in {COMMANDS!r}:\n"
        f"    at = 2 if command[0] == 'index' else 1\n"
        f"    try:\n        main([*command[:at], {missing!r}, *command[at:]])\n"
        "    except SystemExit as stop:\n"
        "        print(stop.code, [name for name in ('torch', 'numpy') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["2 []"] * len(COMMANDS)
    assert done.stderr.count("cannot be read: No such file or directory. 'tracin init") == len(
        COMMANDS
    )


@pytest.mark.parametrize("workers", [0, -1])
@pytest.mark.parametrize(
    "command", [["explain", "--query", "0", "--index", "i"], ["index", "build"]]
)
def test_no_worker_processes_are_refused(begun, capsys, command, workers):
    at = 2 if command[0] == "index" else 1

    code, _, err = call(
        capsys, *command[:at], begun, *command[at:], "--engine", "processes", "--workers", workers
    )

    assert code == 2
    assert f"--workers must be at least 1; got {workers}" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000, "nests its values too deeply"),
        ("a = " + "{a=" * 5000, "nests its values too deeply"),
        ("\x00", "is not a TOML file"),
        ('[task]\nfunction = "task.py:task"\n[output]\nfolder = "a\\u0000b"', "cannot be a folder"),
        (
            f'[task]\nfunction = "task.py:task"\n[output]\nfolder = "{"x" * 300}"',
            "cannot be a folder",
        ),
        ('[task]\nfunction = "task.py:task"\n[tracin]\ndevice = "meta"', "has no numbers"),
        ('[task]\nfunction = "task.py:task"\n[tracin]\ndevice = "cudaa"', "no such device here"),
    ],
    ids=["lists", "tables", "nul", "nul in a folder", "long folder", "meta", "device"],
)
def test_a_run_that_cannot_be_is_refused_in_words(begun, capsys, tmp_path, text, said):
    run = altered(begun, tmp_path, run=text, task="raise RuntimeError('the work began')")

    code, _, err = call(capsys, "self-influence", run)

    assert code == 2
    assert said in err


def test_a_setting_nested_too_deeply_is_refused(begun, capsys):
    code, _, err = call(capsys, "self-influence", begun, "--set", "explain.k=" + "[" * 5000)

    assert code == 2
    assert "--set explain.k: the value is nested too deeply" in err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["--version", "--help", "init"])
def test_a_screen_that_takes_nothing_more_is_no_traceback(tmp_path, command):
    arguments = [command, *([str(tmp_path / "begun")] if command == "init" else [])]
    code = f"from tracin.cli.main import main; main({arguments!r})"

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: standard output cannot be written to: No space left on device."
    )


@pytest.mark.slow
def test_a_pager_that_is_closed_ends_the_command_quietly():
    code = "import time; time.sleep(0.3); from tracin.cli.main import main; main(['--help'])"

    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (1, "")


def test_report_shows_saved_results_with_the_runs_own_examples(begun, capsys, tmp_path):
    text = (begun.parent / "task.py").read_text()
    text = text.replace('"optimizer"', '"labels": ["inner", "<outer>"],\n        "optimizer"')
    run = altered(begun, tmp_path, task=text)
    nothing, _, missing = call(capsys, "report", run)
    call(capsys, "mislabelled", run)
    call(capsys, "explain", run, "--query", "0,3", "-k", 2)
    call(capsys, "self-influence", run)

    code, out, _ = call(capsys, "report", run, "--title", "Rings")
    other, _, _ = call(capsys, "report", tmp_path / "results", "--out", tmp_path / "ids.html")

    page = (tmp_path / "results" / "report.html").read_text()
    assert (nothing, code, other) == (2, 0, 0)
    assert "'tracin mislabelled" in missing
    assert "<title>Rings</title>" in page
    assert "&lt;outer&gt;" in page
    assert "<outer>" not in page
    assert "results/report.html" in out
    assert "self-influence.parquet is what 'tracin self-influence' wrote" in out
    assert "outer" not in (tmp_path / "ids.html").read_text()


def test_report_refuses_what_holds_no_results(begun, capsys, tmp_path):
    code, _, err = call(capsys, "report", tmp_path)
    settings, _, about_set = call(capsys, "report", tmp_path, "--set", "output.folder=x")

    assert (code, settings) == (2, 2)
    assert "holds no results that a report can show" in err
    assert "--set changes a setting of a RUN.toml" in about_set


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "tracin", "--version"]

    ran = subprocess.run(command, capture_output=True, text=True, check=True)

    assert ran.stdout.startswith("tracin ")


def test_tokens_of_a_loss_that_knows_none_are_refused_before_a_pass(begun, capsys, tmp_path):
    code, _, err = call(capsys, "tokens", begun, "--query", 0, "--out", tmp_path)

    assert code == 2
    assert "tokens(model, batch)" in err
