"""An example as the page draws it: every text made safe and short, its picture encoded."""

from dataclasses import dataclass
from typing import Any, final

from tracin.plain_text import first_line
from tracin.report.pictures import data_uri
from tracin.report.sounds import sound_uri
from tracin.results.shown import Shown, brief, one_line


@final
@dataclass(frozen=True)
class Card:
    """One example on the page.

    Attributes:
        name: What it is called where its picture cannot be seen.
        image: A data URI.
        text: Its text, tokens and columns, in that order.
        label: Its label in the data.
        note: Why something is not shown.
        audio: A data URI.
    """

    name: str
    image: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    note: str | None = None
    audio: str | None = None


def card_of(shown: Shown | None, name: str, side: int) -> Card:
    """The card of an example; never raises, whatever the example holds.

    Args:
        shown: The example; None where the data set was not given.
        name: What it is called where its picture cannot be seen.
        side: Pixels of a picture's longer side.
    """
    if shown is None:
        return Card(name)
    image, notes = None, [shown.note] if shown.note else []
    if shown.image is not None:
        try:
            image = data_uri(shown.image, side)
        except Exception as error:  # a broken file, an odd mode of a picture
            notes.append(f"the picture cannot be shown: {first_line(error)}")
    audio = None
    if shown.audio is not None:
        try:
            audio = sound_uri(shown.audio)
        except Exception as error:  # as of pictures
            notes.append(f"the sound cannot be played: {first_line(error)}")
    texts = [text for text in (shown.words, shown.place_in_words, shown.columns_in_words) if text]
    return Card(
        name,
        image,
        tuple(map(one_line, texts)),
        None if shown.label is None else label_text(shown.label),
        one_line("; ".join(map(str, notes))) if notes else None,
        audio,
    )


def label_text(label: Any) -> str:
    """A label, or an id, in few characters that a page only shows."""
    return one_line(brief(label, 60), 60)


def isolated(text: str) -> str:
    """A text within a sentence of ours: Hebrew or Arabic in it cannot reorder the words around it.

    Unicode's first strong isolate, https://www.unicode.org/reports/tr9/, does in plain text what
    `<bdi>` does in HTML.
    """
    return text if text.isascii() else f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}"
