"""Products of all examples' gradients with a few directions, by forward mode, and their audit."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from tracin.data import Batch
from tracin.errors import TracInError
from tracin.gradients.audit import Reference
from tracin.gradients.forward_mode import jvp_scores
from tracin.gradients.stepping_down import SteppedDownError
from tracin.gradients.traced_model import TracedModel
from tracin.out_of_memory import is_out_of_memory

Direction = Mapping[str, Tensor]  # parameter -> numbers of its shape


@final
class ForwardMode:
    """Multiplies by forward mode, for as long as the model's operations have rules for it."""

    def __init__(self, traced: TracedModel) -> None:
        self._traced = traced
        self._is_available = True

    def scores(self, batch: Batch, directions: Sequence[Direction]) -> Tensor | None:
        """The product of each example's gradient with each direction: [examples, directions].

        Args:
            batch: Examples first.
            directions: At least one; all of the same parameters.

        Returns:
            None if a parameter is complex, or an operation has no forward-mode rule.
        """
        traced = self._traced
        parameters = {name: traced.parameters[name] for name in directions[0]}
        if not self._is_available or any(one.is_complex() for one in parameters.values()):
            return None
        try:
            return jvp_scores(traced.model, traced.compute, batch, parameters, directions)
        except TracInError:
            raise
        except Exception as error:  # torch raises all kinds here; another exact method is open
            if is_out_of_memory(error):
                raise
            self._is_available = False
            return None

    def audit(
        self,
        scores: Tensor,
        directions: Sequence[Direction],
        reference: Reference,
        tolerance: float,
    ) -> None:
        """Compare scores with the products that autograd's gradients give.

        Args:
            scores: [examples, directions], of the whole batch.
            directions: What the gradients were multiplied with.
            reference: Autograd's gradients of a stretch of the batch.
            tolerance: What rounding explains.

        Raises:
            SteppedDownError: They differ; forward mode is not used any more.
        """
        at = slice(reference.window.start, reference.window.stop)
        found = reference.factors.to(scores) @ scores[at]
        products = [
            [
                torch.linalg.vecdot(
                    reference.gradients[name].flatten(), direction[name].to(found).flatten()
                )
                for name in direction
            ]
            for direction in directions
        ]
        wanted = torch.stack([torch.stack(each).sum() for each in products])
        sizes = torch.stack([torch.stack(each).abs().sum() for each in products])
        size = float(scores[at].abs().sum(0).max()) + float(sizes.max())
        if not torch.isfinite(wanted).all():
            return
        if not float((found - wanted).abs().max()) <= 100 * tolerance * size + 1e-30:
            self._is_available = False
            raise SteppedDownError(())
