"""Per-example losses by name, so that a common task needs no loss function of its own.

Every loss here returns one value per example, [examples], from one forward pass, and depends on the
example alone, never on its batch. Each raises an error where model and batch do not fit, instead of
scoring something else.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from tracin.errors import DataWarning, LabelError, LossError
from tracin.late_checks import LateChecks, open_checks
from tracin.plain_text import a_kind
from tracin.torch_internals import is_functorch_wrapped_tensor

PerExampleLoss = Callable[[Module, Any], Tensor]
"""`loss(model, batch)`: returns one value per example, [examples]."""

IGNORED = -100
"""The label of a position that has no loss: the convention of torch and of transformers."""

# Integers that embeddings do not take, though tokens are stored so.
_NARROW = frozenset(
    {torch.int8, torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64}
)

# No label is ever this, so a stray -100 where nothing may be ignored is an error in torch, too.
_NOTHING_IGNORED = -(2**62)

_BATCH_FORM = "(inputs, labels), or a mapping with 'labels' and the model's own arguments"


@dataclass(frozen=True)
class Outcome:
    """What one forward pass tells of a batch of classified examples.

    Attributes:
        losses: [examples], in nats.
        logits: [examples, classes], or [examples, classes, positions...].
        labels: [examples], or [examples, positions...]; as int64.
    """

    losses: Tensor
    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TargetOutcome:
    """What one forward pass tells of a batch of examples with a number as target (regression).

    Attributes:
        losses: [examples].
        predictions: The model's outputs: [examples, outputs].
        targets: [examples, outputs].
    """

    losses: Tensor
    predictions: Tensor
    targets: Tensor


@runtime_checkable
class HasTokens(Protocol):
    """A loss that knows what each token adds to it."""

    def tokens(self, model: Module, batch: Any) -> Tensor:
        """Each token's share of its example's loss: [examples, positions]; they sum to the loss."""
        ...


def no_tokens(loss: PerExampleLoss) -> LossError:
    """The error about a loss that does not say what each token adds to it."""
    name = getattr(loss, "__name__", type(loss).__name__)
    return LossError(
        f"Shares of tokens need a loss that knows what each token adds to it, and {name} does not "
        'say. Use loss="causal_lm", or give your loss a method tokens(model, batch) -> '
        "[examples, positions], whose sum over positions is the loss."
    )


def losses_in(outcome: Any) -> Any:
    """The losses of what a loss returned: its own, or those of an outcome."""
    return outcome.losses if isinstance(outcome, Outcome | TargetOutcome) else outcome


@final
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the labels under the softmax of the model's output, in nats.

    One label per example: its loss, with no reduction. One label per position (segmentation,
    tagging): the mean over the example's own positions whose label is not -100, and 0 where there
    is none; for their sum, pass a callable.

    The batch is `(inputs, labels)`, and the model is called as `model(inputs)`, `model(*inputs)`
    or `model(**inputs)` when inputs are a tensor, a tuple or a mapping; or the batch is a mapping
    with "labels", and the model is called by name with all the rest that its forward takes. The
    output is a tensor [examples, classes] or [examples, classes, positions...], or has one as
    `.logits` or ["logits"].

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3, bias=False)
        >>> batch = (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))
        >>> CrossEntropy()(model, batch)
        tensor([1.0986, 1.0986, 1.0986, 1.0986], grad_fn=<NllLossBackward0>)
    """

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """The loss of every example, [examples].

        Raises:
            LossError: the batch has another form, or the output does not fit the labels.
            LabelError: labels that are no integers, or lie outside the classes.
        """
        return self.outcome(model, batch).losses

    def outcome(self, model: Module, batch: Any) -> Outcome:
        """The losses with the logits and labels they came from, in the same single pass.

        Raises:
            LossError: the batch has another form, or the output does not fit the labels.
            LabelError: labels that are no integers, or lie outside the classes.
        """
        output, labels = _called(model, batch, "cross_entropy")
        _require_integers(labels, "cross_entropy")
        logits = _logits(output, "cross_entropy")
        _require_classes(logits, labels)
        labels = labels.long()
        if labels.dim() == 1:
            labels = _checked_labels(labels, logits.shape[1], None, _class_labels)
            losses = F.cross_entropy(
                logits, labels, reduction="none", ignore_index=_NOTHING_IGNORED
            )
            return Outcome(losses, logits, labels)
        labels = _checked_labels(labels, logits.shape[1], IGNORED, _class_labels)
        each = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        return Outcome(_mean_of_kept(each, labels), logits, labels)

    def tokens(self, model: Module, batch: Any) -> Tensor:
        """Each token's share of its example's loss, of a model that tags tokens.

        Returns:
            [examples, positions]; the sum over positions is the loss.

        Raises:
            LossError: as `outcome`, or examples have one label each, or a map of labels.
            LabelError: as `outcome`.
        """
        found = self.outcome(model, batch)
        if found.labels.dim() != 2:
            raise LossError(
                "cross_entropy knows the share of each token only where labels are [examples, "
                f"positions], one per token, but they are {tuple(found.labels.shape)}. Use "
                '"causal_lm" for texts, or give a loss of your own a method tokens(model, batch) '
                "-> [examples, positions]."
            )
        each = F.cross_entropy(found.logits, found.labels, reduction="none", ignore_index=IGNORED)
        return _shares(each, found.labels)


