"""Where the examples are in what a collate_fn makes: found by collating one, two and three.

Sizes of one batch cannot tell: three images have three colours, two examples share a list of two
sizes. What grows with the number of examples has one entry per example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.data.batches import (
    Batch,
    Entries,
    Shared,
    can_move,
    has_rows,
    is_plain_list,
    is_texts,
    leaves,
    rebuilt,
    unlike_list,
)
from tracin.errors import DataError
from tracin.plain_text import a_kind

COUNTS = (1, 2, 3)


@final
@dataclass(frozen=True)
class Arrangement:
    """What is known of all batches that a collate_fn makes.

    Attributes:
        entries: The paths of lists with one entry per example.
        shared: The paths of lists that belong to all examples.
        alone: Why batches have no example dimension, so that examples come one at a time; None
            where they have one.
    """

    entries: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    alone: str | None = None

    def marked(self, batch: Batch, path: str = "") -> Batch:
        """`batch` with its lists as what they are."""
        if path in self.entries and isinstance(batch, list | tuple):
            return Entries(batch)
        if path in self.shared and isinstance(batch, list | tuple):
            return Shared(batch)
        if isinstance(batch, Mapping) or (
            isinstance(batch, list | tuple) and not isinstance(batch, torch.Size)
        ):
            return rebuilt(batch, lambda key, value: self.marked(value, f"{path}[{key!r}]"))
        return batch


def arrangement_of(collate: Callable[[int], Batch], name: str) -> Arrangement:
    """What batches have in common."""
    findings = _Findings(name)
    findings.compare([collate(count) for count in COUNTS], "")
    return findings.arrangement()


@dataclass
class _Findings:
    """What is found while batches of one, two and three examples are compared."""

    name: str
    entries: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    errors: list[DataError] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    kind: str = ""
    has_rows: bool = False
    has_listed_tensors: bool = False

    def arrangement(self) -> Arrangement:
        if self.alone or (self.has_listed_tensors and not self.has_rows):
            why = self.alone[0] if self.alone else "its tensors are in lists, one per example"
            return Arrangement(alone=why)
        if self.errors:
            raise self.errors[0]
        if not self.has_rows:
            raise without_tensors(self.kind, COUNTS[-1], self.name)
        return Arrangement(frozenset(self.entries), frozenset(self.shared))

    def compare(self, values: Sequence[Any], path: str) -> None:
        self.kind = self.kind or a_kind(values[0])
        if all(isinstance(value, Tensor | np.ndarray) for value in values):
            self._compare_tensors(values, path)
        elif all(isinstance(value, Mapping) for value in values):
            self._compare_mappings(values, path)
        elif all(isinstance(value, list | tuple) for value in values):
            self._compare_lists(values, path)
        elif any(_holds_tensors(value) for value in values):
            self.alone.append(f"batch{path} is {_described(values[0])}")

    def _compare_tensors(self, values: Sequence[Any], path: str) -> None:
        if not all(is_strided(value) for value in values):
            self.alone.append(f"batch{path} is {_described(values[0])}")
            return
        if all(value.ndim == 0 for value in values):
            return
        sizes = [tuple(value.shape) for value in values]
        if any(len(size) != len(sizes[0]) for size in sizes):
            self.alone.append(f"batch{path} has shapes {_listed(sizes)}")
        elif _follows(sizes, 0):
            self.has_rows = True
        elif len(set(sizes)) == 1 or any(_follows(sizes, at) for at in range(1, len(sizes[0]))):
            self.errors.append(not_first(path, sizes[-1], COUNTS[-1], self.name))
        else:
            self.alone.append(f"batch{path} has shapes {_listed(sizes)}")

    def _compare_mappings(self, values: Sequence[Any], path: str) -> None:
        if any(set(value) != set(values[0]) for value in values):
            self.alone.append(f"the keys of batch{path} change with the number of examples")
            return
        for key in values[0]:
            self.compare([value[key] for value in values], f"{path}[{key!r}]")

    def _compare_lists(self, values: Sequence[Any], path: str) -> None:
        sizes = [len(value) for value in values]
        if sizes == list(COUNTS):
            self.entries.add(path)
            self.has_listed_tensors |= any(map(_holds_tensors, values))
        elif len(set(sizes)) > 1:
            self.alone.append(f"batch{path} has {_listed(sizes)} entries")
        elif is_texts(values[0]):
            self.shared.add(path)
        elif is_plain_list(values[0]) and path:
            self.errors.append(unlike_list(path, sizes[-1], COUNTS[-1]))
        else:
            for position in range(sizes[0]):
                self.compare([value[position] for value in values], f"{path}[{position}]")


def is_strided(tensor: Tensor | np.ndarray) -> bool:
    """Whether a tensor can be sliced: it is neither sparse nor nested."""
    if isinstance(tensor, np.ndarray):
        return True
    return tensor.layout == torch.strided and not tensor.is_nested


def checked(batch: Batch, examples: int, name: str) -> Batch:
    """A batch in which every tensor with dimensions has so many examples first."""
    has_any = False
    for path, leaf in leaves(batch):
        if isinstance(leaf, Entries):
            if len(leaf) != examples:
                raise unlike_list(path, len(leaf), examples)
            continue
        if not has_rows(leaf):
            continue
        has_any = True
        if leaf.shape[0] != examples:
            raise not_first(path, tuple(leaf.shape), examples, name)
    if not has_any:
        raise without_tensors(a_kind(batch), examples, name)
    return batch


def with_listed_texts(batch: Batch, examples: int) -> Batch:
    """A batch of torch's own collate, in which a list of texts has one per example."""
    if isinstance(batch, torch.Size) or not isinstance(batch, Mapping | list | tuple):
        return batch
    if is_texts(batch):
        return Entries(batch) if len(batch) == examples else Shared(batch)
    return rebuilt(batch, lambda _, value: with_listed_texts(value, examples))


def not_first(path: str, shape: tuple[int, ...], examples: int, name: str) -> DataError:
    """A tensor whose first dimension does not hold the examples."""
    return DataError(
        f"Every tensor of a batch has the examples first, but after collating {examples} examples "
        f"of {name}, batch{path} has shape {shape}. Let the collate_fn return [examples, ...]; a "
        "value that all examples share has to be a tensor without dimensions, or no tensor."
    )


def without_tensors(kind: str, examples: int, name: str) -> DataError:
    """A batch without tensors."""
    return DataError(
        f"A batch is a tensor, or a tuple, list or mapping of tensors with the examples first, but "
        f"collating {examples} examples of {name} gave {kind} without any. Pass a DataLoader "
        "with a collate_fn that returns tensors."
    )


def _follows(sizes: Sequence[tuple[int, ...]], dim: int) -> bool:
    return tuple(size[dim] for size in sizes) == COUNTS


def _holds_tensors(value: object) -> bool:
    """Whether `value` is an object of a kind of its own with tensors in it."""
    if isinstance(value, Tensor | np.ndarray) or can_move(value):
        return True
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    attributes = getattr(value, "__dict__", None) or {}
    return any(isinstance(each, Tensor) for each in attributes.values())


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of layout {value.layout}" if not value.is_nested else "a nested tensor"
    return a_kind(value)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) + f" for {COUNTS[0]}, {COUNTS[1]} and {COUNTS[2]} examples"
