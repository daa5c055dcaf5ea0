"""Likeness of embeddings by a function of the user's, such as a sentence encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.data import Size, content_of, in_data_order, open_examples
from tracin.errors import DataError, NonFiniteError, QueryError
from tracin.scoring.batch_size import BatchSize, checked_size

BATCH = 256


@final
@dataclass(frozen=True, eq=False)
class EmbeddingCosine:
    """The cosine of two examples' embeddings. No model or checkpoint is looked at.

    For the features of the traced model itself there is `NearestNeighbours`.

    Args:
        embed: Gives the embeddings of a batch of the data: embed(batch) -> [examples, numbers].

    Raises:
        QueryError: It is no function.

    Example:
        >>> import torch
        >>> from tracin.baselines import EmbeddingCosine
        >>> method = EmbeddingCosine(lambda batch: batch[0])
        >>> data = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
        >>> method.influence(data, data)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    embed: Callable[[Any], Tensor]

    def __post_init__(self) -> None:
        """Refuse what cannot be called."""
        if not callable(self.embed):
            raise QueryError(
                "embed is a function of a batch that returns [examples, numbers]; "
                f"{self.embed!r} was given."
            )

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """How alike each example and each query are, from -1 to 1: [train, queries], float64.

        Args:
            train: The training examples.
            queries: The examples to compare them with.
            batch_size: How many examples are embedded at once; "auto" for 256.
            progress: Nothing is shown: `embed` is the user's own.

        Raises:
            DataError: `embed` returns another shape.
            NonFiniteError: An embedding is NaN or infinite.
        """
        size = checked_size(batch_size) or BATCH
        ours, theirs = (
            self._directions(data, name, size)
            for data, name in ((train, "train"), (queries, "queries"))
        )
        return ours @ theirs.mT

    @torch.no_grad()
    def _directions(self, data: Any, name: str, size: Size) -> Tensor:
        examples = open_examples(data, name=name)
        found: list[tuple[Sequence[int], Tensor]] = []
        for positions, batch in examples.batches(size):
            each = self.embed(content_of(batch))
            if not isinstance(each, Tensor) or each.ndim != 2 or len(each) != len(positions):
                shape = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
                raise DataError(
                    f"embed returns one row of numbers per example, [{len(positions)}, numbers]; "
                    f"{shape} came."
                )
            found.append((positions, each.detach().cpu().double()))
        vectors = in_data_order(found)
        if not bool(vectors.isfinite().all()):
            raise NonFiniteError(
                f"An embedding of {name} is NaN or infinite, so it has no cosine. Leave such "
                "examples out, or correct embed."
            )
        return F.normalize(vectors, dim=1, eps=1e-30)
