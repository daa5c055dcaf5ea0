"""The inputs of a model's last layer, the features that its class scores are linear in."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from tracin.baselines.forward import ForwardStep, check_classes, forward_steps, outcome_of
from tracin.data import Examples, in_data_order
from tracin.errors import UnsupportedModelError
from tracin.precision import in_double
from tracin.run import Run, last_layer
from tracin.scoring.batch_size import BatchSize


@final
@dataclass(frozen=True, eq=False)
class Features:
    """The last layer's inputs for all examples, with what comes of them. On the CPU.

    Attributes:
        inputs: [examples, features], float64.
        logits: [examples, classes], float64.
        labels: [examples].
        losses: [examples], float64.
        gap: The largest difference between what the layer gives and the class scores; infinite
            where their shapes differ.
    """

    inputs: Tensor
    logits: Tensor
    labels: Tensor
    losses: Tensor
    gap: float


@final
@dataclass(frozen=True, eq=False)
class LastLinear:
    """The linear layer that a model uses last.

    Attributes:
        module: The layer.
        name: What the model calls it.
    """

    module: nn.Linear
    name: str

    @contextmanager
    def watched(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Note the input and the output of each call of the layer, while the block is open."""
        seen: list[tuple[Tensor, Tensor]] = []

        def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            seen.append((given[0].detach(), output.detach()))

        handle = self.module.register_forward_hook(note)
        try:
            yield seen
        finally:
            handle.remove()


def last_linear(run: Run, examples: Examples, name: str) -> LastLinear:
    """The last layer that was trained.

    Raises:
        UnsupportedModelError: It is no `torch.nn.Linear`.
    """
    chosen = {id(parameter) for parameter in last_layer(run, examples).values()}
    for where, module in run.model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in chosen:
            return LastLinear(module, where or "the model")
    raise UnsupportedModelError(
        f"{name} reads the inputs of the last layer, which must be a torch.nn.Linear; this model's "
        f"last trained weights are {', '.join(map(repr, last_layer(run, examples)))}. "
        "Loss, EL2N and InfluenceFunctions take any model."
    )


def features_of(
    run: Run,
    layer: LastLinear,
    examples: Examples,
    checkpoint: int,
    name: str,
    batch_size: BatchSize,
    progress: bool | None,
) -> Features:
    """One forward pass over the examples.

    Args:
        run: The model and its checkpoints.
        layer: Its last one.
        examples: What to read.
        checkpoint: The checkpoint's place in the run.
        name: The baseline, for errors.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        LossError: The loss knows no classes, or an example has several labels.
        UnsupportedModelError: The layer is not called once per example.
        NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
    """
    outcome = outcome_of(run, name)
    columns: list[list[tuple[Sequence[int], Tensor]]] = []
    gap = 0.0
    with layer.watched() as seen:

        def compute(model: nn.Module, batch: Any) -> Any:
            seen.clear()
            return outcome(model, batch)

        for step in forward_steps(run, examples, [checkpoint], compute, name, batch_size, progress):
            check_classes(step.outcome, name)
            inputs, output = _only(seen, step, layer, name)
            logits = step.outcome.logits.detach()
            gap = max(gap, _gap(output, logits))
            found = (in_double(inputs), in_double(logits), step.outcome.labels)
            found = (*found, in_double(step.losses))
            columns.append([(step.positions, each.cpu()) for each in found])
    inputs, logits, labels, losses = (in_data_order(each) for each in zip(*columns, strict=True))
    return Features(inputs, logits, labels, losses, gap)


def _gap(output: Tensor, logits: Tensor) -> float:
    if output.shape != logits.shape:
        return math.inf
    return float((output - logits).abs().max())


def _only(
    seen: Sequence[tuple[Tensor, Tensor]], step: ForwardStep, layer: LastLinear, name: str
) -> tuple[Tensor, Tensor]:
    """The input and the output of the one call: [examples, features] and [examples, classes]."""
    if len(seen) == 1 and seen[0][0].ndim == 2 and len(seen[0][0]) == len(step.positions):
        return seen[0]
    calls = f"{len(seen)} calls" + (f", with shape {tuple(seen[0][0].shape)}" if seen else "")
    raise UnsupportedModelError(
        f"{name} needs one call of the last layer per example, with inputs of shape [examples, "
        f"features]; {layer.name} had {calls} for {len(step.positions)} examples. Loss, EL2N and "
        "InfluenceFunctions take such a model."
    )
