"""From the ids that a training loop gives to positions in the training data."""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.errors import TracingError


@final
class IdLookup:
    """The positions of ids."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._is_positions = ids.dtype != object and bool((ids == np.arange(len(ids))).all())
        self._by_id = {} if self._is_positions else {one: at for at, one in enumerate(ids.tolist())}

    def positions(self, ids: Any) -> Tensor:
        """The positions of a batch's examples: [examples], int64."""
        if ids is None:
            raise TracingError(
                "ids are missing: tracer.batch needs one per example of the batch. "
                "tracin.with_ids(loader) yields them with each batch."
            )
        if self._is_positions and isinstance(ids, Tensor) and ids.dtype == torch.int64:
            # Without a look at each: a batch's ids come at every step.
            flat = ids.detach().cpu().flatten()
            if len(flat) and int(flat.min()) >= 0 and int(flat.max()) < len(self._ids):
                return flat.clone()
        to_list = getattr(ids, "tolist", None)
        values = to_list() if callable(to_list) else list(ids)
        values = values if isinstance(values, list) else [values]
        if not values:
            raise TracingError("ids are missing: at least one example makes a batch.")
        positions = [self._position(value) for value in values]
        return torch.tensor(positions, dtype=torch.int64)

    def refuse_repeats(self, positions: Tensor) -> None:
        """Each example once in a batch: twice is mostly a mistake in the ids."""
        values, counts = positions.unique(return_counts=True)
        if len(values) == len(positions):
            return
        at = int(counts.argmax())
        raise TracingError(
            f"The id {self._ids[int(values[at])].item()!r} comes {int(counts[at])} times in one "
            "batch, and each example must come once. If the sampler draws with "
            "replacement, pass repeats=True: tracin.Tracer(..., repeats=True) gives an example "
            "one share per occurrence."
        )

    def _position(self, value: Any) -> int:
        if isinstance(value, np.generic | Tensor):
            value = value.item()
        if self._is_positions:
            is_known = type(value) is int and 0 <= value < len(self._ids)
            position = value if is_known else None
        else:
            position = self._by_id.get(value) if isinstance(value, int | str) else None
        if position is None:
            some = ", ".join(repr(one) for one in self._ids[:3].tolist())
            raise TracingError(
                f"The id {value!r} is not of the {len(self._ids)} training examples that the "
                f"Tracer was given ({some}, ...). Give the same data or ids to both; without "
                "tracin.WithIds an id is the example's position."
            )
        return position
