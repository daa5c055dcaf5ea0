"""python -m benchmarks.curvature: what curvature costs, in units of the same work without it.

CPU seconds of this process on one thread, medians of paired rounds with their range: the fit, in
plain passes (forward and backward over the examples that it is fitted on, in the same batches);
the pass over training examples alone, its first batch and the queries left out; and whole calls of
`influence`, of a new run and of one that has asked before.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

import tracin
from benchmarks.pairs import Ratio
from benchmarks.subjects import Subject, mlp_subject, resnet_subject
from tracin.data import open_examples
from tracin.preconditioners import KeptMetrics, Preconditioner
from tracin.run import checkpoint_pass
from tracin.scoring.score_request import ScoreRequest

PRECONDITIONERS = {"KFAC()": tracin.KFAC, "Kernel()": tracin.Kernel, "EKFAC()": tracin.EKFAC}
SUBJECTS = ("mlp", "resnet")
Seconds = Callable[[], float]


def main() -> None:
    """Print one line per model, preconditioner and kind of work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curvature", description=__doc__)
    parser.add_argument("--models", default=",".join(SUBJECTS), help="any of mlp, resnet")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, CPU seconds, median of {options.rounds} (range)")
    if "mlp" in options.models.split(","):
        subject = mlp(200 if options.quick else 2000)
        measure(subject, subject.some_queries(100), PRECONDITIONERS, options.rounds)
    if "resnet" in options.models.split(","):
        subject = resnet_subject(20, 32 if options.quick else 256)
        subject = replace(subject, batch_size=16 if options.quick else 64)
        measure(subject, subject.some_queries(8), ["KFAC()"], options.rounds)


def mlp(examples: int) -> Subject:
    """784-128-64-10 with ReLU, as in the table of docs/kfac.md."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    ).eval()
    subject = mlp_subject(examples, checkpoints=1)
    name, states = "MLP 784-128-64-10", [model.state_dict()]
    return replace(subject, name=name, model=model, checkpoints=states, batch_size=examples // 10)


def measure(
    subject: Subject, queries: tuple[torch.Tensor, ...], names: Iterable[str], rounds: int
) -> None:
    """Time one model under some preconditioners."""
    print(f"\n{subject.name}, {len(subject.train[0])} examples, {len(queries[0])} queries")
    for name in names:
        made = PRECONDITIONERS[name]()
        plain, under = run_of(subject, None), run_of(subject, made)
        under.influence(subject.train, queries, batch_size=subject.batch_size)
        works: dict[str, Seconds] = {
            "plain pass": lambda: cpu(subject.plain_pass),
            "fit": lambda made=made: fit(run_of(subject, made), subject),
            "train pass, plain": lambda plain=plain: train_pass(plain, subject, queries),
            "train pass": lambda under=under: train_pass(under, subject, queries),
            "call, plain": lambda: call(run_of(subject, None), subject, queries),
            "call": lambda made=made: call(run_of(subject, made), subject, queries),
            "next call": lambda under=under: call(under, subject, queries),
        }
        found = {work: [] for work in works}
        for _ in range(rounds + 1):
            for work, seconds in works.items():
                gc.collect()
                found[work].append(seconds())
        found = {work: seconds[1:] for work, seconds in found.items()}  # the first warms up
        for work, to in (
            ("fit", "plain pass"),
            ("train pass", "train pass, plain"),
            ("call", "call, plain"),
            ("next call", "call, plain"),
        ):
            ratio = Ratio.of(found[work], found[to])
            taken = statistics.median(found[work])
            print(
                f"{name:<10}{work:<12}{ratio.median:6.2f} ({ratio.least:.2f}-{ratio.most:.2f})"
                f" x {to:<20}{taken:8.2f} s",
                flush=True,
            )


def run_of(subject: Subject, preconditioner: Preconditioner | None) -> tracin.TracIn:
    """A run that has asked nothing yet."""
    return tracin.TracIn(
        subject.model,
        subject.loss,
        subject.checkpoints,
        learning_rates="equal",
        preconditioner=preconditioner,
    )


def fit(run: tracin.TracIn, subject: Subject) -> float:
    """The seconds that curvature takes to compute and invert."""
    run.kept = KeptMetrics(most=0)
    walk, train = checkpoint_pass(run), open_examples(subject.train)
    with walk.at(0) as device:
        return cpu(lambda: walk.metric_at(0, train, subject.batch_size, device))


def train_pass(run: tracin.TracIn, subject: Subject, queries: tuple[torch.Tensor, ...]) -> float:
    """The seconds of the batches after the first: queries and curvature are ready by then."""
    train, asked = open_examples(subject.train), open_examples(queries)
    request = ScoreRequest(asked, range(len(asked)))
    batches = checkpoint_pass(run).steps(
        train, range(len(train)), request, subject.batch_size, False, "influence"
    )
    next(batches)
    return cpu(lambda: sum(1 for _ in batches))


def call(run: tracin.TracIn, subject: Subject, queries: tuple[torch.Tensor, ...]) -> float:
    """The seconds of a whole call."""
    return cpu(
        lambda: run.influence(subject.train, queries, batch_size=subject.batch_size, progress=False)
    )


def cpu(work: Callable[[], object]) -> float:
    """The CPU seconds of all threads of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
