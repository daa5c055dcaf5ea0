"""MNIST as in sections 4.1 and 4.3 of the paper: planted wrong labels found, mended, explained.

python -m experiments.mnist              # a few minutes; reads TRACIN_DATA
python -m experiments.mnist --quick      # seconds: a tenth of the data, a few epochs
"""

import argparse
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

import tracin
from experiments.mnist_images import Images, open_mnist
from experiments.training import Recipe, Trained, accuracy, fully_connected, scores, trained
from tracin.analysis import FoundCurve, HighestWrong, found_curve, noisy_labels
from tracin.demo.figure import Row, draw
from tracin.demo.pictures import Picture, a_digit
from tracin.demo.training import emptied

SIZES = (784, 256, 128, 64, 10)  # 242,762 parameters; the paper says "240K" and no widths
PAPER_EPOCHS, PAPER_CHECKPOINTS = 140, (20, 50, 80, 110, 140)
NOISE, MENDED = 0.1, 0.2
INSPECTED = (0.05, 0.1, 0.2, 0.3)
QUERIES, SHOWN, DRAWN = 100, 3, 4
MAIN = "TracIn, all layers"


@dataclass(frozen=True, eq=False)
class Spoiled:
    """MNIST with some training labels made wrong: [train]."""

    images: Images
    labels: Tensor
    is_flipped: Tensor

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """What tracin takes as data."""
        return self.images.train_images, self.labels


def main(arguments: list[str] | None = None) -> None:
    """Run all of it and print what came out."""
    options = parsed(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = Recipe(epochs=options.epochs, seed=options.seed)
    images = open_mnist()
    if options.quick:
        images = replace(
            images,
            train_images=images.train_images[:6000],
            train_labels=images.train_labels[:6000],
        )
        recipe = replace(recipe, epochs=min(recipe.epochs, 14), rate=0.1, batch=100)
    print(
        f"tracin {tracin.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} of {os.cpu_count()} threads, "
        f"seed {recipe.seed}\n{recipe}\n"
    )
    start = perf_counter()

    clean = trained(net(recipe), images.train_images, images.train_labels, recipe)
    tell_clean(clean, images)

    noise = HighestWrong(scores(clean.model, images.train_images))
    planted = noisy_labels(images.train_labels, noise, NOISE, seed=recipe.seed)
    labels, is_flipped = planted.labels, planted.is_noisy
    spoiled = Spoiled(images, labels, is_flipped)
    folder = emptied(options.folder / "checkpoints")
    noisy = trained(net(recipe), images.train_images, labels, recipe, record=folder)
    tell_noisy(noisy, spoiled)

    run = tracin.TracIn(noisy.model, "cross_entropy", chosen(folder, recipe))
    began = perf_counter()
    suspects = run.find_mislabelled(spoiled.train)
    tell_time("find_mislabelled", perf_counter() - began, len(run.checkpoints), noisy)
    curves = curves_of(suspects, is_flipped)
    last = tracin.TracIn(noisy.model, "cross_entropy", run.checkpoints[-1:])
    at_end = curves_of(last.find_mislabelled(spoiled.train), is_flipped)
    curves["TracIn, all layers, end only"] = at_end[MAIN]
    curves["loss, end only"] = at_end["loss"]
    tell_found(curves, int(is_flipped.sum()))

    mend(spoiled, suspects, noisy, clean, recipe)
    rows = explain(run, noisy, spoiled)

    suspects.save(options.folder / "suspects.parquet")
    top = [picture(spoiled, int(at)) for at in suspects.positions[: 2 * SHOWN + 1]]
    draw(
        options.folder / "mnist.png",
        f"{int(is_flipped.sum()):,} wrong labels among {len(labels):,} MNIST digits",
        {name: curves[name] for name in (MAIN, "TracIn, last layer", "loss", "EL2N", "margin")},
        NOISE,
        [Row("The most suspect labels (red: really wrong)", top), *rows],
    )
    print(f"\nAll of it: {perf_counter() - start:.0f} s. Figure and table: {options.folder}")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.mnist", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--epochs", type=int, default=PAPER_EPOCHS, help="passes (default 140)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument(
        "--folder", type=Path, default=Path("tracin-demo/mnist"), help="where results go"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="6,000 images, at most 14 epochs")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error("--epochs is at least 1")
    return options


