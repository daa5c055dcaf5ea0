"""A training loop's own loader, that also yields the ids of each batch's examples."""

from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tracin.data.batches import Batch
from tracin.data.examples import ids_within
from tracin.errors import DataError
from tracin.plain_text import a_kind


@final
class with_ids:  # noqa: N801  # reads as the function that it is to its users
    """Iterate a DataLoader as it is, shuffled or not, and get `(ids, batch)` instead of `batch`.

    Order, workers, collate and random state are the loader's own. It can be iterated again, an
    epoch each time.

    Args:
        loader: A DataLoader over a map-style dataset.

    Raises:
        DataError: It is not a DataLoader, its dataset is a stream, or it makes no batches.

    Example:
        >>> import torch, tracin
        >>> from torch.utils.data import DataLoader
        >>> data = tracin.WithIds(torch.tensor([0.0, 1.0, 2.0]), ["a", "b", "c"])
        >>> for ids, batch in tracin.with_ids(DataLoader(data, batch_size=2)):
        ...     print(ids, batch)
        ['a', 'b'] tensor([0., 1.])
        ['c'] tensor([2.])
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise DataError(
                "with_ids takes the DataLoader of a training loop, but got "
                f"{a_kind(loader)}. If you make batches yourself, their positions in the data are "
                "the ids."
            )
        dataset = loader.dataset
        if isinstance(dataset, IterableDataset):
            raise DataError(
                f"The loader's dataset is a stream ({type(dataset).__name__}), whose examples "
                "have no positions. Let the stream give (id, example) pairs itself."
            )
        if loader.batch_sampler is None:
            raise DataError(
                "The loader has batch_size=None: its dataset makes the batches, so the positions "
                "of their examples are not known. Let the dataset give (ids, batch) itself."
            )
        self._data, self._ids = dataset, ids_within(dataset)
        self._loader = DataLoader(
            _Numbered(dataset),
            batch_sampler=loader.batch_sampler,
            collate_fn=_Collate(loader.collate_fn),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __repr__(self) -> str:
        batches = f"{len(self):,} batch{'' if len(self) == 1 else 'es'}"
        return f"with_ids({batches} of {a_kind(self._data)})"

    def __iter__(self) -> Iterator[tuple[Tensor | list[str], Batch]]:
        for positions, batch in self._loader:
            yield self._named(positions), batch

    def _named(self, positions: Tensor) -> Tensor | list[str]:
        if self._ids is None:
            return positions
        chosen = self._ids[positions.numpy()]
        return chosen.tolist() if chosen.dtype == object else torch.from_numpy(np.array(chosen))


@final
class _Numbered(Dataset[Any]):
    """Examples with their positions."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return int(position), self._dataset[position]

    def __getitems__(self, positions: list[int]) -> list[tuple[int, Any]]:
        many = getattr(self._dataset, "__getitems__", None)
        found: Any = [self._dataset[at] for at in positions] if many is None else many(positions)
        return list(zip(map(int, positions), found, strict=True))


@final
class _Collate:
    """The loader's own collate, and the positions."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, numbered: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        positions = torch.tensor([position for position, _ in numbered])
        return positions, self._collate([example for _, example in numbered])
