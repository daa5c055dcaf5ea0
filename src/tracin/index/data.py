"""Whether an index's data, model and loss are still those that it was built from.

All of them cannot be compared at each build, so a few are: some examples spread over the rows of
each build, and the losses of a few of those.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from tracin.checkpoints import loaded
from tracin.data import Examples, content_of, move
from tracin.data.batches import leaves
from tracin.errors import IndexingError
from tracin.files import bytes_of, fingerprint
from tracin.guards import untouched
from tracin.index.contents import checkpoint_keys, rows_under
from tracin.index.store import Added, Entry, Manifest
from tracin.index.store.checksums import checksum
from tracin.random_state import RandomState
from tracin.run import Run
from tracin.scoring.named_examples import examples_named

EACH = 8  # examples of an extent that have a fingerprint
MOST = 256  # of them all that a build looks at again
WHOLE = 1 << 30  # bytes of tensors in memory that are compared whole: a tenth of a second
AT_ONCE = 4096  # examples
WITNESSES = 4  # examples whose losses are compared
# How far losses may differ, relative to their sum: processors round differently, and more so in
# half precision. Another loss, or GELU for ReLU, is further off; a leaky ReLU may not be.
TOLERANCE, SHORT_TOLERANCE = 0.01, 0.1
LEAST = 1e-4


@contextmanager
def unmoved() -> Iterator[None]:
    """Leave the random state as it was, also where a dataset draws numbers for its examples."""
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()


Losses = Callable[[int, int], tuple[float, ...]]  # (number of a checkpoint, rows) -> a few


def places_in(span: range, count: int) -> list[int]:
    """Some of its positions, evenly apart, the first and the last among them.

    >>> places_in(range(10, 20), 3)
    [10, 14, 19]
    """
    count = min(count, len(span))
    if count < 2:
        return list(span[:count])
    return [span[at * (len(span) - 1) // (count - 1)] for at in range(count)]


def added_of(examples: Examples, span: range, data: Any) -> Added:
    """What is known of rows that are new; their ids are the store's matter."""
    found = {str(at): example_fingerprint(examples, at) for at in places_in(span, EACH)}
    return Added("", found, data_checksum(examples, span), source_fingerprint(data))


def example_fingerprint(examples: Examples, position: int) -> str:
    """Equal for equal examples."""
    pieces: list[str | memoryview] = []
    for path, leaf in leaves(examples.take([position])):
        pieces.append(path)
        if is_plain(leaf):
            pieces += [f"{leaf.dtype} {tuple(leaf.shape)}", bytes_of(leaf)]
        elif isinstance(leaf, str | bytes | int | float | list | tuple | None):
            pieces.append(repr(leaf))
        else:
            # What such an object prints as may hold its place in memory.
            pieces.append(type(leaf).__qualname__)
    return fingerprint(pieces, size=8)


def data_checksum(examples: Examples, span: range) -> str | None:
    """Equal for equal examples; None for a dataset, or where there is too much to look at."""
    if not examples.is_stored:
        return None
    size, found = 0, []
    for _, batch in examples.batches(AT_ONCE, start=span.start, stop=span.stop, as_views=True):
        pieces: list[bytes | memoryview] = []
        for path, leaf in leaves(batch):
            if is_plain(leaf):
                pieces.append(f"{path} {leaf.dtype} {tuple(leaf.shape)}".encode())
                pieces.append(bytes_of(leaf))
            else:
                pieces.append(f"{path} {type(leaf).__qualname__}".encode())
        size += sum(map(len, pieces))
        if size > WHOLE:
            return None
        found.append(checksum(*pieces).encode())
    return checksum(*found)


