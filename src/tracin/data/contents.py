"""Whether data are still what they were: a fingerprint of all their examples."""

import torch
from torch import Tensor

from tracin.data.batches import leaves
from tracin.data.examples import Examples
from tracin.files import bytes_of, fingerprint
from tracin.random_state import RandomState

AT_ONCE = 1024  # examples


def examples_fingerprint(examples: Examples) -> str | None:
    """Equal for equal examples in the same order; None where some hold what cannot be compared.

    All examples are read once. A dataset that draws random numbers has another one each time.

    Example:
        >>> import torch
        >>> from tracin.data import open_examples
        >>> one, other = (open_examples(torch.arange(4.0)) for _ in range(2))
        >>> examples_fingerprint(one) == examples_fingerprint(other)
        True
    """
    state = RandomState.now()
    pieces: list[str] = []
    try:
        for _, batch in examples.batches(AT_ONCE, as_views=True):
            for path, leaf in leaves(batch):
                if isinstance(leaf, Tensor):
                    if leaf.layout is not torch.strided or leaf.is_meta:
                        return None
                    about = f"{path} {leaf.dtype} {tuple(leaf.shape)}"
                    pieces.append(fingerprint([about, bytes_of(leaf)]))
                elif isinstance(leaf, str | bytes | int | float | None):
                    pieces.append(fingerprint([path, repr(leaf)]))
                else:
                    return None
    finally:
        state.restore()
    return fingerprint(pieces)
