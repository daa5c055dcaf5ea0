"""Section 5.3 and figure 4 of the paper: the last layer of an ImageNet classifier, projected.

TRACIN_DATA=data python -m experiments.imagenet --threads 1    # about 15 minutes on one core

EfficientNet-Lite0 stands for the paper's ResNet-50, and Imagenette for ImageNet. The body of the
net is frozen: each image's features are computed once, and the last layer is fine-tuned on them.
"""

import statistics
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.efficientnet import PIXELS, Classifier
from experiments.harness import Experiment, Options, parsed
from experiments.imagenette import NAMES, SIDE, Imagenette, open_imagenette
from experiments.large_index import MEGABYTE, LargeIndex
from experiments.two_sided import Factors, TwoSided, self_influence_error
from tracin.analysis.correlations import correlations
from tracin.analysis.intervals import seed_interval

NAME = "imagenet"
RATE, BATCH, EPOCHS = 0.01, 100, 9
CHECKPOINTS = (3, 6, 9)  # epochs; the paper's are 30, 60 and 90 of 90
VAL = 1000  # images that are not trained on
QUERIES = 200  # of these, to compare projections on
SIDES = ((23, 16), (46, 32), (92, 64))  # columns of the inputs, and of the outputs
DIMS = (368, 736, 1472, 2280)  # of an index; the last holds both factors whole
PAPER = 1472
TOP = 10
ROWS = 1_281_167  # ImageNet's training images
LARGE_QUERIES = 16
CELL, HEADING = (88, 92), 18  # pixels of an image in the picture with its text, and above all
SHOWN, ASIDE = 5, 3  # queries in the picture, and images on each side
FEATURES_AT_ONCE = 2000  # images per step

Pair = tuple[Tensor, Tensor]
Layer = dict[str, Tensor]

ABOUT = __doc__


@dataclass(frozen=True, eq=False)
class Task:
    """Features, and what was trained on them.

    Attributes:
        train: Features [train, 1280] and labels [train].
        val: The same of images that were not trained on.
        layers: By seed, the last layer at each checkpoint.
    """

    train: Pair
    val: Pair
    layers: list[list[Layer]]

    @property
    def queries(self) -> Pair:
        """Those that projections are compared on."""
        return self.val[0][:QUERIES], self.val[1][:QUERIES]

    def run(self, seed: int) -> tracin.TracIn:
        """The training of the last layer."""
        return tracin.TracIn(
            last_layer(), "cross_entropy", self.layers[seed], learning_rates=[RATE] * 3
        )

    def right(self, seed: int, pair: Pair) -> Tensor:
        """Which examples the last checkpoint classifies right: [examples]."""
        return self.predicted(seed, pair[0]) == pair[1]

    def predicted(self, seed: int, features: Tensor) -> Tensor:
        """The last checkpoint's classes: [examples]."""
        layer = self.layers[seed][-1]
        return F.linear(features, layer["weight"], layer["bias"]).argmax(1)


def last_layer() -> nn.Linear:
    """A layer of the last one's shape."""
    return nn.Linear(1280, 1000)


def features_of(experiment: Experiment, part: str, images: Tensor) -> Tensor:
    """What the body of the net makes of images, in steps that are kept."""
    pieces = [
        experiment.step(f"features {part} {at}", lambda piece=piece: Classifier().features(piece))
        for at, piece in enumerate(images.split(FEATURES_AT_ONCE))
    ]
    return torch.cat(pieces)


def fine_tuned(train: Pair, seed: int) -> list[Layer]:
    """Train the last layer, from ImageNet's weights, by plain SGD: its weights at checkpoints."""
    layer = Classifier().head
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(seed)
    states = []
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(train[1]), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(layer(train[0][rows]), train[1][rows]).backward()
            optimizer.step()
        if epoch in CHECKPOINTS:
            states.append({key: each.clone() for key, each in layer.state_dict().items()})
    return states


