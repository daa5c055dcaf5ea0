"""Training data without some examples, or under other labels: new data, the given one unchanged."""

import operator
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from tracin.analysis.arrays import cpu_tensor
from tracin.data import WithIds, part
from tracin.data.batches import rebuilt
from tracin.data.examples import ids_within
from tracin.data.sources import ColumnSource, source_of
from tracin.errors import DataError
from tracin.plain_text import a_kind


def kept_examples(data: Any, positions: Tensor) -> Any:
    """The examples at some positions, as data of the same kind.

    Args:
        data: A tensor or array, a tuple, list or dict of them, a map-style dataset, or a `WithIds`
            around any of these.
        positions: [kept]; where they are in the data.

    Returns:
        Columns cut to the positions for tensors (a TensorDataset stays one), a `torch` Subset for
        other datasets; a `WithIds` keeps the ids.

    Raises:
        DataError: It is a DataLoader, or no data.

    Example:
        >>> import torch
        >>> kept_examples((torch.arange(4.0), torch.tensor([0, 1, 0, 1])), torch.tensor([0, 3]))
        (tensor([0., 3.]), tensor([0, 1]))
    """
    _refuse_loader(data)
    if isinstance(data, WithIds):
        ids = data.ids[positions.numpy()].tolist()
        return WithIds(kept_examples(data.dataset, positions), ids)
    source = source_of(data, "train")
    if isinstance(source, ColumnSource) and source.rows is None:
        columns = part(source.columns, positions)
        return TensorDataset(*columns) if type(data) is TensorDataset else columns
    return Subset(data, positions.tolist())


def relabelled_examples(data: Any, labels: Tensor, key: int | str = 1) -> Any:
    """The same examples under other labels, as data of the same kind.

    Args:
        data: As for `kept_examples`, with examples that are tuples, lists or dicts.
        labels: [examples]; the new labels.
        key: Where an example has its label: the place in a tuple, or the key in a dict.

    Returns:
        Columns with other labels for tensors (a TensorDataset stays one); for other datasets one
        that exchanges the label of each example as it is fetched.

    Raises:
        DataError: It is a DataLoader or no data, has no such place, or another number of examples.

    Example:
        >>> import torch
        >>> train = torch.arange(3.0), torch.tensor([0, 1, 0])
        >>> relabelled_examples(train, torch.tensor([1, 1, 1]))
        (tensor([0., 1., 2.]), tensor([1, 1, 1]))
    """
    _refuse_loader(data)
    if isinstance(data, WithIds):
        return WithIds(relabelled_examples(data.dataset, labels, key), data.ids.tolist())
    source = source_of(data, "train")
    if len(source) != len(labels):
        raise DataError(
            f"One label per example is needed, [examples]; train holds {len(source)} examples, and "
            f"{len(labels)} labels came."
        )
    if isinstance(source, ColumnSource) and source.rows is None:
        columns = with_entry(source.columns, key, lambda old: _as_column(labels, old))
        return TensorDataset(*columns) if type(data) is TensorDataset else columns
    return Relabelled(data, labels, key)


@final
class Relabelled(Dataset[Any]):
    """A map-style dataset whose examples come with other labels.

    Args:
        dataset: The dataset; its examples are tuples, lists or dicts.
        labels: [examples].
        key: Where an example has its label.
    """

    def __init__(self, dataset: Any, labels: Tensor, key: int | str) -> None:
        self.dataset = dataset
        self.labels = labels
        self.key = key
        ids = ids_within(dataset)
        if ids is not None:
            self.ids = ids

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> Any:
        label = self.labels[position]
        return with_entry(self.dataset[position], self.key, lambda old: _like(label, old))


def with_entry(nest: Any, key: int | str, change: Any) -> Any:
    """A tuple, list or mapping with one of its entries changed by a function.

    Raises:
        DataError: It has no such entry.
    """
    is_mapping = isinstance(nest, Mapping)
    there = list(nest) if is_mapping else list(range(len(nest))) if _is_row(nest) else []
    if key not in there:
        what = f"has {there}" if there else f"is {a_kind(nest)}, which has no parts"
        raise DataError(
            f"The label of an example is expected at key={key!r}, but an example of train {what}. "
            "Give key= the place of the label in a tuple, or its name in a dict."
        )
    return rebuilt(nest, lambda at, value: change(value) if at == key else value)


