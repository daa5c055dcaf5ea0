"""The demo from start to end: plant wrong labels, find them, correct them, explain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from tracin.analysis import FoundCurve, HighestWrong, compare_found, found_curve, noisy_labels
from tracin.demo.digits import Digits, open_digits
from tracin.demo.figure import Row, draw
from tracin.demo.pictures import Picture, a_digit, side_by_side
from tracin.demo.threads import one_thread
from tracin.demo.training import accuracy, emptied, trained
from tracin.errors import TracInError
from tracin.extras import install_line
from tracin.report import write_report
from tracin.results.explanations import Explanations
from tracin.results.saving import save_columns
from tracin.results.suspects import Suspects
from tracin.tracin import TracIn

Say = Callable[[str], None]

NOISE = 0.1  # of the training labels are made wrong, as in section 4.1 of the paper
INSPECTED = (0.05, 0.1, 0.2, 0.3)
INSPECTED_BY_HAND = 0.2  # of the ranking; wrong labels found there are corrected
SHOWN = 3  # proponents and opponents
SEED = 0


def run(folder: Path, say: Say, *, repeats: int = 3) -> None:
    """Find planted wrong labels among real digits, correct them, and explain one mistake.

    Writes `report.html`, `digits.png`, four Parquet tables and the checkpoints into `folder`;
    files that an earlier run left there are replaced.

    Args:
        folder: Where to write; created if missing.
        say: Called with the story, one passage at a time.
        repeats: How many nets, from different seeds, each test accuracy is averaged over.

    Raises:
        TracInError: scikit-learn, matplotlib or pyarrow is not installed.
    """
    _require_extras()
    with one_thread():
        _run(Path(folder), say, repeats)


def _run(folder: Path, say: Say, repeats: int) -> None:
    started = perf_counter()
    digits = open_digits(SEED)
    train, test = len(digits.train_labels), len(digits.test_labels)
    say(
        f"{train + test:,} handwritten digits from scikit-learn, real ones, of 8 x 8 pixels: "
        f"{train:,} to learn from, {test} to test on."
    )

    clean = trained(digits.train_images, digits.train_labels, SEED)
    weights = sum(parameter.numel() for parameter in clean.parameters())
    reached = accuracy(clean, digits.test_images, digits.test_labels)
    say(
        f"A small net ({weights:,} weights), trained on the right labels, reads {reached:.1%} of "
        "the test digits."
    )
    with torch.no_grad():
        scores = clean(digits.train_images)
    planted = noisy_labels(digits.train_labels, HighestWrong(scores), NOISE, seed=SEED)
    labels, is_flipped = planted.labels, planted.is_noisy
    say(
        f"Now {int(is_flipped.sum())} of the {train:,} training labels ({NOISE:.0%}) are made "
        "wrong: each becomes the wrong digit that this net finds most likely. The paper's test of "
        "a ranking is how many of them it brings to the top."
    )

    checkpoints = emptied(folder / "checkpoints")
    start = perf_counter()
    model = trained(digits.train_images, labels, SEED, record=checkpoints)
    tracin = TracIn(model, "cross_entropy", checkpoints)
    reached = accuracy(model, digits.test_images, digits.test_labels)
    say(
        f"Trained again on the noisy labels, with a tracin.Recorder, which kept "
        f"{len(tracin.checkpoints)} checkpoints ({perf_counter() - start:.1f} s): {reached:.1%} of "
        "the test digits."
    )

    start = perf_counter()
    suspects = tracin.find_mislabelled((digits.train_images, labels), progress=False)
    took = perf_counter() - start
    noisy = NoisyDigits(digits, labels, is_flipped)
    curves = found_curves(suspects, is_flipped)
    say(
        f"Every training example was scored in {took:.1f} s, over all {weights:,} weights and "
        f"{len(tracin.checkpoints)} checkpoints. The ranking is the mean of two ranks, by loss and "
        "by margin; TracIn's self-influence, exact, is a column of the same table."
    )
    say(found_table(curves, int(is_flipped.sum())))
    say(what_to_make_of(curves))
    top = noisy.pictures(suspects.positions[:7])
    rows = [Row("The most suspect labels (red: really wrong)", top)]
    say("The four most suspect labels:\n\n" + side_by_side(top[:4]))

    relabelled = noisy.relabelled(suspects.positions, INSPECTED_BY_HAND)
    accuracies = _accuracies(noisy, relabelled, repeats)
    say(_accuracies_in_words(noisy, relabelled, accuracies))

    explained = None
    query = _worst_mistake(model, clean, digits)
    if query is None:
        say("The net reads every test digit right, so there is no mistake to explain.")
    else:
        explanation = tracin.explain(
            (digits.train_images, labels),
            (digits.test_images[query : query + 1], digits.test_labels[query : query + 1]),
            k=SHOWN,
            progress=False,
        )
        explained = replace(explanation, query_ids=np.array([query]))
        story = Mistake(model, noisy, query, explanation)
        say(story.in_words(clean, trained(digits.train_images, relabelled, SEED)))
        rows.append(story.row())
        found = explanation.columns()
        positions = found["position"]
        save_columns(
            {
                **found,
                "query": np.full(len(positions), query),
                "given_label": labels[torch.from_numpy(positions)].numpy(),
                **noisy.truth(positions),
            },
            folder / "explanation.parquet",
        )

    save_columns(_found_columns(curves), folder / "found.parquet")
    save_columns(
        {**suspects.columns(), **noisy.truth(suspects.positions)}, folder / "suspects.parquet"
    )
    save_columns(
        {name: np.array(values) for name, values in accuracies.items()}, folder / "accuracy.parquet"
    )
    draw(
        folder / "digits.png",
        f"{int(is_flipped.sum())} wrong labels among {train:,} digits",
        curves,
        NOISE,
        rows,
    )
    page = write_report(
        folder / "report.html",
        *([] if explained is None else [explained]),
        suspects,
        compare_found(curves),
        train=(digits.train_images, labels),
        queries=(digits.test_images, digits.test_labels),
        title=f"{int(is_flipped.sum())} wrong labels among {train:,} digits, and one mistake",
    )
    say(f"Open {page.path} in a browser: all of this with pictures, to sort and filter.")
    say(
        f"Done in {perf_counter() - started:.0f} s. In {folder}: digits.png (the curves and the "
        "images), found, suspects, accuracy and explanation (.parquet), and the checkpoints."
    )
    say(
        "Next, on a model of your own: `tracin init` writes a task file and a RUN.toml that run as "
        "they are, to be changed into yours; then `tracin mislabelled RUN.toml` and `tracin "
        "explain RUN.toml --query 0`. In Python it is three lines:\n\n"
        '  run = tracin.TracIn(model, "cross_entropy", "checkpoints")\n'
        "  run.find_mislabelled(train)\n"
        "  run.explain(train, queries, k=10)\n\n"
        "The quick start in the documentation has the rest."
    )


@dataclass(frozen=True, eq=False)
class NoisyDigits:
    """Digits with some training labels made wrong.

    Attributes:
        digits: The images, with the right labels.
        labels: [train], the labels that the net learnt.
        is_flipped: [train], which of them are wrong.
    """

    digits: Digits
    labels: Tensor
    is_flipped: Tensor

    def relabelled(self, positions: np.ndarray, share: float) -> Tensor:
        """The labels after someone looked through the first `share` of a ranking: [train]."""
        looked_at = torch.from_numpy(positions)[: round(share * len(self.labels))]
        labels = self.labels.clone()
        labels[looked_at] = self.digits.train_labels[looked_at]
        return labels

    def pictures(
        self, positions: Iterable[int], scores: Sequence[float] | None = None
    ) -> list[Picture]:
        """Training images with the labels they were learnt under."""
        pictures = []
        for place, position in enumerate(int(each) for each in positions):
            caption = [f"labelled {int(self.labels[position])}"]
            if scores is not None:
                caption.append(f"{scores[place]:+,.0f}")
            is_wrong = bool(self.is_flipped[position])
            if is_wrong:
                caption.append(f"but {a_digit(int(self.digits.train_labels[position]))}")
            pictures.append(Picture(self.digits.train_images[position], tuple(caption), is_wrong))
        return pictures

    def truth(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Extra columns for a table of training examples: the right labels."""
        rows = torch.from_numpy(positions)
        return {
            "right_label": self.digits.train_labels[rows].numpy(),
            "is_flipped": self.is_flipped[rows].numpy(),
        }


