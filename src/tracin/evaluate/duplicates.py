"""A copy of a query, put among the training examples, should lead its list."""

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from tracin.baselines.baseline import HasInfluence
from tracin.data import WithIds
from tracin.data.batches import leaves, rebuilt
from tracin.data.sources import ColumnSource, DatasetSource, source_of
from tracin.errors import DataError
from tracin.evaluate.retrieval import Retrieval, retrieval
from tracin.plain_text import a_kind
from tracin.scoring.batch_size import BatchSize


def duplicates(
    method: HasInfluence,
    train: Any,
    queries: Any,
    *,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> Retrieval:
    """Put a copy of each query among the examples that are scored, and see where it stands.

    Nothing is trained again: the copies are scored as if they had been training data. A query's own
    copy is as like it as can be, so a method that does not put it near the top is led by
    something else, such as long gradients. The check is necessary, not sufficient. A preconditioner
    that fits itself to the training data is best given it as fit=, so that copies do not enter.

    Args:
        method: `tracin.TracIn`, or anything else with `influence(train, queries)`.
        train: The training examples.
        queries: The same kind of data, of the same form.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Returns:
        The ranks of the copies among the training examples and all copies.

    Raises:
        DataError: The two have different forms.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate import duplicates
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> weights = {"weight": torch.zeros(2, 2)}
        >>> run = tracin.TracIn(model, "cross_entropy", [weights], learning_rates="equal")
        >>> train = torch.tensor([[1.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 1])
        >>> queries = torch.tensor([[0.0, 1.0]]), torch.tensor([1])
        >>> duplicates(run, train, queries).ranks  # the long example leads
        tensor([2.], dtype=torch.float64)
    """
    joined = with_copies(train, queries)
    scores = method.influence(joined, queries, batch_size=batch_size, progress=progress)
    return found_copies(scores)


def found_copies(scores: Tensor) -> Retrieval:
    """The ranks of the copies, from scores of `with_copies`: [train + queries, queries]."""
    queries = scores.shape[1]
    first = len(scores) - queries
    at = [k for k in (1, 10) if k <= len(scores)]
    return retrieval(scores, torch.arange(first, len(scores)), at)


def with_copies(train: Any, queries: Any) -> Any:
    """The training examples and then the queries, as one piece of data.

    Args:
        train: Tensors in a tuple or dict, or a map-style dataset.
        queries: The same kind of data, of the same form.

    Raises:
        DataError: The two have different forms.

    Example:
        >>> import torch
        >>> with_copies((torch.zeros(2), torch.ones(2)), (torch.zeros(1), torch.ones(1)))
        (tensor([0., 0., 0.]), tensor([1., 1., 1.]))
    """
    one = source_of(_bare(train), "train")
    other = source_of(_bare(queries), "queries")
    if _is_of_tensors(one) and _is_of_tensors(other):
        return _joined(one.columns, other.columns)
    return ConcatDataset([_Rows(one), _Rows(other)])


class _Rows(Dataset[Any]):
    """The examples of any data, one at a time."""

    def __init__(self, source: ColumnSource | DatasetSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> Any:
        return self._source.example(position)


def _bare(data: Any) -> Any:
    while isinstance(data, WithIds):
        data = data.dataset
    return data


def _is_of_tensors(source: ColumnSource | DatasetSource) -> TypeGuard[ColumnSource]:
    """Whether all examples are in tensors that can be put one after the other."""
    if not isinstance(source, ColumnSource) or source.rows is not None:
        return False
    return all(isinstance(leaf, Tensor) and leaf.ndim for _, leaf in leaves(source.columns))


def _joined(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape[1:] == other.shape[1:]:
        return torch.cat([one, other.to(one)])
    if isinstance(one, Tensor) or type(one) is not type(other) or len(one) != len(other):
        shapes = [
            str(list(each.shape)) if isinstance(each, Tensor) else a_kind(each)
            for each in (one, other)
        ]
        raise DataError(
            "Copies of the queries are put after the training examples, so both have one form and "
            f"one shape per example; train has {shapes[0]} where queries have {shapes[1]}. Pad "
            "them alike, and give both the same columns."
        )
    return rebuilt(one, lambda key, value: _joined(value, other[key]))