def _is_row(nest: Any) -> bool:
    return isinstance(nest, list | tuple)


def _as_column(labels: Tensor, old: Any) -> Any:
    """The new labels in the form of the old ones: classes, [examples] or [examples, 1]."""
    if isinstance(old, Tensor):
        for each in old[:1]:
            _refuse_no_classes(each, labels)
        return labels.to(device=old.device, dtype=old.dtype).reshape(old.shape)
    if isinstance(old, np.ndarray):
        for each in old[:1]:
            _refuse_no_classes(each, labels)
        return labels.cpu().numpy().astype(old.dtype).reshape(old.shape)
    for each in old[:1]:
        _refuse_no_classes(each, labels)
    return labels.tolist()


def _like(label: Tensor, old: Any) -> Any:
    """The new label in the form that the dataset gives the old one in."""
    _refuse_no_classes(old, label)
    if isinstance(old, Tensor):
        return label.to(dtype=old.dtype).reshape(old.shape)
    if isinstance(old, np.generic):
        return old.dtype.type(label.item())
    return label.item()


def _refuse_no_classes(old: Any, labels: Tensor) -> None:
    """Refuse to put classes where something else was, such as a one-hot row or a name.

    Raises:
        DataError: The label is no single number, or its dtype cannot hold the new ones.
    """
    try:
        given = torch.as_tensor(old)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"An example's label is one class, a number, but that of train is {a_kind(old)}. "
            "Number the classes from 0, and map the numbers to names elsewhere."
        ) from error
    if given.numel() != 1:
        raise DataError(
            "An example's label is one class, a number, but that of train has shape "
            f"{list(given.shape)}. Of one-hot labels or probabilities pass labels.argmax(1)."
        )
    if not torch.equal(labels.to(given.dtype).to(labels.dtype), labels):
        raise DataError(
            f"The labels of train are {given.dtype}, which cannot hold the class "
            f"{int(labels.max())}. Convert them, with labels.long()."
        )


def _refuse_loader(data: Any) -> None:
    if isinstance(data, DataLoader):
        raise DataError(
            "Training data to be changed is a dataset or tensors, but a DataLoader was given: it "
            "would need a new order of its own. Pass its dataset, and make the loader in your "
            "training function."
        )


def label_column(data: Any, key: int | str = 1) -> Tensor:
    """The labels of training data, read example by example where it is a dataset.

    Args:
        data: As for `relabelled_examples`.
        key: Where an example has its label.

    Returns:
        [examples], int64.

    Raises:
        DataError: There is no such place, or a label is no whole number.

    Example:
        >>> import torch
        >>> label_column((torch.zeros(2, 3), torch.tensor([4, 5])))
        tensor([4, 5])
    """
    _refuse_loader(data)
    while isinstance(data, WithIds):
        data = data.dataset
    source = source_of(data, "train")
    found: list[Any] = []
    if isinstance(source, ColumnSource) and source.rows is None:
        with_entry(source.columns, key, lambda old: found.append(old))
        values = found[0] if isinstance(found[0], Tensor) else torch.as_tensor(list(found[0]))
    else:
        for position in range(len(source)):
            with_entry(source.example(position), key, lambda old: found.append(_class_of(old)))
        values = torch.tensor(found)
    return whole_labels(values)


def _class_of(label: Any) -> int:
    """A label of a dataset's example as a number.

    Raises:
        DataError: It is no whole number.
    """
    try:
        value = operator.index(label)
    except TypeError:
        raise DataError(
            "Labels are one whole number per example, but a label of train is "
            f"{a_kind(label)}: {label!r}."
        ) from None
    return value


def whole_labels(labels: Any) -> Tensor:
    """Labels of any kind of array as int64 on the CPU.

    Raises:
        DataError: They are not one whole number per example.
    """
    try:
        values = cpu_tensor(labels)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Labels are one whole number per example, [examples]; {a_kind(labels)} came ({error})."
        ) from error
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise DataError(
            "Labels are one whole number per example, [examples]; came "
            f"{list(values.shape)} of {values.dtype}."
        )
    return values.long()