def net(recipe: Recipe) -> torch.nn.Sequential:
    """The paper's net, before training."""
    return fully_connected(SIZES, recipe.seed)


def chosen(folder: Path, recipe: Recipe) -> list[tracin.Checkpoint]:
    """Every 30th epoch from the 20th of 140 (paper, 4.3), or as far along a shorter training."""
    recorded = tracin.open_checkpoints(folder)
    epochs = {max(1, round(each * recipe.epochs / PAPER_EPOCHS)) for each in PAPER_CHECKPOINTS}
    print(f"Checkpoints of epochs {', '.join(map(str, sorted(epochs)))}.")
    return [recorded[epoch - 1] for epoch in sorted(epochs)]


def tell_clean(clean: Trained, images: Images) -> None:
    """The paper's footnote 11."""
    test = accuracy(clean.model, images.test_images, images.test_labels)
    train = accuracy(clean.model, images.train_images, images.train_labels)
    print(
        f"Trained on the right labels ({clean.epoch_seconds:.2f} s an epoch): {test:.2%} test, "
        f"{train:.2%} train (paper: 97.55 %, 99.30 %)."
    )


def tell_noisy(noisy: Trained, spoiled: Spoiled) -> None:
    """The paper's footnote 10."""
    images = spoiled.images
    train = accuracy(noisy.model, images.train_images, spoiled.labels)
    test = accuracy(noisy.model, images.test_images, images.test_labels)
    print(
        f"Trained on {int(spoiled.is_flipped.sum()):,} of {len(spoiled.labels):,} labels made "
        f"wrong: {train:.2%} of the labels learnt (paper: 89.94 %), {test:.2%} on the test set "
        "(paper: 89.95 %, see docs/results.md)."
    )


def tell_time(what: str, seconds: float, checkpoints: int, noisy: Trained) -> None:
    """Seconds, and how many epochs of training one checkpoint costs."""
    ratio = seconds / checkpoints / noisy.epoch_seconds
    print(
        f"{what}: {seconds:.1f} s for {checkpoints} checkpoints, each {ratio:.2f} x a training "
        f"epoch ({noisy.epoch_seconds:.2f} s)."
    )


def curves_of(suspects: tracin.Suspects, is_flipped: Tensor) -> dict[str, FoundCurve]:
    """What each score finds."""
    is_wrong = is_flipped[torch.from_numpy(suspects.positions)]
    columns = {
        MAIN: suspects.self_influence,
        "TracIn, last layer": suspects.self_influence_last,
        "loss": suspects.loss,
        "EL2N": suspects.el2n,
        "margin": -suspects.margin,
    }
    return {name: found_curve(each, is_wrong, INSPECTED) for name, each in columns.items()}


