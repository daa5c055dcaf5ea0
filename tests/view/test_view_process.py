"""`tracin view` and `tracin apply` as commands: who sees the token, what is left behind."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from served import saved

import tracin
from tracin.cli.main import main

COMMAND = [sys.executable, "-c", "from tracin.cli.main import main; main()"]


class Served:
    """A viewer in another process."""

    def __init__(self, process, place):
        self.process, self.place = process, place
        self.line = process.stdout.readline()
        self.base = re.search(r"http://\S+?/(?=;)", self.line)[0]
        self.file = next(place.glob("tracin-view-*/open.html"))
        self.token = re.search(r"#token=([\w-]+)", self.file.read_text())[1]

    def ask(self, path, body=None):
        content = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.base + path, content, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def ended(process):
    """End it by Ctrl-C: pressed again where Python lost it in a destructor, as it may."""
    for _ in range(12):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return
    process.kill()
    pytest.fail("Ctrl-C does not end the viewer.")


@contextmanager
def served(folder, place, *arguments):
    place.mkdir(exist_ok=True)
    command = [*COMMAND, "view", str(folder), *(arguments or ["--no-browser"])]
    environment = {**os.environ, "TMPDIR": str(place)}
    with (
        (place / "errors").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            yield Served(process, place)
        finally:
            ended(process)


def everyones_command_lines() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return "\n".join(lines)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_the_token_is_seen_by_this_user_alone_and_nothing_is_left(tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/opened\nexec sleep 5 >/dev/null 2>&1\n')
    browser.chmod(0o700)
    place = tmp_path / "tmp"
    os.environ["BROWSER"] = f"{browser} %s &"
    try:
        with served(saved(tmp_path / "results"), place, "--port", "0") as page:
            deadline = time.monotonic() + 60
            while not (tmp_path / "opened").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            page.ask("api/rows")
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(page.base + "api/rows?token=wrong", timeout=60)
            refused.value.close()
            assert page.token not in everyones_command_lines()
            assert page.file.name in (tmp_path / "opened").read_text()
            assert page.token not in page.line
            assert stat.S_IMODE(page.file.stat().st_mode) == 0o600
            assert stat.S_IMODE(page.file.parent.stat().st_mode) == 0o700
            assert len(page.token) >= 43  # 256 bits
            token = page.token
            page.process.send_signal(signal.SIGINT)
            rest = page.process.stdout.read()
            assert page.process.wait(60) == 0
    finally:
        del os.environ["BROWSER"]

    assert token not in rest
    assert token not in (place / "errors").read_text()
    assert list(place.glob("tracin-view-*")) == []
    for path in (tmp_path / "results").rglob("*"):
        assert token.encode() not in path.read_bytes()


def test_it_listens_to_this_machine_alone_and_each_start_has_its_own_token(tmp_path):
    saved(tmp_path / "results")
    with (
        served(tmp_path / "results", tmp_path / "one") as one,
        served(tmp_path / "results", tmp_path / "other") as other,
    ):
        assert one.base.startswith("http://127.0.0.1:")
        assert one.token != other.token
        port = int(one.base.rsplit(":", 1)[1].strip("/"))
        own = [
            address[4][0]
            for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
            if not address[4][0].startswith("127.")
        ]
        for address in own:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)


def test_kill_minus_nine_in_the_middle_of_500_decisions_loses_none(tmp_path):
    saved(tmp_path / "results")
    answered = {}
    with served(tmp_path / "results", tmp_path / "tmp") as page:
        for turn in range(500):
            row = turn % 8
            body = {
                "rows": [row],
                "seen": [answered.get(row, (0,))[0]],
                "kind": ("wrong", "right")[turn // 8 % 2],
                "tab": "a",
            }
            shown = page.ask("api/decide", body)["rows"][0]
            answered[row] = shown["seq"], shown["kind"]
            if turn == 250:
                page.process.kill()
                break

    decisions = tracin.Decisions.open(tmp_path / "results")
    assert dict(zip(decisions.positions.tolist(), decisions.kinds.tolist(), strict=True)) == {
        row: kind for row, (_, kind) in answered.items()
    }
    with served(tmp_path / "results", tmp_path / "again") as page:
        rows = page.ask("api/rows")["rows"]
        assert {row["row"]: (row["seq"], row["kind"]) for row in rows} == answered


def test_terminated_in_order_it_leaves_nothing_behind(tmp_path):
    with served(saved(tmp_path / "results"), tmp_path / "tmp") as page:
        page.process.terminate()
        assert page.process.wait(60) == 0

    assert list((tmp_path / "tmp").glob("tracin-view-*")) == []


def test_no_code_of_the_folder_runs_and_torch_stays_out_until_it_explains(tmp_path):
    folder = saved(tmp_path / "results")
    for name in ("sitecustomize.py", "task.py", "conftest.py", "starlette.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "run.toml").write_text('[task]\nfunction = "task.py:task"\n')
    code = (
        "import sys, threading\n"
        "from tracin.view.viewer import Viewer\n"
        "from tracin.view import app, serving\n"
        f"viewer = Viewer({str(folder)!r})\n"
        "[viewer.row(row) for row in range(8)]\n"
        "viewer.close()\n"
        "print([name for name in ('torch', 'pandas', 'task') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "ran").exists()


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_other_machines_are_let_in_only_by_two_words(tmp_path, capsys):
    code, _, errors = call(capsys, "view", saved(tmp_path), "--host", "0.0.0.0")

    assert code == 2
    assert "lets other machines reach the page" in errors
    assert "nothing is encrypted" in errors
    assert "--i-know" in errors


def test_a_port_that_is_taken_is_explained_and_signals_are_left_as_they_were(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        code, _, errors = call(capsys, "view", saved(tmp_path), "--port", port, "--no-browser")

    assert code == 2
    assert f"Cannot listen at 127.0.0.1, port {port}" in errors
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_folder_without_a_ranking_says_what_makes_one(tmp_path, capsys):
    code, _, errors = call(capsys, "view", tmp_path, "--no-browser")

    assert code == 2
    assert "Run tracin mislabelled RUN.toml" in errors


def test_apply_writes_the_mended_labels_once(tmp_path, capsys):
    folder, out = saved(tmp_path / "results"), tmp_path / "labels.json"
    code, _, errors = call(capsys, "apply", folder, "--out", out)
    assert (code, "Run tracin view first" in errors) == (2, True)
    tracin.Decisions.decide(folder, 1, "relabelled", 2)
    tracin.Decisions.decide(folder, 3, "wrong")

    code, said, _ = call(capsys, "apply", folder, "--out", out)
    again, _, errors = call(capsys, "apply", folder, "--out", out)

    rows = json.loads(out.read_text())
    assert code == 0
    assert "8 labels, 1 of them new, and 1 called wrong" in said
    assert [row["label"] for row in rows] == [0, 2, 2, 0, 1, 2, 0, 1]
    assert [row["keep"] for row in rows] == [True] * 3 + [False] + [True] * 4
    assert rows[1] == {
        "id": 101,
        "position": 1,
        "label": 2,
        "given_label": 1,
        "decision": "relabelled",
        "keep": True,
    }
    assert (again, "is not overwritten" in errors) == (2, True)


def test_apply_takes_the_suffixes_of_tables(tmp_path, capsys):
    code, _, errors = call(capsys, "apply", saved(tmp_path), "--out", tmp_path / "labels.txt")

    assert code == 2
    assert "End it in one of .parquet, .csv, .json" in errors


def test_names_of_classes_are_read_from_a_file(tmp_path, capsys):
    code, _, errors = call(
        capsys, "view", saved(tmp_path), "--labels", tmp_path / "missing.txt", "--no-browser"
    )

    assert code == 2
    assert "the name of one class per line, from class 0 on" in errors
