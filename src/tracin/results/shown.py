"""What an example is for a person: its picture, text, tokens or columns, and its label.

Results know examples by id and position; a person wants to see them. How an example looks depends
on the data alone, so it is guessed by type here, and `show=` overrules the guess.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import QueryError
from tracin.plain_text import a_kind, first_line, plain
from tracin.precision import in_double
from tracin.results.shown_place import place_in, place_in_words
from tracin.results.shown_sound import sound_in, sound_in_words

ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]
"""The names of classes: by place, or by number."""

MOST = 300  # characters of a text on a screen or in a report
LABEL = 60  # characters of a label, at most
COLUMNS = 12  # of an example, in a report
PICTURE_SIDE = 4  # pixels: what is smaller is a table of numbers
FLATTEST = 8  # how many times as wide as high a picture may be
# Where collated examples usually keep these.
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class")
TOKEN_KEYS = ("input_ids",)
HIDDEN_KEYS = ("attention_mask", "token_type_ids")


@final
@dataclass(frozen=True, eq=False)
class Shown:
    """An example as a person sees it. What is None or empty is not shown.

    Attributes:
        image: A picture: a tensor or array of shape [height, width], [1, height, width],
            [3, height, width], [4, height, width] or, as an array, [height, width, 3]; or a PIL
            image.
        text: A text.
        tokens: The pieces of a text, as a tokenizer names them.
        audio: A sound: (samples, rate), the samples of shape [time] or [channels, time] and how
            many there are per second.
        place: Where it is: (latitude, longitude) in degrees, north and east positive.
        columns: Other values by name, such as those of a table's row.
        label: The label in the data, as it should be read.
        note: What else to know, such as why the example cannot be shown.

    Example:
        >>> print(Shown(text="what a film", label="good"))
        [good] what a film
    """

    image: Any = None
    text: str | None = None
    tokens: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    label: Any = None
    note: str | None = None
    audio: tuple[Any, float] | None = None
    place: tuple[float, float] | None = None

    def __str__(self) -> str:
        parts = [] if self.label is None else [f"[{plain(brief(self.label, 40))}]"]
        if self.image is not None:
            parts.append("(a picture)")
        if self.audio is not None:
            parts.append(sound_in_words(self.audio))
        told = self.words, self.place_in_words, self.columns_in_words, self.note
        parts += [one_line(part) for part in told if part]
        return " ".join(parts)

    @property
    def words(self) -> str | None:
        """The text, or the tokens one after the other; None where there are neither."""
        if self.text is not None:
            return self.text if isinstance(self.text, str) else brief(self.text)
        return " ".join(map(str, self.tokens)) if len(self.tokens) else None

    @property
    def place_in_words(self) -> str | None:
        """The place, such as "37.77 N, 122.42 W"; None where there is none."""
        return None if self.place is None else place_in_words(self.place)

    @property
    def columns_in_words(self) -> str:
        """The first columns, such as "age: 31, income: 20000"."""
        listed = list(self.columns.items())
        more = f", and {len(listed) - COLUMNS} more" if len(listed) > COLUMNS else ""
        return ", ".join(f"{name}: {brief(value, 80)}" for name, value in listed[:COLUMNS]) + more


@final
@dataclass(frozen=True, eq=False)
class Showing:
    """How examples become `Shown`; never raises, whatever an example is.

    Attributes:
        labels: The classes' names, by class: a list, or a mapping such as `model.config.id2label`;
            None to show labels as they are.
        decode: Makes a text of a list of token ids, such as `tokenizer.decode`; None to show ids.
        show: Makes a `Shown` (or a text) of an example as the data set gives it; None to go by
            type.

    Example:
        >>> how = Showing(labels=["cat", "dog"])
        >>> print(how.of(("what a film", 1)))
        [dog] what a film
        >>> print(how.of({"text": "so so", "stars": 3, "label": 0}))
        [cat] so so stars: 3
    """

    labels: ClassNames | None = None
    decode: Callable[[list[int]], str] | None = None
    show: Callable[[Any], Shown | str] | None = None

    def __post_init__(self) -> None:
        """Refuse a single word, whose letters would be taken for the names."""
        if isinstance(self.labels, str):
            raise QueryError(
                f"labels are the names of all classes, such as ['cat', 'dog']; {self.labels!r} was "
                "given."
            )

    def of(self, example: Any) -> Shown:
        """The example as a person sees it; a short form of its repr, and why, where that fails."""
        try:
            made = self._made(example)
            str(made)  # a Shown of the user's own may hold anything
            return replace(made, label=self.label(made.label))
        except Exception as error:  # the user's data and functions may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            return Shown(text=brief(example), note=f"cannot be shown otherwise: {reason}")

    def label(self, label: Any) -> Any:
        """A label as it is read: the name of the class where there are names."""
        if label is None:
            return None
        value = _scalar(label)
        if self.labels is not None and isinstance(value, int) and not isinstance(value, bool):
            if isinstance(self.labels, Mapping):
                return self.labels.get(value, value)
            return self.labels[value] if 0 <= value < len(self.labels) else value
        return value

    def _made(self, example: Any) -> Shown:
        if self.show is None:
            return example if isinstance(example, Shown) else self._by_type(example)
        shown = self.show(example)
        if isinstance(shown, str):
            return Shown(text=shown)
        if not isinstance(shown, Shown):
            raise TypeError(f"show= returned {a_kind(shown)}, not a tracin.Shown")
        return shown

    def _by_type(self, example: Any) -> Shown:
        if isinstance(example, Mapping):
            return self._of_mapping(example)
        if isinstance(example, tuple | list) and not is_numbers(example) and len(example):
            *parts, last = example
            if parts and is_label(last):
                shown = self._by_type(parts[0]) if len(parts) == 1 else self._of_parts(parts)
                return replace(shown, label=last)
            return self._by_type(last) if not parts else self._of_parts(example)
        return self._of_value(example)

    def _of_parts(self, parts: Sequence[Any]) -> Shown:
        fields = getattr(parts, "_fields", None)
        names = fields if fields is not None else [str(at) for at in range(len(parts))]
        return self._of_mapping(dict(zip(names, parts, strict=True)))

    def _of_mapping(self, example: Mapping[Any, Any]) -> Shown:
        if not example:
            return Shown(text=brief(example))
        sound = sound_in(example)
        if sound is not None:
            return Shown(audio=sound)
        found = place_in(example)
        shown, columns = Shown(place=None if found is None else found[1]), {}
        for key, value in example.items():
            name = str(key)
            if found is not None and key in found[0]:
                continue
            if name.lower() in LABEL_KEYS and shown.label is None and is_label(value):
                shown = replace(shown, label=value)
            elif name in HIDDEN_KEYS or (name.lower() in LABEL_KEYS and "input_ids" in example):
                continue
            elif name in TOKEN_KEYS:
                shown = self._with_tokens(shown, value, example.get("attention_mask"))
            elif shown.image is None and is_picture(value):
                shown = replace(shown, image=value)
            elif shown.audio is None and sound_in(value) is not None:
                shown = replace(shown, audio=sound_in(value))
            elif shown.text is None and isinstance(value, str):
                shown = replace(shown, text=value)
            else:
                columns[name] = value
        return replace(shown, columns=columns)

    def _with_tokens(self, shown: Shown, ids: Any, mask: Any) -> Shown:
        numbers = np.asarray(ids).reshape(-1)
        if mask is not None:
            numbers = numbers[np.asarray(mask).reshape(-1) != 0]
        listed = [int(number) for number in numbers]
        if self.decode is not None:
            return replace(shown, text=str(self.decode(listed)))
        note = "token ids; decode=tokenizer.decode shows them as text"
        return replace(shown, tokens=tuple(map(str, listed[:MOST])), note=note)

    def _of_value(self, value: Any) -> Shown:
        if isinstance(value, str):
            return Shown(text=value)
        if is_picture(value):
            return Shown(image=value)
        if self.decode is not None and is_token_ids(value):
            return self._with_tokens(Shown(), value, None)
        return Shown(text=brief(value))


def is_label(value: Any) -> bool:
    """Whether a value is a single number or a short text, as labels are."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 or (value.ndim == 1 and len(value) == 1)
    if isinstance(value, str):
        return len(value) <= LABEL
    return isinstance(value, bool | int | float | np.generic)


