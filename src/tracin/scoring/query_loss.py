"""The loss that takes the place of the queries' own where a target is explained."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.checks import is_int
from tracin.errors import CoupledExamplesError, LossError, QueryError
from tracin.gradients.compute import Compute
from tracin.losses import Outcome, TargetOutcome
from tracin.plain_text import a_kind
from tracin.scoring.targets import ClassTarget, Logit, LogitMargin, Predicted, Target


@final
@dataclass(frozen=True)
class QueryLoss:
    """What takes the place of the queries' loss.

    Attributes:
        target: What is explained, as the user gave it.
        compute: Minus the target: compute(model, batch) -> [queries].
    """

    target: Target
    compute: Compute

    @property
    def name(self) -> str:
        """The target in words."""
        name = getattr(self.target, "__name__", None)
        return repr(self.target) if not isinstance(name, str) else name

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say of an error about losses that they are the target's.

        Raises:
            LossError: The target is no differentiable value per query.
            CoupledExamplesError: A query's target depends on the other queries in its batch.
        """
        try:
            yield
        except (LossError, CoupledExamplesError) as error:
            raise type(error)(
                f"target={self.name}, whose negative is the queries' loss: {error}"
            ) from error


@final
@dataclass(frozen=True)
class MinusTarget:
    """A target of the user's own as a loss.

    Attributes:
        target: target(model, batch) -> [queries].
    """

    target: Callable[[Module, Any], Tensor]

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """Minus the target: [queries].

        Raises:
            LossError: It returned no floating point values, one per query.
        """
        values = self.target(model, batch)
        if not isinstance(values, Tensor):
            raise LossError(
                f"The target returned {a_kind(values)}, but a tensor of one value per query is "
                "needed: [queries]."
            )
        if values.ndim != 1 or not values.dtype.is_floating_point:
            raise LossError(
                f"The target returned {values.dtype} of shape {tuple(values.shape)}, but one "
                "floating point value per query is needed: [queries]. Pick a column, such as "
                "model(batch[0])[:, 3], or tracin.Logit(3)."
            )
        return -values


@final
@dataclass(frozen=True)
class MinusClassTarget:
    """A target of classes as a loss of pairs (batch, classes).

    Attributes:
        outcome: outcome(model, batch), of the run's loss.
        target: What is explained of a class.
    """

    outcome: Compute
    target: ClassTarget

    def __call__(self, model: Module, batch: tuple[Any, Tensor]) -> Tensor:
        """Minus the target: [queries]."""
        given, classes = batch
        return -self.target.value(class_scores(self.outcome(model, given), self.target), classes)


@final
@dataclass(frozen=True, repr=False)
class ForClasses:
    """A target of classes that come with the queries: a function of pairs (batch, classes).

    Attributes:
        outcome: outcome(model, batch), of the loss.
        target: What is explained of a class.
    """

    outcome: Compute
    target: ClassTarget

    def __repr__(self) -> str:
        return repr(self.target)

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """The target: [queries]."""
        return -MinusClassTarget(self.outcome, self.target)(model, batch)


@final
@dataclass(frozen=True)
class MinusOneClassTarget:
    """A target of one class, the same for all queries, as a loss of batches as they are.

    Attributes:
        outcome: outcome(model, batch), of the loss.
        target: What is explained of its class, which it names.
    """

    outcome: Compute
    target: Logit | LogitMargin

    def __call__(self, model: Module, batch: Any) -> Tensor:
        """Minus the target: [queries].

        Raises:
            LossError: The loss gives no score per class and query.
            QueryError: The model has no such class.
        """
        scores = class_scores(self.outcome(model, batch), self.target)
        refuse_no_class(self.target, scores.shape[1])
        label = self.target.label or 0
        classes = torch.full((len(scores),), label, dtype=torch.int64, device=scores.device)
        return -self.target.value(scores, classes)