def tell_found(curves: dict[str, FoundCurve], wrong: int) -> None:
    """The table of figure 1b, as Markdown."""
    head = [f"found at {share:.0%}" for share in INSPECTED]
    lines = [["score", *head, "AUROC", "average precision"], ["---"] * (len(head) + 3)]
    for name, curve in curves.items():
        shares = [f"{curve.found[share]:.3f}" for share in INSPECTED]
        lines.append([name, *shares, f"{curve.auroc:.4f}", f"{curve.average_precision:.3f}"])
    chance = [f"{share:.3f}" for share in INSPECTED]
    lines.append(["random", *chance, "0.5000", f"{NOISE:.3f}"])
    print(f"\nShare of the {wrong:,} wrong labels found:\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


def mend(
    spoiled: Spoiled, suspects: tracin.Suspects, noisy: Trained, clean: Trained, recipe: Recipe
) -> None:
    """Put back the right labels in the first part of the ranking, and train again."""
    images = spoiled.images
    looked_at = torch.from_numpy(suspects.positions)[: round(MENDED * len(spoiled.labels))]
    labels = spoiled.labels.clone()
    labels[looked_at] = images.train_labels[looked_at]
    mended = trained(net(recipe), images.train_images, labels, recipe)
    reached = [
        accuracy(each.model, images.test_images, images.test_labels)
        for each in (noisy, mended, clean)
    ]
    print(
        f"Looking through the first {MENDED:.0%} mends {int((labels != spoiled.labels).sum()):,} "
        f"labels. Test accuracy {reached[0]:.2%} before, {reached[1]:.2%} after (all labels right "
        f"from the start: {reached[2]:.2%})."
    )


def explain(run: tracin.TracIn, noisy: Trained, spoiled: Spoiled) -> list[Row]:
    """Explain the first wrong test predictions, and draw those that are most confident."""
    images = spoiled.images
    chances = scores(noisy.model, images.test_images).softmax(1)
    confidence, answers = chances.max(1)
    queries = (answers != images.test_labels).nonzero()[:QUERIES, 0]
    began = perf_counter()
    found = run.explain(
        spoiled.train, (images.test_images[queries], images.test_labels[queries]), k=10
    )
    what = f"explain, {len(queries)} wrong test predictions"
    tell_time(what, perf_counter() - began, len(run.checkpoints), noisy)
    began = perf_counter()
    one = queries[:1]
    run.explain(spoiled.train, (images.test_images[one], images.test_labels[one]), k=10)
    tell_time("explain, one of them", perf_counter() - began, len(run.checkpoints), noisy)

    for kind, hits in (("proponents", found.proponents), ("opponents", found.opponents)):
        flipped = spoiled.is_flipped[torch.from_numpy(hits.positions)].double().mean()
        same = spoiled.labels[torch.from_numpy(hits.positions)]
        as_query = (same == images.test_labels[queries][:, None]).double().mean()
        as_answer = (same == answers[queries][:, None]).double().mean()
        print(
            f"Of their 10 strongest {kind}, {flipped:.0%} carry a wrong label; {as_query:.0%} are "
            f"labelled as the query's true class, {as_answer:.0%} as the class it was taken for."
        )
    rows = []
    for place in confidence[queries].argsort(descending=True)[:DRAWN].tolist():
        test = int(queries[place])
        right, answer = int(images.test_labels[test]), int(answers[test])
        caption = (f"is {a_digit(right)}", f"read as {answer}, {confidence[test]:.0%}")
        pictures = [Picture(images.test_images[test], caption)]
        for hits in (found.proponents, found.opponents):
            positions, values = hits.positions[place, :SHOWN], hits.scores[place, :SHOWN]
            pictures += [
                picture(spoiled, int(at), score)
                for at, score in zip(positions, values.tolist(), strict=True)
            ]
        rows.append(Row(f"Test digit {test}, {SHOWN} proponents, {SHOWN} opponents", pictures))
        listed = "; ".join(", ".join(each.caption) for each in pictures[1:])
        print(f"Test digit {test} {', '.join(caption)}. {listed}.")
    return rows


def picture(spoiled: Spoiled, position: int, score: float | None = None) -> Picture:
    """A training image with the label it was learnt under, and the truth where that was wrong."""
    caption = [f"labelled {int(spoiled.labels[position])}"]
    if score is not None:
        caption.append(f"{score:+,.1f}")
    is_wrong = bool(spoiled.is_flipped[position])
    if is_wrong:
        caption.append(f"but {a_digit(int(spoiled.images.train_labels[position]))}")
    return Picture(spoiled.images.train_images[position], tuple(caption), is_wrong)


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