@final
@dataclass(frozen=True)
class MeanSquaredError:
    """The squared error of the model's output, its mean over the outputs of an example.

    The unit is that of the targets, squared; there is no factor of one half. The batch is as for
    `CrossEntropy`, with targets in place of labels. Outputs and targets have one shape,
    [examples] or [examples, outputs]; [examples, 1] against [examples] is the same thing.

    Example:
        >>> import torch
        >>> batch = (torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        >>> MeanSquaredError()(torch.nn.Identity(), batch)
        tensor([0., 4.])
    """

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """The loss of every example, [examples].

        Raises:
            LossError: the batch has another form, or the output's shape is not the targets'.
            LabelError: targets that are no floating point numbers.
        """
        return self.outcome(model, batch).losses

    def outcome(self, model: Module, batch: Any) -> TargetOutcome:
        """The losses with the predictions and targets they came from, in the same single pass.

        Raises:
            LossError: the batch has another form, or the output's shape is not the targets'.
            LabelError: targets that are no floating point numbers.
        """
        output, targets = _called(model, batch, "mse")
        if not targets.is_floating_point():
            raise LabelError(
                "mse needs targets that are floating point numbers, but they are "
                f"{targets.dtype}. Pass targets.float(), or 'cross_entropy' if they are classes."
            )
        outputs = _logits(output, "mse")
        if outputs.dim() == 0 or targets.dim() == 0:
            raise _unlike(outputs, targets)
        # Broadcasting these two would compare every example with every other.
        aligned_outputs, aligned_targets = _columns(outputs), _columns(targets)
        if aligned_outputs.shape != aligned_targets.shape:
            raise _unlike(outputs, targets)
        errors = aligned_outputs - aligned_targets.to(aligned_outputs.dtype)
        losses = errors.square().flatten(1).mean(1)
        return TargetOutcome(losses, aligned_outputs.flatten(1), aligned_targets.flatten(1))


