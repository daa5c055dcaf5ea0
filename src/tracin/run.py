"""What a question is about: a model, its loss and its checkpoints, opened and checked."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from tracin.checkpoints import (
    Checkpoint,
    bare_name,
    checkpoint_weights,
    loaded,
    open_checkpoints,
)
from tracin.checkpoints.discover import Checkpoints
from tracin.checkpoints.fitting import refuse_other_traced
from tracin.checkpoints.learning_rates import LearningRates
from tracin.data import Batch, Examples, Size, content_of, move, open_examples
from tracin.errors import LossError, QueryError
from tracin.gradients import Covered
from tracin.gradients.compute import Compute
from tracin.gradients.forms import real_shape
from tracin.gradients.inactive_checkpointing import note_inactive_checkpointing
from tracin.gradients.kept_shapes import KeptShapes
from tracin.guards import untouched
from tracin.losses import CausalLM, PerExampleLoss, open_loss
from tracin.preconditioners import KeptMetrics, Preconditioner
from tracin.preconditioners.trained_with_adam import warn_of_adam
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.device import checked_device
from tracin.scoring.last_used import last_foreseen, last_used
from tracin.scoring.named_examples import examples_named
from tracin.scoring.parameters import LAST, Selection, chosen_parameters
from tracin.scoring.query_classes import with_classes
from tracin.scoring.query_loss import QueryLoss, query_loss
from tracin.scoring.targets import ClassTarget, Target
from tracin.sharding import device_of
from tracin.wrappers import unwrapped

# Numbers of one block that is held at once, whatever the size of the data: 256 MB in float32.
HELD = 1 << 26


class Run:
    """A training that is over: what scoring, an index and the analyses take.

    `tracin.TracIn` is a Run with the questions that a user asks; see there for the arguments.

    Attributes:
        model: Without wrappers.
        loss: Gives one value per example.
        checkpoints: In the order given.
        weights: What each checkpoint weighs.
        device: Where to compute; None for where the model is.
        preconditioner: What multiplies a query's gradient; None for nothing.
        allow_tf32: Whether products of float32 numbers follow torch's settings.
        methods: How each parameter's gradients are computed, as far as passes have settled it.
        target_methods: The same for targets of queries.
        shapes: What is known of the model's calls, for the next question.
        kept: The metrics that the preconditioner computed, for the next question.
    """

    def __init__(
        self,
        model: Module,
        loss: str | PerExampleLoss,
        checkpoints: Checkpoints,
        *,
        parameters: Selection = None,
        learning_rates: LearningRates = None,
        device: torch.device | str | None = None,
        preconditioner: Preconditioner | None = None,
        allow_tf32: bool = False,
    ) -> None:
        self.model = unwrapped(model)
        open_loss(loss)  # what it is not is said before files are read
        self._chosen = chosen_parameters(self.model, parameters)
        self._is_last = parameters == LAST
        self._last: dict[str, Parameter] | None = None
        note_inactive_checkpointing(self.model)
        self.checkpoints = open_checkpoints(checkpoints)
        self.loss = _as_trained(loss, self.checkpoints)
        is_choice = parameters is not None
        refuse_other_traced(self.model, self.checkpoints, self._chosen, is_choice)
        _refuse_no_preconditioner(preconditioner)
        if learning_rates is None and not getattr(preconditioner, "follows_training", True):
            learning_rates = "equal"
        self.weights = checkpoint_weights(self.checkpoints, learning_rates)
        self.device = checked_device(device)
        if preconditioner is None:
            warn_of_adam(self.checkpoints, stacklevel=2)
        else:
            preconditioner.check(self.checkpoints)
        self.preconditioner = preconditioner
        self.allow_tf32 = allow_tf32
        self.methods: dict[str, Covered] = {}
        self.target_methods: dict[str, Covered] = {}
        self.shapes = KeptShapes()
        self.kept = KeptMetrics()

    def __repr__(self) -> str:
        model, count = type(self.model).__name__, len(self.checkpoints)
        chosen = "the last layer" if self._is_last and self._last is None else None
        if chosen is None:
            parameters = self.parameters
            numbers = sum(each.numel() for each in parameters.values())
            chosen = f"{len(parameters)} parameters ({numbers:,} numbers)"
        where = self.device or next((each.device for each in self.model.parameters()), "cpu")
        checkpoints = f"{count} checkpoint{'s' if count > 1 else ''}"
        under = "" if self.preconditioner is None else f", under {self.preconditioner!r}"
        return f"{type(self).__name__}({model}, {checkpoints}, {chosen}, on {where}{under})"

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The traced parameters, by name, in the model's order.

        Raises:
            ParametersError: They are those of the last layer, and neither data nor the model's code
                has shown which that is.
        """
        if not self._is_last:
            return self._chosen
        return last_foreseen(self.model) if self._last is None else self._last


def _as_trained(loss: str | PerExampleLoss, checkpoints: Sequence[Checkpoint]) -> PerExampleLoss:
    """The loss; by the name "causal_lm", with tokens weighed as the trainer did, if it is known."""
    counts = [one.tokens_per_example for one in checkpoints]
    known = [one for one in counts if one is not None]
    if loss != "causal_lm" or len(known) < len(counts):
        return open_loss(loss)
    return CausalLM(sum(known) / len(known))


def _refuse_no_preconditioner(given: Any) -> None:
    if given is None or (hasattr(given, "metric") and not isinstance(given, type)):
        return
    raise QueryError(
        f"preconditioner is None or an object such as tracin.Adam(); {given!r} was given."
    )


