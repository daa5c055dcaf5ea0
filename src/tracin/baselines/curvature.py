"""The mean Hessian of the training losses, as products with vectors over all data.

B. A. Pearlmutter, "Fast exact multiplication by the Hessian", 1994: the product is the gradient of
(gradient . vector), so the matrix itself is never made.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from tracin.baselines.gradient_rows import places_of_parameters
from tracin.data import Batch, Examples, Size, length, move
from tracin.errors import LossError, TracInError, UnsupportedModelError
from tracin.gradients.compute import checked_losses
from tracin.gradients.exchange import exchanged
from tracin.gradients.functional import math_attention, refuse_sharded
from tracin.gradients.graph import leaves_of, nodes_of, reached
from tracin.out_of_memory import raise_if_out_of_memory
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.named_examples import examples_named
from tracin.sharding import device_of

# A product holds the graph of the gradient as well: two passes more than a gradient.
SHARE = 3
# The nodes of gradients that cannot be differentiated again.
DEAD_ENDS = ("Error", "NotImplemented")
WAY_OUT = (
    'Take the Hessian of the last layer alone, by TracIn(..., parameters="last"), or write the '
    "operation in torch functions."
)


@final
class Curvature:
    """The mean over examples of the Hessians of their losses at the checkpoint in place.

    Vectors are [vectors, numbers] in float64 on the CPU; products are computed where the model is,
    in its own precision.

    Args:
        walk: The model, its loss, and the parameters that the Hessian is of. Whoever asks for
            products has the checkpoint in place, by `walk.at`.
        examples: Over which the mean is taken.
        batch_size: Examples or tokens per model call.
        checkpoint: Its name, for errors.

    Raises:
        UnsupportedModelError: A parameter is complex, or divided over ranks.
    """

    def __init__(
        self, walk: CheckpointPass, examples: Examples, batch_size: Size, checkpoint: str
    ) -> None:
        self._checkpoint = checkpoint
        self._walk, self._examples = walk, examples
        self._batch_size = batch_size
        self._places = places_of_parameters(walk)
        self.numbers = max(place.stop for place in self._places.values())
        refuse_sharded(walk.gradients.parameters)
        for name, parameter in walk.gradients.parameters.items():
            if parameter.is_complex():
                raise UnsupportedModelError(
                    f"'{name}' is complex, and the Hessian is taken over real numbers. Leave it "
                    'out by `parameters`, for example with parameters="last".'
                )

    def __len__(self) -> int:
        """How many examples the mean is over."""
        return len(self._examples)

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian times each vector, one pass over the data: [vectors, numbers]."""
        total = torch.zeros_like(vectors)
        for positions, batch in self._examples.batches(self._batch_size):
            total += self._summed(positions, batch, vectors)
        return total / len(self)

    def sampled_products(self, vectors: Tensor, positions: Sequence[int]) -> Tensor:
        """The same, with the mean over some examples only: [vectors, numbers]."""
        if self._examples.alone is not None:
            each = [self._summed([at], self._examples.take([at]), vectors) for at in positions]
            return torch.stack(each).sum(0) / len(positions)
        batch = self._examples.take(positions)
        return self._summed(positions, batch, vectors) / len(positions)

    def _summed(self, positions: Sequence[int], batch: Batch, vectors: Tensor) -> Tensor:
        parameters = self._walk.gradients.parameters
        batch = move(batch, device_of(self._walk.gradients.model))
        leaves = {name: one.detach().requires_grad_() for name, one in parameters.items()}
        try:
            with (
                torch.enable_grad(),
                math_attention(),
                examples_named(self._examples, positions, batch),
                # Checkpointed parts of a model run again in the backward pass: it belongs inside.
                exchanged(self._walk.gradients.model, parameters, leaves),
            ):
                gradients = self._gradients(positions, batch, leaves)
                found = self._again(gradients, leaves, vectors)
        except (TracInError, TypeError):
            raise
        except RuntimeError as error:
            raise_if_out_of_memory(error)
            raise UnsupportedModelError(
                "The Hessian needs second derivatives, and torch could not take them through this "
                f"model: {error}. {WAY_OUT}"
            ) from error
        return found

    def _gradients(
        self, positions: Sequence[int], batch: Batch, leaves: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The gradients of the summed losses, with the graph that they came from."""
        gradients = self._walk.gradients
        losses = checked_losses(gradients.compute(gradients.model, batch), length(batch))
        refuse_non_finite(
            losses.detach(), positions, self._examples.ids, self._checkpoint, "loss", "example"
        )
        around = reached(leaves_of(losses), gradients.parameters)
        if around:
            raise LossError(
                f"The loss uses '{sorted(around)[0]}' without the model that it is called with, so "
                "it has no second derivatives by the weights put in the model's place. Use the "
                "`model` argument in the loss."
            )
        if not losses.requires_grad:
            return {}
        found = torch.autograd.grad(
            losses.sum(), list(leaves.values()), create_graph=True, allow_unused=True
        )
        curved = {
            name: one
            for name, one in zip(leaves, found, strict=True)
            if one is not None and one.requires_grad
        }
        for one in curved.values():
            _refuse_dead_ends(one)
        return curved

    def _again(
        self, gradients: Mapping[str, Tensor], leaves: Mapping[str, Tensor], vectors: Tensor
    ) -> Tensor:
        """The gradients of each vector's product with the gradients: [vectors, numbers]."""
        found = torch.zeros_like(vectors)
        if not gradients:  # the loss is linear in the parameters
            return found
        outputs, inputs = list(gradients.values()), list(leaves.values())
        # One by one: batched backward passes took 1.2 to 4 times as long, and as much more memory.
        for row, vector in zip(found, vectors, strict=True):
            seeds = [
                vector[self._places[name]].to(one).view_as(one) for name, one in gradients.items()
            ]
            columns = torch.autograd.grad(
                outputs, inputs, seeds, retain_graph=True, allow_unused=True
            )
            for name, column in zip(leaves, columns, strict=True):
                if column is not None:
                    row[self._places[name]] = column.detach().flatten().cpu().to(row)
        return found


def _refuse_dead_ends(gradient: Tensor) -> None:
    """Refuse operations that torch cannot differentiate twice.

    Their nodes lead nowhere, so that autograd takes what is behind them for constant: the Hessian
    would lack a part without any sign of it.
    """
    for node in nodes_of(gradient):
        if type(node).__name__ in DEAD_ENDS:
            raise UnsupportedModelError(
                "The Hessian needs second derivatives, and an operation of this model has none "
                "(a torch.autograd.Function that is once_differentiable, or a fused kernel). "
                f"{WAY_OUT}"
            )