@final
@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of each next token, in nats: the mean over an example's own tokens, or the sum.

    The mean makes long and short texts comparable, and is the logarithm of the perplexity. A
    trainer that divides by the tokens of its whole batch weighs every token alike, so that long
    texts take larger steps: that is the sum, over any number that is the same for all examples. The
    loss depends on the example alone, never on its batch: padding changes nothing.

    The batch is a mapping with "input_ids" [examples, positions], and "attention_mask" and
    "labels" where there are any; the model is called by name with all but the labels that its
    forward takes. Or it is a tensor of tokens, and the model is called as `model(tokens)`. Tokens
    may be of any integer type. The shift by one is made here: labels are aligned with input_ids,
    -100 is ignored, and an example without a token to predict has loss 0. Without labels they are
    the input_ids, where neither the token nor the one it is predicted from is masked, so padding on
    the left gives the same loss as padding on the right. With "position_ids" that restart, texts
    packed into one row are kept apart: none predicts the next one's first token, and the model is
    called with use_cache=False, as transformers' Trainer calls it. The output is a tensor
    [examples, positions, words], or has one as `.logits` or ["logits"].

    Attributes:
        divided_by: What the sum over an example's tokens is divided by: 1.0 for the sum itself;
            None for the number of its own tokens.

    Example:
        >>> import torch
        >>> model = torch.nn.Embedding.from_pretrained(torch.zeros(5, 5))
        >>> CausalLM()(model, torch.tensor([[0, 1, 2], [3, 4, 4]]))
        tensor([1.6094, 1.6094])
        >>> CausalLM(divided_by=1.0)(model, torch.tensor([[0, 1, 2], [3, 4, 4]]))
        tensor([3.2189, 3.2189])
    """

    divided_by: float | None = None

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """The loss of every example, [examples].

        Raises:
            LossError: the batch has another form, or the output does not fit it.
            LabelError: tokens or labels that are no integers, or lie outside the words.
        """
        each, following = self._each(model, batch)
        if self.divided_by is None:
            return _mean_of_kept(each, following)
        return each.sum(1) / self.divided_by

    def tokens(self, model: Module, batch: Any) -> Tensor:
        """Each token's share of its text's loss, at its own position: that of being predicted.

        Returns:
            [examples, positions]; the sum over positions is the loss. The first token, which
            nothing predicts, and tokens without a label have 0.

        Raises:
            LossError: the batch has another form, or the output does not fit it.
            LabelError: tokens or labels that are no integers, or lie outside the words.

        Example:
            >>> import torch
            >>> model = torch.nn.Embedding.from_pretrained(torch.zeros(5, 5))
            >>> CausalLM().tokens(model, torch.tensor([[0, 1, 2]]))
            tensor([[0.0000, 0.8047, 0.8047]])
        """
        each, following = self._each(model, batch)
        by = self.divided_by
        shares = _shares(each, following) if by is None else each / by
        return F.pad(shares[:, :-1], (1, 0))

    def _each(self, model: Module, batch: Any) -> tuple[Tensor, Tensor]:
        """What predicting the next token costs at each position, and that token."""
        following = next_tokens(batch)
        if isinstance(batch, Mapping):
            output = _by_name(model, {key: batch[key] for key in batch if key != "labels"})
        else:
            output = model(_as_index(batch if isinstance(batch, Tensor) else _only(batch)))
        logits = _logits(output, "causal_lm")
        if logits.dim() != 3 or logits.shape[:2] != following.shape:
            raise LossError(
                "causal_lm needs an output [examples, positions, words] for input_ids "
                f"{tuple(following.shape)}, but the model gave {tuple(logits.shape)}. "
                "Pass a callable if the model works otherwise."
            )
        following = _checked_labels(following, logits.shape[2], IGNORED, next_tokens)
        # The labels are shifted and not the logits, which would have to be copied to be flat.
        each = F.cross_entropy(
            logits.flatten(0, 1), following.flatten(), reduction="none", ignore_index=IGNORED
        )
        return each.view_as(following), following


_NAMED: dict[str, Callable[[], PerExampleLoss]] = {
    "cross_entropy": CrossEntropy,
    "mse": MeanSquaredError,
    "causal_lm": CausalLM,
    "causal_lm_mean": CausalLM,
    "causal_lm_sum": partial(CausalLM, divided_by=1.0),
}


def open_loss(loss: str | PerExampleLoss) -> PerExampleLoss:
    """The per-example loss that a name stands for; a callable is returned as it is.

    Args:
        loss: "cross_entropy", "mse", "causal_lm_mean" (also "causal_lm"), "causal_lm_sum", or
            `loss(model, batch)` that returns [examples].

    Raises:
        LossError: an unknown name, or something that cannot be called with a model and a batch.

    Example:
        >>> open_loss("mse")
        MeanSquaredError()
    """
    names = ", ".join(f"'{name}'" for name in _NAMED)
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise LossError(
                f"The losses with names are {names}, but {loss!r} was given. Pass one of them, or "
                "a function loss(model, batch) that returns one value per example."
            )
        return _NAMED[loss]()
    # Torch's own losses take (output, labels): called with a model they fail far from here.
    is_torch_loss = isinstance(loss, _Loss) or getattr(loss, "__module__", "") == F.__name__
    if is_torch_loss or isinstance(loss, type) or not callable(loss):
        kind = loss.__name__ if isinstance(loss, type) else type(loss).__name__
        came = getattr(loss, "__name__", kind) if is_torch_loss else kind
        raise LossError(
            "A loss is called as loss(model, batch) and returns one value per example, [examples]; "
            f"{'the class ' if isinstance(loss, type) else ''}{came} was given"
            f"{', which takes (output, labels)' if is_torch_loss else ''}. Pass {names}, or a "
            "function such as lambda model, batch: "
            "F.cross_entropy(model(batch[0]), batch[1], reduction='none')."
        )
    return loss


def next_tokens(batch: Any) -> Tensor:
    """The label that each position of a `causal_lm` batch has to predict: [examples, positions].

    Raises:
        LossError: The batch has another form.
        LabelError: Tokens or labels that are no integers.
    """
    if isinstance(batch, Tensor | list | tuple):
        tokens = batch if isinstance(batch, Tensor) else _only(batch)
        _require_tokens(tokens, "the tensor of tokens")
        return _shifted(tokens.long())
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise _form_error("causal_lm", "a mapping with 'input_ids', or a tensor of them", batch)
    tokens = batch["input_ids"]
    _require_tokens(tokens, "input_ids")
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if labels is not None:
        _require_tokens(labels, "labels")
        _require_alike(labels, "labels", tokens)
        return _shifted(labels.long())
    following = _shifted(tokens.long())
    places = batch.get("position_ids")
    if isinstance(places, Tensor) and places.shape == tokens.shape:
        following = torch.where(_shifted(places.long()) == 0, IGNORED, following)
    if mask is None:
        return following
    _require_alike(mask, "attention_mask", tokens)
    is_attended = mask != 0
    is_attended = is_attended & F.pad(is_attended[:, 1:], (0, 1), value=False)
    return torch.where(is_attended, following, IGNORED)


def _called(model: Module, batch: Any, name: str) -> tuple[Any, Tensor]:
    """The model's output on the inputs of a batch, and the batch's labels."""
    labels = _labels_in(batch, name)
    if isinstance(batch, Mapping):
        return _by_name(model, {key: batch[key] for key in batch if key != "labels"}), labels
    inputs = batch[0]
    if isinstance(inputs, Mapping):
        return _by_name(model, inputs), labels
    if isinstance(inputs, list | tuple):
        return model(*inputs), labels
    return model(inputs), labels


def _labels_in(batch: Any, name: str) -> Tensor:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise _form_error(name, _BATCH_FORM, batch)
        return _label_tensor(batch["labels"], name)
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise _form_error(name, _BATCH_FORM, batch)
    return _label_tensor(batch[1], name)


def _class_labels(batch: Any) -> Tensor:
    return _labels_in(batch, "cross_entropy")


def _by_name(model: Module, inputs: Mapping[Any, Any]) -> Any:
    """Call the model with the inputs that its forward takes, as transformers' Trainer does."""
    named: dict[str, Any] = {
        str(key): _as_index(value) if str(key).endswith("_ids") else value
        for key, value in inputs.items()
    }
    taken = _names_taken(model)
    # Beside a cache, transformers takes positions that restart for one text: attention would cross
    # from one packed document into the next. Its Trainer trains without a cache.
    if taken is not None and "use_cache" in taken and "position_ids" in named:
        named.setdefault("use_cache", False)
    return model(**named if taken is None else {key: named[key] for key in named if key in taken})


