"""Which scores predict what a retrained model says: TracIn, curvature, and other libraries.

Each net is trained again and again on random halves of its data. A method's linear datamodelling
score (LDS) is the rank correlation, over halves, between the sum of the half's scores and the loss
of a query in the models trained on it.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

import tracin
from experiments.harness import DOCS, Experiment, Options, parsed
from experiments.retraining_problems import PROBLEMS, Problem, losses, trained
from experiments.retraining_rivals import captum_arnoldi, is_here, kronfluence, trak
from tracin.evaluate import (
    LDSComparison,
    RetrainedLosses,
    StackedFit,
    compare_lds,
    half_subsets,
    retrained_losses,
)

NAME = "retraining"
TRUTH = 1000  # the first seed of the models that are retrained: none of those that are explained
OURS, PLAIN, RIVAL = "KFAC()", "TracIn", "Kronfluence, EK-FAC, last checkpoint"
CAPTUM = "Captum, Arnoldi influence functions, last checkpoint"

Scoring = Callable[[Problem, Path], Tensor]


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and write what came out."""
    options = parsed(NAME, __doc__ or "", 4, arguments, add_own=add_own)
    experiment = Experiment(NAME, options, {"damping": "relative"}, DOCS / "quality.md")
    for name in options.own.problems:
        problem = PROBLEMS[name]()
        show(experiment, problem.shortened() if options.is_quick else problem)
    experiment.finish()


def add_own(parser: argparse.ArgumentParser) -> None:
    """The options that this experiment alone has."""
    parser.add_argument(
        "--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="which"
    )
    parser.add_argument("--without-rivals", action="store_true", help="leave other libraries out")


def show(experiment: Experiment, problem: Problem) -> None:
    """One problem's table."""
    options = experiment.options
    truth = retrained(experiment, problem)
    seeds = range(min(problem.runs, max(options.seeds, 1 + options.is_quick)))
    folders = [recorded(experiment, problem, seed) for seed in seeds]
    found: dict[str, list[dict[str, Any]]] = {}
    for method, scoring in METHODS.items():
        if method != "Adam()" or problem.name == "characters":
            found[method] = [
                experiment.step(
                    f"{problem.name}/{method}/{seed}", partial(timed, scoring, problem, folder)
                )
                for seed, folder in zip(seeds, folders, strict=True)
            ]
    if has_rivals(options):
        for method, scoring in RIVALS.items():
            if method == CAPTUM and problem.name != "digits":
                continue  # texts have a label per position; the ResNet takes too long
            work = partial(timed, scoring, problem, folders[0])
            found[method] = [experiment.step(f"{problem.name}/{method}/0", work)]
    report(experiment, problem, truth, found)


def has_rivals(options: Options) -> bool:
    """Whether other libraries are to be compared with; a line says so where they are not there."""
    if options.own.without_rivals or options.is_quick:
        return False
    missing = [name for name in ("kronfluence", "dattri", "captum") if not is_here(name)]
    if missing:
        print(
            f"{' and '.join(missing)} cannot be imported, so other libraries are left out: "
            "pip install --no-deps -r experiments/rivals.txt"
        )
    return not missing


def retrained(experiment: Experiment, problem: Problem) -> RetrainedLosses:
    """The queries' losses in models trained on halves; continued where it was broken off."""
    stacked = StackedFit(
        problem.model, losses, problem.optimizer, problem.epochs, problem.batch, at_once=20
    )
    # Convolutions of a stack are slower than one after the other.
    fit = stacked.__call__ if problem.name == "photographs" else stacked
    return retrained_losses(
        problem.train,
        problem.queries,
        fit,
        losses,
        half_subsets(len(problem.train[0]), problem.subsets, seed=999),
        seeds=range(TRUTH, TRUTH + problem.seeds),
        folder=experiment.options.folder / "retrained" / problem.name,
        settings={"about": problem.about, "quick": experiment.options.is_quick},
    )


def recorded(experiment: Experiment, problem: Problem, seed: int) -> Path:
    """The checkpoints of one training on all data."""
    folder = experiment.options.folder / "runs" / f"{problem.name}-{seed}"

    def record() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        trained(problem, seed, folder)

    experiment.step(f"{problem.name}/trained/{seed}/{problem.about}", record)
    return folder


def timed(scoring: Scoring, problem: Problem, folder: Path) -> dict[str, Any]:
    """Scores [train, queries], and the seconds of CPU that they took."""
    start = process_time()
    scores = scoring(problem, folder)
    return {"scores": scores.float(), "seconds": process_time() - start}


def traced(
    preconditioner: Any, problem: Problem, folder: Path, *, only_last: bool = False
) -> Tensor:
    """Scores of ours."""
    checkpoints: Any = tracin.open_checkpoints(folder)
    run = tracin.TracIn(
        problem.model(),
        losses,
        checkpoints[-1:] if only_last else checkpoints,
        learning_rates="equal",
        preconditioner=preconditioner,
    )
    return run.influence(problem.train, problem.queries)