@dataclass(frozen=True, eq=False)
class Mistake:
    """A test digit that was read wrongly, and the training examples behind it."""

    model: nn.Module
    noisy: NoisyDigits
    query: int
    explanation: Explanations

    def picture(self) -> Picture:
        """The query."""
        digits, (answer, confidence) = self.noisy.digits, self._answer(self.model)
        right = int(digits.test_labels[self.query])
        return Picture(
            digits.test_images[self.query],
            (f"is {a_digit(right)}", f"read as {answer}, {confidence:.0%}"),
        )

    def sides(self) -> dict[str, list[Picture]]:
        """Proponents and opponents, strongest first."""
        sides = {"proponents": self.explanation.proponents, "opponents": self.explanation.opponents}
        return {
            name: self.noisy.pictures(hits.positions[0], hits.scores[0].tolist())
            for name, hits in sides.items()
        }

    def in_words(self, clean: nn.Module, relabelled: nn.Module) -> str:
        """The whole story of this mistake, drawn in characters."""
        sides = self.sides()
        right = int(self.noisy.digits.test_labels[self.query])
        answer, confidence = self._answer(self.model)
        before, _ = self._answer(clean)
        after, sureness = self._answer(relabelled)
        counts = {name: sum(each.is_marked for each in side) for name, side in sides.items()}
        return (
            f"Why is test digit {self.query}, {a_digit(right)}, read as {a_digit(answer)}, and "
            f"with {confidence:.0%} confidence? (The net with the right labels said {before}.)\n\n"
            f"{side_by_side([self.picture()])}\n\n"
            f"Proponents: learning these drew the net towards {right}. Below each, its score.\n\n"
            f"{side_by_side(sides['proponents'])}\n\n"
            f"Opponents: learning these drew it away from {right}.\n\n"
            f"{side_by_side(sides['opponents'])}\n\n"
            f"{counts['opponents']} of these {SHOWN} opponents and {counts['proponents']} of the "
            f"{SHOWN} proponents carry a wrong label; of all training examples {NOISE:.0%} do. "
            "Wrong labels have strong effects, in both directions. The net trained on the "
            f"corrected labels says {after}, with {sureness:.0%} confidence"
            f"{'' if after == right else ', which is still wrong'}."
        )

    def row(self) -> Row:
        """A line of the figure."""
        sides = self.sides()
        return Row(
            f"A mistake, {SHOWN} proponents of the right answer, {SHOWN} opponents",
            [self.picture(), *sides["proponents"], *sides["opponents"]],
        )

    def _answer(self, model: nn.Module) -> tuple[int, float]:
        with torch.no_grad():
            chances = model(self.noisy.digits.test_images[[self.query]]).softmax(1)[0]
        return int(chances.argmax()), float(chances.max())


