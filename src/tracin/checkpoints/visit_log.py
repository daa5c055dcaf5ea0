"""The visits of a training run while it goes on: what a Recorder adds to, step by step."""

import json
import os
import zlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tracin.checkpoints.atomic import flush, replacing
from tracin.checkpoints.checksum import crc_of, sealed, text_of
from tracin.checkpoints.random_state import RandomState
from tracin.checkpoints.visits import (
    ABOUT,
    BATCHES,
    FORMAT,
    GENERATORS,
    IDS,
    INT64,
    RANDOM,
    RANDOM_ENDS,
    STEPS,
    Visits,
)
from tracin.errors import CheckpointError

HELD = 1 << 18  # bytes held back before they are appended to a file


class VisitLog:
    """Takes the ids of one step after the other, and appends them to the files of `visits`.

    What an earlier run has written after its last checkpoint is cut off before the first write.

    Attributes:
        steps: How many steps have ids.

    Args:
        folder: The folder `visits`; made with the first step that has ids.
        listed: What the record of an earlier run lists of its files.
        step: How many steps were taken up to the checkpoint that training goes on from.
    """

    def __init__(self, folder: Path, listed: Sequence[tuple[str, int, str]], step: int) -> None:
        self._folder = folder
        self._found = Visits.within(folder, listed, step) if listed else None
        self.steps = len(self._found) if self._found is not None else 0
        self._kind = self._found.kind if self._found is not None and self.steps else ""
        self._pending: list[tuple[str, int, bytes]] = []
        self._state: RandomState | None = None
        self._files: dict[str, Growing] = {}
        self._batches = self._ids = 0
        self._written = dict.fromkeys(GENERATORS, b"\0")  # equal to no state
        self._places = dict.fromkeys(GENERATORS, 0)

    @property
    def has_pending(self) -> bool:
        """Whether ids were given since the last step."""
        return bool(self._pending)

    def add(self, ids: Any) -> None:
        """Take down a micro-batch of the step to come."""
        batch = encoded(ids)
        kind = self._pending[0][0] if self._pending else self._kind
        if kind and batch[0] != kind:
            words = {"int": "whole numbers", "text": "strings"}
            raise CheckpointError(
                f"recorder.batch(ids) was given {words[kind]} so far, and now "
                f"{words[batch[0]]}: ids of one run are all of one kind. Give the same to both."
            )
        if not self._pending:
            self._state = RandomState.now()
        self._pending.append(batch)

    def drop(self) -> None:
        """Forget the ids of a step that is not taken."""
        self._pending.clear()

    def check(self, step: int) -> None:
        """Refuse a step without ids where others have some.

        Raises:
            CheckpointError: This is such a step, or the first that has any.
        """
        with_ids, without = (step, self.steps) if self._pending else (step - 1, step)
        if self.steps != step if self._pending else self.steps:
            raise CheckpointError(
                f"recorder.batch(ids) was called for step {with_ids} but not for step {without}: "
                "call it before each step, or never."
            )

    def take(self) -> None:
        """The step was taken: its ids are the pending ones."""
        if not self._pending or self._state is None:
            return
        self._open()
        for _, count, content in self._pending:
            self._ids += count
            self._files[IDS[self._kind]].add(content)
            self._files[BATCHES].add(self._ids.to_bytes(8, "little"))
        self._batches += len(self._pending)
        for name in GENERATORS:
            self._take_state(name, getattr(self._state, name))
        row = np.array([self._batches, *self._places.values()], INT64)
        self._files[STEPS].add(row.tobytes())
        self.steps += 1
        self._pending.clear()

    def listed(self) -> tuple[tuple[str, int, str], ...]:
        """The name, length and checksum of each file, as of the last flush."""
        return tuple((name, file.size, file.checksum) for name, file in self._files.items())

    def flush(self) -> None:
        """Wait until all steps so far are on the disk."""
        if self._found is not None:
            self._open()
        for file in self._files.values():
            file.flush()

    def _take_state(self, name: str, state: bytes) -> None:
        """Write down one generator's state, if it is not the one written last."""
        if state == self._written[name]:
            return
        states, ends = self._files[RANDOM], self._files[RANDOM_ENDS]
        states.add(state)
        ends.add(states.size.to_bytes(8, "little"))
        self._written[name] = state
        self._places[name] = ends.size // INT64.itemsize - 1

    def _open(self) -> None:
        """Bring the files to where the last checkpoint left them, once."""
        if self._files:
            return
        found = self._found
        self._kind = self._kind or (self._pending[0][0] if self._pending else "int")
        self._folder.mkdir(exist_ok=True)
        if found is not None and len(found):
            sizes = found.sizes()
            last = found.random_state(len(found) - 1)
            self._written = {name: getattr(last, name) for name in GENERATORS}
            self._places = dict(zip(GENERATORS, map(int, found.rows[-1][1:]), strict=True))
            self._batches = int(found.rows[-1][0])
            unit = INT64.itemsize if self._kind == "int" else 1
            self._ids = sizes[IDS[self._kind]] // unit
        else:
            sizes = dict.fromkeys((STEPS, BATCHES, IDS[self._kind], RANDOM, RANDOM_ENDS), 0)
            for name in IDS.values():
                (self._folder / name).unlink(missing_ok=True)
            with replacing(self._folder / ABOUT) as unfinished:
                content = {"format": FORMAT, "ids": self._kind}
                unfinished.write_text(sealed(content), encoding="utf-8")
        self._found = None
        self._files = {name: Growing(self._folder / name, size) for name, size in sizes.items()}
        if os.name == "posix":
            flush(self._folder)


