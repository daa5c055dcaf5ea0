"""What each approximation costs in accuracy: section 4.3 of the paper, figures 2 and 7.

TRACIN_DATA=data python -m experiments.approximations --threads 1
TRACIN_DATA=data python -m experiments.approximations --quick      # seconds: a few images

Two trainings on MNIST: one image per step, where TracInIdeal is defined, on a subset; and the
paper's own in batches, on right labels. --scale shortens the second: the first share of its 140
epochs.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import tracin
from experiments import approximations_ideal, approximations_steps
from experiments.harness import Experiment, parsed
from experiments.mnist_images import Images, first, open_mnist
from experiments.training import PAPER_EPOCHS, Recipe
from tracin.analysis import found_curve
from tracin.analysis.intervals import seed_interval
from tracin.tracing import Quadrature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_BY_ONE = (200, 4, 0.02)  # images, epochs, rate
QUICK_ONE_BY_ONE = (8, 2, 0.02)
QUICK = 150  # images
AT = (0.1, 0.2)
POINTS = 10_000  # of figure 7 that are drawn
PAPER = {
    "first order": "the paper's reference",
    "TracInCP": "found a little slower than every step (1b)",
}


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and write what came out."""
    options = parsed("approximations", __doc__ or "", 3, arguments)
    size = QUICK_ONE_BY_ONE if options.is_quick else ONE_BY_ONE
    experiment = Experiment("approximations", options, {"one by one": size})
    images = open_mnist()
    if options.is_quick:
        images = first(images, QUICK)
    single = [
        experiment.step(
            f"one by one/{seed}",
            lambda seed=seed: approximations_ideal.compared(images, *size, seed),
        )
        for seed in experiment.seeds
    ]
    batches = [in_batches(experiment, images, seed) for seed in experiment.seeds]
    one_table(experiment, single, size)
    figure_7(experiment, batches, recipe_of(experiment, 0), len(images.train_labels))
    figure_2(experiment, batches)
    experiment.finish()


def recipe_of(experiment: Experiment, seed: int) -> Recipe:
    """How to train in batches: as the paper did, or the first epochs of it.

    The rate stays, since the size of steps decides how good first order is.
    """
    if experiment.options.is_quick:
        return Recipe(epochs=5, rate=0.03, batch=50, seed=seed)
    return Recipe(max(5, experiment.scaled(PAPER_EPOCHS)), seed=seed)


def in_batches(experiment: Experiment, images: Images, seed: int) -> dict[str, Any]:
    """The paper's training, traced; then what checkpoints and projections make of it."""
    recipe = recipe_of(experiment, seed)
    folder = experiment.options.folder / f"checkpoints-{seed}"
    traced = experiment.step(
        f"in batches/{seed}/{recipe.rate:g}",
        lambda: approximations_steps.traced(images, recipe, folder),
    )
    reference = traced["scores"][Quadrature.FIRST_ORDER.value]
    choices = experiment.step(
        f"checkpoints/{seed}/{recipe.rate:g}",
        lambda: approximations_steps.choices(images, recipe, folder, traced["losses"], reference),
    )
    projections = experiment.step(
        f"projections/{seed}/{recipe.rate:g}",
        lambda: approximations_steps.projections(images, recipe, folder, reference),
    )
    return {**traced, "choices": choices, "projections": projections}


def one_table(
    experiment: Experiment, single: Sequence[Mapping[str, Any]], size: tuple[int, int, float]
) -> None:
    """Every approximation against TracInIdeal."""
    examples, epochs, rate = size
    experiment.say(
        f"**One image per step**, {examples:,} training images (a subset; the paper has no such "
        f"training), a tenth of them under wrong labels, {epochs} epochs at rate {rate:g}, a "
        "checkpoint after each; 100 test images as queries. Pearson's r of each approximation with "
        "TracInIdeal, over all pairs (pooled) and as the mean over queries; the share of wrong "
        "labels found by self-influence; seconds of CPU, in which those of every step count the "
        "training and the training images as queries."
    )
    rows = []
    for name in single[0]["influence"]:
        agreed = [
            tracin.correlations(one["influence"][name], one["influence"]["ideal"]) for one in single
        ]
        curves = [found_curve(one["own"][name], one["is_noisy"], AT) for one in single]
        rows.append(
            [
                name,
                written([one.pooled for one in agreed]),
                written([one.per_query for one in agreed]),
                *(written([curve.found[share] for curve in curves]) for share in AT),
                written([one["seconds"][name] for one in single], 1),
                PAPER.get(name, "no figure"),
            ]
        )
    head = ["", "pooled r", "per query r", *(f"found at {share:.0%}" for share in AT)]
    experiment.table([*head, "CPU seconds", "paper"], rows)
    plain = written([one["untraced"] for one in single], 1)
    experiment.say(f"The training by itself takes {plain} seconds of CPU.")


