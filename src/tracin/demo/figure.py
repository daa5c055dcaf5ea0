"""The findings on one page: how fast wrong labels are found, and the images behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tracin.analysis import FoundCurve
from tracin.demo.pictures import Picture
from tracin.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

INK, PALE, WRONG = "#1f2430", "#9aa3b2", "#d1495b"
COLOURS = ("#1b6ca8", "#57a773", "#edae49", "#7a5195", "#00798c", "#8d6a9f")
SHOWN = 0.4  # of the ranking: beyond, all curves lie at the top


@dataclass(frozen=True)
class Row:
    """A line of pictures under a title."""

    title: str
    pictures: Sequence[Picture]


def draw(
    path: Path, title: str, curves: Mapping[str, FoundCurve], wrong: float, rows: Sequence[Row]
) -> None:
    """Write a PNG: found-fraction curves on the left, rows of pictures on the right.

    Args:
        path: The file, written whole or not at all.
        title: Above the curves.
        curves: By the name of the score; the first is drawn on top.
        wrong: The share of labels that are wrong, which sets what a perfect ranking would find.
        rows: Of pictures, from top to bottom.
    """
    # The figure's own canvas, not pyplot, whose global state belongs to the user.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, max(4.4, 1.9 * len(rows))), dpi=120, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(0.75, 1.25), wspace=0.03)[0]
    _draw_curves(left, title, curves, wrong)
    columns = max(len(row.pictures) for row in rows)
    for row, part in zip(rows, right.subfigures(len(rows), 1, squeeze=False)[:, 0], strict=True):
        _draw_row(part, row, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", facecolor="white")


def _draw_curves(
    figure: "SubFigure", title: str, curves: Mapping[str, FoundCurve], wrong: float
) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PALE, linestyle=(0, (4, 3)), label="random")
    axes.plot(
        [0, wrong, 1], [0, 1, 1], color=PALE, linewidth=1, linestyle=":", label="best possible"
    )
    # The first is drawn last, on top of the others, and stays first in the legend.
    for place, (name, curve) in reversed(list(enumerate(curves.items()))):
        share = torch.linspace(0, 1, len(curve.curve))
        axes.plot(
            share.numpy(),
            curve.curve.numpy(),
            color=COLOURS[place % len(COLOURS)],
            linewidth=2.6 if place == 0 else 1.6,
            label=f"{name}  (AUROC {curve.auroc:.3f})",
        )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="lower right", fontsize=9, edgecolor="none", framealpha=1
    )
    axes.set_xlim(0, SHOWN)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("training examples looked at, most suspect first", color=INK)
    axes.set_ylabel("wrong labels found", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.grid(color=PALE, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_row(figure: "SubFigure", row: Row, columns: int) -> None:
    figure.suptitle(row.title, x=0.01, ha="left", fontsize=10, color=INK, fontweight="bold")
    every_axes = figure.subplots(1, columns, squeeze=False)[0]
    for place, axes in enumerate(every_axes):
        axes.set_xticks([])
        axes.set_yticks([])
        if place >= len(row.pictures):
            axes.set_axis_off()
            continue
        picture = row.pictures[place]
        axes.imshow(picture.image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        colour = WRONG if picture.is_marked else PALE
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.2 if picture.is_marked else 0.8)
        text_colour = WRONG if picture.is_marked else INK
        axes.set_xlabel("\n".join(picture.caption), fontsize=8, color=text_colour)