def largest_difference(task: Task, data: Imagenette, order: Tensor) -> float:
    """Influence by the whole net on images against that by its last layer on features."""
    layers = task.layers[0]
    model = Classifier()
    body = model.state_dict()
    states = [body | {f"net._fc.{name}": each for name, each in layer.items()} for layer in layers]
    whole = tracin.TracIn(
        model, "cross_entropy", states, learning_rates=[RATE] * 3, parameters="last"
    )
    train = data.train_images[:4], data.train_labels[:4]
    queries = data.val_images[order[:2]], data.val_labels[order[:2]]
    found = whole.influence(train, queries, progress=False)
    known = task.run(0).influence(
        (task.train[0][:4], task.train[1][:4]),
        (task.val[0][:2], task.val[1][:2]),
        progress=False,
    )
    return float((found - known).norm() / known.norm())


def quality_of(influence: Tensor, own: Tensor, known: Tensor, known_own: Tensor) -> list[float]:
    """How good estimates are, in the order of `QUALITIES`.

    Args:
        influence: [train, queries].
        own: Self-influence, [train].
        known: Exact influence.
        known_own: Exact self-influence.
    """
    agreement = correlations(influence, known)
    return [
        float((influence - known).norm() / known.norm()),
        agreement.pooled,
        agreement.per_query,
        recall(influence, known),
        recall(-influence, -known),
        float((own / known_own - 1).square().mean().sqrt()),
    ]


QUALITIES = (
    "error of influence",
    "r, pooled",
    "r, per query",
    "recall@10, proponents",
    "recall@10, opponents",
    "error of self-influence",
)


def recall(found: Tensor, known: Tensor) -> float:
    """The share of each query's ten highest of [train, queries] that are found."""
    count = min(TOP, len(known))
    is_top, is_found = (
        torch.zeros_like(each, dtype=torch.bool).scatter(0, each.topk(count, 0).indices, True)
        for each in (known, found)
    )
    return float((is_top & is_found).sum() / is_top.sum())


def compared(task: Task, seed: int, dims: Sequence[int]) -> dict[str, Any]:
    """Both projections of each size against exact scores, and the rank-1 identity."""
    run = task.run(seed)
    known = run.influence(task.train, task.queries, progress=False).double()
    known_own = run.self_influence(task.train, progress=False).double()
    pairs = [
        (Factors.of(layer, *task.train), Factors.of(layer, *task.queries))
        for layer in task.layers[seed]
    ]
    by_factors = RATE * sum(train.dot(queries) for train, queries in pairs)
    found: dict[str, Any] = {"identity": float((by_factors - known).norm() / known.norm())}
    for sides in SIDES:
        influence, own = torch.zeros_like(known), torch.zeros_like(known_own)
        for number, (train, queries) in enumerate(pairs):
            projection = TwoSided.random(sides, train, seed=1000 * seed + number)
            rows = projection.rows(train)
            influence += RATE * (rows @ projection.rows(queries).T)
            own += RATE * rows.square().sum(1)
        found[f"two-sided {sides}"] = quality_of(influence, own, known, known_own)
    for dim in dims:
        with tempfile.TemporaryDirectory() as folder:
            projection = tracin.Projection(dim, seed)
            index = run.index(task.train, folder, projection, recall_queries=0, progress=False)
            influence = index.influence(task.queries, progress=False).double()
            own = torch.from_numpy(index.table()["self_influence_sketched"]).double()
            exact = index.self_influence().double()
        found[f"index {dim}"] = quality_of(influence, own, known, known_own)
        found[f"stored {dim}"] = float((exact / known_own - 1).abs().max())
    return found