def _names_taken(model: Module) -> frozenset[str] | None:
    """The names that the model's forward takes; None where it takes any."""
    # An adapter takes anything, and hands it on to the model that it is around.
    base: Any = getattr(model, "get_base_model", None)
    inner: Any = base() if callable(base) else model
    try:
        parameters = inspect.signature(inner.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code has no signature to read
        return None
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    # Models of transformers hand further names on to their kernels; Trainer never gives any.
    if takes_any and not _is_of_transformers(inner):
        return None
    return frozenset(each.name for each in parameters)


def _is_of_transformers(model: Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


def _as_index(tokens: Any) -> Any:
    """Tokens in a type that an embedding takes; other values as they are."""
    if not isinstance(tokens, Tensor) or tokens.dtype not in _NARROW:
        return tokens
    return tokens.long()


def _form_error(name: str, form: str, batch: Any) -> LossError:
    if isinstance(batch, Mapping):
        came = f"a mapping with {', '.join(map(repr, batch))}"
    elif isinstance(batch, list | tuple):
        came = f"{a_kind(batch)} of {len(batch)}"
    else:
        came = a_kind(batch)
    return LossError(
        f"{name} needs a batch that is {form}, but {came} was given. Several inputs go in a tuple "
        "of their own, ((first, second), labels); for any other form pass a function "
        "loss(model, batch) that returns one value per example."
    )


def _label_tensor(labels: Any, name: str) -> Tensor:
    if isinstance(labels, Tensor):
        return labels
    raise LabelError(
        f"{name} needs labels that are a tensor; got {a_kind(labels)}. Pass torch.tensor(labels), "
        "or make a tensor of them in the dataset or the collate_fn; a Hugging Face dataset does so "
        "after .with_format('torch')."
    )


def _logits(output: Any, name: str) -> Tensor:
    if isinstance(output, Tensor):
        logits: Any = output
    elif isinstance(output, Mapping) and "logits" in output:
        logits = output["logits"]
    else:
        logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise LossError(
            f"{name} needs a model whose output is a tensor, or has one as .logits, but "
            f"{a_kind(output)} was returned. Pass a function loss(model, batch) that takes what it "
            "needs from the output and returns one value per example."
        )
    # Half precision would leave a loss three digits; transformers widens its logits, too.
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _require_integers(labels: Tensor, name: str) -> None:
    is_one_hot = labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] > 1
    if is_one_hot and name == "cross_entropy":
        raise LabelError(
            f"{name} needs one integer class per example, but got labels of {labels.dtype} and "
            f"shape {tuple(labels.shape)}. Pass labels.argmax(1) if they are one-hot; for class "
            "probabilities pass a function loss(model, batch)."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise LabelError(
            f"{name} needs labels that are integers, one class each, but they are {labels.dtype}. "
            "Pass labels.long(); for class probabilities pass a function loss(model, batch)."
        )


def _require_classes(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() < 2:
        raise LossError(
            "cross_entropy needs an output [examples, classes], but the model gave "
            f"{tuple(logits.shape)}. Keep both dimensions, also for one example; a single "
            "yes-or-no score per example needs a function with "
            "F.binary_cross_entropy_with_logits(..., reduction='none')."
        )
    if logits.shape[1] == 1:
        raise LossError(
            f"The model scores one class only, {tuple(logits.shape)}, so the cross-entropy is "
            "zero whatever it says. Pass a function with "
            "F.binary_cross_entropy_with_logits(..., reduction='none'), or 'mse'."
        )
    if labels.shape == logits.shape and logits.dim() == 2:
        raise LabelError(
            "cross_entropy needs one integer class per example, but got labels of the shape of the "
            f"model's output, {tuple(labels.shape)}. Pass labels.argmax(1) if they are one-hot."
        )
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise LossError(
            "cross_entropy needs an output [examples, classes] with labels [examples], or "
            "[examples, classes, positions...] with [examples, positions...], but the model gave "
            f"{tuple(logits.shape)} for labels {tuple(labels.shape)}. Classes come second "
            "(output.transpose(1, 2) if they are last); labels [examples, 1] need .squeeze(1)."
        )


def _checked_labels(
    labels: Tensor, classes: int, ignored: int | None, find: Callable[[Any], Tensor]
) -> Tensor:
    """Look at the values of the labels, in one transfer from the device; returns the labels."""
    # Inside vmap a tensor has no values to look at; the same labels are seen outside of it.
    if is_functorch_wrapped_tensor(labels) or labels.numel() == 0:
        return labels
    checks, noted = open_checks(labels), _UNLABELLED.get()
    if checks is not None and (ignored is None or noted is not None):
        is_outside = _is_outside(labels, classes, ignored)
        if not is_functorch_wrapped_tensor(is_outside):  # such cannot wait for a block's end
            checks.note(is_outside.any())
            return _noted_labels(labels, is_outside, ignored, find, checks, noted)
    if ignored is None:
        low, high = torch.stack(torch.aminmax(labels)).tolist()
        fewest = 1
    else:
        is_scored = labels != ignored
        extremes = torch.aminmax(torch.where(is_scored, labels, 0))
        fewest_scored = is_scored.flatten(1).sum(1).min()
        low, high, fewest = torch.stack([*extremes, fewest_scored]).tolist()
    if low < 0 or high >= classes:
        raise _outside(labels, classes, ignored, find)
    if fewest == 0:
        if noted is None:
            _warn_unlabelled(labels)
        else:
            noted.append(partial(_rows_without, find=find))
    return labels


def _noted_labels(
    labels: Tensor,
    is_outside: Tensor,
    ignored: int | None,
    find: Callable[[Any], Tensor],
    checks: LateChecks,
    noted: "_Noted | None",
) -> Tensor:
    """Labels to go on with until the checks are read.

    A CUDA kernel that meets a label outside the classes ends the use of the device: it becomes one.
    """
    if ignored is None or noted is None:
        return labels.masked_fill(is_outside, 0)
    is_without = (labels == ignored).flatten(1).all(1)
    checks.note(is_without.any(), partial(noted.append, partial(_rows_without, find=find)))
    return torch.where(is_outside, 0, labels)


def _outside(
    labels: Tensor, classes: int, ignored: int | None, find: Callable[[Any], Tensor]
) -> LabelError:
    where = _is_outside(labels, classes, ignored).nonzero()[0].tolist()
    hint = "" if ignored is None else f", or {ignored} for a position without a loss"
    place = f", at its position {', '.join(map(str, where[1:]))}" if len(where) > 1 else ""
    whose = f"the example at position {where[0]} of the batch"
    error = LabelError(
        f"Labels are classes from 0 to {classes - 1}{hint}, since the model scores {classes}, "
        f"but {whose} has {labels[tuple(where)].item()}{place}. Renumber the labels, or give the "
        "model an output for each class."
    )
    error.whose = whose
    error.row_in = partial(_row_outside, classes=classes, ignored=ignored, find=find)
    return error


def _is_outside(labels: Tensor, classes: int, ignored: int | None) -> Tensor:
    outside = (labels < 0) | (labels >= classes)
    return outside if ignored is None else outside & (labels != ignored)


def _row_outside(
    batch: Any, *, classes: int, ignored: int | None, find: Callable[[Any], Tensor]
) -> int | None:
    """The first row of a batch whose labels are no classes."""
    rows = _is_outside(find(batch).long(), classes, ignored).nonzero()[:, 0]
    return int(rows[0]) if len(rows) else None


# Where a pass wants to know of examples without labels: functions of a batch that give their rows.
_Noted = list[Callable[[Any], list[int]]]
_UNLABELLED: ContextVar[_Noted | None] = ContextVar("unlabelled", default=None)


@contextmanager
def noting_unlabelled() -> Iterator[_Noted]:
    """Collect what losses find out about examples without labels, instead of warnings.

    Yields:
        Functions of a batch, one for each pass that met such an example: they give its rows.
    """
    noted: _Noted = []
    token = _UNLABELLED.set(noted)
    try:
        yield noted
    finally:
        _UNLABELLED.reset(token)


def _rows_without(batch: Any, *, find: Callable[[Any], Tensor]) -> list[int]:
    """The rows of a batch that have no label to score."""
    is_scored = find(batch) != IGNORED
    return (~is_scored.flatten(1).any(1)).nonzero()[:, 0].tolist()


def unlabelled_warning(examples: str) -> str:
    """The warning about examples without a label."""
    return (
        f"No label to score in {examples}: each of its positions is {IGNORED} or masked, so its "
        "loss and its scores are 0. Leave such examples out of the data."
    )


def _warn_unlabelled(labels: Tensor) -> None:
    row = int((labels != IGNORED).flatten(1).sum(1).argmin())
    warnings.warn(
        unlabelled_warning(f"the example at position {row} of the batch"), DataWarning, stacklevel=4
    )


def _mean_of_kept(each: Tensor, labels: Tensor) -> Tensor:
    """The mean over an example's positions that are not ignored, 0 where none is: [examples]."""
    return each.flatten(1).sum(1) / (labels != IGNORED).flatten(1).sum(1).clamp(min=1)


def _shares(each: Tensor, labels: Tensor) -> Tensor:
    """What each position adds to the mean over the positions that are not ignored."""
    return each / (labels != IGNORED).sum(1, keepdim=True).clamp(min=1)


def _columns(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.dim() == 1 else values


def _unlike(outputs: Tensor, targets: Tensor) -> LossError:
    return LossError(
        "mse needs outputs and targets of one shape, [examples] or [examples, outputs], but the "
        f"model gave {tuple(outputs.shape)} for targets {tuple(targets.shape)}. Reshape one of "
        "them; a model that squeezes its output has to keep the first dimension, .squeeze(-1)."
    )


def _only(batch: list[Any] | tuple[Any, ...]) -> Any:
    if len(batch) != 1:
        raise _form_error("causal_lm", "a mapping with 'input_ids', or a tensor of them", batch)
    return batch[0]


def _require_tokens(tokens: Any, what: str) -> None:
    _require_integers(_label_tensor(tokens, f"causal_lm ({what})"), f"causal_lm ({what})")
    if tokens.dim() != 2 or tokens.shape[1] < 2:
        raise LossError(
            f"causal_lm needs {what} as [examples, positions] with two positions or more, since "
            f"each token is predicted from those before it, but {tuple(tokens.shape)} was given. "
            "Give one row per example, and leave out texts of a single token."
        )


def _require_alike(values: Any, what: str, tokens: Tensor) -> None:
    if not isinstance(values, Tensor) or values.shape != tokens.shape:
        came = tuple(values.shape) if isinstance(values, Tensor) else a_kind(values)
        raise LossError(
            f"causal_lm needs {what} of the shape of input_ids, {tuple(tokens.shape)}, but "
            f"{came} was given. Give one value per token; a mask of another shape needs labels, "
            f"{IGNORED} where no token is predicted."
        )


def _shifted(labels: Tensor) -> Tensor:
    """At every position the label of the next one; the last has none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