def is_plain(leaf: Any) -> TypeGuard[Tensor]:
    """Whether a leaf is a tensor whose numbers lie in memory as they are."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_meta


def source_fingerprint(data: Any) -> str | None:
    """The fingerprint that a Hugging Face dataset has of its own."""
    found = getattr(data, "_fingerprint", None)
    if isinstance(found, str):
        return found
    within = getattr(data, "dataset", None)
    return None if within is None else source_fingerprint(within)


def refuse_other_data(there: Manifest, examples: Examples, data: Any, where: str) -> None:
    """The examples that have a fingerprint must still have it.

    Raises:
        IndexingError: One has another.
    """
    known = [
        (int(at), found, added)
        for added in there.added
        for at, found in added.examples.items()
        if int(at) < len(examples)
    ]
    for number in places_in(range(len(known)), MOST):
        at, found, added = known[number]
        if example_fingerprint(examples, at) == found:
            continue
        here = source_fingerprint(data)
        sources = f" (the data set was {added.source}, and is {here})" if added.source else ""
        raise IndexingError(
            f"{where} holds rows of other data: example {at} is not the one that was there when "
            f"its row was built{sources}. Give the data that it was built from, with new rows "
            "after the old ones, and without random changes to its examples; or another folder."
        )
    for span, added in zip(there.spans(), there.added, strict=True):
        if added.data is None or span.stop > len(examples):
            continue
        if data_checksum(examples, span) not in (None, added.data):
            raise IndexingError(
                f"{where} holds rows of other data: of examples {span.start} to {span.stop - 1}, "
                "some are not those that were there when their rows were built, if only in a "
                "label. Give the data that it was built from, with new rows after the old ones; "
                "or another folder."
            )


def losses_at(run: Run, examples: Examples, number: int, rows: int) -> tuple[float, ...]:
    """The losses of a few of the first `rows` examples at a checkpoint; none if not all finite."""
    places = places_in(range(rows), WITNESSES)
    with untouched(run.model), loaded(run.model, run.checkpoints[number], run.device):
        device = next(iter(run.model.parameters())).device
        found = []
        for at in places:
            batch = move(examples.take([at]), device)
            with torch.no_grad(), examples_named(examples, [at], batch):
                found.append(run.loss(run.model, content_of(batch)))
    losses = tuple(float(one.sum()) for one in found)
    # A loss that is not finite is refused when its row is built, with all details.
    return losses if all(map(math.isfinite, losses)) else ()


def with_losses(there: Manifest | None, here: Manifest, losses: Losses) -> Manifest:
    """With the losses at the last of the new checkpoints, for later builds to compare.

    Args:
        there: What there is; None for nothing.
        here: This build's, whose checkpoints are the run's.
        losses: Gives those of a few of so many examples at a checkpoint of the run.
    """
    known = set() if there is None else {each.key for each in there.checkpoints}
    new = [at for at, each in enumerate(here.checkpoints) if each.key not in known]
    if not new:
        return here
    rows = here.extents[0] if there is None else there.extents[0]
    entries = list(here.checkpoints)
    last = entries[new[-1]]
    found = losses(new[-1], rows)
    entries[new[-1]] = Entry(last.key, last.name, last.number, last.weights, found)
    return here.with_checkpoints(entries)


def as_begun(manifest: Manifest) -> Manifest:
    """A new index's manifest, with the losses that identify its model and loss for good."""
    return replace(manifest, witness=manifest.checkpoints[-1].losses)


def refuse_changed_losses(there: Manifest, run: Run, losses: Losses, where: str) -> None:
    """At a checkpoint that both know, the losses must be about equal.

    Raises:
        IndexingError: They are not.
    """
    known = {each.key: each.losses for each in there.checkpoints if each.losses}
    keys = checkpoint_keys(run, rows_under(there))
    shared = [at for at, key in enumerate(keys) if key in known]
    if not shared:
        return
    at = shared[-1]
    was = known[keys[at]]
    now = losses(at, there.extents[0])
    if now and not are_about_equal(was, now, is_short=_is_short(run.parameters)):
        raise IndexingError(
            f"{where} was built with another model or loss: at {run.checkpoints[at].name}, with "
            f"equal weights, examples had the losses {_listed(was)} and now have {_listed(now)}. "
            "Use the model and the loss that it was built with, or a new folder."
        )


def are_about_equal(one: Sequence[float], other: Sequence[float], *, is_short: bool) -> bool:
    """Whether losses differ by rounding alone."""
    if len(one) != len(other):
        return False
    most = (SHORT_TOLERANCE if is_short else TOLERANCE) * sum(map(abs, one)) + LEAST
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) <= most


def _is_short(parameters: Mapping[str, Tensor]) -> bool:
    return any(each.dtype in (torch.float16, torch.bfloat16) for each in parameters.values())


def _listed(losses: Sequence[float]) -> str:
    return ", ".join(f"{each:.4g}" for each in losses)
