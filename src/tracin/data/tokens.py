"""A batch size in tokens, for texts of unlike length."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from tracin.checks import positive_int
from tracin.errors import DataError

Length = Callable[[Any], int]
"""Returns the length of an example, as the data gives it."""


@final
@dataclass(frozen=True)
class Tokens:
    """A `batch_size` in tokens: batches of texts of like length, so that little is padding.

    A batch holds as many examples as have at most `limit` tokens once each is padded to the longest
    of them; a longer text is a batch of its own. Texts are read from the longest to the shortest,
    so that memory which does not suffice shows at once. Results are in the order of the data, and
    the same up to rounding.

    This saves time where a collate_fn pads to the longest text of a batch. Columns of a tensor are
    padded already and stay so: each row counts with its padding. Queries, and the examples that
    curvature is computed from, are not regrouped, only divided so that a batch keeps to the limit.
    The ranks of a divided model take batches of as many examples, none of them beyond the limit.

    The lengths of a `datasets.Dataset` come from its columns; of other data each example is read
    once more, before the first pass.

    Args:
        limit: The most tokens of a batch, padding included.
        length: Returns the length of one example, as the dataset gives it. None takes the longer of
            its "input_ids" and "labels".

    Raises:
        DataError: `limit` is no whole number of at least 1, or `length` no function.

    Example:
        >>> import torch, tracin
        >>> from torch.nn.utils.rnn import pad_sequence
        >>> from torch.utils.data import DataLoader
        >>> texts = [torch.tensor(ids) for ids in ([1, 2], [3, 4, 5, 6, 7], [8])]
        >>> padded = DataLoader(texts, collate_fn=lambda some: pad_sequence(some, batch_first=True))
        >>> def loss(model, tokens):
        ...     return (tokens * model.weight).sum(1)
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[0.1])
        >>> run.self_influence(padded, batch_size=tracin.Tokens(8, length=len))
        tensor([ 0.9000, 62.5000,  6.4000])
    """

    limit: int
    length: Length | None = None

    def __post_init__(self) -> None:
        positive_int(self.limit, "limit", DataError)
        if self.length is not None and not callable(self.length):
            raise DataError(
                "length is a function that returns an example's number of tokens, but got "
                f"{self.length!r}. Pass such as `lambda example: len(example[0])`."
            )

    def halved(self) -> "Tokens":
        """Half as many tokens."""
        return Tokens(max(1, self.limit // 2), self.length)


Size = int | Tokens
"""How much goes through the model at once: so many examples, or so many tokens."""