def open_data(run: Run, data: Any, name: str) -> Examples:
    """Data to be walked; the first shows which layer is used last, if that is asked for."""
    examples = open_examples(data, name=name)
    if run._is_last:
        last_layer(run, examples)
    return examples


def last_layer(run: Run, examples: Examples) -> dict[str, Parameter]:
    """The trainable parameters of the layer that a forward pass over an example uses last."""
    if run._last is None:
        with first_example(run, examples) as batch:
            run._last = last_used(run.model, lambda: run.loss(run.model, batch))
    return run._last


@contextmanager
def first_example(run: Run, examples: Examples) -> Iterator[Batch]:
    """Put the last checkpoint in place, and give the first example as the run's loss takes it."""
    with untouched(run.model), loaded(run.model, run.checkpoints[-1], run.device):
        batch = move(examples.few([0]), device_of(run.model))
        with examples_named(examples, [0], batch):
            yield content_of(batch)


@final
@dataclass(frozen=True)
class Asked:
    """What is explained.

    Attributes:
        queries: The queries; with a class each, where their target needs one.
        loss: What takes the place of their loss; None where it is their loss that is explained.
        facts: What is known of the queries at the last checkpoint: [queries]; None where that is
            not known beforehand.
    """

    queries: Examples
    loss: QueryLoss | None = None
    facts: ExampleFacts | None = None

    @property
    def target(self) -> str | None:
        """What is explained, in words; None for the queries' loss."""
        return None if self.loss is None else self.loss.name


def asked_of(
    run: Run,
    queries: Examples,
    target: Target | None,
    batch_size: Size | None,
    progress: bool | None,
) -> Asked:
    """The queries with what is explained of them; None is their loss.

    Raises:
        QueryError: The target is none, or of a class that the model does not have.
        LossError: The target is about classes, and the run's loss tells none.
    """
    if target is None:
        return Asked(queries)
    loss = query_loss(getattr(run.loss, "outcome", None), run.loss, target)
    if isinstance(target, ClassTarget):
        walk = judging_pass(run)
        queries, facts = with_classes(walk, target, queries, batch_size, progress)
        return Asked(queries, loss, facts)
    return Asked(queries, loss)


def class_names(run: Run) -> tuple[str, ...]:
    """The classes' names, by class, as the model's `config.id2label` has them; empty without.

    Names such as "LABEL_0", which transformers makes up, are none.
    """
    named = getattr(getattr(run.model, "config", None), "id2label", None)
    if not isinstance(named, Mapping):
        return ()
    found = [named.get(number, named.get(str(number))) for number in range(len(named))]
    if any(not isinstance(name, str) for name in found):
        return ()
    if found == [f"LABEL_{number}" for number in range(len(named))]:
        return ()
    return tuple(map(str, found))


def run_under(run: Run, preconditioner: Preconditioner | None) -> Run:
    """The same run under another preconditioner, or under none; it is not checked again."""
    other = copy(run)
    other.preconditioner, other.kept = preconditioner, KeptMetrics()
    return other


def checkpoint_pass(
    run: Run,
    parameters: Mapping[str, Tensor] | None = None,
    asked: QueryLoss | None = None,
) -> CheckpointPass:
    """A pass over the checkpoints for scores alone; of other parameters than the run's if given."""
    return computing_pass(run, run.loss, parameters, asked=asked)


def judging_pass(
    run: Run,
    parameters: Mapping[str, Tensor] | None = None,
    asked: QueryLoss | None = None,
) -> CheckpointPass:
    """A pass that also gives class scores with labels, or predictions with targets."""
    outcome = getattr(run.loss, "outcome", None)
    if outcome is None:
        raise LossError(
            "Labels can be judged only with a loss that also returns the model's outputs, and this "
            'one returns losses alone. Use loss="cross_entropy" or "mse", or give your loss a '
            "method outcome(model, batch) -> tracin.Outcome (classes) or "
            "tracin.TargetOutcome (numbers)."
        )
    return computing_pass(run, outcome, parameters, asked=asked)


def rows_pass(run: Run, asked: QueryLoss | None = None) -> CheckpointPass:
    """A pass that gives labels and class scores where the loss knows them."""
    return computing_pass(run, getattr(run.loss, "outcome", run.loss), asked=asked)


def computing_pass(
    run: Run,
    compute: Compute,
    parameters: Mapping[str, Tensor] | None = None,
    *,
    is_plain: bool = False,
    is_of_target: bool = False,
    asked: QueryLoss | None = None,
) -> CheckpointPass:
    """A pass with this function in place of the run's loss; without its preconditioner if plain.

    `asked` takes the place of the queries' loss. Of a target, gradients have methods of their own.
    """
    return CheckpointPass(
        run.model,
        compute,
        run.parameters if parameters is None else parameters,
        run.checkpoints,
        run.weights,
        run.device,
        None if is_plain else run.preconditioner,
        run.target_methods if is_of_target else run.methods,
        run.kept,
        asked,
        run.target_methods,
        shapes=None if is_of_target else run.shapes,
        allow_tf32=run.allow_tf32,
    )


def parameter_shapes(run: Run) -> dict[str, list[int]]:
    """The shapes of the traced parameters in real numbers, by name."""
    return {bare_name(name): list(real_shape(one)) for name, one in run.parameters.items()}


def score_dtype(run: Run) -> torch.dtype:
    """float64 where a traced parameter has it, float32 otherwise."""
    kinds = {parameter.dtype.to_real() for parameter in run.parameters.values()}
    return torch.float64 if torch.float64 in kinds else torch.float32
