"""How far two computations of the same gradients are apart, and whether rounding explains it."""

from collections.abc import Mapping

from torch import Tensor

from tracin.sharding import is_divided, over_ranks
from tracin.torch_internals import lengths_of

# A gradient that is zero but for rounding (a key's bias under softmax) has no meaningful relative
# gap, so the length of the whole gradient sets a floor.
FLOOR = 0.01


def lengths_by_name(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The length of each tensor, in one look at the device."""
    found = lengths_of(list(tensors.values())).tolist() if tensors else []
    return dict(zip(tensors, found, strict=True))


def whole_lengths(
    lengths: Mapping[str, float], parameters: Mapping[str, Tensor]
) -> Mapping[str, float]:
    """The lengths of whole tensors; of a sharded model from those of this rank's parts."""
    if not is_divided(parameters):
        return lengths
    squares = over_ranks({name: one * one for name, one in lengths.items()}, parameters)
    return {name: square**0.5 for name, square in squares.items()}


def too_far(
    sizes: Mapping[str, float], apart: Mapping[str, float], tolerance: float
) -> dict[str, float]:
    """Where a distance is more than rounding explains, relative to the size."""
    whole = sum(size * size for size in sizes.values()) ** 0.5
    found = {}
    for name, size in sizes.items():
        # Written so that NaN counts as a difference.
        if not apart[name] <= tolerance * (size + FLOOR * whole):
            found[name] = apart[name] / size if size else float("inf")
    return found
