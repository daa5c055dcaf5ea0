"""What each example adds to a training step's gradient, read while the user's own pass runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, part
from tracin.errors import TracingError
from tracin.gradients.accumulator import GradientAccumulator
from tracin.gradients.compute import Compute
from tracin.gradients.forms import PerExampleGradient, added
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.probing import learn
from tracin.gradients.watch import FunctionWatch, UnlikeTrialError
from tracin.guards import untouched
from tracin.plain_text import listed
from tracin.tracing.buffers import buffers_kept
from tracin.tracing.loss_weights import ModelOutputs
from tracin.tracing.model_calls import ModelCall


@final
@dataclass(eq=False)
class MicroBatch:
    """One micro-batch: whose examples, and what each adds to the gradient of every parameter.

    Attributes:
        positions: [examples], in the training data; one may come twice.
        weights: What each example's loss was multiplied by before the backward pass, [examples];
            None until it is measured, and where it cannot be.
        scale: By how much the loss was scaled on top of that (mixed precision).
        outputs: What the model returned, to measure the weights by; None where they are known.
        calls: The model's calls, to be repeated by the audit; None where it is not due.
        forms: Parameter -> its per-example shares, once the backward pass is over. They sum to
            the gradient.
        uncovered: Parameter -> a call that took it with data, and why it has no rule.
        settle: To be called when the backward pass is over.
    """

    positions: Tensor
    weights: Tensor | None
    scale: float
    outputs: ModelOutputs | None = None
    calls: list[ModelCall] | None = None
    forms: dict[str, PerExampleGradient] = field(default_factory=dict)
    uncovered: dict[str, str] = field(default_factory=dict)
    settle: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self.positions)


@final
class ShareReader:
    """Watches forward passes of one model, with the parameters that are trained at the moment.

    Attributes:
        parameters: These parameters, by name.
        trial: What each call does with them.
    """

    def __init__(
        self, model: Module, compute: Compute, parameters: Mapping[str, Tensor], example: Batch
    ) -> None:
        self._model = model
        self.parameters = dict(parameters)
        with untouched(model), buffers_kept(model):
            self.trial: ShapeProbe = learn(
                model, compute, part(example, [0]), self.parameters, is_live=True
            )

    @contextmanager
    def reading(self, batch: MicroBatch) -> Iterator[None]:
        """Read the shares of the forward pass within, whenever its backward pass comes."""
        # The shares are read after the step, when the weights have changed.
        forms = batch.forms
        accumulator = GradientAccumulator(
            self.parameters, lambda name, form, row: forms.update({name: form}), is_settled=True
        )

        def settle() -> None:
            accumulator.close()
            accumulator.let_go()
            if accumulator.failures:
                name, error = next(iter(accumulator.failures.items()))
                raise TracingError(
                    f"The gradient shares of '{name}' cannot be read in this training loop "
                    f"({error}). Leave it out by parameters=."
                )

        batch.settle = settle
        anchor = new_anchor(next(iter(self.parameters.values())).device)
        watch = FunctionWatch(
            self.parameters, self.trial, len(batch), anchor, accumulator, is_live=True
        )
        entered = self._model.register_forward_pre_hook(lambda *_: watch.begin())
        try:
            with watch:
                yield
            batch.uncovered = watch.uncovered
        except UnlikeTrialError as error:
            call = str(error)
            what = call if " holds " in call else f"{call} gave something else than in a trial"
            raise TracingError(
                f"{len(batch)} ids were given, but within the block {what}. Give one id for each "
                "example that goes through the model, and let nothing but the training batch go "
                "through it there, watched by one Tracer."
            ) from error
        finally:
            entered.remove()


def check_shares(batches: list[MicroBatch], gradients: Mapping[str, Tensor]) -> None:
    """Every parameter with a gradient must have been seen in calls that have rules."""
    for batch in batches:
        for name, call in batch.uncovered.items():
            raise TracingError(
                f"The gradient of '{name}' cannot be shared among the examples in a training loop: "
                f"{call}. Put one call of the model, as the loss makes it, within each "
                "tracer.batch(ids); leave the parameter out (parameters=[...]); or use "
                "tracin.TracIn on checkpoints, which is exact for every parameter."
            )
    seen = {name for batch in batches for name in batch.forms}
    unseen = [name for name, g in gradients.items() if name not in seen and bool(g.any())]
    if unseen:
        raise TracingError(
            f"The gradient of {listed(unseen)} comes from no traced forward pass. Put the forward "
            "pass of each batch, by the model that was given and uncompiled, within "
            "tracer.batch(ids); if it calls torch.utils.checkpoint, pass use_reentrant=False there."
        )


def summed_shares(batches: list[MicroBatch], name: str) -> Tensor | None:
    """The sum over examples of what they add to a parameter's gradient: [numbers]."""
    forms = [batch.forms[name] for batch in batches if name in batch.forms]
    if not forms:
        return None
    return torch.stack([added(form).dense()[0] for form in forms]).sum(0)