class Growing:
    """A file that is appended to in large pieces, and not held open between them.

    Attributes:
        size: Its length in bytes, with what is held back.

    Args:
        path: The file; what it has beyond `size` is cut off.
        size: Its length in bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path, self.size = path, size
        self._held = bytearray()
        path.touch()
        os.truncate(path, size)
        self._crc = crc_of(path, size)

    @property
    def checksum(self) -> str:
        """That of all of it."""
        return text_of(self._crc)

    def add(self, content: bytes) -> None:
        """Append something."""
        self._crc = zlib.crc32(content, self._crc)
        self._held += content
        self.size += len(content)
        if len(self._held) > HELD:
            self._write()

    def flush(self) -> None:
        """Wait until all of it is on the disk."""
        self._write()
        flush(self._path)

    def _write(self) -> None:
        if self._held:
            with self._path.open("ab") as file:
                file.write(self._held)
            self._held.clear()


def encoded(ids: Any) -> tuple[str, int, bytes]:
    """Ids as they stand in a file: their kind, how far they move its index, and their bytes.

    Raises:
        CheckpointError: They are no whole numbers and no strings, or there are none.
    """
    if isinstance(ids, Tensor):
        ids = ids.tolist() if ids.is_floating_point() else ids.detach().cpu().numpy()
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable) or getattr(ids, "ndim", 1) < 1:
        raise CheckpointError(
            "recorder.batch(ids) takes the ids of one micro-batch, as a list, a tensor or an "
            f"array; a {type(ids).__name__} was given. Of a single example, give [id]."
        )
    held = ids if isinstance(ids, np.ndarray | list) else list(ids)
    if len(held) and isinstance(held[0], str) and all(isinstance(one, str) for one in held):
        line = json.dumps([str(one) for one in held]).encode() + b"\n"
        return "text", len(line), line
    try:
        # Of a list, an array takes nothing but whole numbers of 64 bits, and truths.
        numbers = held if isinstance(held, np.ndarray) else np.frombuffer(array("q", held), "=i8")
        is_whole = numbers.dtype.kind in "iu" and numbers.ndim == 1 and len(numbers) > 0
        is_whole = is_whole and not isinstance(held[0], bool | np.bool_)
    except (ValueError, TypeError, OverflowError):
        numbers, is_whole = np.zeros(0), False
    if not is_whole or (numbers.dtype == np.uint64 and numbers.max() > np.iinfo(INT64).max):
        raise CheckpointError(
            "recorder.batch(ids) takes a flat list of whole numbers (of 64 bits) or of strings, at "
            f"least one; {shortened(held)} was given."
        )
    return "int", len(numbers), numbers.astype(INT64, copy=False).tobytes()


def shortened(given: Any) -> str:
    """What was given, in at most a line."""
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
