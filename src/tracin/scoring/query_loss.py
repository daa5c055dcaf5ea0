"""The loss that takes the place of the queries' own where a target is explained."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

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
