"""Every error that tracin raises on purpose: what was promised, what came, and the way out."""

from collections.abc import Callable
from typing import Any

from tracin.plain_text import plain_lines


class TracInError(Exception):
    """The base of every error raised on purpose; catch it to catch them all."""

    def __str__(self) -> str:
        # Messages quote ids, names and files that may hold anything.
        return plain_lines(super().__str__())


class DataError(TracInError):
    """The data cannot be walked in a fixed order, example by example: shuffled, empty, ragged."""


class LabelError(DataError):
    """A label has the wrong type, or lies outside the classes that the model scores.

    Attributes:
        whose: How the message calls the example, where it knows no more than its row.
        row_in: The row of a batch that the error is about; None where it is about none.
    """

    whose: str | None = None
    row_in: Callable[[Any], int | None] | None = None


class LossError(TracInError):
    """The loss does not return one differentiable value per example."""


class CoupledExamplesError(LossError):
    """An example's loss depends on the others in its batch: it has no gradient of its own."""


class NonFiniteError(TracInError):
    """A loss or a gradient is NaN or infinite; the message names the example and the checkpoint."""


class ParametersError(TracInError):
    """No parameter is left to trace, or a name given for one matches nothing."""


class UnsupportedModelError(TracInError):
    """The model is of a kind for which a result would be wrong without any sign of it."""


class CheckpointError(TracInError):
    """A checkpoint is missing, unreadable, unsafe to load, or does not fit the model."""


class LearningRateError(CheckpointError):
    """A checkpoint's learning rate is missing, zero, negative, or not a number."""


class DeviceError(TracInError):
    """The model, its weights and the data are not on one device, or on one that does not exist."""


class ModelInUseError(TracInError):
    """Another thread uses the model, or a part of it, and must find its weights as they are."""


class QueryError(TracInError):
    """A query cannot be answered: more results than examples, an unknown ranking."""


class PreconditionerError(TracInError):
    """A preconditioner's arguments make no sense, or it cannot be made from the data."""


class CurvatureError(TracInError):
    """A Hessian has no inverse that means anything, or weights are not where a loss is flat."""


class TracingError(TracInError):
    """A training loop and its trace disagree: ids, a step, the optimizer, what is resumed."""


class OutputError(TracInError):
    """A result cannot be written where it should go."""


class RunFileError(TracInError):
    """A RUN.toml names something that is not there, or a setting that does not exist."""


class IndexingError(TracInError):
    """An index that cannot be built, opened, or searched as asked."""


class DecisionError(TracInError):
    """Decisions about labels, or the ranking they are about, cannot be read, kept or applied."""


class TracInWarning(UserWarning):
    """The base of every warning that tracin gives."""

    def __str__(self) -> str:
        return plain_lines(super().__str__())


class CheckpointWarning(TracInWarning):
    """Something about the checkpoints that is probably, but not certainly, a slip."""


class DataWarning(TracInWarning):
    """Something about the data that makes scores mean less than they seem to."""


class MemorisedWarning(TracInWarning):
    """The model agrees with nearly all given labels, so that wrong ones among them do not show."""


class CurvatureWarning(TracInWarning):
    """A product with the inverse of a Hessian is less exact than was asked for."""


class TracingWarning(TracInWarning):
    """Something about a training loop that its trace cannot share among the examples."""
