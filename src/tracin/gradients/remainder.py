"""What autograd's gradients leave when those of a pass are taken off, parameter by parameter."""

from collections.abc import Collection, Mapping
from math import isfinite
from typing import final

import torch
from torch import Tensor

from tracin.gradients.distances import too_far, whole_lengths
from tracin.gradients.forms import PerExampleGradient
from tracin.gradients.random_products import (
    VECTORS,
    along_matrix,
    is_large,
    random_vectors,
)
from tracin.sharding import is_divided, own
from tracin.torch_internals import lengths_of


@final
class Remainder:
    """Sums of factor x gradient, from which a pass's are taken in place.

    The numbers of a model are held once: neither the pass's own sums nor the differences are kept,
    which of a large language model would be two more copies of it. With `random` those of large
    matrices are not held at all.

    Args:
        gradients: The sum by autograd, by parameter; of a sharded one, this rank's part. Their
            memory is written to.
        parameters: The parameters, by name.
        kept: Those whose sums are kept apart in `found`, and their gradients left as they are.
        random: Of other large gradients only products with random vectors are held, drawn from
            here; None holds all of them.
    """

    def __init__(
        self,
        gradients: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        kept: Collection[str] = (),
        random: torch.Generator | None = None,
    ) -> None:
        self._parameters = parameters
        self._is_divided = is_divided(parameters)  # asked for every one of them
        self._kept = kept
        self._found: dict[str, Tensor] = {}
        # Of numbers that do not lie in order, as of a transposed weight, this is a copy.
        self._left = {name: gradient.flatten() for name, gradient in gradients.items()}
        self._sizes = lengths_of(list(self._left.values()))  # on the device until they are read
        self._vectors: dict[str, Tensor] = {}
        if random is not None:
            large = {
                name: gradient
                for name, gradient in gradients.items()
                if name not in kept and is_large(gradient)
            }
            self._vectors = random_vectors(large, random)
        for name, vectors in self._vectors.items():
            self._left[name] = along_matrix(vectors, gradients[name])

    @torch.no_grad()
    def take(self, name: str, form: PerExampleGradient, factors: Tensor) -> None:
        """Take off one parameter's gradients of some examples.

        Args:
            name: The parameter.
            form: The gradients.
            factors: One per example of them.
        """
        if name in self._kept:
            found = form.weighted_sum(factors)
            self._found[name] = found if name not in self._found else self._found[name].add_(found)
        elif name in self._vectors:
            self._left[name].sub_(form.along_weighted_sum(self._vectors[name], factors))
        elif self._is_divided:
            parameter = self._parameters[name]
            whole = form.weighted_sum(-factors).view(parameter.shape)
            self._left[name].add_(own(whole, parameter).flatten())
        else:
            form.add_weighted_sum(-factors, self._left[name])

    @property
    def found(self) -> dict[str, Tensor]:
        """The sums that the pass gave of the kept parameters, by name: [numbers]."""
        return {
            name: self._found.get(name, torch.zeros_like(self._left[name])) for name in self._kept
        }

    @property
    def is_finite(self) -> bool:
        """Whether autograd's sums are: nothing can be compared with others."""
        return bool(torch.isfinite(self._sizes).all())

    def gaps(self, tolerance: float, leave_out: Collection[str] = ()) -> dict[str, float] | None:
        """The parameters that differ by more than rounding, with their relative gap.

        Args:
            tolerance: What rounding explains, relative to the size.
            leave_out: Parameters that the pass skipped.

        Returns:
            None if a wanted sum is not finite: there is nothing to compare with.
        """
        left = [
            self._found[name] - left if name in self._found else left
            for name, left in self._left.items()
        ]
        # One look at the device for all of them.
        read = torch.cat([self._sizes, lengths_of(left)]).tolist()
        sizes = dict(zip(self._left, read[: len(left)], strict=True))
        apart = dict(zip(self._left, read[len(left) :], strict=True))
        for name in self._vectors:
            apart[name] /= VECTORS**0.5
        wanted = {name: size for name, size in sizes.items() if name not in leave_out}
        if not all(map(isfinite, wanted.values())):
            return None
        return too_far(
            whole_lengths(wanted, self._parameters),
            whole_lengths({name: apart[name] for name in wanted}, self._parameters),
            tolerance,
        )
