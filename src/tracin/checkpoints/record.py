"""The log of a Recorder's checkpoints: which files, at which steps, with which rates.

What parses its JSON raises ValueError, which `read_version` makes a CheckpointError.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.rate import Rate, number, recorded
from tracin.checkpoints.step_log import Segment, StepLog
from tracin.errors import CheckpointError
from tracin.files import checked_fields, read_sealed, replacing, sealed
from tracin.plain_text import listed

FILE = "recorder.json"
FORMAT = 2
OPTIMIZER = "optimizer"  # folders within the Recorder's, with files of the checkpoints' names
AVERAGED = "averaged"
THAWED = "thawed"


@dataclass(frozen=True)
class LogEntry:
    """One checkpoint of a record.

    Attributes:
        file: The name of its weights' file, in the record's folder.
        step: The number of optimizer steps before it.
        epoch: The number of whole epochs before it.
        learning_rates: The rate of each group in that step; empty where no step came before.
        loss: The training loss at that moment, if it was given.
        checksum: That of the file.
        optimizer: The checksum of the optimizer's moments; "" where they were not saved with it.
        averaged: The checksum of the averaged weights; "" where they were not saved with it.
    """

    file: str
    step: int
    epoch: int
    learning_rates: tuple[float, ...]
    loss: float | None = None
    checksum: str = ""
    optimizer: str = ""
    averaged: str = ""


@dataclass(frozen=True)
class ThawedFile:
    """Weights that were frozen up to some step, as they were then.

    Attributes:
        path: Their file.
        step: The number of optimizer steps before they were trained.
        checksum: That of the file.
    """

    path: Path
    step: int
    checksum: str


@dataclass(frozen=True)
class CheckpointLog:
    """All that the file `recorder.json` says.

    Attributes:
        entries: The checkpoints, in the order of their steps.
        log: The rates of all steps.
        losses: (step, epoch, loss) of all saves that were given one, also of those whose files
            were dropped since.
        trained: The names of the parameters that were trained in some step: in the optimizer and
            requiring a gradient.
        visits: The name and checksum of each file of `visits`, in the order of its steps;
            nothing where no ids were given.
        thawed: Weights that earlier checkpoints leave out and that were trained later.
        optimizer_kind: The name of the optimizer's class; "" where an earlier release wrote it.
        tokens_per_example: The mean number of predicted tokens per example, where the trainer
            weighed every token alike and its callback counted them.
    """

    entries: tuple[LogEntry, ...]
    log: StepLog
    losses: tuple[tuple[int, int, float], ...] = ()
    trained: tuple[str, ...] = ()
    visits: tuple[tuple[str, str], ...] = ()
    thawed: tuple[ThawedFile, ...] = ()
    optimizer_kind: str = ""
    tokens_per_example: float | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.log.folder

    def checkpoint(self, entry: LogEntry) -> Checkpoint:
        """The checkpoint of one entry, with its learning rate."""
        path = self.folder / entry.file
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder / FILE} lists {entry.file}, which is not there. Put it back, or "
                "give the files that are left, as a list or a glob."
            )
        rate, reason = self.rate(entry)
        return Checkpoint(
            path,
            rate,
            name=entry.file,
            step=entry.step,
            log=self.log,
            no_rate=reason,
            loss=entry.loss,
            optimizer_path=self.folder / OPTIMIZER / entry.file if entry.optimizer else None,
            trained=self.trained,
            checksum=entry.checksum,
            optimizer_checksum=entry.optimizer,
            optimizer_kind=self.optimizer_kind,
            tokens_per_example=self.tokens_per_example,
            thawed=tuple((one.path, one.checksum) for one in self.thawed if one.step >= entry.step),
        )

    def rate(self, entry: LogEntry) -> tuple[Rate | None, str]:
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


def read_record(folder: Path) -> CheckpointLog:
    """Read a folder's `recorder.json`; of averaged weights, the one that they share."""
    if not holds_averages(folder):
        return read_version(folder, (folder / FILE).stat().st_mtime_ns)
    folder = folder.resolve()
    record = read_record(folder.parent)
    entries = tuple(
        replace(one, checksum=one.averaged, optimizer="") for one in record.entries if one.averaged
    )
    # A folder of its own, so that "span" does not share the steps with the trained weights. No
    # optimizer took a step to an average.
    log = StepLog(folder, record.log.segments)
    return replace(record, entries=entries, log=log, optimizer_kind="")


