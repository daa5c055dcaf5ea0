"""Tables: the gradient touches only the rows that were looked up."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tracin.gradients.forms import SparseRows, full
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, rule_for


@rule_for(F.embedding, torch.embedding)
def embedding(
    use: Use,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Parts:
    """Rows by number; the padding row learns nothing."""
    if scale_grad_by_freq or use.func is torch.embedding:
        raise NoRule("scaled by how often a row is used, or torch's own order of arguments")
    return _lookup(use, input, weight, padding_idx)


@rule_for(Tensor.__getitem__)
def getitem(use: Use, input: Any, index: Any) -> Parts:
    """table[numbers]."""
    return _lookup(use, index, input, None)


@rule_for(torch.index_select, Tensor.index_select)
def index_select(use: Use, input: Any, dim: int, index: Any) -> Parts:
    """table.index_select(0, numbers)."""
    if dim != 0:
        raise NoRule("columns, not rows")
    return _lookup(use, index, input, None)


@rule_for(F.embedding_bag)
def embedding_bag(
    use: Use,
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Parts:
    """Sums or means of rows, one bag per example."""
    is_plain = offsets is None and isinstance(input, Tensor) and input.ndim == 2
    if mode == "max" or scale_grad_by_freq or not is_plain or not isinstance(weight, Leaf):
        raise NoRule("bags of another kind")
    if isinstance(per_sample_weights, Leaf):
        raise NoRule("weights that are a parameter")
    index = use.data(input)  # [examples, copies, bag]
    scale = None if per_sample_weights is None else use.data(per_sample_weights)
    size = weight.tensor.shape[0]

    def rows(delta: Tensor) -> SparseRows:  # delta [examples, copies, width]
        kept = torch.ones_like(index, dtype=delta.dtype)
        if padding_idx is not None:
            kept = (index != padding_idx % size).to(delta.dtype)
        if mode == "mean":
            kept = kept / kept.sum(-1, keepdim=True).clamp(min=1)
        if scale is not None:
            kept = kept * full(scale)
        values = delta.unsqueeze(2) * kept.unsqueeze(3)
        return SparseRows(index.flatten(1), values.flatten(1, 2), size)

    return [(weight, rows)]


def _lookup(use: Use, input: Any, weight: Any, padding_idx: int | None) -> Parts:
    if not isinstance(weight, Leaf) or not isinstance(input, Tensor):
        raise NoRule("not a table of parameters")
    if input.dtype not in (torch.int32, torch.int64):
        raise NoRule("a mask, not numbers")
    index = use.data(input)
    size = weight.tensor.shape[0]

    def rows(delta: Tensor) -> SparseRows:
        flat = index.reshape(index.shape[0], -1).long() % size
        values = delta.reshape(*flat.shape, -1)
        if padding_idx is not None:
            values = values * (flat != padding_idx % size).unsqueeze(2)
        return SparseRows(flat, values, size)

    return [(weight, rows)]