def pictured(task: Task) -> dict[str, Any]:
    """What figure 4 shows: the strongest for a few queries, by the index, of images that are right.

    Also for all queries: how often neighbours have the query's class, and how many the filter
    takes out of their lists.
    """
    predicted, labels = task.predicted(0, task.val[0]), task.val[1]
    chosen = shown(predicted, labels)
    queries = task.val[0][chosen], labels[chosen]
    with tempfile.TemporaryDirectory() as folder:
        index = task.run(0).index(task.train, folder, tracin.Projection(PAPER), progress=False)
        is_right = index.table()["is_right"] == 1
        found = index.explain(queries, k=ASIDE, where=is_right, progress=False)
        exact = index.explain(queries, k=ASIDE, where=is_right, exact=True, progress=False)
        every = index.explain(task.val, k=ASIDE, where=is_right, progress=False)
        loose = index.explain(task.val, k=ASIDE, progress=False)
    sides = [(found.proponents, exact.proponents), (found.opponents, exact.opponents)]
    hits = sum(
        len(set(ours) & set(theirs))
        for estimated, certain in sides
        for ours, theirs in zip(estimated.positions, certain.positions, strict=True)
    )
    train_labels = task.train[1].numpy()
    wrong = (predicted != labels).numpy()
    own = train_labels[every.proponents.positions] == labels[:, None].numpy()
    theirs = train_labels[every.opponents.positions] == predicted[:, None].numpy()
    positions = np.concatenate([loose.proponents.positions, loose.opponents.positions])
    return {
        "queries": chosen,
        "predicted": predicted[chosen].tolist(),
        "positions": [
            torch.from_numpy(side.positions.copy()) for side in (exact.proponents, exact.opponents)
        ],
        "hits": hits,
        "removed": int((~is_right).sum()),
        "unfiltered": float((~is_right)[positions].mean()),
        "proponents of the class": [float(own[~wrong].mean()), float(own[wrong].mean())],
        "opponents of the prediction": float(theirs[wrong].mean()),
        "misclassified": int(wrong.sum()),
        "recall": str(found.recall),
    }


def shown(predicted: Tensor, labels: Tensor) -> list[int]:
    """The first misclassified query, and the first right ones, each of another class."""
    is_right = predicted == labels
    wrong = int((~is_right).nonzero()[0])
    chosen, classes = [wrong], {int(labels[wrong])}
    for at in is_right.nonzero().flatten().tolist():
        if len(chosen) < SHOWN and int(labels[at]) not in classes:
            chosen.append(at)
            classes.add(int(labels[at]))
    return chosen


def picture(data: Imagenette, order: Tensor, found: dict[str, Any]) -> Figure:
    """Queries on the left, each with its proponents and opponents."""
    count = len(found["queries"])
    columns = 1 + 2 * ASIDE
    width, height = CELL[0] * columns, CELL[1] * count + HEADING
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for row, query in enumerate(found["queries"]):
        label, predicted = int(data.val_labels[order[query]]), found["predicted"][row]
        title = NAMES[label] if label == predicted else f"{NAMES[label]}, as {class_of(predicted)}"
        images = [(data.val_images[order[query]], title)]
        for side in found["positions"]:
            images += [
                (data.train_images[at], NAMES[int(data.train_labels[at])])
                for at in side[row].tolist()
            ]
        for column, (image, text) in enumerate(images):
            # One pixel of the image for one of the picture: enlarged, the file would be larger.
            left, bottom = CELL[0] * column + 12, CELL[1] * (count - 1 - row) + 4
            axis = figure.add_axes(
                (left / width, bottom / height, SIDE / width, SIDE / height), frameon=False
            )
            axis.imshow(image.numpy(), interpolation="nearest")
            axis.set_title("\n".join(textwrap.wrap(text, 17)), fontsize=6, pad=2)
            axis.axis("off")
    for column, text in ((0, "query"), (2, "proponents"), (2 + ASIDE, "opponents")):
        middle = (CELL[0] * column + 12 + SIDE / 2) / width
        figure.text(middle, 1 - 14 / height, text, ha="center", fontsize=8, weight="bold")
    return figure