def at_random(problem: Problem, folder: Path) -> Tensor:
    """Scores that say nothing."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(problem.train[0]), len(problem.queries[0]), generator=generator)


def states(folder: Path) -> list[dict[str, Tensor]]:
    """The weights of each checkpoint."""
    return [each.weights() for each in tracin.open_checkpoints(folder)]


def by_kronfluence(damping: float | None, problem: Problem, folder: Path) -> Tensor:
    """EK-FAC at the last checkpoint."""
    last = states(folder)[-1]
    return kronfluence(problem.model(), last, problem.train, problem.queries, 0, damping)


def by_trak(checkpoints: int, problem: Problem, folder: Path) -> Tensor:
    """TRAK over the last checkpoints."""
    return trak(problem.model(), states(folder)[-checkpoints:], problem.train, problem.queries, 0)


def by_captum(problem: Problem, folder: Path) -> Tensor:
    """Influence functions by Arnoldi iterations at the last checkpoint."""
    last = states(folder)[-1]
    return captum_arnoldi(problem.model(), last, problem.train, problem.queries, 0)


METHODS: Mapping[str, Scoring] = {
    "random": at_random,
    "TracIn, last checkpoint": partial(traced, None, only_last=True),
    PLAIN: partial(traced, None),
    "Adam()": partial(traced, tracin.Adam()),
    "KFAC(), last checkpoint": partial(traced, tracin.KFAC(), only_last=True),
    'KFAC(at="last")': partial(traced, tracin.KFAC(at="last")),
    "KFAC(examples=500)": partial(traced, tracin.KFAC(examples=500)),
    "KFAC(damping=0.1)": partial(traced, tracin.KFAC(damping=0.1)),
    OURS: partial(traced, tracin.KFAC()),
    "KFAC(damping=1.0)": partial(traced, tracin.KFAC(damping=1.0)),
    "EKFAC(), last checkpoint": partial(traced, tracin.EKFAC(), only_last=True),
    "EKFAC()": partial(traced, tracin.EKFAC()),
    "Kernel()": partial(traced, tracin.Kernel()),
}

# Of the first training alone: each takes as long as all of ours.
RIVALS: Mapping[str, Scoring] = {
    RIVAL: partial(by_kronfluence, None),
    "the same, its default damping of 1e-8": partial(by_kronfluence, 1e-8),
    "dattri, TRAK of 1,024 numbers, last checkpoint": partial(by_trak, 1),
    "the same, last three checkpoints": partial(by_trak, 3),
    CAPTUM: by_captum,
}


def report(
    experiment: Experiment,
    problem: Problem,
    truth: RetrainedLosses,
    found: Mapping[str, list[dict[str, Any]]],
) -> None:
    """One problem's table."""
    each = [
        compare_lds(
            {name: runs[at]["scores"] for name, runs in found.items() if at < len(runs)}, truth
        )
        for at in range(max(map(len, found.values())))
    ]
    together = compare_lds(
        {
            name: torch.stack([run["scores"].double() for run in runs]).mean(0)
            for name, runs in found.items()
            if len(runs) > 1
        }
        or {PLAIN: found[PLAIN][0]["scores"]},
        truth,
    ).scores
    first = each[0]
    experiment.say(
        f"**{problem.name.capitalize()}.** {problem.about}; {problem.epochs // problem.every} "
        f"checkpoints, evenly spaced. Truth: {problem.subsets} random halves, each trained "
        f"{problem.seeds} times with seeds of its own. Ceiling {first[PLAIN].ceiling:.3f}: what "
        "perfect scores would reach, since the truth has noise of its own."
    )
    rows = []
    for name, runs in found.items():
        own = first[name]
        over = [comparison[name].value for comparison in each[: len(runs)]]
        rows.append(
            [
                name,
                f"{sum(over) / len(over):.3f}" if len(over) > 1 else "",
                f"{own.value:.3f} [{own.low:.3f} {own.high:.3f}]",
                "" if name == PLAIN else difference(first, name, PLAIN),
                "" if RIVAL not in found or name == RIVAL else difference(first, name, RIVAL),
                f"{together[name].value:.3f}" if len(runs) > 1 else "",
                f"{sum(run['seconds'] for run in runs) / len(runs):.1f}",
            ]
        )
    count = len(each)
    experiment.table(
        [
            "scores",
            f"LDS, mean of {count} runs",
            "LDS, first run",
            "more than TracIn",
            "more than Kronfluence",
            f"LDS of the mean over {count} runs",
            "CPU seconds",
        ],
        rows,
    )


def difference(first: LDSComparison, one: str, other: str) -> str:
    """How much more, with its interval."""
    value, low, high = first.difference(one, other)
    return f"{value:+.3f} [{low:+.3f} {high:+.3f}]"


if __name__ == "__main__":
    main()
