"""python -m benchmarks.checks_memory: what a language model's checks take, in memory and work.

Each row is measured in a process of its own: peak memory above the model with its weights in place,
in sizes of the model, and CPU time of one thread and operations, in plain passes over the batch.
The batch is short beside the model, where checks weigh most.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from benchmarks.models import LanguageModel
from benchmarks.operations import operations
from tracin.index.rows import groups_of, plan_of
from tracin.run import checkpoint_pass, open_data, rows_pass

WORDS, WIDTH, LAYERS, LENGTH, BATCH = 16_000, 512, 6, 32, 16
Pair = tuple[Tensor, Tensor]


def losses(model: nn.Module, batch: Pair) -> Tensor:
    """The mean loss of each sequence's words: [examples]."""
    words, following = batch
    found = F.cross_entropy(model(words).mT, following, reduction="none")
    return found.mean(1)


class Subject:
    """One model, and one batch of its examples."""

    def __init__(self, *, is_tied: bool) -> None:
        torch.manual_seed(0)
        self.model = LanguageModel(WORDS, LENGTH, WIDTH, LAYERS, 8, is_tied=is_tied).eval()
        self.size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        words = torch.randint(WORDS, (BATCH, LENGTH + 1))
        self.batch = words[:, :-1].contiguous(), words[:, 1:].contiguous()
        # Files, which no work of this process holds in memory.
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "model.pt"
        torch.save(self.model.state_dict(), path)
        self.run = tracin.TracIn(self.model, losses, [path], learning_rates=[1.0])

    def plain(self) -> None:
        """Forward and backward over the batch, as in training."""
        self.model.zero_grad()
        losses(self.model, self.batch).sum().backward()

    def loaded(self) -> None:
        """The checkpoint in place, which is a model beside the user's own."""
        with checkpoint_pass(self.run).at(0):
            pass

    def checked(self) -> None:
        """Self-influence, with its checks and audits."""
        self.run.self_influence(self.batch, batch_size=BATCH)

    def verified(self) -> None:
        """Four examples beside plain autograd."""
        self.run.verify(self.batch, examples=4)

    def planned(self) -> None:
        """The plan of an index of 1,024 numbers per row."""
        data = open_data(self.run, self.batch, "train")
        groups = groups_of(self.run.weights, self.run.parameters)
        plan_of(rows_pass(self.run), data, tracin.Projection(1024), groups)


WORKS: Mapping[str, Callable[[Subject], None]] = {
    "plain pass": Subject.plain,
    "checkpoint in place": Subject.loaded,
    "self-influence": Subject.checked,
    "verify, 4 examples": Subject.verified,
    "plan of an index": Subject.planned,
}


def measured(work: str, *, is_tied: bool) -> dict[str, float]:
    """Run one work in this process.

    Returns:
        "peak": memory above what was there before, in sizes of the model; "seconds": CPU time;
        "operations".
    """
    torch.set_num_threads(1)
    subject = Subject(is_tied=is_tied)
    run = WORKS[work]
    _import_all()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")
    start = time.process_time()
    run(subject)
    seconds = time.process_time() - start
    peak = _resident("VmHWM") - before
    return {
        "peak": peak / subject.size,
        "seconds": seconds,
        "operations": float(operations(lambda: run(subject))),
    }


def _import_all() -> None:
    """Torch imports parts of itself in a first backward pass: neither time nor memory of a work."""
    value = torch.ones(1, requires_grad=True)
    torch.autograd.grad(value * 2, value, torch.ones(2, 1), is_grads_batched=True)


def _resident(line: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(line + ":")[1].split()[0]) * 1024


def main() -> None:
    """Print one line per work, for a model with its own head and for one whose head is tied."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks_memory", description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("WORK", "HEAD"), help=argparse.SUPPRESS)
    chosen = parser.parse_args().one
    if chosen:
        print(json.dumps(measured(chosen[0], is_tied=chosen[1] == "tied")))
        return
    # Memory that is freed goes back to the system at once, so that the peak is of what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    print(f"{'':<22}{'memory':>9}{'tied':>7}{'CPU time':>10}{'tied':>7}{'work':>7}{'tied':>7}")
    plain: dict[str, dict[str, float]] = {}
    for work in WORKS:
        cells: dict[str, dict[str, float]] = {}
        for head in ("untied", "tied"):
            command = [sys.executable, "-m", "benchmarks.checks_memory", "--one", work, head]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            )
            cells[head] = json.loads(done.stdout.splitlines()[-1])
            plain.setdefault(head, cells[head])
        line = f"{work:<22}"
        for figure in ("peak", "seconds", "operations"):
            for head, found in cells.items():
                unit = 1.0 if figure == "peak" else plain[head][figure]
                line += f"{found[figure] / unit:>{9 if head == 'untied' else 7}.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
