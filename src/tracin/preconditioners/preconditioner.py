"""What stands between the gradients of a training example and of a query in their product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.gradients.forms import PerExampleGradient, scaled


class HasOptimizerState(Protocol):
    """A checkpoint, or anything else that has a name and an optimizer's state."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def optimizer_state(self) -> OptimizerState | None:
        """What the optimizer remembered then, if that is known."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """One factor per entry of a gradient, at one checkpoint.

    Attributes:
        factors: Parameter name -> [numbers], none below zero.
    """

    factors: Mapping[str, Tensor]

    def squared_norm(self, name: str, form: PerExampleGradient) -> Tensor:
        """The squared lengths of one parameter's gradients under the factors: [examples]."""
        return form.squared_norm_under(self.factors[name])

    def scaled(self, name: str, form: PerExampleGradient) -> PerExampleGradient:
        """One parameter's gradients times the factors, written out unless they are few rows."""
        return scaled(form, self.factors[name])


class Preconditioner(Protocol):
    """Multiplies the gradient of a query; the training side stays as it is."""

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints that lack what it needs, before any is loaded.

        Raises:
            CheckpointError: One does.
        """
        ...

    def scaling(self, checkpoint: HasOptimizerState, parameters: Mapping[str, Tensor]) -> Scaling:
        """The factors at a checkpoint, in the dtype and on the device of the parameters.

        Raises:
            CheckpointError: The checkpoint lacks what they are made from.
        """
        ...
