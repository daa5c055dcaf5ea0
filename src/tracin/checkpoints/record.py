"""What a Recorder writes beside the weights: which files, at which steps, with which rates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracin.checkpoints.atomic import replacing
from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.hugging_face import read_json
from tracin.checkpoints.rate import Rate
from tracin.checkpoints.state_dicts import listed, recorded
from tracin.checkpoints.step_log import Segment, StepLog
from tracin.errors import CheckpointError

FILE = "recorder.json"
FORMAT = 1
OPTIMIZER = "optimizer"  # folders beside the checkpoints, with files of the same names
AVERAGED = "averaged"


@dataclass(frozen=True)
class Entry:
    """One checkpoint of a record.

    Attributes:
        file: The name of its weights' file, in the record's folder.
        step: The number of optimizer steps before it.
        epoch: The number of whole epochs before it.
        learning_rates: The rate of each group in that step; empty where no step came before.
        loss: The training loss at that moment, if it was given.
        averaged: Whether averaged weights were saved with it.
    """

    file: str
    step: int
    epoch: int
    learning_rates: tuple[float, ...]
    loss: float | None = None
    averaged: bool = False


@dataclass(frozen=True)
class Record:
    """All that the file `recorder.json` says.

    Attributes:
        entries: The checkpoints, in the order of their steps.
        log: The rates of all steps.
        losses: (step, epoch, loss) of all saves that were given one, also of those whose files
            were dropped since.
    """

    entries: tuple[Entry, ...]
    log: StepLog
    losses: tuple[tuple[int, int, float], ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.log.folder

    def checkpoint(self, entry: Entry) -> Checkpoint:
        """The checkpoint of one entry, with its learning rate.

        Raises:
            CheckpointError: Its file is missing.
        """
        path = self.folder / entry.file
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder / FILE} lists {entry.file}, which is not there. Put it back, or "
                "give the files that are left, as a list or a glob."
            )
        rate, reason = self.rate(entry)
        optimizer = self.folder / OPTIMIZER / entry.file
        return Checkpoint(
            path,
            rate,
            name=entry.file,
            step=entry.step,
            log=self.log,
            no_rate=reason,
            loss=entry.loss,
            optimizer_path=optimizer if optimizer.is_file() else None,
        )

    def rate(self, entry: Entry) -> tuple[Rate | None, str]:
        """The learning rate of the step before an entry, or why there is none.

        Of an entry before the first step, that of the first: the step that was taken from there.
        """
        if not len(self.log):
            return None, "it was saved before the first step"
        step = max(entry.step, 1)
        rate = self.log.rate(step - 1)
        where = f"the rate of step {step}"
        if not isinstance(rate, Mapping):
            found = recorded(rate, entry.step, where)
            return found.learning_rate, found.no_rate
        # Some groups may rest (rate 0), so long as one of them moved.
        problem = next((one for one in rate.values() if not 0 <= one < float("inf")), None)
        if problem is not None:
            return None, f"{where} is {problem!r}"
        return rate, ""


def has_record(folder: Path) -> bool:
    """Whether a Recorder wrote to this folder, or averaged weights to it."""
    return (folder / FILE).is_file() or holds_averages(folder)


def holds_averages(folder: Path) -> bool:
    """Whether this is the folder `averaged` of a Recorder, whose record lies one level up."""
    folder = folder.resolve()
    is_inner = folder.name == AVERAGED and not (folder / FILE).is_file()
    return is_inner and (folder.parent / FILE).is_file()


def read_record(folder: Path) -> Record:
    """Read a folder's `recorder.json`; of averaged weights, the one that they share.

    Raises:
        CheckpointError: It cannot be read, or another release of tracin wrote it.
    """
    if not holds_averages(folder):
        return read_version(folder, (folder / FILE).stat().st_mtime_ns)
    folder = folder.resolve()
    record = read_record(folder.parent)
    entries = tuple(one for one in record.entries if one.averaged)
    # A folder of its own, so that "span" does not share the steps with the trained weights.
    return Record(entries, StepLog(folder, record.log.segments), record.losses)


# A glob asks once for each file, and the log of a long training takes a while to parse.
@lru_cache(maxsize=1)
def read_version(folder: Path, written: int) -> Record:
    """The record as it was written at that time (in nanoseconds)."""
    path = folder / FILE
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, and this release of tracin reads "
            f"{FORMAT}. Read it with the release that wrote it."
        )
    try:
        entries = tuple(
            Entry(
                one["file"],
                one["step"],
                one["epoch"],
                tuple(one["learning_rates"]),
                one.get("loss"),
                one.get("averaged", False),
            )
            for one in content["checkpoints"]
        )
        # Older releases wrote no losses.
        losses = tuple((step, epoch, loss) for step, epoch, loss in content.get("losses", ()))
        log = StepLog(folder.resolve(), tuple(segment(one) for one in content["steps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not as a Recorder writes it ({type(error).__name__}: {error}). Give the "
            "weights' files themselves, with learning_rates=[...]."
        ) from error
    beyond = [one.file for one in entries if one.step > len(log)]
    if beyond:
        raise CheckpointError(
            f"{path} logs {len(log)} steps, too few for {listed(beyond)}: it was changed by hand. "
            "Give the weights' files themselves, with learning_rates=[...]."
        )
    return Record(entries, log, losses)


def write_record(record: Record) -> None:
    """Write `recorder.json` whole or not at all."""
    content = {
        "format": FORMAT,
        "checkpoints": [
            {
                "file": one.file,
                "step": one.step,
                "epoch": one.epoch,
                "learning_rates": list(one.learning_rates),
                "loss": one.loss,
                "averaged": one.averaged,
            }
            for one in record.entries
        ],
        "losses": [list(one) for one in record.losses],
        "steps": [
            {
                "groups": [list(names) for names in one.groups],
                "runs": [[count, *rates] for count, rates in one.runs],
            }
            for one in record.log.segments
        ],
    }
    with replacing(record.folder / FILE) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def segment(content: Mapping[str, Any]) -> Segment:
    """One segment of the log, as JSON holds it."""
    groups = tuple(tuple(names) for names in content["groups"])
    runs = tuple((int(count), tuple(map(float, rates))) for count, *rates in content["runs"])
    if any(len(rates) != len(groups) or count < 1 for count, rates in runs):
        raise ValueError("a run of steps has another number of rates than there are groups")
    return Segment(groups, runs)
