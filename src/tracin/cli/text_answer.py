"""What `tracin ask` shows: a question, its answer, and the training texts behind it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from tracin.plain_text import many, plain
from tracin.results.near_copies import near_copies, words_in_all
from tracin.results.shown import one_line
from tracin.results.table import cell, screen_width
from tracin.results.tabular import Tabular

if TYPE_CHECKING:
    import numpy as np

    from tracin.results.explanations import Influence

LETTERS = 400  # of a text on the screen
NAMED = 5  # ids of near-copies on the screen
_INDENT = "      "
# As `explain` calls them, and what they did.
_SIDES = {
    "proponent": "training on these texts made the answer likelier",
    "opponent": "training on these texts made it less likely",
}


@final
@dataclass(frozen=True)
class TextHit:
    """A training text that matters for an answer, with those that say nearly the same.

    Attributes:
        influence: The strongest of them.
        text: Its text.
        copies: Ids of the near-copies, the strongest first.
    """

    influence: "Influence"
    text: str
    copies: tuple[Any, ...]


@final
@dataclass(frozen=True, eq=False, repr=False)
class TextAnswer(Tabular):
    """A question, its answer, and the training texts behind it. Printing it shows them.

    Attributes:
        question: As it was asked.
        answer: What is explained.
        source: Where the answer is from, in words.
        loss: The answer's loss at the checkpoint.
        checkpoint: The checkpoint's name.
        proponents: The strongest first.
        opponents: The strongest first.
        notes: What else to know.
    """

    question: str
    answer: str
    source: str
    loss: float
    checkpoint: str
    proponents: list[TextHit]
    opponents: list[TextHit]
    notes: tuple[str, ...] = ()

    def columns(self) -> "dict[str, np.ndarray]":
        """One row per text; the ids of its near-copies are joined by spaces."""
        import numpy as np

        rows = [("proponent", *each) for each in enumerate(self.proponents, start=1)]
        rows += [("opponent", *each) for each in enumerate(self.opponents, start=1)]
        return {
            "kind": np.array([kind for kind, _, _ in rows], dtype=object),
            "rank": np.array([rank for _, rank, _ in rows], dtype=np.int64),
            "id": np.array([hit.influence.id for _, _, hit in rows]),
            "position": np.array([hit.influence.position for _, _, hit in rows], dtype=np.int64),
            "score": np.array([hit.influence.score for _, _, hit in rows], dtype=np.float64),
            "near_copies": np.array([len(hit.copies) for _, _, hit in rows], dtype=np.int64),
            "near_copy_ids": np.array(
                [" ".join(map(str, hit.copies)) for _, _, hit in rows], dtype=object
            ),
            "text": np.array([hit.text for _, _, hit in rows], dtype=object),
        }

    def __str__(self) -> str:
        said = f"{self.source}, loss {cell(self.loss)} at {plain(self.checkpoint)}"
        blocks = [
            "\n".join(
                [
                    _wrapped("question", self.question),
                    _wrapped("answer", self.answer or "(it stops at once)"),
                    f"          ({said})",
                ]
            )
        ]
        for kind, hits in (("proponent", self.proponents), ("opponent", self.opponents)):
            if hits:
                lines = [f"{kind}s: {_SIDES[kind]}"]
                blocks.append("\n".join([*lines, *map(_shown, range(1, len(hits) + 1), hits)]))
        return "\n\n".join([*blocks, *self.notes])


def folded_hits(
    sides: Sequence[Sequence["Influence"]],
    texts: Sequence[Sequence[str]],
    k: int,
    overlap: float | None,
) -> list[list[TextHit]]:
    """The first k texts of each side, with near-copies folded under the first of them.

    Args:
        sides: The influences of each side, the strongest first.
        texts: Their texts.
        k: How many to keep of each side.
        overlap: As `near_copies` takes it; None folds nothing.
    """
    common = words_in_all([text for side in texts for text in side])
    found = []
    for influences, own in zip(sides, texts, strict=True):
        groups = (
            [[at] for at in range(len(own))]
            if overlap is None
            else near_copies(own, overlap, common)
        )
        found.append(
            [
                TextHit(influences[first], own[first], tuple(influences[at].id for at in copies))
                for first, *copies in groups[:k]
            ]
        )
    return found


def _shown(rank: int, hit: TextHit) -> str:
    head = f"{rank:>3}.  id {plain(hit.influence.id)}, score {cell(hit.influence.score)}"
    if hit.influence.error:
        head += f" ± {cell(hit.influence.error)}"
    if hit.copies:
        named = ", ".join(plain(each) for each in hit.copies[:NAMED])
        more = ", ..." if len(hit.copies) > NAMED else ""
        head += f" (and {many(len(hit.copies), 'near-copy')}: {named}{more})"
    return f"{head}\n{_filled(hit.text, _INDENT)}"


def _wrapped(name: str, text: str) -> str:
    return f"{name:<10}{_filled(text, ' ' * 10).lstrip()}"


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(
        one_line(text, LETTERS), screen_width(), initial_indent=indent, subsequent_indent=indent
    )
