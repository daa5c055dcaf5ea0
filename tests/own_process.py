"""Processes of their own, forked from one that has imported torch already.

Importing torch, its optimizers and tracin takes a process three seconds of CPU; being forked, a few
milliseconds.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracin.engines import worker_process

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "torch._dynamo", "tracin.tracin", "tracin.tracing", "tracin.index.index", "numpy"]
)


@dataclass(frozen=True)
class Ended:
    """How a script ended: its exit code, minus the signal that killed it, and what it printed."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Started:
    """A script that runs; what it prints comes into two files."""

    process: ForkServerProcess
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        """Its number."""
        assert self.process.pid is not None
        return self.process.pid

    def wait_for(self, words: str, seconds: float = 60.0) -> None:
        """Return once it has printed `words`, or has ended."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < end:
            if any(words in file.read_text() for file in (self.stdout, self.stderr)):
                return
            time.sleep(0.01)

    def ended(self, seconds: float | None = None) -> Ended:
        """Wait for its end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "It still runs."
        return Ended(self.process.exitcode, self.stdout.read_text(), self.stderr.read_text())


def start_script(source: str, *arguments: object, folder: Path) -> Started:
    """Start Python source as `python -c source *arguments` would be; `folder` takes its output."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    words = [str(argument) for argument in arguments]
    for file in (out, err):
        file.write_text("")
    process = SERVER.Process(target=_run, args=(source, words, str(out), str(err)))
    process.start()
    return Started(process, out, err)


def run_script(source: str, *arguments: object, folder: Path) -> Ended:
    """Run Python source as `python -c source *arguments` would be; `folder` takes its output."""
    return start_script(source, *arguments, folder=folder).ended()


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Processes` forks its workers; `test_engines.py` and `test_index_faults.py` spawn theirs."""

    def forked(method: str) -> BaseContext:
        assert method == "spawn"
        return SERVER

    stand_in = SimpleNamespace(get_context=forked)
    monkeypatch.setattr(worker_process, "multiprocessing", stand_in)


def _run(source: str, words: list[str], out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["-c", *words]
    try:
        exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