def class_of(number: int) -> str:
    """A class's name, or its number if Imagenette does not have it."""
    return NAMES.get(number, f"class {number}")


def curves(qualities: dict[str, list[list[float]]], dims: Sequence[int]) -> Figure:
    """Errors and recall by the numbers that are kept."""
    figure = Figure(figsize=(7.4, 2.7), layout="constrained")
    axes = figure.subplots(1, 3)
    lines = (
        ("two-sided (paper)", [a * b for a, b in SIDES], [f"two-sided {each}" for each in SIDES]),
        ("index (tracin)", list(dims), [f"index {dim}" for dim in dims]),
    )
    shown_qualities = ((0, "error of influence"), (3, "recall@10, proponents"), (5, QUALITIES[5]))
    for axis, (quality, title) in zip(axes, shown_qualities, strict=True):
        for name, sizes, keys in lines:
            values = [interval([one[quality] for one in qualities[key]]) for key in keys]
            means, halves = zip(*values, strict=True)
            axis.errorbar(sizes, means, yerr=halves, marker="o", ms=3, capsize=3, label=name)
        axis.axvline(PAPER, color="0.8", zorder=0)
        axis.set(title=title, xlabel="numbers kept", xscale="log", ylim=(0, None))
        axis.set_xticks([368, 1472, 5888], ["368", "1,472", "5,888"], minor=False)
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    return figure


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t; 0 for one value."""
    found = seed_interval(torch.tensor(values, dtype=torch.float64))
    return float(found.mean), 0.0 if found.seeds == 1 else float(found.half)


def written(values: Sequence[float], digits: int = 3) -> str:
    """A mean and half of its interval, which is left out where it rounds to nothing."""
    mean, half = interval(values)
    is_seen = round(half, digits) > 0
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if is_seen else f"{mean:.{digits}f}"


def say_set_up(experiment: Experiment, task: Task, difference: float) -> None:
    """The models next to the paper's."""
    seeds = experiment.seeds
    accuracies = [
        written([100 * float(task.right(seed, pair).float().mean()) for seed in seeds], 1)
        for pair in (task.train, task.val)
    ]
    trained = f"last layer, {EPOCHS} epochs, from ImageNet's weights"
    experiment.table(
        ["", "here (subset)", "paper"],
        [
            ["images", f"{len(task.train[1]):,} of 10 classes, 64 pixels", "1.28M, 1,000 classes"],
            ["net", f"EfficientNet-Lite0, read at {PIXELS} pixels", "ResNet-50"],
            ["trained", trained, "all layers, 90 epochs"],
            ["last layer", "1,280 x 1,000 and bias", "2,048 x 1,000"],
            ["checkpoints, epochs", ", ".join(map(str, CHECKPOINTS)), "30, 60, 90"],
            ["training accuracy, %", accuracies[0], "not reported"],
            [f"accuracy on {len(task.val[1]):,} others, %", accuracies[1], "73 (top 1)"],
        ],
    )
    experiment.say(
        "All 1,000 outputs are kept, though the images are of ten classes. The accuracies cannot "
        "be compared: ours is among fewer classes that differ more, on images of 64 pixels, with "
        "a body that was trained on ImageNet and is frozen here. Scores from the features are "
        'those of the whole net with `parameters="last"`: on a few images the two differ by '
        f"{difference:.0e} of their size."
    )


