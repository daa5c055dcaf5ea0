r"""CIFAR-10 as in section 4.2 of the paper: wrong labels found and fixed (figures 1a and 8).

python -m experiments.cifar10                # about 25 minutes on one thread
python -m experiments.cifar10 --quick        # seconds: 100 images, two epochs

The default is what a CPU can do. Fewer images, learnt by heart, show nothing: wrong labels stand
out only where right ones generalise. The paper's own size needs a GPU; everything, images included,
then lies in its memory:

python -m experiments.cifar10 --device cuda --depth 56 --scale 1 --images 50000 --batch 1000 \
    --augment

Planted labels say little of which signal finds the errors of people: --noisy-labels takes
CIFAR-10N's file and ranks those as well. Data: TRACIN_DATA, or downloaded from its maker.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import tracin
from experiments.cifar10_images import CLASSES, WHOLE, Images, human_labels, open_cifar10
from experiments.cifar10_scores import (
    DIM,
    at_each_checkpoint,
    compared,
    in_one_pass,
    projected,
)
from experiments.cifar10_training import (
    DECAY,
    PAPER_EPOCHS,
    PAPER_EVERY,
    Recipe,
    accuracy,
    class_scores,
    new_net,
    trained,
)
from experiments.harness import Experiment, Options, parsed
from tracin.analysis import (
    FoundComparison,
    HighestWrong,
    NoisyLabels,
    RetrainingCurve,
    compare_found,
    fix_and_retrain,
    found_curve,
    noisy_labels,
)
from tracin.analysis.intervals import seed_interval

CPU_SCALE, CPU_IMAGES, CPU_DEPTH, CPU_BATCH = 0.05, 10_000, 8, 100
QUICK = 60, 40  # training and test images
NOISE, INSPECTED, TOP = 0.1, (0.05, 0.1, 0.2), 0.1
MAIN, EQUAL = "TracIn, last layer", "TracIn, last layer, equal weights"
END = "TracIn, last layer, last checkpoint"
PROJECTED = f"TracIn, last layer, projected to {DIM}"
RIVALS = ("influence functions", "representer points")
FIXED = (MAIN, *RIVALS)
DRAWN = (MAIN, "TracIn, all layers", *RIVALS, "loss", "EL2N", "confident learning")
PAPER = {  # at 20 % inspected, as far as the text has numbers
    MAIN: "> 80 %",
    EQUAL: '"similar"',
    PROJECTED: "a curve, no number",
    RIVALS[0]: "< 50 %",
    RIVALS[1]: "< 50 %",
}
REVERSED = (
    "Planted flips go to the class that a trained net finds most plausible, which reverses the "
    "order of the signals. On labels that people got wrong (CIFAR-10N, the same 10,000 images, a "
    "small residual net, one seed) average precision was .38 by the loss, .32 by EL2N, .27 by the "
    "margin and .15 by self-influence over the last layer; on planted flips .51, .68, .72 and .69. "
    "So this curve does not tell which column to use on your data; `--noisy-labels` ranks such "
    "labels."
)


@dataclass(frozen=True, eq=False)
class Run:
    """What one seed gave.

    Attributes:
        noisy: The labels trained on, with the truth.
        scores: By the name of the ranking, [train].
        each: [checkpoints, train]; self-influence over the last layer, unweighted.
        accuracies: Of the net trained on the noisy labels: on these ("train") and on test images.
        clean: The same of the net trained on right labels; empty where none was needed.
    """

    noisy: NoisyLabels
    scores: Mapping[str, Tensor]
    each: Tensor
    accuracies: Mapping[str, float]
    clean: Mapping[str, float]


def main(arguments: list[str] | None = None) -> None:
    """Train, rank, retrain, and write what came out."""
    options = parsed("cifar10", __doc__ or "", 1, arguments, scale=CPU_SCALE, add_own=add_own)
    recipe = recipe_of(options)
    count = QUICK if options.is_quick else (options.own.images, WHOLE)
    images = open_cifar10(*count).to(options.device)
    retraining = shorter(recipe)
    fractions = (0.0, 0.05, 0.1, 0.2, 0.3) if options.scale > 0.5 else (0.0, 0.2)
    settings = {
        **asdict(recipe),
        "seed": "by run",
        "images": images.about,
        "retraining": retraining.epochs,
        "fractions": fractions,
        "device": options.device,
    }
    experiment = Experiment("cifar10", options, settings)
    runs, curves = [], []
    for seed in experiment.seeds:
        run = planted(experiment, images, replace(recipe, seed=seed))
        runs.append(run)
        curves.append(retrained(experiment, images, run, replace(retraining, seed=seed), fractions))
    tell_setting(experiment, images, recipe, retraining)
    tell_models(experiment, runs)
    tell_found(experiment, runs, joined(curves))
    tell_weights(experiment, runs)
    tell_classes(experiment, runs, recipe)
    if options.own.noisy_labels is not None:
        path, column = options.own.noisy_labels, options.own.noisy_column
        given = human_labels(path, column, images.labels.cpu())
        people = [
            annotated(experiment, images, given, column, replace(recipe, seed=seed))
            for seed in experiment.seeds
        ]
        tell_people(experiment, people, column)
    experiment.finish()


def add_own(parser: argparse.ArgumentParser) -> None:
    """The options of this experiment alone."""
    parser.add_argument(
        "--depth", type=int, default=CPU_DEPTH, help=f"of the net (default {CPU_DEPTH}; paper: 56)"
    )
    parser.add_argument(
        "--images", type=int, default=CPU_IMAGES, help=f"to train on (default {CPU_IMAGES:,})"
    )
    parser.add_argument(
        "--batch", type=int, default=CPU_BATCH, help=f"(default {CPU_BATCH}; paper: 1,000)"
    )
    parser.add_argument("--augment", action="store_true", help="crop and flip images at random")
    parser.add_argument("--noisy-labels", type=Path, help="CIFAR-10_human.pt, or labels as .npy")
    parser.add_argument(
        "--noisy-column", default="aggre_label", help="of CIFAR-10_human.pt (default aggre_label)"
    )


def recipe_of(options: Options) -> Recipe:
    """The paper's training, as far as the scale goes."""
    if options.is_quick:
        return Recipe(8, epochs=2, batch=50, every=1, is_augmented=False, seed=0)
    epochs = max(4, round(PAPER_EPOCHS * options.scale))
    every = max(2, round(PAPER_EVERY * options.scale))
    own = options.own
    return Recipe(own.depth, epochs, own.batch, every, own.augment, seed=0)


