"""Each template of `tracin init` runs as it is, and finds what is wrong in its data."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tracin.cli.main import main
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


def test_there_are_no_other_files():
    import tracin.cli

    folder = Path(tracin.cli.__file__).parent / "templates"

    assert {path.stem for path in folder.glob("*.py")} == set(Template)
