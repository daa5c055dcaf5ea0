"""What an index keeps of its examples: labels and losses at each checkpoint."""

import numpy as np
import torch
from torch import Tensor

from tracin.index.store import Store, Unit
from tracin.results.example_facts import ExampleFacts


def known_facts(losses: Tensor, labels: Tensor, predicted: Tensor | None = None) -> ExampleFacts:
    """Facts of examples whose class is -1 where there is none: such columns are left out.

    Args:
        losses: [...].
        labels: [...].
        predicted: [...]; None where that is unknown.

    Example:
        >>> known_facts(torch.zeros(2), torch.tensor([1, 0])).row(0)
        {'label': 1, 'loss': 0.0}
        >>> known_facts(torch.zeros(2), torch.tensor([-1, -1])).row(0)
        {'loss': 0.0}
    """
    is_seen = predicted is not None and bool((predicted >= 0).all())
    return ExampleFacts(
        losses, labels if bool((labels >= 0).all()) else None, predicted if is_seen else None
    )


def stored_facts(store: Store, key: str, positions: np.ndarray) -> ExampleFacts:
    """Labels and losses of some rows at a checkpoint: of the shape of `positions`.

    An index does not keep which class was predicted. Of a file that holds none of the rows nothing
    is read, and of the others no rows.

    Args:
        store: The index's files.
        key: The checkpoint's.
        positions: Which rows.

    Raises:
        IndexingError: A file is missing or damaged.
    """
    wanted = torch.from_numpy(positions)
    losses = torch.zeros(wanted.shape)
    labels = torch.full(wanted.shape, -1)
    for span in store.manifest.ranges():
        here = (wanted >= span.start) & (wanted < span.stop)
        if not bool(here.any()):
            continue
        found = store.columns(Unit(key, span.start, span.stop))
        places = wanted[here] - span.start
        losses[here] = found["loss"][places].to(losses)
        labels[here] = found["label"][places].to(labels)
    return known_facts(losses, labels)
