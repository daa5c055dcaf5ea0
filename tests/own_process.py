"""Processes of their own, forked from one that has imported torch already.

Importing torch, its optimizers and tracin takes a process three seconds of CPU; being forked, a few
milliseconds.
"""

import multiprocessing
import os
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.context import BaseContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracin.engines import worker_process

# For what imports more than is preloaded below: a process forked from the tests' own has it all.
FORK = multiprocessing.get_context("fork")
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


def run_forked(source: str, *arguments: object, folder: Path) -> Ended:
    """The same in a process forked from this one, which has imported what its tests have."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    words = [str(argument) for argument in arguments]
    process = FORK.Process(target=_run_uncaptured, args=(source, words, str(out), str(err)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, out.read_text(), err.read_text())


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


def _run_uncaptured(source: str, words: list[str], out: str, err: str) -> None:
    # pytest's streams lead to files of its own, and its filter makes errors of others' warnings.
    warnings.resetwarnings()
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        _run(source, words, out, err)
