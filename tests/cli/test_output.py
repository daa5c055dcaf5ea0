"""Where results go: files by their suffix, standard output for programs, nothing overwritten."""

import io
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from own_process import run_script
from tracin.cli.main import main
from tracin.cli.screen import coloured, shows_colours

COMMANDS = {
    "self-influence": (),
    "mislabelled": (),
    "explain": ("--query", "0", "-k", "2"),
    "select": ("--query", "0", "-n", "3"),
    "verify": (),
    "replay": ("--query", "0", "-k", "2"),
}
FEW = ("--query", "0", "-k", "2")


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


@pytest.fixture
def stopped(begun, tmp_path) -> Path:
    """A run that fails as soon as its task is called."""
    (tmp_path / "task.py").write_text("raise RuntimeError('the work began')")
    (tmp_path / "run.toml").write_text(begun.read_text())
    return tmp_path / "run.toml"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_writes_the_file_of_a_suffix_and_then_refuses_to_replace_it(
    begun, capsys, tmp_path, command
):
    arguments = (command, begun, *COMMANDS[command], "--out", tmp_path / "made/x.csv")

    code, out, err = call(capsys, *arguments)
    made = (tmp_path / "made/x.csv").read_bytes()
    again, _, refused = call(capsys, *arguments)
    replaced, _, _ = call(capsys, *arguments, "--overwrite")

    assert (code, err) == (0, "")
    assert f"written to {tmp_path / 'made/x.csv'}" in out
    assert len(pd.read_csv(io.BytesIO(made))) > 0
    assert json.loads((tmp_path / "made/x.csv.settings.json").read_text())["command"] == command
    assert again == 2
    assert "x.csv is already there and is not overwritten. Add --overwrite" in refused
    assert replaced == 0
    assert sorted(os.listdir(tmp_path / "made")) == ["x.csv", "x.csv.settings.json"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_program_gets_the_table_and_nothing_else(begun, capsys, tmp_path, command):
    code, out, err = call(capsys, command, begun, *COMMANDS[command], "--format", "json")

    assert (code, err) == (0, "")
    assert len(json.loads(out)) > 0
    assert not (begun.parent / "results").exists()


def test_each_format_holds_the_same_rows(begun, capsysbinary):
    found = {}
    for name in ("csv", "json", "parquet"):
        with pytest.raises(SystemExit) as stop:
            main(["self-influence", str(begun), "--format", name])
        assert not stop.value.code
        found[name] = capsysbinary.readouterr().out

    tables = {
        "csv": pd.read_csv(io.BytesIO(found["csv"])),
        "json": pd.DataFrame(json.loads(found["json"])),
        "parquet": pq.read_table(io.BytesIO(found["parquet"])).to_pandas(),
    }
    for table in tables.values():
        assert table["position"].tolist() == list(range(60))
        assert table["self_influence"].tolist() == pytest.approx(
            tables["parquet"]["self_influence"].tolist(), rel=1e-6
        )


@pytest.mark.parametrize("command", ["mislabelled", "self-influence"])
def test_rows_are_how_many_are_shown_and_a_file_has_all(begun, capsys, tmp_path, command):
    _, table, _ = call(capsys, command, begun, "--format", "table", "-n", 3)
    _, rows, _ = call(capsys, command, begun, "--format", "csv", "--rows", 3)
    call(capsys, command, begun, "--out", tmp_path, "-n", 3)

    shown = table[table.index("id") :].splitlines()
    assert [line.split()[0] for line in shown[1:5]] == [
        *(line.split(",")[0] for line in rows.splitlines()[1:]),
        "...",
    ]
    assert pq.read_table(tmp_path / f"{command}.parquet").num_rows == 60


def test_a_folder_takes_a_format(begun, capsys, tmp_path):
    (tmp_path / "of.csv").mkdir()

    for folder in ("results.v2", "of.csv"):
        call(capsys, "explain", begun, *FEW, "--out", tmp_path / folder, "--format", "json")

        assert (tmp_path / folder / "explain.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x.csv", "--format", "json"], "--format json contradicts --out x.csv, which"),
        (["--out", "x.csv", "--format", "table"], "--format table is for a screen, and --out"),
        (["--out", "x.xlsx"], "--out x.xlsx ends in .xlsx, and tables are written as .parquet"),
        (["--out", "run.toml"], "--out run.toml ends in .toml"),
    ],
    ids=["contradiction", "table", "suffix", "the run itself"],
)
def test_a_place_that_cannot_be_is_refused_before_the_work(
    stopped, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(stopped.parent)

    code, _, err = call(capsys, "self-influence", "run.toml", *arguments)

    assert code == 2
    assert words in err


@pytest.mark.parametrize("name", ["self-influence.parquet", "self-influence.settings.json"])
def test_an_earlier_result_is_refused_before_the_work(stopped, capsys, name):
    (stopped.parent / "results").mkdir()
    (stopped.parent / "results" / name).write_text("")

    code, _, err = call(capsys, "self-influence", stopped)

    assert code == 2
    assert f"{name} is already there and is not overwritten" in err


def test_a_result_that_another_command_wrote_meanwhile_is_kept(begun, capsys, tmp_path):
    meanwhile = """
import pathlib
of_template = task

def task():
    pathlib.Path(__file__).with_name("x.csv").write_text("theirs")
    return of_template()
"""
    (tmp_path / "task.py").write_text((begun.parent / "task.py").read_text() + meanwhile)
    (tmp_path / "run.toml").write_text(begun.read_text())

    code, out, _ = call(capsys, "explain", tmp_path / "run.toml", *FEW, "--out", tmp_path / "x.csv")

    assert code == 0
    assert f"written to {tmp_path / 'x-2.csv'}" in out
    assert f"another command wrote {tmp_path / 'x.csv'} meanwhile, and it was kept" in out
    assert (tmp_path / "x.csv").read_text() == "theirs"
    assert (tmp_path / "x-2.csv.settings.json").is_file()


def test_two_tables_of_one_name_keep_the_settings_of_each(begun, capsys, tmp_path):
    for command, options, name in (
        ("explain", FEW, "x.parquet"),
        ("self-influence", (), "x.csv"),
        ("self-influence", (), "x.json"),
    ):
        code, _, err = call(capsys, command, begun, *options, "--out", tmp_path / name)
        assert (code, err) == (0, "")

    commands = {
        path.name: json.loads(path.read_text())["command"]
        for path in tmp_path.glob("*.settings.json")
    }
    assert commands == {
        "x.settings.json": "explain",
        "x.csv.settings.json": "self-influence",
        "x.json.settings.json": "self-influence",
    }


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    return Terminal(io.BytesIO(), encoding="utf-8", write_through=True)


def test_a_terminal_gets_no_parquet(stopped, terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", terminal)

    code, _, err = call(capsys, "self-influence", stopped, "--format", "parquet")

    assert code == 2
    assert "Parquet is bytes, which a terminal cannot show" in err


@pytest.mark.parametrize("name", ["table", "csv", "json"])
def test_ids_cannot_command_a_terminal(begun, terminal, monkeypatch, tmp_path, name):
    ids = """
import tracin
of_template = task

def task():
    made = of_template()
    names = [f"\\x1b[2J\\u202e{at}" for at in range(60)]
    return {**made, "train": tracin.WithIds(made["train"], names)}
"""
    (tmp_path / "task.py").write_text((begun.parent / "task.py").read_text() + ids)
    (tmp_path / "run.toml").write_text(begun.read_text())
    monkeypatch.setattr(sys, "stdout", terminal)

    with pytest.raises(SystemExit) as stop:
        main(["self-influence", str(tmp_path / "run.toml"), "--format", name])

    text = terminal.buffer.getvalue().decode()
    assert not stop.value.code
    assert r"[2J" in text
    assert not any(each in text for each in "\x1b\u202e")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TERM", "xterm", True),
        ("TERM", "dumb", False),
        ("NO_COLOR", "1", False),
        ("NO_COLOR", "", True),
    ],
)
def test_colours_are_for_terminals_whose_users_want_them(
    terminal, monkeypatch, variable, value, expected
):
    monkeypatch.setenv(variable, value)

    assert shows_colours(terminal) is expected
    assert not shows_colours(io.StringIO())


