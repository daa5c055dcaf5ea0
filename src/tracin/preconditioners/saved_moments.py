"""Curvature in a folder: one file per checkpoint, which the next process reads.

An index keeps the moments of its rows (`tracin.index.store.moments_file`) behind its own storage,
which may be a URL; these are files such as checkpoints are, and share their reader and writer.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from tracin.checkpoints.readers.safetensors import read_tensors, write_sealed
from tracin.data import Examples, examples_fingerprint
from tracin.errors import CheckpointError, PreconditionerError
from tracin.files import fingerprint, made_folder
from tracin.preconditioners.fit_data import spread_evenly
from tracin.preconditioners.preconditioner import Place

FORMAT = "1"
HEAD = "tracin.curvature"
FEW = 8  # examples whose curvature tells the loss
NEAR = 1e-3  # how much of it may differ: threads and devices round differently
_log = logging.getLogger(__name__)


class HasTensors(Protocol):
    """What can be written to a file."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All of it, by name."""
        ...


T = TypeVar("T", bound=HasTensors)
Summary = Mapping[str, list[float]]


def from_folder(
    folder: str | Path,
    kind: str,
    place: Place,
    data: Examples,
    *,
    summary: Callable[[Examples], Summary],
    make: Callable[[], T],
    restore: Callable[[Mapping[str, Tensor]], T],
) -> T:
    """What the folder holds of these weights and data, or else what `make` computes, kept there.

    The name of a file tells weights, data and parameters, so that others have files of their own.
    The loss and the model's code have no fingerprint: the file holds what curvature a few of the
    examples have, which is compared with what they have now. A file that is damaged, or of another
    loss, is computed again and replaced.

    Args:
        folder: Made if it is not there.
        kind: Of curvature.
        place: The checkpoint.
        data: What the curvature is of.
        summary: A few numbers that tell the curvature of a few examples.
        make: Passes over all of the data.
        restore: What was written, from its tensors.

    Raises:
        PreconditionerError: It is no folder, or the model is divided over ranks.
    """
    if place.weights is None:
        raise PreconditionerError(
            "folder= keeps the curvature of whole models, and this one is divided over ranks, each "
            "of which holds parts of the weights. Leave folder out."
        )
    where = made_folder(folder, PreconditionerError)
    content = examples_fingerprint(data)
    name = place.checkpoint.name
    if content is None:
        _log.warning(
            "the curvature at checkpoint '%s' is not kept: its data hold what cannot be compared",
            name,
        )
        return make()
    parameters = sorted(place.parameters)
    key = fingerprint([json.dumps([FORMAT, kind, place.weights(), content, parameters])])
    path = where / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:80]}.{key}.{kind}"
    few = data.subset(spread_evenly(len(data), FEW, 1))
    # Their gradients also settle by which method each parameter's are computed.
    now = summary(few)
    found = _read(path, now, restore) if path.exists() else None
    if found is not None:
        _log.info("the curvature at checkpoint '%s' is that of %s", name, path)
        return found
    made = make()
    try:
        write_sealed(made.tensors(), path, {HEAD: json.dumps(_head(now))})
    except OSError as error:
        _log.warning("the curvature at checkpoint '%s' cannot be kept: %s", name, error)
    else:
        _log.info("the curvature at checkpoint '%s' was computed and written to %s", name, path)
    return made


def _read(path: Path, now: Summary, restore: Callable[[Mapping[str, Tensor]], T]) -> T | None:
    """What a file holds; None where it is damaged or of another loss."""
    try:
        tensors, metadata = read_tensors(path)
        head = json.loads(metadata[HEAD])
        if head["format"] != FORMAT or not _is_alike(head["few"], now):
            _log.warning(
                "%s is of another loss, or of other code of the model: computed again and replaced",
                path,
            )
            return None
        return restore(tensors)
    except (CheckpointError, ValueError, KeyError, TypeError, IndexError) as error:
        _log.warning("%s cannot be read (%s): computed again and replaced", path, error)
        return None


def _head(now: Summary) -> dict[str, Any]:
    return {"format": FORMAT, "few": dict(now)}


def _is_alike(was: Any, now: Summary) -> bool:
    if not isinstance(was, dict) or was.keys() != now.keys():
        return False
    return all(
        len(was[name]) == len(numbers)
        and all(
            math.isclose(one, other, rel_tol=NEAR)
            for one, other in zip(was[name], numbers, strict=True)
        )
        for name, numbers in now.items()
    )
