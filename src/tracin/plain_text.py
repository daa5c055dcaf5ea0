"""Text from data, files and models, made safe for a screen.

Ids, labels and the names of checkpoints and parameters may hold anything. Characters that a
terminal obeys instead of showing (escape sequences, line breaks, marks that turn the direction of
writing) could forge the row of a table; they are shown as Python writes them in a string.
"""

import unicodedata
from collections.abc import Iterable, Sequence

# Control, format and surrogate characters, and separators of lines and paragraphs.
_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Within words of Persian or Hindi, and within emoji, these two are spelling.
_JOINERS = frozenset("\u200c\u200d")

# Between the two ends of a text that is cut.
_CUT = "..."

# How far the further lines of a message are indented, so that none looks like a message of its own.
_INDENT = "    "


def plain(value: object) -> str:
    r"""`value` as text on one line, without a character that a terminal would obey.

    Example:
        >>> print(plain("cat\x1b[2K\r\u202egpj.exe"))
        cat\x1b[2K\r\u202egpj.exe
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_shown, text))


def plain_lines(text: str) -> str:
    r"""`text` with its line breaks, all but the first line indented, each as `plain` makes it.

    Example:
        >>> print(plain_lines("It said:\nno such file\x07"))
        It said:
            no such file\x07
    """
    return f"\n{_INDENT}".join(map(plain, text.split("\n")))


def display_width(text: str) -> int:
    """How many columns of a terminal a text takes: letters of East Asia two, accents none.

    Example:
        >>> display_width("cat"), display_width("\u732b"), display_width("e\u0301")
        (3, 2, 1)
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def middle_cut(text: str, most: int) -> str:
    """`text` in at most so many columns of a terminal: its beginning and its end.

    Example:
        >>> middle_cut("data/train/0000/cat-0017.png", 16)
        'data/tr...17.png'
    """
    if display_width(text) <= most:
        return text
    left = max(0, most - len(_CUT))
    end = _fitting(reversed(text), left // 2)
    return _fitting(f"{_fitting(text, left - left // 2)}{_CUT}{end[::-1]}", most)


def listed(names: Iterable[object], most: int = 4) -> str:
    """The first few names, quoted, and how many more there are.

    Example:
        >>> listed(["fc.weight", "fc.bias", "conv.weight"], most=2)
        "'fc.weight', 'fc.bias' and 1 more"
    """
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def many(count: int, thing: str) -> str:
    """A count with its noun.

    Example:
        >>> many(1, "query"), many(1200, "row")
        ('1 query', '1,200 rows')
    """
    if count == 1:
        return f"1 {thing}"
    return f"{count:,} {thing.removesuffix('y')}ies" if thing[-1] == "y" else f"{count:,} {thing}s"


def first_few(texts: Sequence[str], most: int = 3) -> str:
    """The first few texts, and how many more there are.

    Example:
        >>> first_few(["a is 1", "b is 2", "c is 3"], most=2)
        'a is 1; b is 2, and 1 more'
    """
    more = f", and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def a_kind(value: object) -> str:
    """The class of a value, with its article; any list is a list.

    Example:
        >>> a_kind([1]), a_kind(1), a_kind({})
        ('a list', 'an int', 'a dict')
    """
    name = "list" if isinstance(value, list) else type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _columns(character: str) -> int:
    if unicodedata.combining(character) or character in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(characters: Iterable[str], most: int) -> str:
    """The first characters that take at most so many columns."""
    taken, width = [], 0
    for character in characters:
        width += _columns(character)
        if width > most:
            break
        taken.append(character)
    return "".join(taken)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _OBEYED or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode("ascii")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