def shorter(recipe: Recipe) -> Recipe:
    """How to train again on fixed labels: a ninth of the epochs, in more and smaller steps."""
    batch = max(min(CPU_BATCH, recipe.batch), recipe.batch // 2)
    return replace(recipe, epochs=max(min(6, recipe.epochs), recipe.epochs // 9), batch=batch)


# One seed -----------------------------------------------------------------------------------------


def planted(experiment: Experiment, images: Images, recipe: Recipe) -> Run:
    """Train on right labels, make a tenth wrong as section 4.1 says, train again, and rank."""

    def clean() -> dict[str, object]:
        model = trained(images.train, images.labels, recipe)
        return {
            "scores": class_scores(model, images.train).cpu(),
            "train": accuracy(model, images.train, images.labels),
            "test": accuracy(model, images.test, images.test_labels),
        }

    right = experiment.step(f"planted {recipe.seed} clean", clean)
    noisy = noisy_labels(images.labels, HighestWrong(right["scores"]), NOISE, seed=recipe.seed)
    return ranked(experiment, images, noisy, "planted", recipe, right)


def annotated(
    experiment: Experiment, images: Images, given: Tensor, column: str, recipe: Recipe
) -> Run:
    """Train on the labels that people gave, and rank."""
    right = images.labels.cpu()
    is_noisy = given != right
    share = float(is_noisy.double().mean())
    noisy = NoisyLabels(given, right, is_noisy, f"CIFAR-10N, {column}", share, None)
    return ranked(experiment, images, noisy, column, recipe, {})


def ranked(
    experiment: Experiment,
    images: Images,
    noisy: NoisyLabels,
    kind: str,
    recipe: Recipe,
    clean: Mapping[str, Any],
) -> Run:
    """Train on noisy labels with checkpoints, and rank the training images by every score."""
    folder, device, seed = experiment.options.folder, experiment.options.device, recipe.seed
    name = f"{kind}-{folder_name(recipe, len(noisy), device)}"
    checkpoints = folder / "checkpoints" / name
    labels = noisy.labels.to(images.train.device)
    train = images.train, labels

    def learnt() -> dict[str, float]:
        model = trained(images.train, labels, recipe, record=checkpoints)
        return {
            "train": accuracy(model, images.train, labels),
            "test": accuracy(model, images.test, images.test_labels),
        }

    model = new_net(recipe, device)
    works: dict[str, Callable[[], dict[str, Tensor]]] = {
        "one pass": lambda: in_one_pass(model, train, checkpoints, device),
        "rivals": lambda: compared(model, train, checkpoints, device, DECAY),
        "checkpoints": lambda: {"each": at_each_checkpoint(model, train, checkpoints, device)},
        "projections": lambda: {
            PROJECTED: projected(model, train, checkpoints, folder / "index" / name, device, seed)
        },
    }
    accuracies = experiment.step(f"{kind} {seed} train", learnt)
    found: dict[str, Tensor] = {}
    for what, work in works.items():
        found |= experiment.step(f"{kind} {seed} {what}", work)
    each = found.pop("each")
    found[EQUAL], found[END] = each.sum(0), each[-1]
    before = {name: float(clean[name]) for name in ("train", "test") if name in clean}
    return Run(noisy, found, each, accuracies, before)


def folder_name(recipe: Recipe, images: int, device: str) -> str:
    """Where the files of a training lie: one name per kind of training."""
    parts = *(f"{name}{value}" for name, value in asdict(recipe).items()), f"images{images}"
    return "-".join([*parts, device.replace(":", "-")])


def retrained(
    experiment: Experiment,
    images: Images,
    run: Run,
    recipe: Recipe,
    fractions: Sequence[float],
) -> RetrainingCurve:
    """Fix the labels that a ranking puts first, and train again for a short while."""
    name = folder_name(recipe, len(run.noisy), experiment.options.device)

    def fit(data: tuple[Tensor, Tensor]) -> nn.Module:
        return trained(*data, recipe)

    def metric(model: nn.Module) -> float:
        return accuracy(model, images.test, images.test_labels)

    def work() -> dict[str, Tensor]:
        found = fix_and_retrain(
            (images.train, images.labels),
            run.noisy,
            {name: run.scores[name] for name in FIXED},
            fit,
            metric,
            fractions=fractions,
            seeds=(recipe.seed,),
            folder=experiment.options.folder / "retrained" / name,
            settings={**asdict(recipe), "images": images.about},
        )
        limit = found.limit
        if limit is None:
            raise RuntimeError("fix_and_retrain trains on right labels, too")
        return {"values": found.values, "changed": found.changed, "limit": limit}

    kept = experiment.step(f"planted {recipe.seed} fixed", work)
    return RetrainingCurve(
        FIXED,
        tuple(fractions),
        (recipe.seed,),
        kept["values"],
        kept["changed"],
        kept["limit"],
        "labels put right",
    )


def joined(curves: Sequence[RetrainingCurve]) -> RetrainingCurve:
    """The curves of all seeds as one."""
    limits = [each.limit for each in curves if each.limit is not None]
    return replace(
        curves[0],
        seeds=tuple(each.seeds[0] for each in curves),
        values=torch.cat([each.values for each in curves], 2),
        changed=torch.cat([each.changed for each in curves], 2),
        limit=torch.cat(limits),
    )


# What came out ------------------------------------------------------------------------------------


def tell_setting(
    experiment: Experiment, images: Images, recipe: Recipe, retraining: Recipe
) -> None:
    """What was trained, and how far that is from the paper."""
    experiment.say(
        f"{images.about[0].upper()}{images.about[1:]} (paper: 50,000 and 10,000). ResNet-"
        f"{recipe.depth} (paper: 56), {recipe.epochs} epochs of batches of {recipe.batch:,} "
        f"(paper: {PAPER_EPOCHS} of 1,000) under the paper's schedule on that scale, a checkpoint "
        f"every {recipe.every} epochs (paper: {PAPER_EVERY}), "
        f"{'random crops and flips' if recipe.is_augmented else 'no augmentation'}. Retraining "
        f"takes {retraining.epochs} epochs of batches of {retraining.batch:,}."
    )


def tell_models(experiment: Experiment, runs: Sequence[Run]) -> None:
    """The accuracies of section 4.2 and its footnotes."""
    rows = [
        ["right labels: accuracy on these", [run.clean["train"] for run in runs], "-"],
        ["right labels: test accuracy", [run.clean["test"] for run in runs], "93.4 %"],
        ["10 % wrong labels: accuracy on these", [r.accuracies["train"] for r in runs], "99.6 %"],
        ["10 % wrong labels: test accuracy", [r.accuracies["test"] for r in runs], "87.0 %"],
    ]
    experiment.table(
        ["net", "here", "paper"], [[what, percent(values), paper] for what, values, paper in rows]
    )


def tell_found(experiment: Experiment, runs: Sequence[Run], curve: RetrainingCurve) -> None:
    """Figure 1a, both sides."""
    comparison = found_in(runs)
    tell_shares(experiment, comparison, PAPER)
    main = comparison.found(MAIN).mean[-1]
    rivals = [float(comparison.found(name).mean[-1]) for name in RIVALS]
    experiment.say(
        f"In the first 20 % TracIn over the last layer finds {share(main)} (paper: more than "
        f"80 %), influence functions {share(rivals[0])} and representer points {share(rivals[1])} "
        f"(paper: less than 50 %). {reasons(runs, float(main), max(rivals))}"
    )
    tell_retraining(experiment, curve)
    figure = Figure((11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curve.plot(left)
    left.set_ylabel("test accuracy")
    left.set_title("labels fixed, trained again")
    draw_found(right, comparison, "planted labels found (not people's: their order is reversed)")
    right.plot([0.2], [0.8], "k^", label="paper: TracIn above this")
    right.plot([0.2], [0.5], "kv", label="paper: its rivals below this")
    right.legend(fontsize="x-small", loc="lower right")
    experiment.figure(
        figure,
        "figure1a",
        "Left: test accuracy after fixing what a ranking puts first. Right: planted wrong labels "
        "found; these reverse the order of the signals. Bands are 95 % intervals over seeds.",
    )
    experiment.say(REVERSED)


def reasons(runs: Sequence[Run], found: float, by_rivals: float) -> str:
    """Why this may be other than in the paper."""
    learnt = sum(run.accuracies["train"] for run in runs) / len(runs)
    told = []
    if found <= 0.8:
        told.append(
            "TracIn finds less than in the paper, whose net agrees with 99.6 % of its 50,000 "
            f"labels; this one agrees with {share(learnt)} of {len(runs[0].noisy):,}."
        )
    if by_rivals >= 0.5:
        told.append(
            "The rivals find more than in the paper, which names neither the damping of the "
            f"Hessian (here the weight decay, {DECAY:g}) nor the penalty of the representer points "
            "(here 0.001)."
        )
    return " ".join(told) or "That is what the paper reports."


def tell_shares(
    experiment: Experiment, comparison: FoundComparison, paper: Mapping[str, str]
) -> None:
    """The share of wrong labels found, by ranking."""
    head = [f"at {100 * part:.0f} %" for part in INSPECTED]
    rows = []
    for name in comparison.curves:
        found = comparison.found(name)
        shares = [share(*pair) for pair in zip(found.mean, found.half, strict=True)]
        figures = [comparison.figure(name, of) for of in ("auroc", "average_precision")]
        rows.append(
            [name, *shares, paper.get(name, "-"), *(number(f.mean, f.half) for f in figures)]
        )
    first = next(iter(comparison.curves.values()))[0]
    limits = {"random": first.random(), "best possible": first.best_possible()}
    for name, each in limits.items():
        shares = [share(value) for value in each.found.values()]
        rows.append([name, *shares, "-", f"{each.auroc:.3f}", f"{each.average_precision:.3f}"])
    experiment.table(["ranked by", *head, "at 20 %, paper", "AUROC", "AP"], rows)


def tell_retraining(experiment: Experiment, curve: RetrainingCurve) -> None:
    """Test accuracy after fixing."""
    rows = []
    for row, name in enumerate(curve.names):
        reached = curve.metric(name)
        for column, part in enumerate(curve.fractions):
            fixed = curve.changed[row, column].double().mean()
            rows.append(
                [
                    name if part else "nothing",
                    f"{100 * part:.0f} %",
                    f"{fixed:.0f}",
                    share(reached.mean[column], reached.half[column]),
                    "a curve: TracIn is best" if part else "-",
                ]
            )
    if curve.limit is not None:
        rows.append(["every label right", "", "", percent(curve.limit.tolist()), "-"])
    # Nothing is fixed at 0 %, whatever the ranking.
    rows = [row for at, row in enumerate(rows) if row[0] != "nothing" or at == 0]
    experiment.table(["fixed by", "inspected", "labels fixed", "test accuracy", "paper"], rows)


def tell_weights(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Equal weights and projections against the scores they stand for."""
    told = []
    for name in (EQUAL, PROJECTED, "TracIn, all layers"):
        each = [
            tracin.correlations(
                run.scores[name][:, None], run.scores[MAIN][:, None]
            ).ranks_per_query
            for run in runs
        ]
        told.append(f"{name}: {sum(each) / len(each):.3f}")
    experiment.say(
        f"Rank correlation with {MAIN} under learning rates as weights: {'; '.join(told)}. "
        'The paper says of equal weights that they yield "similar results".'
    )


def tell_classes(experiment: Experiment, runs: Sequence[Run], recipe: Recipe) -> None:
    """Figure 8: which classes the first tenth holds, by checkpoint."""
    moments = len(runs[0].each)
    places = sorted({0, max(0, round(moments * 5 / 9) - 1), moments - 1})
    epochs = [(place + 1) * recipe.every for place in places]
    counts = torch.stack([classes_found(run, places) for run in runs]).mean(0)
    planted = torch.stack([by_class(run.noisy, run.noisy.is_noisy) for run in runs]).mean(0)
    paper = {"deer": "more at the 30th", "frog": "more at the 30th", "truck": "more at the 150th"}
    rows = [
        [name, f"{planted[at]:.0f}", *(f"{value:.0f}" for value in counts[:, at]),
         paper.get(name, "-")]
        for at, name in enumerate(CLASSES)
    ]  # fmt: skip
    rows.append(["all", f"{planted.sum():.0f}", *(f"{each.sum():.0f}" for each in counts), "-"])
    heads = [f"epoch {epoch}" for epoch in epochs]
    experiment.say(
        "Figure 8: planted wrong labels by true class, and how many of them the first "
        f"{100 * TOP:.0f} % of the ranking by a single checkpoint holds (last layer, mean over "
        "seeds)."
    )
    experiment.table(["true class", "planted", *heads, "paper (30th, 150th, 270th)"], rows)
    figure = Figure((9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(places)
    for number, (head, each) in enumerate(zip(heads, counts, strict=True)):
        at = torch.arange(len(CLASSES)) + (number - (len(places) - 1) / 2) * width
        axes.bar(at.tolist(), each.tolist(), width, label=head)
    axes.set_xticks(range(len(CLASSES)), CLASSES)
    axes.set_ylabel(f"wrong labels in the first {100 * TOP:.0f} %")
    axes.legend()
    caption = "True classes of the planted wrong labels in the first tenth, by checkpoint."
    experiment.figure(figure, "figure8", caption)


def classes_found(run: Run, checkpoints: Sequence[int]) -> Tensor:
    """Wrong labels in the first tenth, by true class: [checkpoints, classes]."""
    found = []
    for place in checkpoints:
        top = run.each[place].argsort(descending=True, stable=True)[: round(TOP * len(run.noisy))]
        is_top = torch.zeros(len(run.noisy), dtype=torch.bool)
        is_top[top] = True
        found.append(by_class(run.noisy, is_top & run.noisy.is_noisy))
    return torch.stack(found)


def by_class(noisy: NoisyLabels, chosen: Tensor) -> Tensor:
    """How many of the chosen are of each true class: [classes]."""
    return torch.bincount(noisy.right[chosen], minlength=len(CLASSES)).double()


def tell_people(experiment: Experiment, runs: Sequence[Run], column: str) -> None:
    """The same rankings, on labels that people gave."""
    comparison = found_in(runs)
    given = runs[0].noisy.fraction
    experiment.say(
        f"On the labels that people gave (CIFAR-10N, {column}), of which {share(given)} differ "
        "from CIFAR-10's (the paper has no such run):"
    )
    tell_shares(experiment, comparison, {})
    figure = Figure((6, 4.4), layout="constrained")
    axes = figure.subplots()
    draw_found(axes, comparison, f"CIFAR-10N, {column}")
    axes.legend(fontsize="x-small", loc="lower right")
    caption = "Labels that people got wrong, found. Planted flips reverse this order of signals."
    experiment.figure(figure, "people", caption)


def found_in(runs: Sequence[Run]) -> FoundComparison:
    """The found curves of every ranking, one per seed."""
    return compare_found(
        {
            name: [found_curve(run.scores[name], run.noisy.is_noisy, INSPECTED) for run in runs]
            for name in sorted(runs[0].scores, key=place_of)
        }
    )


def place_of(name: str) -> tuple[int, str]:
    """TracIn first, then the paper's rivals, then the rest."""
    if name == MAIN:
        return (0, name)
    return (1 if name.startswith("TracIn") else 2 if name in RIVALS else 3, name)


def draw_found(axes: object, comparison: FoundComparison, title: str) -> None:
    """The curves that a figure has room for."""
    some = FoundComparison({name: comparison.curves[name] for name in DRAWN})
    some.plot(axes).set_title(title)


def percent(values: Sequence[float]) -> str:
    """The mean over seeds as a percentage, with half its interval."""
    interval = seed_interval(torch.tensor(values, dtype=torch.float64))
    return share(interval.mean, interval.half)


def share(mean: Tensor | float, half: Tensor | float = math.nan) -> str:
    """A share as a percentage; with several seeds, with half its 95 % interval.

    >>> share(0.123), share(0.123, 0.01)
    ('12.3 %', '12.3 ± 1.0 %')
    """
    told = f"{100 * float(mean):.1f}"
    return f"{told} %" if math.isnan(half) else f"{told} ± {100 * float(half):.1f} %"


def number(mean: Tensor | float, half: Tensor | float = math.nan) -> str:
    """The same, as a number.

    >>> number(0.123), number(0.123, 0.01)
    ('0.123', '0.123 ± 0.010')
    """
    return f"{float(mean):.3f}" + ("" if math.isnan(half) else f" ± {float(half):.3f}")


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
