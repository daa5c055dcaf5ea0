"""A trace that outlives its process: begun, saved, and resumed at the weights of a save."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import numpy as np
from torch.nn import Module

from tracin.errors import TracingError, TracingWarning
from tracin.files import unwritable
from tracin.tracing.fingerprints import weights_fingerprint
from tracin.tracing.folder import Tables
from tracin.tracing.manifest import Save


@final
class ResumableTrace:
    """What a trace has come to: its tables on the disk, and the few numbers that a save keeps.

    Attributes:
        tables: The tables.
        step: The number of optimizer steps so far.
        skipped: How many traced batches were dropped, since no step followed.
        unweighed: Why self-influence is not known for all steps so far; empty where it is.
        is_open: Whether the tables are being written.
        is_over: Whether the disk failed, and training continues without a trace.
    """

    def __init__(self, tables: Tables, model: Module, *, stops_training: bool) -> None:
        self.tables = tables
        self._model = model
        self._stops_training = stops_training
        self.step = self.skipped = 0
        self.unweighed = ""
        self.is_open = self.is_over = False
        self._is_halfway = False

    def find(self) -> Save | None:
        """The save that has the model's weights; None where nothing was traced yet."""
        folder, saves = self.tables.folder, self.tables.saves()
        weights = weights_fingerprint(self._model)
        match = next((save for save in reversed(saves) if save.weights == weights), None)
        is_begun = self.tables.has_unsaved_steps() or any(save.rows for save in saves)
        if match is not None and not match.rows and saves[-1].is_final:
            raise TracingError(
                f"{folder} holds the finished trace of {saves[-1].step} steps, and the model holds "
                "the weights that it began with. To continue it, load the weights that it ended "
                "with; to start afresh, give a new folder."
            )
        if match is None and is_begun:
            steps = " and ".join(str(save.step) for save in saves) or "0"
            raise TracingError(
                f"{folder} holds a trace saved after {steps} steps, but the model holds other "
                "weights than then. To continue it, load your own checkpoint of such a step before "
                "the first batch (before the first save, the weights that training began with); to "
                "start afresh, give a new folder."
            )
        return match

    def begin(self, found: Save | None) -> None:
        """Continue from a save, or begin without one."""
        if found is not None:
            self.step, self.skipped = found.step, found.skipped
            self.unweighed = found.unweighed
        self.tables.open(self._state() if found is None else found)
        if found is None:
            self.tables.save(self._state())
        self.is_open = True

    def save(self) -> None:
        """Keep the trace as it is now."""
        self.tables.save(self._state())

    def finish(self) -> None:
        """Keep the trace of a training that is over."""
        self.tables.save(replace(self._state(), is_final=True))
        self.tables.trim()

    def view(self) -> tuple[Save, dict[str, np.ndarray]]:
        """The trace as it is now, which later steps do not change."""
        return self.tables.view(self._state())

    @contextmanager
    def halfway(self) -> Iterator[None]:
        """A step is being added: should that fail, the tables hold half of it."""
        self._is_halfway = True
        yield
        self._is_halfway = False

    def refuse_halfway(self) -> None:
        """Nothing can be added to, or read from, half a step."""
        if self._is_halfway:
            raise TracingError(
                f"Step {self.step} could not be traced to its end, so the tables hold half of it. "
                "Load your checkpoint of the last save, and open a Tracer on the same folder."
            )

    def give_up(self, cause: OSError) -> None:
        """The disk failed: training ends with an error, or continues without a trace."""
        message = unwritable(self.tables.folder, cause)
        if self._stops_training:
            raise TracingError(message) from cause
        self.is_over = True
        warnings.warn(
            f"{message} Training continues, but is not traced from step {self.step} on.",
            TracingWarning,
            stacklevel=4,
        )

    def _state(self) -> Save:
        return Save(
            self.step,
            self.tables.rows,
            self.skipped,
            weights_fingerprint(self._model),
            self.unweighed,
        )