def test_only_marks_are_coloured():
    assert coloured("proponent  7\nan opponent") == "\x1b[32mproponent\x1b[0m  7\nan opponent"


def test_what_a_task_its_data_and_its_loss_print_is_not_in_the_table(begun, capsys, tmp_path):
    loud = """
print("loading")
of_template = task

class Loud:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, at):
        print("fetching")
        return self.data[at]

def loss(model, batch):
    print("losing")
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

def task():
    made = of_template()
    train = torch.utils.data.TensorDataset(*made["train"])
    return {**made, "train": Loud(train), "loss": loss}
"""
    (tmp_path / "task.py").write_text((begun.parent / "task.py").read_text() + loud)
    (tmp_path / "run.toml").write_text(begun.read_text())

    code, out, err = call(capsys, "explain", tmp_path / "run.toml", *FEW, "--format", "csv")

    assert code == 0
    assert out.startswith('"query","kind"')
    assert len(out.splitlines()) == 5
    assert {"loading", "fetching", "losing"} <= set(err.split())


@pytest.mark.skipif(os.name == "nt", reason="no pipes of a shell here")
def test_a_reader_that_has_enough_ends_the_command_quietly(begun, tmp_path):
    done = run_script(
        "import os; reader, writer = os.pipe(); os.dup2(writer, 1); os.close(reader); "
        "os.close(writer); from tracin.cli.main import main; main()",
        *("self-influence", begun, "--format", "csv"),
        folder=tmp_path,
    )

    assert (done.code, done.stderr) == (1, "")