def found_curves(suspects: Suspects, is_flipped: Tensor) -> dict[str, FoundCurve]:
    """What each column of the table finds, by the name of the score."""
    is_wrong = is_flipped[torch.from_numpy(suspects.positions)]
    scores = {
        "loss and margin": suspects.loss_and_margin,
        "loss": suspects.loss,
        "margin": -suspects.margin,
        "EL2N": suspects.el2n,
        "TracIn self-influence": suspects.self_influence,
        "TracIn (last layer)": suspects.self_influence_last,
    }
    return {name: found_curve(score, is_wrong, INSPECTED) for name, score in scores.items()}


def found_table(curves: dict[str, FoundCurve], wrong: int) -> str:
    """The curves in figures, with chance below and the best possible above them."""
    width = 24
    head = "".join(f"{share:>8.0%}" for share in INSPECTED)
    lines = [
        f"Found of the {wrong} wrong labels, by the share of the training data looked at:",
        "",
        f"  {'':{width}}{head}{'AUROC':>9}",
    ]
    for name, curve in curves.items():
        shares = "".join(f"{curve.found[share]:>8.1%}" for share in INSPECTED)
        lines.append(f"  {name:{width}}{shares}{curve.auroc:>9.3f}")
    lines.append(f"  {'random':{width}}{''.join(f'{s:>8.1%}' for s in INSPECTED)}{0.5:>9.3f}")
    best = "".join(f"{min(1.0, share / NOISE):>8.1%}" for share in INSPECTED)
    lines.append(f"  {'best possible':{width}}{best}{1.0:>9.3f}")
    return "\n".join(lines)


