"""How a trainer of language models weighed tokens, seen from the labels of its batches."""

from typing import final

from torch import Tensor

from tracin.losses import IGNORED


@final
class TokenCount:
    """Counts the predicted tokens of a training's batches, without waiting for the device.

    Hugging Face's Trainer divides the summed loss of a step by the tokens of the whole batch (since
    transformers 4.46; before, micro-batch by micro-batch). So a long text weighs more than a short
    one, and one token as much as another. Only in micro-batches of one example, each divided by its
    own tokens, do texts weigh alike.

    Example:
        >>> import torch
        >>> count = TokenCount()
        >>> count.add(torch.tensor([[1, 2, 3], [4, 5, -100]]), is_of_step=True)
        >>> count.per_example()
        1.5
    """

    def __init__(self) -> None:
        self._tokens: Tensor | float | None = None
        self._examples = 0
        self._is_by_tokens = True

    def add(self, labels: Tensor, is_of_step: bool) -> None:
        """Count a micro-batch.

        Args:
            labels: [examples, positions], aligned with the tokens.
            is_of_step: Whether its loss is divided by the tokens of all micro-batches of a step.
        """
        if labels.dim() != 2:
            self._is_by_tokens = False
            return
        # The first label of a row is no prediction's target.
        tokens = (labels[:, 1:] != IGNORED).sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self._examples += len(labels)
        if not is_of_step and len(labels) == 1:
            self.texts_alike()

    def add_step(self, tokens: Tensor | float, examples: int) -> None:
        """Count a step whose labels were not seen, by the number that the trainer divided by.

        Args:
            tokens: How many tokens the step's loss was divided by.
            examples: How many examples it had.
        """
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self._examples += examples

    def texts_alike(self) -> None:
        """Note that a text was averaged by itself."""
        self._is_by_tokens = False

    def per_example(self) -> float | None:
        """The mean number of tokens per example; None where texts weighed alike, or none was seen.

        An example's summed loss over this number is its share in the trainer's loss, times the
        examples of its batch.
        """
        if self._tokens is None or not self._is_by_tokens or not self._examples:
            return None
        found = float(self._tokens) / self._examples
        return found or None
