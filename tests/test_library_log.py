"""The log says what was chosen and which slower way was taken; a program decides what is shown."""

import ast
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tracin
from tracin.cli.log_lines import shown_log
from tracin.scoring import query_pass

SOURCE = Path(tracin.__file__).parent
DATA = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def a_run(loss: Any = "cross_entropy"):
    model = torch.nn.Linear(3, 3)
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")


def calls(name: str) -> dict[str, list[ast.Call]]:
    """The calls of a function or method of this name, by file."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        nodes = (node for node in ast.walk(ast.parse(path.read_text())))
        called = [node for node in nodes if isinstance(node, ast.Call)]
        here = [each for each in called if ast.unparse(each.func).split(".")[-1] == name]
        found |= {str(path.relative_to(SOURCE)): here} if here else {}
    return found


def test_every_logger_is_named_after_its_module_and_nothing_is_configured():
    loggers = calls("getLogger")
    front = {"__init__.py", "cli/log_lines.py", "view/serving.py"}  # the last one: uvicorn's

    for file in loggers.keys() - front:
        assert [ast.unparse(each) for each in loggers[file]] == ["logging.getLogger(__name__)"]
    assert not calls("basicConfig")
    assert set(calls("print")) == {"cli/main.py"}
    handlers = logging.getLogger("tracin").handlers
    assert [type(each) for each in handlers] == [logging.NullHandler]


def test_queries_that_are_divided_are_in_the_log(caplog, monkeypatch):
    monkeypatch.setattr(query_pass, "room", lambda _: 2 * 12 * 4)

    with caplog.at_level(logging.INFO, "tracin"):
        a_run().influence(DATA, tuple(each[:5] for each in DATA))

    name = "tracin.scoring.checkpoint_pass"
    assert (name, logging.INFO) in {(one.name, one.levelno) for one in caplog.records}
    assert "2 queries fit in memory at once; 3 are left" in caplog.text


def test_smaller_batches_are_in_the_log(caplog):
    def loss(model, batch):
        if len(batch[0]) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with caplog.at_level(logging.INFO, "tracin"):
        a_run(loss).self_influence(DATA, batch_size=40)

    assert "no memory left on cpu: batches of 10 now" in caplog.text
    with caplog.at_level(logging.DEBUG, "tracin"):
        a_run().self_influence(DATA)
    assert "fit cpu" in caplog.text


def test_the_columns_of_an_index_and_what_is_left_of_it_are_in_the_log(caplog, tmp_path):
    run = a_run()

    with caplog.at_level(logging.DEBUG, "tracin"):
        for _ in range(2):
            run.index(DATA, tmp_path / "index", tracin.Projection(8))

    assert "12 numbers of each gradient become 6 columns" in caplog.text
    assert "'weight' is kept as Factored" in caplog.text
    assert "1 of 1 units are still to be done" in caplog.text
    assert "0 of 1 units are still to be done" in caplog.text


@pytest.mark.parametrize(
    ("verbose", "levels"), [(0, "W"), (1, "IW"), (2, "DIW"), (5, "DIW")], ids=str
)
def test_the_command_line_shows_as_much_as_is_wanted(capsys, verbose, levels):
    log = logging.getLogger("tracin.some.place")

    with shown_log(verbose):
        log.debug("D\nover \x1b lines")
        log.info("I")
        log.warning("W")
    log.warning("after")

    lines = [line for line in capsys.readouterr().err.splitlines() if line[0] != " "]
    assert [line.removeprefix("some.place: ") for line in lines] == list(levels)


def test_a_bar_shows_in_a_notebook_without_ipywidgets_and_without_a_warning():
    code = (
        "import sys, types, warnings\n"
        "warnings.simplefilter('error')\n"
        "shell = types.SimpleNamespace(config={'IPKernelApp': {}})\n"
        "sys.modules['ipywidgets'] = None\n"
        "sys.modules['IPython'] = types.SimpleNamespace(get_ipython=lambda: shell)\n"
        "from tracin.progress import bar\n"
        "for progress in (None, False):\n"
        "    with bar(3, f'what {progress}', progress) as shown:\n"
        "        shown.update(3)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "what None" in done.stderr
    assert "what False" not in done.stdout + done.stderr