def what_to_make_of(curves: dict[str, FoundCurve]) -> str:
    """An honest reading of the table, from its own figures."""
    best = max(curves, key=lambda name: curves[name].auroc)
    return (
        f"By AUROC {best} orders these planted labels best. Labels that people got wrong differ: "
        "there loss leads and self-influence, which finds the rare and the memorised, comes last, "
        "so the ranking is by loss and margin. None of the cheap scores can say which examples "
        "made a prediction; TracIn can: that comes below."
    )


def _accuracies(noisy: NoisyDigits, relabelled: Tensor, repeats: int) -> dict[str, list]:
    """Test accuracy of nets trained from several seeds on three sets of labels."""
    digits = noisy.digits
    table: dict[str, list] = {"labels": [], "seed": [], "test_accuracy": []}
    labels = {"noisy": noisy.labels, "relabelled": relabelled, "right": digits.train_labels}
    for name, each in labels.items():
        for seed in range(SEED + 1, SEED + 1 + repeats):
            model = trained(digits.train_images, each, seed)
            reached = accuracy(model, digits.test_images, digits.test_labels)
            for column, value in zip(table, (name, seed, reached), strict=True):
                table[column].append(value)
    return table


def _accuracies_in_words(
    noisy: NoisyDigits, relabelled: Tensor, accuracies: dict[str, list]
) -> str:
    by_labels: dict[str, list[float]] = {}
    for name, reached in zip(accuracies["labels"], accuracies["test_accuracy"], strict=True):
        by_labels.setdefault(name, []).append(reached)
    repeats = len(by_labels["relabelled"])
    mean = {name: sum(each) / repeats for name, each in by_labels.items()}
    spread = {name: max(each) - min(each) for name, each in by_labels.items()}
    changed = int((relabelled != noisy.labels).sum())
    looked_at = round(INSPECTED_BY_HAND * len(relabelled))
    return (
        f"Someone who looks through the first {INSPECTED_BY_HAND:.0%} ({looked_at} digits) "
        f"corrects {changed} of the {int(noisy.is_flipped.sum())} wrong labels. Test accuracy, the "
        f"mean over nets trained from {repeats} other seed{'s' * (repeats > 1)} (in brackets: "
        "highest less lowest):\n\n"
        f"  on the noisy labels       {mean['noisy']:.1%}  ({spread['noisy']:.1%})\n"
        f"  on the corrected labels   {mean['relabelled']:.1%}  ({spread['relabelled']:.1%})\n"
        f"  on the right labels       {mean['right']:.1%}  ({spread['right']:.1%})"
    )


def _worst_mistake(model: nn.Module, clean: nn.Module, digits: Digits) -> int | None:
    """The most confident mistake, among those that the wrong labels caused if there are any."""
    with torch.no_grad():
        chances = model(digits.test_images).softmax(1)
        was_right = clean(digits.test_images).argmax(1) == digits.test_labels
    confidence, answer = chances.max(1)
    is_mistake = answer != digits.test_labels
    if not is_mistake.any():
        return None
    is_changed = is_mistake & was_right
    return int(
        confidence.masked_fill(~(is_changed if is_changed.any() else is_mistake), -1).argmax()
    )


def _found_columns(curves: dict[str, FoundCurve]) -> dict[str, np.ndarray]:
    points = len(next(iter(curves.values())).curve)
    return {
        "score": np.repeat(list(curves), points),
        "inspected": np.tile(np.linspace(0, 1, points), len(curves)),
        "found": np.concatenate([curve.curve.numpy() for curve in curves.values()]),
    }


def _require_extras() -> None:
    try:
        import matplotlib  # noqa: F401
        import pyarrow  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise TracInError(
            f"The demo needs scikit-learn, matplotlib and pyarrow, but {error.name} is not "
            f"installed. Run {install_line('demo')}."
        ) from error
