"""What data and model say of examples: the label they have, the class predicted, the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class ExampleFacts:
    """Labels, predictions and losses of examples at the last checkpoint, all of one shape.

    Attributes:
        losses: [...].
        labels: [...]: classes as whole numbers, or the targets of a regression; None where the loss
            has none, or more than one per example.
        predicted: [...]: the class with the highest score, or the number that the model predicts;
            None where that is unknown.

    Example:
        >>> import torch
        >>> facts = ExampleFacts(torch.tensor([0.5, 2.0]), torch.tensor([1, 0]))
        >>> facts.at(torch.tensor([[1, 1]])).labels
        tensor([[0, 0]])
    """

    losses: Tensor
    labels: Tensor | None = None
    predicted: Tensor | None = None

    @classmethod
    def of(
        cls, losses: Tensor | None, labels: Tensor | None, predicted: Tensor | None
    ) -> "ExampleFacts":
        """The facts that are there; the losses must be."""
        if losses is None:
            raise RuntimeError("facts without losses; a bug in tracin")
        return cls(losses, labels, predicted)

    def at(self, index: Any) -> "ExampleFacts":
        """Those of some examples: what torch's indexing takes."""
        return ExampleFacts(
            self.losses[index],
            None if self.labels is None else self.labels[index],
            None if self.predicted is None else self.predicted[index],
        )

    @classmethod
    def joined(cls, parts: Sequence["ExampleFacts | None"]) -> "ExampleFacts | None":
        """Those of several sets of examples, one after the other; None where one is not known."""
        known = [each for each in parts if each is not None]
        if len(known) < len(parts) or not known:
            return None
        labels = [each.labels for each in known if each.labels is not None]
        predicted = [each.predicted for each in known if each.predicted is not None]
        return cls(
            torch.cat([each.losses for each in known]),
            torch.cat(labels) if len(labels) == len(parts) else None,
            torch.cat(predicted) if len(predicted) == len(parts) else None,
        )

    def named(self) -> dict[str, Tensor]:
        """What is known, by the names of a table's columns."""
        found = {"label": self.labels, "predicted": self.predicted, "loss": self.losses}
        return {name: each for name, each in found.items() if each is not None}

    def row(self, *place: int) -> dict[str, int | float]:
        """What is known of one example: numbers by the same names."""
        return {name: each[place].item() for name, each in self.named().items()}