def naming(asked: QueryLoss | None) -> AbstractContextManager[None]:
    """Name the target in errors about the queries' losses; None are the queries' own."""
    return nullcontext() if asked is None else asked.named()


def what_is_asked(asked: QueryLoss | None) -> str:
    """What is explained of a query, for errors."""
    return "loss" if asked is None else "target"


def query_loss(outcome: Compute | None, loss: Any, target: Target) -> QueryLoss:
    """What a target makes of the queries' loss.

    Args:
        outcome: The run's loss with its class scores; None where it has none.
        loss: The run's loss.
        target: As the user gave it.

    Raises:
        QueryError: It is no target, or it is the loss.
        LossError: It is about classes, and the loss tells none.
    """
    if isinstance(target, Predicted | Logit | LogitMargin):
        if target.label is not None and not is_int(target.label, 0):
            raise QueryError(
                f"A class is a whole number from 0 on, or None for the one that the model "
                f"predicts, but {target!r} was given."
            )
        if outcome is None:
            raise _no_classes(target)
        return QueryLoss(target, MinusClassTarget(outcome, target))
    is_call = callable(target) and not isinstance(target, type | Module)
    if not is_call:
        raise QueryError(
            "target is None for the queries' loss; tracin.Predicted(), tracin.Logit() or "
            "tracin.LogitMargin(); or a function target(model, batch) that returns one value per "
            f"query; {target!r} was given."
        )
    if target is loss:
        raise QueryError(
            "target is what proponents raise, and this one is the run's loss, which they lower. "
            "Leave target out to explain the loss."
        )
    return QueryLoss(target, MinusTarget(target))


def live_query_loss(outcome: Compute | None, loss: Any, target: Target) -> QueryLoss:
    """What a target makes of the queries' loss while a model trains: no prediction is the last.

    Args:
        outcome: The loss with its class scores; None where it has none.
        loss: The loss.
        target: As the user gave it.

    Raises:
        QueryError: It is no target, or it is the loss, or its class is what the model will predict.
        LossError: It is about classes, and the loss tells none.
    """
    checked = query_loss(outcome, loss, target)
    if not isinstance(target, Predicted | Logit | LogitMargin) or outcome is None:
        return checked
    if isinstance(target, Predicted) or target.label is None:
        raise QueryError(
            f"target={target!r} is about the class that the last checkpoint predicts, which is not "
            "known while the model trains. Name the class, as in tracin.Logit(3), or give queries "
            "whose labels are the predicted classes, and no target: their loss is minus the "
            "log-probability."
        )
    return QueryLoss(target, MinusOneClassTarget(outcome, target))


def refuse_no_class(target: ClassTarget, classes: int) -> None:
    """Refuse a target of a class that the model does not have.

    Raises:
        QueryError: It has not so many classes.
    """
    if target.label is not None and target.label >= classes:
        raise QueryError(
            f"{target!r} is about class {target.label}, but the model scores {classes} classes, "
            f"from 0 to {classes - 1}."
        )


def class_scores(outcome: Any, target: ClassTarget) -> Tensor:
    """The class scores of an outcome: [examples, classes].

    Raises:
        LossError: There are none, or they are one per position.
    """
    if isinstance(outcome, Outcome) and outcome.logits.ndim == 2:
        return outcome.logits
    if isinstance(outcome, Outcome):
        raise LossError(
            f"{target!r} is about one class per query, but the model scores classes per position, "
            f"{tuple(outcome.logits.shape)}. Pass a function target(model, batch) that returns "
            "one value per query."
        )
    came = "predicts numbers" if isinstance(outcome, TargetOutcome) else "returns losses alone"
    raise _no_classes(target, came)


def _no_classes(target: ClassTarget, came: str = "returns losses alone") -> LossError:
    return LossError(
        f"{target!r} needs the model's score of each class, and this run's loss {came}. Use "
        'loss="cross_entropy", give your loss a method outcome(model, batch) -> tracin.Outcome, '
        "or pass a function target(model, batch) that returns one value per query."
    )