def figure_7(
    experiment: Experiment, batches: Sequence[Mapping[str, Any]], recipe: Recipe, examples: int
) -> None:
    """Predicted against real loss changes at every step."""
    steps = len(batches[0]["actual"])
    experiment.say(
        f"**Steps in batches** (figure 7), {examples:,} training images"
        f"{'' if examples == 60000 else ' (a subset)'}, right labels, {recipe.epochs} epochs "
        f"in batches of {recipe.batch:,} at rate {recipe.rate:g} (paper: 140 epochs, no rate "
        f"given), {steps:,} steps, 100 random test images as queries:"
    )
    lines = [
        ("Pearson, all steps and queries", "pearson", "0.978"),
        ("slope, real over predicted", "slope", "no figure"),
        ("sum of predictions over the real loss drop", "ratio", "no figure"),
        ("Pearson of the queries' totals", "totals", "no figure"),
    ]
    names = list(batches[0]["figures"])
    rows = [
        [title, *(written([one["figures"][name][key] for one in batches], 4) for name in names),
         paper]
        for title, key, paper in lines
    ]  # fmt: skip
    cost = [one["seconds"] / one["untraced"] for one in batches]
    rows.append(["CPU time, traced over untraced (both paths)", written(cost, 1), "", "no figure"])
    first_order, other = (approximations_steps.PATHS[k].value for k in (0, 1))
    agreed = [
        tracin.correlations(one["scores"][first_order], one["scores"][other]) for one in batches
    ]
    rows.append(["scores of first order against the trapezoid: pooled r",
                 written([each.pooled for each in agreed], 4), "", "no figure"])  # fmt: skip
    rows.append(["the same, mean per-query r",
                 written([each.per_query for each in agreed], 4), "", "no figure"])  # fmt: skip
    experiment.table(["", *(name.replace("_", " ") for name in names), "paper, first order"], rows)
    experiment.figure(
        _scattered(batches[0]), "figure-7", "Predicted against real loss drop of each step"
    )


def figure_2(experiment: Experiment, batches: Sequence[Mapping[str, Any]]) -> None:
    """Checkpoints and projections against every step, first order."""
    experiment.say(
        "**Checkpoints** (figure 2): TracInCP against first-order TracIn added up over all of "
        f"these steps, {approximations_steps.PART:,} of the training images and 100 test images. "
        "The paper's figure has no numbers; its text ranks the choices."
    )
    paper = {
        "last": "below the middle one",
        "middle": "above the last one",
        "largest loss reductions": "above as many even ones",
    }
    rows = []
    for place, choice in enumerate(batches[0]["choices"]):
        each = [one["choices"][place] for one in batches]
        rows.append(
            [
                choice["name"],
                len(choice["epochs"]),
                written([one["pooled"] for one in each]),
                written([one["per query"] for one in each]),
                paper.get(choice["name"], ""),
            ]
        )
    experiment.table(["checkpoints", "number", "pooled r", "per query r", "paper"], rows)
    experiment.say(
        "**Projections** (figure 2): gradients projected to d numbers at the paper's five "
        "checkpoints, in an index. Seconds of CPU are for projecting the training images and "
        "answering the queries. The paper: more numbers correlate better."
    )
    keys = ("exact pooled", "exact per query", "steps pooled", "steps per query")
    rows = [
        [kind["name"],
         *(written([one["projections"][place][key] for one in batches]) for key in keys),
         written([one["projections"][place]["seconds"] for one in batches], 1)]
        for place, kind in enumerate(batches[0]["projections"])
    ]  # fmt: skip
    head = ["d", "against exact: pooled r", "per query r", "against every step: pooled r"]
    experiment.table([*head, "per query r", "CPU seconds"], rows)
    experiment.figure(
        _choices(batches), "figure-2", "Correlation with every step, by checkpoints and by d"
    )


def written(values: Sequence[float], digits: int = 3) -> str:
    """The mean of some runs with its 95 % interval by Student's t."""
    found = seed_interval(torch.tensor(values, dtype=torch.float64))
    spread = f" ± {float(found.half):.{digits}f}" if len(values) > 1 else ""
    return f"{float(found.mean):.{digits}f}{spread}"


def _scattered(batch: Mapping[str, Any]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    actual: Tensor = batch["actual"].flatten()
    chosen = torch.randperm(len(actual), generator=torch.Generator().manual_seed(0))[:POINTS]
    ends = [float(actual.min()), float(actual.max())]
    for axes, (name, predicted) in zip(
        figure.subplots(1, 2, sharey=True), batch["predicted"].items(), strict=True
    ):
        axes.plot(ends, ends, color="0.7", linewidth=1)
        axes.scatter(predicted.flatten()[chosen], actual[chosen], s=2)
        axes.set_title(f"{name.replace('_', ' ')}: Pearson {batch['figures'][name]['pearson']:.4f}")
        axes.set_xlabel("predicted loss drop of a step")
        axes.set_ylabel("real loss drop")
    return figure


def _choices(batches: Sequence[Mapping[str, Any]]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    choices = batches[0]["choices"]
    labels = [f"{one['name'].partition(' (')[0]}, {len(one['epochs'])}" for one in choices]
    for offset, key in ((-0.2, "pooled"), (0.2, "per query")):
        each = torch.tensor(
            [[one["choices"][k][key] for one in batches] for k in range(len(labels))]
        )
        found = seed_interval(each)
        error = found.half.nan_to_num(0).numpy()
        places = torch.arange(len(labels)) + offset
        left.barh(places.numpy(), found.mean.numpy(), height=0.4, xerr=error, label=key)
    left.set_yticks(range(len(labels)), labels, fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("r with first order, every step")
    left.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncol=2, frameon=False)
    sizes = batches[0]["projections"][:-1]
    for key in ("exact pooled", "exact per query", "steps pooled", "steps per query"):
        each = torch.tensor(
            [[one["projections"][k][key] for one in batches] for k in range(len(sizes))]
        )
        found = seed_interval(each)
        error = found.half.nan_to_num(0).numpy()
        right.errorbar(
            list(approximations_steps.DIMS), found.mean.numpy(), error, marker="o", label=key
        )
    right.set_xscale("log")
    right.set_xticks(approximations_steps.DIMS, [f"{dim:,}" for dim in approximations_steps.DIMS])
    right.minorticks_off()
    right.set_xlabel("numbers that a gradient is projected to")
    right.set_ylabel("r")
    right.legend(fontsize=8, title="against")
    return figure


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
