"""The tables and pictures of the MNIST experiment: found curves, labels put right, figure 3."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from experiments.harness import Experiment
from experiments.mnist_images import Images
from experiments.mnist_scores import SHOWN
from experiments.training import Recipe
from tracin.analysis import FoundComparison, NoisyLabels, compare_found, found_curve
from tracin.analysis.found_comparison import with_half
from tracin.analysis.intervals import SeedInterval, seed_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AT = (0.05, 0.1, 0.2, 0.3)
PAPER = {  # figure 1b, which has no numbers
    "TracIn, every step": "slightly above TracInCP",
    "TracInCP": "above both rivals",
    "TracInCP, equal weights": "similar (4.2, CIFAR-10)",
    "influence functions": "below TracIn",
    "representer points": "below TracIn",
}


def interval(values: Sequence[float]) -> SeedInterval:
    """The mean over seeds, and how far it may be off."""
    return seed_interval(torch.tensor(values, dtype=torch.float64))


def percent(values: Sequence[float]) -> str:
    """A mean of shares with its interval, in per cent."""
    found = interval(values)
    half = float(found.half)
    spread = "" if np.isnan(half) else f" ± {100 * half:.2f}"
    return f"{100 * float(found.mean):.2f}{spread} %"


def models(experiment: Experiment, clean: Sequence[Mapping[str, float]],
           noisy: Sequence[Mapping[str, float]]) -> None:  # fmt: skip
    """The accuracies of the paper's footnotes 10 and 11."""
    experiment.table(
        ["", "here", "paper"],
        [
            ["right labels: test accuracy", percent([one["test"] for one in clean]), "97.55 %"],
            ["right labels: training accuracy", percent([one["train"] for one in clean]),
             "99.30 %"],
            ["wrong labels: accuracy on the labels learnt",
             percent([one["train"] for one in noisy]), "89.94 %"],
            ["wrong labels: test accuracy", percent([one["test"] for one in noisy]),
             "89.95 % (see below)"],
        ],
    )  # fmt: skip


def found(
    experiment: Experiment,
    planted: Sequence[NoisyLabels],
    scores: Sequence[Mapping[str, Tensor]],
    costs: Sequence[Mapping[str, float]],
) -> FoundComparison:
    """Figure 1b: what each ranking finds, and what it costs."""
    names = [name for name in scores[0] if name != "influence functions"]
    names.insert(names.index("representer points"), "influence functions")
    comparison = compare_found(
        {
            name: [
                found_curve(each[name], noise.is_noisy, AT)
                for each, noise in zip(scores, planted, strict=True)
            ]
            for name in names
        }
    )
    head = ["ranking", *(f"{share:.0%}" for share in AT), "AUROC", "AP", "seconds"]
    rows = []
    for name in names:
        at = comparison.found(name)
        cells = [_cell(SeedInterval(at.mean[k], at.half[k], at.seeds)) for k in range(len(AT))]
        cells += [_cell(comparison.figure(name, of)) for of in ("auroc", "average_precision")]
        each = [cost[name] for cost in costs if name in cost]
        seconds = f"{sum(each) / len(each):.0f}" if each else "with the training"
        rows.append([name, *cells, seconds, PAPER.get(name, "not compared")])
    experiment.table([*head, "paper, figure 1b"], rows)
    experiment.figure(_curves(comparison), "found", "Wrong labels found, by the share inspected")
    return comparison


def _cell(value: SeedInterval) -> str:
    return with_half(float(value.mean), float(value.half)).replace("+-", "±").replace("0.", ".")


def _curves(comparison: FoundComparison) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ours = [name for name in comparison.curves if name.startswith("TracIn")]
    for axes, names in (
        (left, ["TracInCP", *(name for name in comparison.curves if name not in ours)]),
        (right, ours),
    ):
        FoundComparison({name: comparison.curves[name] for name in names}).plot(axes)
        axes.set_xlim(0, 0.4)
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=8, loc="lower right")
    left.set_title("TracInCP and what it is compared with", fontsize=10)
    right.set_title("TracIn and its approximations", fontsize=10)
    return figure


def put_right(
    experiment: Experiment,
    names: Sequence[str],
    inspected: Sequence[float],
    retrained: Sequence[Mapping[str, Tensor]],
) -> None:
    """What it is worth to put right the labels that a ranking shows first."""
    rows: list[list[object]] = [
        ["none", 0, percent([float(each["values"][0, 0]) for each in retrained]), ""]
    ]
    for row, name in enumerate(names):
        for column, share in enumerate(inspected):
            if share:
                reached = [float(each["values"][row, column]) for each in retrained]
                changed = np.mean([int(each["changed"][row, column]) for each in retrained])
                paper = "larger gain than its rivals (CIFAR-10)" if name == "TracInCP" else ""
                title = f"first {share:.0%} by {name}"
                rows.append([title, f"{changed:,.0f}", percent(reached), paper])
    limit = percent([float(each["limit"]) for each in retrained])
    rows.append(["every label right from the start", "", limit, ""])
    experiment.table(
        ["inspected", "labels put right", "test accuracy, trained again", "paper, figure 1a"], rows
    )


def figure_3(experiment: Experiment, images: Images, pictures: Mapping[str, Any]) -> None:
    """Proponents and opponents of a 3 that is read right and of a 6 that is not."""
    from matplotlib.figure import Figure

    lists = pictures["lists"]
    queries = pictures["queries"].tolist()
    figure = Figure(figsize=(9, 1.3 * len(queries) * len(lists)), layout="constrained")
    grid = figure.subplots(len(queries) * len(lists), 1 + 2 * SHOWN, squeeze=False)
    for place, query in enumerate(queries):
        right, answer = int(images.test_labels[query]), int(pictures["answers"][place])
        for row, (method, found_of) in enumerate(lists.items()):
            line = grid[place * len(lists) + row]
            _draw(line[0], images.test_images[query], f"{right} (read as {answer})")
            line[0].set_ylabel(method, fontsize=8)
            for column, position in enumerate(found_of["positions"][place].tolist()):
                side = "proponent" if column < SHOWN else "opponent"
                label = int(images.train_labels[position])
                title = f"{side}: {label}"
                _draw(line[1 + column], images.train_images[position], title)
    experiment.figure(
        figure, "figure-3", "Proponents and opponents of a 3 read right and a 6 misread"
    )
    rows = []
    for place, query in enumerate(queries):
        right = int(images.test_labels[query])
        for method, found_of in lists.items():
            labels = images.train_labels[found_of["positions"][place]].tolist()
            rows.append(
                [f"{right} read as {int(pictures['answers'][place])}", method,
                 ", ".join(map(str, labels[:SHOWN])), ", ".join(map(str, labels[SHOWN:]))]
            )  # fmt: skip
    experiment.table(["query", "method", "proponents' labels", "opponents' labels"], rows)


def _draw(axes: "Axes", image: Tensor, title: str) -> None:
    axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(title, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def how_it_was_trained(experiment: Experiment, recipe: Recipe, examples: int) -> None:
    """The recipe, in words."""
    experiment.say(
        f"{examples:,} training images{'' if examples == 60000 else ' (a subset)'}; "
        f"{recipe.epochs} epochs in batches of {recipe.batch:,} at rate {recipe.rate:g} (paper: "
        f"140 epochs, no rate given); checkpoints after epochs "
        f"{', '.join(map(str, recipe.checkpoint_epochs))} (paper: 20, 50, 80, 110, 140)."
    )
