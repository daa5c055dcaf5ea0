"""What each token of one text adds to the product of its gradient with a direction."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch
from tracin.errors import LossError
from tracin.gradients.compute import Compute
from tracin.gradients.directions import Direction, ForwardMode
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.traced_model import TracedModel
from tracin.plain_text import a_kind


@final
class TokenProducts:
    """The products of a direction with the gradient of each token's loss.

    The derivative of the tokens' losses along the direction holds all of them: one pass in forward
    mode gives what one backward pass per token gives.

    Args:
        model: In eval mode.
        tokens: tokens(model, batch) -> [examples, positions], which sum to the losses.
        parameters: Those that directions are of, by name.
    """

    def __init__(self, model: Module, tokens: Compute, parameters: Mapping[str, Tensor]) -> None:
        self._traced = TracedModel(model, _checked(tokens), parameters)
        self._forward_mode = ForwardMode(self._traced)

    def products(self, single: Batch, direction: Direction) -> Tensor:
        """Each token's product with a direction: [positions].

        Args:
            single: A batch of one example.
            direction: Numbers for every parameter.

        Raises:
            LossError: The losses of the tokens are not [examples, positions].
        """
        found = self._forward_mode.scores(single, [direction])
        return self.one_by_one(single, direction) if found is None else found[0, 0]

    def one_by_one(self, single: Batch, direction: Direction) -> Tensor:
        """The same by one ordinary backward pass per token, for any model: [positions]."""
        traced = self._traced
        with torch.no_grad():
            positions = traced.compute(traced.model, single).shape[1]
        found = []
        for position in range(positions):
            gradients, _ = weighted_gradients(
                traced.model, _Token(traced.compute, position), single, traced.parameters
            )
            found.append(sum_of_products(direction, gradients))
        return torch.stack(found)


def sum_of_products(direction: Direction, gradients: Mapping[str, Tensor]) -> Tensor:
    """The product of a direction with a gradient, over all parameters."""
    products = [
        torch.linalg.vecdot(direction[name].to(real).flatten(), real.flatten())
        for name, gradient in gradients.items()
        for real in [torch.view_as_real(gradient) if gradient.is_complex() else gradient]
    ]
    return torch.stack(products).sum()


@final
class _Token:
    """The loss of the token at one position."""

    def __init__(self, tokens: Compute, position: int) -> None:
        self._tokens, self._position = tokens, position

    def __call__(self, model: Module, batch: Batch) -> Tensor:
        return self._tokens(model, batch)[:, self._position]


def _checked(tokens: Compute) -> Compute:
    """The same, which refuses what is no value per token."""

    def tokens_or_refuse(model: Module, batch: Any) -> Tensor:
        found = tokens(model, batch)
        if not isinstance(found, Tensor):
            raise LossError(
                f"The loss's tokens(model, batch) returned {a_kind(found)}, but a tensor of each "
                "token's share of the loss is needed: [examples, positions]."
            )
        if found.ndim != 2 or not found.dtype.is_floating_point:
            raise LossError(
                f"The loss's tokens(model, batch) returned {found.dtype} of shape "
                f"{tuple(found.shape)}, but each token's share of the loss is needed: floating "
                "point values [examples, positions], which sum to the losses over positions."
            )
        return found

    return tokens_or_refuse
