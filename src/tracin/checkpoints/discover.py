"""From the argument `checkpoints` to a list of checkpoints, in their order."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.rate import FileInfo, number, rate_within
from tracin.checkpoints.readers.formats import files_of, is_checkpoint, read_recorded
from tracin.checkpoints.readers.hugging_face import refuse_divided, step_of, weight_file
from tracin.checkpoints.readers.safetensors import memory
from tracin.checkpoints.record import FILE, has_record, read_record
from tracin.checkpoints.state_dict import refuse_other_kinds, weights_within
from tracin.errors import CheckpointError, CheckpointWarning
from tracin.files import stamp_of
from tracin.plain_text import a_kind

One: TypeAlias = str | PathLike[str] | Mapping[str, Any] | Checkpoint
Checkpoints: TypeAlias = One | Iterable[One]


def open_checkpoints(checkpoints: Checkpoints) -> list[Checkpoint]:
    """Find checkpoints, with the learning rates recorded in them.

    Args:
        checkpoints: A folder that a `tracin.Recorder` wrote, a folder of Hugging Face's
            `checkpoint-*` folders, a folder of weight files, a glob, one file, a state dict, a
            `tracin.Checkpoint`, or a list of these. What a folder or a glob holds is sorted by
            number (`checkpoint-2` before `checkpoint-10`); the order of a list is kept.

    Returns:
        The checkpoints, at least one. Weights are not read yet, but files are looked into: a
        damaged one is found here.

    Raises:
        CheckpointError: Nothing is there, or something there cannot be read safely.
        LearningRateError: A learning rate given with a checkpoint cannot be one.

    Warns:
        CheckpointWarning: A checkpoint is listed twice, and so counts twice.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> [one.name for one in open_checkpoints([model.state_dict()])]
        ['checkpoint 0']
    """
    is_one = isinstance(checkpoints, str | PathLike | Mapping | Checkpoint)
    if not is_one and (
        isinstance(checkpoints, Module | Tensor) or not isinstance(checkpoints, Iterable)
    ):
        raise not_a_checkpoint(checkpoints)
    found: list[Checkpoint] = []
    for one in [checkpoints] if is_one else checkpoints:
        found += found_in(cast(One, one), len(found))
    if not found:
        raise CheckpointError("At least one checkpoint is needed; the list is empty.")
    found = [stamped(one) for one in with_distinct_names(found)]
    warn_of_duplicates(found)
    return found


def found_in(one: One, position: int) -> list[Checkpoint]:
    """The checkpoints of one entry of a list."""
    if isinstance(one, Checkpoint):
        return [completed(one)]
    if isinstance(one, Mapping):
        name = f"checkpoint {position}"
        refuse_other_kinds(weights_within(one, name), name)
        return [checkpoint_of_file(one, name, rate_within(one))]
    if not isinstance(one, str | PathLike):
        raise not_a_checkpoint(one)
    path = Path(one).expanduser()
    if path.exists():
        return found_at(path)
    if has_magic(str(path)):
        return found_by(str(path))
    raise CheckpointError(f"{path} does not exist. Checkpoints are looked for from {Path.cwd()}.")


def found_at(path: Path) -> list[Checkpoint]:
    """The checkpoints of a folder, or the one of a file."""
    if not path.is_dir():
        return [at_path(path)]
    if has_record(path):
        record = read_record(path)
        if not record.entries:
            raise CheckpointError(
                f"{path / FILE} lists no checkpoint yet: its Recorder has not saved any. With "
                'every="epoch", call recorder.epoch() at the end of each epoch.'
            )
        return [record.checkpoint(entry) for entry in record.entries]
    if step_of(path) is not None:
        return [at_path(path)]
    folders = [inner for inner in path.iterdir() if step_of(inner) is not None]
    if folders:
        return [at_path(inner) for inner in sorted(folders, key=natural)]
    if weight_file(path):
        return [at_path(path)]
    refuse_divided(path)
    files = [inner for inner in path.iterdir() if inner.is_file() and is_checkpoint(inner)]
    if not files:
        raise CheckpointError(
            f"{path} holds no checkpoint: neither {FILE} of a Recorder, nor checkpoint-* folders, "
            "nor weights (.safetensors, .pt, .pth, .bin, .ckpt, .tar)."
        )
    return [at_path(inner) for inner in sorted(files, key=natural)]


def found_by(pattern: str) -> list[Checkpoint]:
    """The checkpoints that a glob matches; other files that it matches are passed over."""
    matched = [Path(name) for name in glob(pattern, recursive=True)]
    paths = sorted((path for path in matched if is_checkpoint(path)), key=natural)
    if not paths:
        for path in matched:
            refuse_divided(path)
        among = f" among the {len(matched)} files it matches" if matched else ""
        raise CheckpointError(
            f"The glob {pattern!r} matches no checkpoint{among}. The current folder is "
            f"{Path.cwd()}."
        )
    return [at_path(path) for path in paths]


def at_path(path: Path) -> Checkpoint:
    """The checkpoint of one file or one checkpoint folder."""
    if has_record(path.parent):
        record = read_record(path.parent)
        entry = next((entry for entry in record.entries if entry.file == path.name), None)
        if entry is not None:
            return record.checkpoint(entry)
    return checkpoint_of_file(path, path.name, read_recorded(path))


def checkpoint_of_file(source: Path | Mapping[str, Any], name: str, found: FileInfo) -> Checkpoint:
    """A checkpoint with what its file says of itself."""
    return Checkpoint(
        source,
        found.learning_rate,
        name=name,
        step=found.step,
        no_rate=found.no_rate,
        optimizer_kind=found.optimizer_kind,
    )


def completed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with what its file records, where the caller gave nothing."""
    if not isinstance(checkpoint.source, Path) or checkpoint.log is not None:
        return checkpoint
    recorded = at_path(checkpoint.source)
    rate = checkpoint.learning_rate
    return replace(
        checkpoint,
        learning_rate=recorded.learning_rate if rate is None else rate,
        step=recorded.step if checkpoint.step is None else checkpoint.step,
        log=recorded.log,
        no_rate=recorded.no_rate,
        loss=recorded.loss if checkpoint.loss is None else checkpoint.loss,
        optimizer_path=checkpoint.optimizer_path or recorded.optimizer_path,
        trained=checkpoint.trained or recorded.trained,
        checksum=checkpoint.checksum or recorded.checksum,
        optimizer_checksum=checkpoint.optimizer_checksum or recorded.optimizer_checksum,
        optimizer_kind=checkpoint.optimizer_kind or recorded.optimizer_kind,
        tokens_per_example=checkpoint.tokens_per_example or recorded.tokens_per_example,
        thawed=checkpoint.thawed or recorded.thawed,
    )


