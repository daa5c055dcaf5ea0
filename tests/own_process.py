"""Runs scripts in processes of their own, forked from one that has imported torch already.

Importing torch, its optimizers and tracin takes a process four seconds; being killed, a few
milliseconds.
"""

import contextlib
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "torch._dynamo", "tracin", "tracin.tracing", "numpy"])


@dataclass(frozen=True)
class Ended:
    """How a script ended: its exit code, minus the signal that killed it, and what it printed."""

    code: int
    stdout: str
    stderr: str


def run_script(source: str, *arguments: object, folder: Path) -> Ended:
    """Run Python source as `python -c source *arguments` would be; `folder` takes its output."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    words = [str(argument) for argument in arguments]
    process = _SERVER.Process(target=_run, args=(source, words, str(out), str(err)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, out.read_text(), err.read_text())


def _run(source: str, words: list[str], out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["-c", *words]
    with contextlib.suppress(SystemExit):
        exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
