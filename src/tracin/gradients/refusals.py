"""Calls after which no example has a gradient of its own, refused as soon as they are made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch.nn import functional as F

from tracin.errors import CoupledExamplesError, LossError
from tracin.gradients.mode import Mode


@final
class Guard(Mode):
    """Lets everything pass but what `refuse` refuses."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        refuse(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def refuse(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if this call couples examples, or makes their losses random.

    Raises:
        CoupledExamplesError: BatchNorm in train mode, gradients scaled by word frequency.
        LossError: Dropout in train mode.
    """
    if func in _REFUSED:
        _REFUSED[func](args, kwargs)


def refuse_live(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if this call's gradient in a training step is no sum of its examples' shares.

    Raises:
        CoupledExamplesError: Gradients scaled by word frequency.
    """
    if func in (F.embedding, F.embedding_bag):
        _refuse_frequency(args, kwargs)


def _refuse_training_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    if training:
        raise CoupledExamplesError(
            "BatchNorm runs in train mode inside the loss, so each example's loss depends on its "
            "whole batch and has no gradient of its own. tracin puts the model in eval mode; "
            "leave out the call of model.train() in the loss."
        )


def _refuse_dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    if kwargs.get("training", args[2] if len(args) > 2 else True) and rate > 0:
        raise LossError(
            "Dropout is active inside the loss, so the scores would be random. tracin puts the "
            "model in eval mode; leave out the call of model.train() in the loss."
        )


def _refuse_frequency(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("scale_grad_by_freq", args[5] if len(args) > 5 else False):
        raise CoupledExamplesError(
            "An embedding with scale_grad_by_freq=True divides each gradient by how often the word "
            "comes in the batch, so it depends on the other examples. Build the embedding "
            "without it to score examples one by one."
        )


_REFUSED: dict[Callable[..., Any], Callable[[Sequence[Any], Mapping[str, Any]], None]] = {
    F.batch_norm: _refuse_training_norm,
    F.embedding: _refuse_frequency,
    F.embedding_bag: _refuse_frequency,
    F.dropout: _refuse_dropout,
    F.dropout1d: _refuse_dropout,
    F.dropout2d: _refuse_dropout,
    F.dropout3d: _refuse_dropout,
}
