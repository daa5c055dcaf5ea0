"""Reads labels, predictions and losses off what a loss returned for a batch."""

from typing import Any, final

import torch
from torch import Tensor

from tracin.host import to_host
from tracin.losses import Outcome, TargetOutcome, losses_in
from tracin.results.example_facts import ExampleFacts


def facts_of(outcome: Any) -> ExampleFacts:
    """What an outcome says of its examples, on the CPU: [examples].

    Args:
        outcome: What a loss returned: losses, an `Outcome` or a `TargetOutcome`.

    Example:
        >>> import torch
        >>> scores, labels = torch.tensor([[0.0, 3.0]]), torch.tensor([0])
        >>> facts_of(Outcome(torch.tensor([3.05]), scores, labels)).predicted
        tensor([1])
    """
    return ExampleFacts.of(*to_host(facts_there(outcome)))


def facts_there(outcome: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses, labels and predictions of an outcome, where it lies: [examples] each."""
    losses = losses_in(outcome)
    labels: Tensor | None = None
    predicted: Tensor | None = None
    if isinstance(outcome, Outcome) and outcome.labels.ndim == 1 and outcome.logits.ndim == 2:
        labels, predicted = outcome.labels, outcome.logits.detach().argmax(1)
    elif isinstance(outcome, TargetOutcome) and outcome.targets.shape[1:] == (1,):
        labels, predicted = outcome.targets[:, 0], outcome.predictions.detach()[:, 0]
    return losses, labels, predicted


@final
class FactsSoFar:
    """Facts of so many examples, while batches stream by.

    Args:
        examples: How many there will be.
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._found: ExampleFacts | None = None

    def take(self, rows: slice | Tensor, outcome: Any) -> None:
        """Take up what a loss returned for some of the examples."""
        self.add(rows, facts_of(outcome))

    def add(self, rows: slice | Tensor, batch: ExampleFacts) -> None:
        """Take up the facts of some of the examples."""
        if self._found is None:
            # Room for all, of the kinds that the first batch has.
            self._found = batch.at(torch.zeros(self._examples, dtype=torch.int64))
        for name, values in batch.named().items():
            kept = self._found.named().get(name)
            if kept is not None:
                kept[rows] = values.to(kept.dtype)

    def all(self) -> ExampleFacts | None:
        """Those of all examples; None where no batch came."""
        return self._found