def with_distinct_names(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Name files that share a name by as many of their folders as makes the names distinct."""
    alike: dict[str, list[Path]] = {}
    for one in checkpoints:
        if isinstance(one.source, Path) and one.name == one.source.name:
            alike.setdefault(one.name, []).append(one.source)
    return [
        replace(one, name=name_among(one.source, alike[one.name]))
        if isinstance(one.source, Path) and len(alike.get(one.name, ())) > 1
        else one
        for one in checkpoints
    ]


def name_among(path: Path, others: list[Path]) -> str:
    """The end of a path that no other path has."""
    theirs = {other.absolute().parts for other in others}
    parts = path.absolute().parts
    for length in range(2, len(parts) + 1):
        if sum(other[-length:] == parts[-length:] for other in theirs) == 1:
            return "/".join(parts[-length:])
    return str(path)


def stamped(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of these files as they are now."""
    if not isinstance(checkpoint.source, Path):
        return checkpoint
    return replace(checkpoint, stamp=stamp_of(files_of(checkpoint.source)))


def warn_of_duplicates(checkpoints: list[Checkpoint]) -> None:
    """Warn of checkpoints that repeat an earlier one."""
    first: dict[Any, tuple[int, Checkpoint]] = {}
    for position, checkpoint in enumerate(checkpoints):
        key = identity(checkpoint)
        if key not in first:
            first[key] = (position, checkpoint)
            continue
        earlier, same = first[key]
        why = (
            ""
            if isinstance(checkpoint.source, Path)
            else " State dicts share their memory with the model unless they are copied: "
            "copy.deepcopy(model.state_dict())."
        )
        warnings.warn(
            f"Checkpoint {position} ({checkpoint.name}) is the same as checkpoint {earlier} "
            f"({same.name}), and counts once more.{why}",
            CheckpointWarning,
            stacklevel=3,
        )


def identity(checkpoint: Checkpoint) -> Any:
    """Equal for the same file, and for state dicts in the same memory."""
    if isinstance(checkpoint.source, Path):
        return checkpoint.source.resolve()
    tensors = weights_within(checkpoint.source, checkpoint.name)
    return tuple((name, memory(tensor)) for name, tensor in tensors.items() if tensor.numel())


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort numbers in names as numbers: checkpoint-2 before checkpoint-10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(1, int(piece), "") if piece.isdecimal() else (0, 0, piece) for piece in pieces]


def not_a_checkpoint(given: Any) -> CheckpointError:
    """The error for something that is not a checkpoint."""
    is_short = number(given) is not None or given is None
    shown = repr(given) if is_short else a_kind(given)
    hint = " For a model, pass model.state_dict()." if isinstance(given, Module) else ""
    return CheckpointError(
        "Checkpoints are a folder, a glob, or a list of paths, state dicts or tracin.Checkpoint; "
        f"{shown} was given.{hint}"
    )
