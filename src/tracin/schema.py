"""What JSON from a disk must look like, checked before anything is made of it.

A file may be damaged, of another release, or made to harm. So every field is named here with its
kind and its bounds, none may be missing and none may be more, and numbers are small enough that
memory can be taken for them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from tracin.checks import is_int

MOST = (1 << 63) - 1


class Check(Protocol):
    """Takes a value as JSON has it, and gives what it stands for."""

    def __call__(self, value: Any, at: str) -> Any:
        """The value, checked.

        Args:
            value: As `parsed` gave it.
            at: Where it was found, for errors.

        Raises:
            ValueError: It is something else.
        """
        ...


@final
@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = MOST

    def __call__(self, value: Any, at: str) -> int:
        """As `Check` says."""
        if not is_int(value):
            raise ValueError(f"{at} is {_short(value)}, not a whole number")
        if not self.low <= value <= self.high:
            raise ValueError(f"{at} is {_short(value)}, not from {self.low} to {self.high}")
        return value


@final
@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`."""

    low: float = -math.inf
    high: float = math.inf

    def __call__(self, value: Any, at: str) -> float:
        """As `Check` says."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{at} is {_short(value)}, not a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found) or not self.low <= found <= self.high:
            raise ValueError(f"{at} is {_short(value)}, not from {self.low:g} to {self.high:g}")
        return found


@final
@dataclass(frozen=True)
class Truth:
    """True or false."""

    def __call__(self, value: Any, at: str) -> bool:
        """As `Check` says."""
        if not isinstance(value, bool):
            raise ValueError(f"{at} is {_short(value)}, not true or false")
        return value


@final
@dataclass(frozen=True)
class Text:
    """A text that matches `pattern` as a whole."""

    pattern: str = r"(?s:.*)"

    def __call__(self, value: Any, at: str) -> str:
        """As `Check` says."""
        if not isinstance(value, str):
            raise ValueError(f"{at} is {_short(value)}, not a text")
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{at} is {_short(value)}, not as {self.pattern}")
        return value


@final
@dataclass(frozen=True)
class Items:
    """A list of `least` to `most` values of one kind; gives a tuple."""

    each: Check
    least: int = 0
    most: int = 1 << 20

    def __call__(self, value: Any, at: str) -> tuple[Any, ...]:
        """As `Check` says."""
        if not isinstance(value, list | tuple):
            raise ValueError(f"{at} is {_short(value)}, not a list")
        if not self.least <= len(value) <= self.most:
            raise ValueError(f"{at} has {len(value)} entries, not {self.least} to {self.most}")
        return tuple(self.each(one, f"{at}[{place}]") for place, one in enumerate(value))


@final
@dataclass(frozen=True)
class Named:
    """A mapping of any names that match `names` to values of one kind."""

    each: Check
    names: str = r"(?s:.*)"

    def __call__(self, value: Any, at: str) -> dict[str, Any]:
        """As `Check` says."""
        if not isinstance(value, dict):
            raise ValueError(f"{at} is {_short(value)}, not a mapping")
        for name in value:
            if not re.fullmatch(self.names, name):
                raise ValueError(f"{at} has the name {_short(name)}, not as {self.names}")
        return {name: self.each(one, f"{at}.{name}") for name, one in value.items()}


@final
@dataclass(frozen=True)
class Fields:
    """A mapping with these names, all of them and no other."""

    checks: Mapping[str, Check]

    def __call__(self, value: Any, at: str) -> dict[str, Any]:
        """As `Check` says."""
        if not isinstance(value, dict):
            raise ValueError(f"{at} is {_short(value)}, not a mapping")
        for name in self.checks:
            if name not in value:
                raise ValueError(f"{at}.{name} is missing")
        for name in value:
            if name not in self.checks:
                raise ValueError(f"{at}.{_short(name)} is unknown")
        return {name: check(value[name], f"{at}.{name}") for name, check in self.checks.items()}


@final
@dataclass(frozen=True)
class Kinds:
    """A mapping whose `kind` says which fields it has; gives them with their `kind`."""

    fields: Mapping[str, Mapping[str, Check]]

    def __call__(self, value: Any, at: str) -> dict[str, Any]:
        """As `Check` says."""
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in self.fields:
            raise ValueError(f"{at}.kind is {_short(kind)}, none of {', '.join(self.fields)}")
        return Fields({"kind": Text(), **self.fields[kind]})(value, at)


@final
@dataclass(frozen=True)
class Maybe:
    """Null, or a value of a kind."""

    kind: Check

    def __call__(self, value: Any, at: str) -> Any:
        """As `Check` says."""
        return None if value is None else self.kind(value, at)


@final
@dataclass(frozen=True)
class AnyMapping:
    """A mapping whose fields somebody else checks, nested no deeper than `deepest`."""

    deepest: int = 32

    def __call__(self, value: Any, at: str) -> dict[str, Any]:
        """As `Check` says."""
        if not isinstance(value, dict):
            raise ValueError(f"{at} is {_short(value)}, not a mapping")
        level: list[Any] = [value]
        for _ in range(self.deepest):
            level = [inner for each in level for inner in _within(each)]
        if level:
            raise ValueError(f"{at} is nested deeper than {self.deepest}")
        return value


def parsed(content: bytes) -> Any:
    """JSON as it is defined: no NaN, no infinities, no name twice in one mapping.

    Raises:
        ValueError: It is something else, or nested deeper than any file of this library.

    Example:
        >>> parsed(b'{"rows": 3}')
        {'rows': 3}
    """
    try:
        return json.loads(content, parse_constant=_refused, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _within(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one mapping")
    return found


def _short(value: Any) -> str:
    """A value in a few characters; one that is nested or huge is not written out."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print longer ones
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
