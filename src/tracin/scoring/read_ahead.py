"""Reads the next checkpoint's file while a device passes over data at the present one."""

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.checkpoints.readers.formats import files_of
from tracin.errors import TracInError
from tracin.host import is_remote
from tracin.scoring.free_memory import room


@final
class ReadAhead:
    """Reads one file at a time, in a thread that has ended when the block has.

    Only for devices: on the host the thread would take from the pass what it gives. Nor where the
    weights would not fit into half of the free memory. An error of the file is not kept: whoever
    needs the weights reads them, and meets it there.

    Example:
        >>> import torch
        >>> checkpoint = Checkpoint({"weight": torch.ones(1)})
        >>> with ReadAhead() as ahead:
        ...     ahead.begin(checkpoint, torch.device("cuda"))
        ...     print(ahead.taken(checkpoint))
        None
    """

    def __init__(self) -> None:
        self._checkpoint: Checkpoint | None = None
        self._thread: threading.Thread | None = None
        self._weights: Mapping[str, Tensor] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self._checkpoint, self._weights = None, None

    def begin(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Begin to read, if it is worth it; for the checkpoint last begun this does nothing."""
        if checkpoint is self._checkpoint:
            return
        self._end()
        self._checkpoint, self._weights = checkpoint, None
        if is_remote(device) and _fits(checkpoint):
            self._thread = threading.Thread(
                target=self._read, args=(checkpoint,), name="tracin reads ahead", daemon=True
            )
            self._thread.start()

    def taken(self, checkpoint: Checkpoint) -> Mapping[str, Tensor] | None:
        """What was read of a checkpoint, once it is read; None if it was not, or not this one."""
        self._end()
        found, self._weights = self._weights, None
        return found if checkpoint is self._checkpoint else None

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _read(self, checkpoint: Checkpoint) -> None:
        try:
            self._weights = checkpoint.weights()
        except Exception:  # whoever needs them meets it again
            self._weights = None


def _fits(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is in files, for which there is room."""
    if not isinstance(checkpoint.source, Path):
        return False
    try:
        size = sum(file.stat().st_size for file in files_of(checkpoint.source))
    except (OSError, TracInError):  # whoever reads it meets the error again
        return False
    return size <= room(torch.device("cpu"))
