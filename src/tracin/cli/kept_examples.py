"""Keeps what the examples of a result look like, so that `tracin view` shows them without the task.

Beside a ranking lies `examples.parquet`, which `tracin.view.save_examples` also writes: a small
picture and a text of each example. The viewer runs no code of the user's, so what only the task can
say is written while the task is open.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from tracin.cli.task import Task
from tracin.data import Examples, open_examples
from tracin.errors import DecisionError, OutputError
from tracin.files import fingerprint, ids_fingerprint
from tracin.plain_text import many, plain
from tracin.report.pictures import pixels, png, scaled
from tracin.results.shown import Showing, Shown, shortened
from tracin.results.shown_rows import shown_rows
from tracin.view.examples import FILE, Pack, read_pack, write_pack

LARGEST = 32 << 20  # bytes of all pictures and texts
SIDE = 256  # pixels of a picture's longer side: the viewer shows none larger
SHARP = 64  # pixels up to which a picture is kept as it is
LETTERS = 5000  # of a text
COMPARED = 16  # examples by which data with the same ids are told apart
_STEP = 64  # examples that are fetched before the size is looked at


@final
@dataclass(frozen=True, eq=False)
class KeptExample:
    """One example as the file has it.

    Attributes:
        position: Where it is in the training data.
        picture: The bytes of an image file; None without a picture.
        text: Its text or columns; empty without.
    """

    position: int
    picture: bytes | None
    text: str

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.picture or b"") + len(self.text.encode("utf-8", "replace")) + 8


def keep_examples(
    task: Task, positions: Sequence[int] | np.ndarray, folder: Path, most: int, *, adds: bool
) -> str:
    """Write what some training examples look like, and say so in a line.

    Args:
        task: The task, with its data and how to show it.
        positions: Which examples, the most important first; one may come twice.
        folder: Where the result is.
        most: How many examples at most; 0 keeps none.
        adds: Whether examples that are in the file already stay, if they are of the same data.

    Returns:
        What was kept, or why nothing was; empty where nothing was asked for.
    """
    wanted = list(dict.fromkeys(int(each) for each in positions))
    if not most or not wanted:
        return ""
    path = folder / FILE
    examples = open_examples(task.train, name="train")
    how = Showing(task.labels, task.decode, task.show)
    about = {"kept_of": ids_fingerprint(examples.ids), **_looks(examples, how)}
    try:
        there = read_pack(path) if path.is_file() else None
    except DecisionError:
        there = None  # damaged: nothing is lost
    if there is not None and "kept_of" not in there.about:
        return f"{plain(path)} holds examples of your own and stays as it is."
    found = _within(_kept(examples, wanted[:most], how))
    # A file of an earlier version says less of its data.
    if adds and there is not None and there.about.items() <= about.items():
        new = {each.position for each in found}
        old = (each for each in _in_pack(there) if each.position not in new)
        found = _within([*found, *old])
    if not any(each.picture or each.text for each in found):
        return ""
    try:
        write_pack(path, _pack_of(found, about))
    except OutputError as error:
        return f"What the examples look like was not kept. {error}"
    of = "" if len(found) >= len(wanted) else f" of {len(wanted):,}"
    return f"{many(len(found), 'example')}{of} to look at in tracin view: {plain(path)}"


def _looks(examples: Examples, how: Showing) -> dict[str, str]:
    """What some examples look like, which tells data with the same ids apart.

    Data that draw random numbers look different each time, and are known by their ids alone.
    """
    some = np.unique(np.linspace(0, len(examples) - 1, COMPARED).astype(int)).tolist()
    first, second = (
        fingerprint(
            piece
            for each in _kept(examples, some, how)
            for piece in (each.picture or b"", f"|{each.text}|".encode("utf-8", "replace"))
        )
        for _ in range(2)
    )
    return {"looks": first} if first == second else {}


def _kept(examples: Examples, positions: Sequence[int], how: Showing) -> Iterator[KeptExample]:
    for start in range(0, len(positions), _STEP):
        some = list(positions[start : start + _STEP])
        ids = examples.ids[some].tolist()
        for position, shown in zip(some, shown_rows(examples, some, ids, how), strict=True):
            yield KeptExample(position, picture_of(shown), said_of(shown))


def _within(found: Iterator[KeptExample] | Sequence[KeptExample]) -> list[KeptExample]:
    """The first that fit into the file; one at least."""
    kept, size = [], 0
    for each in found:
        size += each.size
        if kept and size > LARGEST:
            break
        kept.append(each)
    return kept


def picture_of(shown: Shown) -> bytes | None:
    """A small picture of an example as an image file; None where there is none, or it is broken."""
    if shown.image is None:
        return None
    try:
        image = pixels(shown.image)
        if max(image.shape[1:]) <= SHARP:
            return png(image)
        return _as_webp(scaled(image, SIDE) if max(image.shape[1:]) > SIDE else image)
    except (ValueError, TypeError, OSError):  # the user's data: the text says what there is
        return None


def _as_webp(image: Tensor) -> bytes:
    """A tenth of the bytes of a PNG, where Pillow is installed."""
    try:
        from PIL import Image
    except ImportError:
        return png(image)
    out, values = io.BytesIO(), image.permute(1, 2, 0).numpy()
    made = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
    made.convert("RGB").save(out, "WEBP", quality=80)
    return out.getvalue()


def said_of(shown: Shown) -> str:
    """The text, columns and note of an example, one after the other."""
    parts = (shown.words, shown.columns_in_words, shown.note)
    return shortened("\n".join(part for part in parts if part), LETTERS)


def _in_pack(pack: Pack) -> Iterator[KeptExample]:
    for at, position in enumerate(pack.positions.tolist()):
        picture = None if pack.pictures is None else pack.pictures[at]
        yield KeptExample(position, picture, "" if pack.texts is None else pack.texts[at] or "")


def _pack_of(found: Sequence[KeptExample], about: dict[str, str]) -> Pack:
    positions = np.array([each.position for each in found], dtype=np.int64)
    return Pack(positions, [each.picture for each in found], [each.text for each in found], about)