def say_qualities(experiment: Experiment, found: list[dict[str, Any]], dims: Sequence[int]) -> None:
    """Both projections, next to each other."""
    qualities = {
        key: [one[key] for one in found]
        for key in (*(f"two-sided {each}" for each in SIDES), *(f"index {dim}" for dim in dims))
    }
    rows = []
    for sides in SIDES:
        numbers, name = sides[0] * sides[1], f"two-sided, {sides[0]} x {sides[1]}"
        name += " (the paper's)" if numbers == PAPER else ""
        rows.append([name, f"{numbers:,}", *cells(qualities[f"two-sided {sides}"])])
    rows += [["index of tracin", f"{dim:,}", *cells(qualities[f"index {dim}"])] for dim in dims]
    rows.append(["the paper's figures", f"{PAPER:,}", *["not reported"] * len(QUALITIES)])
    experiment.table(["projection", "numbers", *QUALITIES], rows)
    ours, theirs = qualities[f"index {PAPER}"], qualities[f"two-sided {SIDES[1]}"]
    experiment.say(
        "Errors are root mean squares, relative to the size of exact influence and to each exact "
        f"self-influence; {len(found)} {'seed' if len(found) == 1 else 'seeds'} of training order "
        f"and projection, with 95 % intervals. At {PAPER:,} numbers the index's error of influence "
        f"is {ratio(theirs, ours, 0):.1f} times smaller. It keeps the two factors of a gradient in "
        "columns of their own and multiplies two dot products, each of hundreds of columns; a "
        "two-sided projection has 46 and 32 columns for the same. With 2,280 numbers both factors "
        "are whole, and only the rounding of float16 remains."
    )
    experiment.say(
        "Self-influence should not be taken from a two-sided projection: theory gives it a "
        f"relative error of {self_influence_error(SIDES[1]):.2f} per checkpoint at 46 x 32. An "
        "index stores exact lengths: `index.self_influence()` differs from the model's by at most "
        f"{max(one[f'stored {PAPER}'] for one in found):.0e}. The paper's identity for fully "
        "connected layers, without any projection, agrees with `TracIn.influence` to "
        f"{max(one['identity'] for one in found):.0e}."
    )
    experiment.figure(
        curves(qualities, dims),
        "projections",
        "Error of influence, recall and error of self-influence of two-sided projections and "
        "of indexes, by the numbers kept per example and checkpoint",
    )


def cells(qualities: list[list[float]]) -> list[str]:
    """One of `QUALITIES` each, over seeds."""
    return [written(list(values)) for values in zip(*qualities, strict=True)]


def ratio(theirs: list[list[float]], ours: list[list[float]], quality: int) -> float:
    """Of two means over seeds."""
    means = [statistics.fmean(one[quality] for one in each) for each in (theirs, ours)]
    return means[0] / means[1]


def say_picture(
    experiment: Experiment, task: Task, data: Imagenette, order: Tensor, found: dict[str, Any]
) -> None:
    """Figure 4."""
    experiment.figure(
        picture(data, order, found),
        "neighbours",
        "Five images, the first misclassified, each with three proponents and three opponents",
        may_be_published=False,
    )
    right, wrong = found["proponents of the class"]
    slots = 2 * ASIDE * len(found["queries"])
    experiment.say(
        f"As in the paper's figure 4, the first row is a misclassified image and the others are "
        f"right; they are the first such images, not chosen by eye. The filter takes out "
        f"{found['removed']:,} of {len(task.train[1]):,} training images, those that the last "
        f"checkpoint misclassifies; without it they fill {found['unfiltered']:.0%} of the places. "
        f"The scores in the picture are exact (`exact=True`); the estimates of {PAPER:,} numbers "
        f"name {found['hits']} of these {slots} images, and recall was measured as "
        f"{found['recall']}."
    )
    experiment.table(
        [f"over {len(task.val[1]):,} queries, three each", "here", "paper"],
        [
            [
                "proponents of the query's class, query right",
                f"{right:.1%}",
                '"mostly images from the same label"',
            ],
            ["the same, query misclassified", f"{wrong:.1%}", "as above"],
            [
                "opponents of the predicted class, query misclassified "
                f"({found['misclassified']} queries)",
                f"{found['opponents of the prediction']:.1%}",
                "not reported",
            ],
        ],
    )


