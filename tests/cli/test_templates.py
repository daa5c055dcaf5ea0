"""Each template of `tracin init` runs as it is, and finds what is wrong in its data."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tracin.cli.main import main
from tracin.cli.settings import read_settings
from tracin.cli.template import Template, run_text, task_text

# How many examples each template spoils; a language model has no labels to judge.
SPOILED = {"image": 12, "hf": 8, "lm": 0, "regression": 8}  # questions: test_ask.py


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


@pytest.mark.slow
@pytest.mark.parametrize("template", map(Template, SPOILED), ids=str)  # the first: test_cli.py
def test_a_template_explains_and_finds_what_is_wrong(template: Template, tmp_path: Path, capsys):
    run, results, spoiled = tmp_path / "run.toml", tmp_path / "results", SPOILED[template]

    call("init", tmp_path, "--template", template)
    call("explain", run, "--query", "0,1", "-k", 3)
    if spoiled:
        call("mislabelled", run)
    call("report", run)

    assert pq.read_table(results / "explain.parquet").num_rows == 12
    assert (results / "report.html").stat().st_size > 10_000
    if spoiled:
        first = pq.read_table(results / "mislabelled.parquet")["positions"].to_pylist()[:spoiled]
        assert len(set(first) & set(range(spoiled))) >= spoiled - 1


@pytest.mark.parametrize("template", list(Template)[1:], ids=str)
def test_a_template_marks_what_to_replace(template: Template):
    assert task_text(template).count("Yours") >= 3


def test_what_adam_trained_is_asked_under_adam():
    for template in Template:
        is_adam = any(word in task_text(template) for word in ("AdamW", "TrainingArguments"))
        assert ('\npreconditioner = "adam"' in run_text(template)) == is_adam


@pytest.mark.parametrize("template", [Template.points, Template.lm], ids=str)
def test_each_setting_that_is_commented_out_is_its_default_or_another_choice(template, tmp_path):
    run, lines = tmp_path / "run.toml", run_text(template).splitlines()
    run.write_text("\n".join(lines))
    default = read_settings(run, []).model_dump()
    table, tried = "", set()
    for line in lines:
        if line.startswith("["):
            table = line[1 : line.index("]")]
        setting = re.fullmatch(r"# (\w+) = (.*?)(?: +# (.*))?", line)
        if setting is None:
            continue
        name, comment = f"{table}.{setting[1]}", setting[3] or ""
        kept = [each for each in lines if not each.startswith(f"{setting[1]} =")]
        run.write_text("\n".join([*kept, ""]).replace(line, line[2:]))
        found = read_settings(run, []).model_dump()
        is_default = found == default
        assert is_default != comment.startswith("or"), line
        assert len(line) <= 100
        tried.add(name)
    every = {f"{table}.{name}" for table, each in default.items() for name in each}
    assert every - tried == {"task.function"}


@pytest.mark.slow
def test_answers_of_the_language_model_end_where_its_texts_do_or_are_said_to_be_cut(
    tmp_path, capsys
):
    pytest.importorskip("peft")
    call("init", tmp_path, "--template", "lm")
    assert "ask " in capsys.readouterr().out
    call("ask", tmp_path / "run.toml", "the cat", "-k", 1)
    whole = capsys.readouterr().out
    call("ask", tmp_path / "run.toml", "the cat", "-k", 1, "--set", "ask.new_tokens=2")
    cut = capsys.readouterr().out

    assert "(generated, loss" in whole
    assert "(generated, cut off by ask.new_tokens = 2, loss" in cut


def test_there_are_no_other_files():
    import tracin.cli

    folder = Path(tracin.cli.__file__).parent / "templates"

    assert {path.stem for path in folder.glob("*.py")} == set(Template)