def is_numbers(value: Any) -> bool:
    """Whether a list or tuple holds nothing but numbers: one value, not parts of an example."""
    return all(isinstance(each, int | float | np.number) for each in value) and len(value) > 2


def is_token_ids(value: Any) -> bool:
    """Whether a value is a row of whole numbers."""
    if isinstance(value, Tensor):
        return value.ndim == 1 and not (value.is_floating_point() or value.is_complex())
    return isinstance(value, list) and len(value) > 0 and all(type(each) is int for each in value)


def is_picture(value: Any) -> bool:
    """Whether a value can be drawn: a PIL image, or numbers [height, width] or with channels."""
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # PIL, without importing it
        return True
    if not isinstance(value, Tensor | np.ndarray):
        return False
    if isinstance(value, np.ndarray) and value.dtype.kind not in "buif":
        return False
    if isinstance(value, Tensor) and (value.is_complex() or value.is_sparse):
        return False
    size = picture_size(tuple(value.shape))
    if size is None:
        return False
    smaller, larger = min(size), max(size)
    return smaller >= PICTURE_SIDE and larger <= FLATTEST * smaller


def picture_size(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The height and width of a picture of a shape; None where it is none."""
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) != 3 or not (shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4)):
        return None
    return (shape[0], shape[1]) if has_channels_last(shape) else (shape[1], shape[2])


def has_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a picture of three dimensions is [height, width, channels].

    Four may be channels, but also the height of a small picture.

    Example:
        >>> has_channels_last((4, 6, 3)), has_channels_last((3, 6, 4)), has_channels_last((4, 6, 6))
        (True, False, False)
    """
    return shape[0] not in (1, 3) and shape[2] in (1, 3, 4)


def brief(value: Any, most: int = MOST) -> str:
    """A value in few characters, whatever it is: never raises, never runs long.

    Example:
        >>> brief(0.123456), brief(torch.zeros(2)), brief(torch.zeros(100, 3))
        ('0.1235', '0, 0', 'numbers [100, 3] of float32, from 0 to 0')
    """
    try:
        text = _short(value, most)
    except Exception as error:  # a repr may raise anything
        text = f"{a_kind(value)} whose text cannot be made ({type(error).__name__})"
    return shortened(text, most)


def shortened(text: str, most: int = MOST) -> str:
    """The first characters of a text, and how many it has where it has more.

    Example:
        >>> shortened("a" * 1000, 5)
        'aaaaa… (1,000 characters)'
    """
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def one_line(text: str, most: int = MOST) -> str:
    r"""A text cut, on one line, with nothing that a screen obeys.

    Example:
        >>> print(one_line("two\nlines\x1b[2J"))
        two ⏎ lines\x1b[2J
    """
    joined = " ⏎ ".join(shortened(text, most).replace("\t", " ").splitlines())
    return plain(joined)


def _short(value: Any, most: int) -> str:
    value = _scalar(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        return _of_tensor(torch.from_numpy(np.ascontiguousarray(value)))
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = writer.maxlong = most
    return writer.repr(value)


def _of_tensor(value: Tensor) -> str:
    name = str(value.dtype).removeprefix("torch.")
    if value.numel() == 0 or value.is_complex() or value.is_sparse:
        return f"numbers {list(value.shape)} of {name}"
    numbers = in_double(value.detach()).cpu()
    if value.ndim == 1 and len(value) <= 2 * COLUMNS:
        return ", ".join(f"{number:.4g}" for number in numbers.tolist())
    low, high = float(numbers.min()), float(numbers.max())
    return f"numbers {list(value.shape)} of {name}, from {low:.4g} to {high:.4g}"


def _scalar(value: Any) -> Any:
    """A single number out of its tensor or array; all else as it is."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim <= 1 and _count(value) == 1:
        return value.reshape(()).item()
    return value.item() if isinstance(value, np.generic) else value


def _count(value: Tensor | np.ndarray) -> int:
    return value.numel() if isinstance(value, Tensor) else value.size