def say_large(experiment: Experiment, rows: int, found: dict[str, float]) -> None:
    """Time, bytes and memory of the large index."""
    timed = (
        ("build", "build", "build_peak"),
        ("search, 1 query, the first time", "first", None),
        ("search, 1 query", "one", None),
        (f"search, {LARGE_QUERIES} queries together", "all", "search_peak"),
    )
    experiment.table(
        [f"{rows:,} x {len(CHECKPOINTS)} rows", "seconds", "CPU seconds", "peak memory", "paper"],
        [
            [
                name,
                f"{found[key]:,.1f}",
                f"{found[f'{key}_cpu']:,.1f}",
                f"{found[peak] / MEGABYTE:,.0f} MB" if peak else "",
                "not reported",
            ]
            for name, key, peak in timed
        ],
    )
    per_row = found["bytes"] / rows
    share = "as many as the paper's"
    if rows != ROWS:
        size = f"{per_row * ROWS / 1e9:.1f} GB"
        share = f"the paper's {ROWS:,} would take {size}, by the bytes per row"
    experiment.say(
        f"{rows:,} training images ({share}) at {len(CHECKPOINTS)} checkpoints, synthetic: each "
        "has the mean of the features of two images of the subset, and goes through `run.index` "
        "and `index.explain` as real data does; the frozen body of the net does not. "
        f"{PAPER:,} numbers in float16, exact lengths, losses and checksums take "
        f"{per_row / len(CHECKPOINTS):,.0f} bytes per row, "
        f"{found['bytes'] / 1e9:.2f} GB in all. The first search also compares checksums; the "
        "others are medians of three. The machine was shared, so CPU seconds say more than "
        "seconds. Peaks include mapped pages of the files, which the system can take back, and "
        f"the {found['start_peak'] / MEGABYTE:,.0f} MB of a process that has only started."
    )


def main(arguments: list[str] | None = None) -> None:
    """Train, score, project and search, and write what came out."""
    options = parsed(NAME, ABOUT or "", 3, arguments)
    settings = {
        "pixels": PIXELS,
        "rate": RATE,
        "batch": BATCH,
        "checkpoints": CHECKPOINTS,
        "val": VAL,
        "queries": QUERIES,
    }
    experiment = Experiment(NAME, options, settings)
    data = open_imagenette(every=240 if options.is_quick else 1)
    order = torch.randperm(len(data.val_images), generator=torch.Generator().manual_seed(0))[:VAL]
    train = features_of(experiment, "train", data.train_images), data.train_labels
    val = features_of(experiment, "val", data.val_images[order]), data.val_labels[order]
    layers = [
        experiment.step(f"train {seed}", lambda seed=seed: fine_tuned(train, seed))
        for seed in experiment.seeds
    ]
    task = Task(train, val, layers)
    difference = experiment.step("whole net", lambda: largest_difference(task, data, order))
    dims = DIMS[-2:] if options.is_quick else DIMS
    found = [
        experiment.step(f"compare {seed}", lambda seed=seed: compared(task, seed, dims))
        for seed in experiment.seeds
    ]
    neighbours = experiment.step("picture", lambda: pictured(task))
    rows = 1000 if options.is_quick else experiment.scaled(ROWS)
    large = experiment.step(f"large {rows}", lambda: large_index(task, options, rows).measured())
    say_set_up(experiment, task, difference)
    say_qualities(experiment, found, dims)
    say_picture(experiment, task, data, order, neighbours)
    say_large(experiment, rows, large)
    experiment.finish()


def large_index(task: Task, options: Options, rows: int) -> LargeIndex:
    """The index of synthetic rows, and its queries."""
    queries = task.val[0][:LARGE_QUERIES], task.val[1][:LARGE_QUERIES]
    return LargeIndex(
        options.folder / f"large-{rows}.index",
        rows,
        PAPER,
        task.layers[0],
        RATE,
        *task.train,
        queries,
        torch.get_num_threads(),
    )


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