# A glob asks once for each file, and the log of a long training takes a while to parse.
@lru_cache(maxsize=1)
def read_version(folder: Path, written: int) -> CheckpointLog:
    """The record as it was written at that time (in nanoseconds)."""
    path = folder / FILE
    content = read_sealed(path, FORMAT)
    try:
        # Folders of earlier releases have none of these.
        thawed, kind = content.pop("thawed", []), content.pop("optimizer_kind", "")
        tokens = content.pop("tokens_per_example", None)
        checkpoints, losses, steps, trained, visits = checked_fields(
            content, checkpoints=list, losses=list, steps=list, trained=list, visits=list
        )
        entries = tuple(map(entry_of, checkpoints))
        if any(one.step >= other.step for one, other in pairwise(entries)):
            raise ValueError("its checkpoints are not in the order of their steps")
        log = StepLog(folder.resolve(), tuple(segment(one) for one in steps))
        record = CheckpointLog(
            entries,
            log,
            tuple(map(loss_of, losses)),
            names(trained),
            tuple(map(visited, visits)),
            tuple(thawed_file(one, log.folder) for one in thawed),
            names([kind])[0],
            None if tokens is None else positive(tokens),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is not as a Recorder writes it ({error}). Give the weights' files themselves, "
            "with learning_rates=[...]."
        ) from error
    beyond = [one.file for one in entries if one.step > len(log)]
    if beyond:
        raise CheckpointError(
            f"{path} logs {len(log)} steps, too few for {listed(beyond)}: it was changed by hand. "
            "Give the weights' files themselves, with learning_rates=[...]."
        )
    return record


def write_record(record: CheckpointLog) -> None:
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
                "checksum": one.checksum,
                "optimizer": one.optimizer,
                "averaged": one.averaged,
            }
            for one in record.entries
        ],
        "trained": list(record.trained),
        "visits": [list(one) for one in record.visits],
        "thawed": [
            {"file": one.path.name, "step": one.step, "checksum": one.checksum}
            for one in record.thawed
        ],
        "optimizer_kind": record.optimizer_kind,
        "tokens_per_example": record.tokens_per_example,
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
        unfinished.write_text(sealed(content), encoding="utf-8")


def file_of(step: int) -> str:
    """The name of the checkpoint after so many steps."""
    return f"step-{step:08d}.safetensors"


def entry_of(content: Any) -> LogEntry:
    """One checkpoint, as JSON holds it."""
    entry = LogEntry(
        *checked_fields(
            content,
            file=str,
            step=int,
            epoch=int,
            learning_rates=list,
            loss=(float, int, type(None)),
            checksum=str,
            optimizer=str,
            averaged=str,
        )
    )
    if entry.step < 0 or entry.epoch < 0 or entry.file != file_of(entry.step):
        raise ValueError(f"{entry.file!r} is not a checkpoint of step {entry.step}")
    return replace(entry, learning_rates=rates_of(list(entry.learning_rates)))


def loss_of(content: Any) -> tuple[int, int, float]:
    """(step, epoch, loss), as JSON holds it."""
    step, epoch, loss = checked_fields(
        dict(zip(("step", "epoch", "loss"), content, strict=True)),
        step=int,
        epoch=int,
        loss=(float, int),
    )
    return step, epoch, float(loss)


def visited(content: Any) -> tuple[str, str]:
    """One file of `visits`, as JSON holds it."""
    name, checksum = names(content)
    return name, checksum


def thawed_file(content: Any, folder: Path) -> ThawedFile:
    """One file of `thawed`, as JSON holds it."""
    file, step, checksum = checked_fields(content, file=str, step=int, checksum=str)
    if step < 0 or file != file_of(step):
        raise ValueError(f"{file!r} does not hold weights of step {step}")
    return ThawedFile(folder / THAWED / file, step, checksum)


def positive(content: Any) -> float:
    """A number above zero, as JSON holds it."""
    found = number(content)
    if found is None or not 0 < found < float("inf"):
        raise ValueError(f"{content!r} is no number of tokens")
    return found


def names(content: Any) -> tuple[str, ...]:
    """Names, as JSON holds them."""
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("a list of names is none")
    return tuple(content)


def rates_of(content: list[Any]) -> tuple[float, ...]:
    """Learning rates, as JSON holds them."""
    if not all(isinstance(rate, float | int) and not isinstance(rate, bool) for rate in content):
        raise ValueError("a learning rate is not a number")
    return tuple(map(float, content))


def segment(content: Any) -> Segment:
    """One segment of the log, as JSON holds it."""
    held, steps = checked_fields(content, groups=list, runs=list)
    groups = tuple(map(names, held))
    runs: list[tuple[int, tuple[float, ...]]] = []
    for run in steps:
        if not isinstance(run, list) or not run or type(run[0]) is not int or run[0] < 1:
            raise ValueError("a run of steps has no count")
        runs.append((run[0], rates_of(run[1:])))
    if any(len(rates) != len(groups) for _, rates in runs):
        raise ValueError("a run of steps has another number of rates than there are groups")
    return Segment(groups, tuple(runs))
