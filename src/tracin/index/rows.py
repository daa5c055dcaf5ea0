"""Rows of an index: the sketched gradients of some examples at one checkpoint after the other."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor

from tracin.checkpoints import by_parameter
from tracin.data import Batch, Examples, Size, length, move, places
from tracin.data import part as rows_of
from tracin.errors import IndexingError, PreconditionerError, UnsupportedModelError
from tracin.gradients import Gradients, LateError
from tracin.gradients.fast import Pass
from tracin.gradients.forms import Dense, PerExampleGradient, real_shape
from tracin.gradients.visit import Visit
from tracin.host import is_remote, to_host
from tracin.index.stored_facts import known_facts
from tracin.late_checks import LookAgainError, late_checks
from tracin.plain_text import listed
from tracin.preconditioners import JointMetric, Metric, Scaling
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.finite import refuse_non_finite
from tracin.scoring.named_examples import examples_named
from tracin.scoring.read_ahead import ReadAhead
from tracin.scoring.settled import settled
from tracin.sharding import each_says, joined, part_of
from tracin.sketches import (
    PILOT,
    Pilot,
    Plan,
    Projection,
    Sketcher,
    Spreads,
    drafted,
    follows_from_shapes,
)
from tracin.sketches.kinds import Convolved, Factored

# Where a plan follows from shapes: examples that show these, and examples and sketches of each that
# show how far sketched products are off. Error bars vary by 5 % from data to data (3 % by all 16).
SHAPES, MEASURED, DRAWS = 2, 8, 4
PILOT_BYTES = 1 << 31  # of their activations at once; the same everywhere, so that plans are, too

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)
class Sketched:
    """Some examples at one checkpoint.

    Attributes:
        rows: [examples, width], float32, on the CPU.
        squared_norms: [examples, groups]: the exact squared lengths of the gradients.
        losses: [examples].
        labels: [examples]; -1 where the loss has no classes, or an example has not exactly one.
        is_right: [examples]: 1 where the class of the highest score is the label, 0 where not, -1
            where that is not known.
        predicted: [examples]: the class of the highest score; -1 where that is not known.
    """

    rows: Tensor
    squared_norms: Tensor
    losses: Tensor
    labels: Tensor
    is_right: Tensor
    predicted: Tensor

    @classmethod
    def empty(cls, examples: int, width: int, groups: int) -> "Sketched":
        """Nothing yet."""
        return cls(
            torch.empty(examples, width),
            torch.empty(examples, groups),
            torch.empty(examples),
            torch.full((examples,), -1),
            torch.full((examples,), -1, dtype=torch.int8),
            torch.full((examples,), -1),
        )

    def joined(self, examples: int, device: torch.device) -> "Sketched":
        """All ranks' parts of so many examples."""
        return Sketched(
            *(
                joined(getattr(self, each.name), examples, device)
                for each in dataclasses.fields(self)
            )
        )

    def put(self, at: slice | Tensor, found: Sequence[Tensor | None]) -> None:
        """Take a batch's numbers, in the order of the attributes; None changes nothing."""
        for each, values in zip(dataclasses.fields(self), found, strict=True):
            into = getattr(self, each.name)
            # A batch of neighbours may have been written into its place.
            if values is not None and values.data_ptr() != into[at].data_ptr():
                into[at] = values.to(into)

    @property
    def facts(self) -> ExampleFacts:
        """Labels, predictions and losses, as far as they are known."""
        return known_facts(self.losses, self.labels, self.predicted)


@final
class RowMaker:
    """Puts checkpoints in place as they are needed, and sketches examples there.

    Args:
        walk: The model with its checkpoints.
        plan: How each parameter's gradients become numbers.
        draws: The number of each checkpoint's random numbers.
        names: The checkpoints' names, for errors.
        batch_size: Examples or tokens per model call; None finds the size.
        is_scaled: Whether all gradients, those of queries too, are multiplied by the root of the
            metric of `walk`, a `Scaling`. The product of two is then that under the metric.
    """

    def __init__(
        self,
        walk: CheckpointPass,
        plan: Plan,
        draws: Sequence[int],
        names: Sequence[str],
        batch_size: Size | None,
        *,
        is_scaled: bool = False,
    ) -> None:
        self._walk, self._plan = walk, plan
        self._is_scaled, self._root = is_scaled, None
        self._draws, self._names = draws, names
        self._batch_size = batch_size
        self._opened = ExitStack()
        self._ahead = ReadAhead()
        self._number: int | None = None
        self._device = torch.device("cpu")
        self._sketcher: Sketcher | None = None

    def __enter__(self) -> Self:
        self._ahead.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()
        self._ahead.__exit__(kind, error, trace)
        self._number = None

    def at(self, number: int) -> Sketcher:
        """Put a checkpoint in place, if it is not yet."""
        if self._number != number or self._sketcher is None:
            self._opened.close()
            self._number = None
            self._device = self._opened.enter_context(self._walk.at(number, self._ahead))
            self._root = root_at(self._walk, number, self._device) if self._is_scaled else None
            self._number = number
            self._sketcher = Sketcher(self._plan, self._device, draw=self._draws[number])
        return self._sketcher

    def sketched_queries(self, number: int, queries: Examples) -> Sketched:
        """All queries at a checkpoint, under the preconditioner of the pass.

        Raises:
            NonFiniteError: As from `sketched`.
            UnsupportedModelError: As from `sketched`.
            PreconditionerError: The preconditioner's queries do not go with sketches, or not with
                those of the index's plan.
        """
        if self._is_scaled:
            return self.sketched(number, queries, range(len(queries)), "query")
        self._walk.refuse_unfit_for_sketches()
        self.at(number)
        metric = self._walk.metric_at(number, None, self._batch_size, self._device)
        if isinstance(metric, JointMetric):
            raise RuntimeError("a joint metric is no metric for sketches; a bug in tracin")
        if metric is not None:
            self._refuse_factored()
        return self.sketched(number, queries, range(len(queries)), "query", metric)

    def _refuse_factored(self) -> None:
        """A gradient that a metric has multiplied entry by entry is no product of two factors."""
        kinds = self._plan.kinds.items()
        factored = [name for name, kind in kinds if isinstance(kind, Factored | Convolved)]
        if factored:
            raise PreconditionerError(
                f"The rows of this index hold plain gradients of {listed(factored)} by their "
                "factors, which a query's gradient under the run's preconditioner does not have. "
                "Build an index in another folder with a run that has "
                "preconditioner=tracin.Adam(): its rows are under Adam, too."
            )

    @settled
    def sketched(
        self,
        number: int,
        examples: Examples,
        span: range,
        whose: str = "example",
        metric: Metric | None = None,
    ) -> Sketched:
        """The examples of `span` at a checkpoint, their gradients under `metric` or the root.

        The ranks of a sharded model share them, and all get all.

        Raises:
            NonFiniteError: A loss or a gradient is NaN or infinite.
            UnsupportedModelError: The model is sharded, and a rank's batch has no fast gradients.
        """
        sketcher, root = self.at(number), self._root
        # The same batches whatever was read before: a span's rows never depend on other spans.
        is_query = whose == "query"
        gradients = self._walk.query_gradients if is_query else self._walk.gradients
        opened = self._walk.query_reader if is_query else self._walk.reader
        part = part_of(span) if gradients.is_sharded else span
        reader = opened(examples, span, self._batch_size, self._device, part)
        found = Sketched.empty(len(part), self._plan.width, self._plan.columns.groups)
        late: list[str] = []

        def visit(name: str, form: PerExampleGradient, row: int) -> None:
            if root is not None:
                form = root.scaled_in_parts(name, form)
            under = {name: form} if metric is None else metric.scaled(name, form)
            for other, share in under.items():
                sketcher.add(other, share, row)

        def read(positions: Sequence[int], batch: Batch, is_last: bool) -> None:
            at = places(positions, part.start)
            into = None if is_remote(self._device) else found.rows[at]
            with late_checks(self._device) as checks:
                sketcher.begin(length(batch), into, checks)
                try:
                    result = gradients.visit(batch, visit, is_last=is_last)
                except LateError as error:
                    late.append(str(error))  # raised once all ranks have finished their passes
                    return
            fetch = to_host if checks is None else checks.fetched
            with suppress(LookAgainError):
                found.put(at, fetch(_sketched(sketcher, result), reader.prepare_next))
                return
            sketcher.begin(length(batch), into)
            found.put(at, to_host(_sketched(sketcher, gradients.again(batch, visit))))

        with self._walk.asked_named() if is_query else nullcontext():
            for _ in reader.read(read):
                # Not before the first batch: workers of a loader have forked by then.
                self._walk.read_next(number + 1, self._ahead, self._device)
        if gradients.is_sharded:
            for said in each_says(late):
                if said:
                    raise UnsupportedModelError(said[0])
            found = found.joined(len(span), self._device)
        asked = self._walk.what_is_asked if is_query else "loss"
        for values, what in ((found.losses, asked), (found.squared_norms.sum(1), "gradient")):
            refuse_non_finite(values, span, examples.ids, self._names[number], what, whose)
        return found


def _sketched(sketcher: Sketcher, result: Pass) -> list[Tensor | None]:
    """What a batch gives, where it lies, in the order of `Sketched`."""
    outcome = result.outcome
    found: list[Tensor | None] = [sketcher.rows(), sketcher.squared_norms(), result.losses]
    logits, labels = getattr(outcome, "logits", None), getattr(outcome, "labels", None)
    if logits is None or labels is None or labels.ndim != 1:
        return [*found, None, None, None]
    predicted = logits.detach().argmax(1)
    return [*found, labels, predicted == labels, predicted]


def root_at(walk: CheckpointPass, number: int, device: torch.device) -> Scaling:
    """The root of the metric at a checkpoint, which is in place.

    Raises:
        CheckpointError: Its moments are missing, or not those of the parameters.
    """
    metric = walk.metric_at(number, None, None, device)
    if not isinstance(metric, Scaling):
        raise RuntimeError("rows under Adam without tracin.Adam(); a bug in tracin")
    return metric.root()


@settled
def plan_of(
    walk: CheckpointPass,
    examples: Examples,
    projection: Projection,
    groups: Mapping[str, int],
    *,
    is_scaled: bool = False,
) -> Plan:
    """The plan made from the first examples' gradients at the last checkpoint.

    One parameter's gradients are there at a time, of as many examples as `PILOT_BYTES` allow. Where
    the columns depend on the gradients, these are computed twice, since how far a plan's sketches
    are off shows only once there is a plan. `is_scaled` as for `RowMaker`: no factors are left
    then, so that none get columns.
    """
    gradients = walk.gradients
    numbers = {name: real_shape(one).numel() for name, one in gradients.parameters.items()}
    last = walk.checkpoints - 1
    with walk.at(last) as device:
        root = root_at(walk, last, device) if is_scaled else None

        def first(count: int) -> Batch:
            return move(examples.few(range(min(count, len(examples)))), device)

        pilot = _seen(first(SHAPES), examples, gradients, root)
        if follows_from_shapes(pilot, groups):
            draft, pilot = drafted(projection, pilot, numbers, groups), Pilot()
            few, spreads, takes = first(MEASURED), Spreads(draft, pilot, DRAWS), [pilot.take]
        else:
            few = first(PILOT)
            pilot = _seen(few, examples, gradients, root)
            spreads, takes = Spreads(drafted(projection, pilot, numbers, groups), pilot), []
        takes.append(spreads.add)
        wanted = spreads.are_wanted(length(few))
        with examples_named(examples, range(length(few)), few):
            for batch in _equal_batches(few, gradients) if wanted else ():
                spreads.begin(length(batch), device)
                gradients.again(batch, _whole(takes, length(batch), root))
                spreads.finish()
        plan = spreads.plan()
    _log.info("%d numbers of each gradient become %d columns", sum(numbers.values()), plan.width)
    for name, kind in plan.kinds.items():
        _log.debug("'%s' is kept as %s", name, kind)
    return plan


def _seen(few: Batch, examples: Examples, gradients: Gradients, root: Scaling | None) -> Pilot:
    """A pilot of the first examples, whose gradients are audited."""
    pilot = Pilot()
    with examples_named(examples, range(length(few)), few):
        gradients.check(few)
        batches = _equal_batches(few, gradients)
        gradients.begin(length(few), is_checked=len(batches) == 1)
        for batch in batches:
            take = _whole([pilot.take], length(batch), root)
            gradients.visit(batch, take, is_last=batch is batches[-1])
    return pilot


def _equal_batches(few: Batch, gradients: Gradients) -> list[Batch]:
    """The pilot's examples in one batch or, where their activations are many, in several."""
    examples = size = length(few)
    # The ranks of a sharded model take the same batches.
    while size > 2 and size * gradients.held > PILOT_BYTES and not gradients.is_sharded:
        size = max(2, size // 2)
    if size == examples:
        return [few]
    starts = range(0, examples - size + 1, size)
    return [rows_of(few, slice(start, start + size)) for start in starts]


def _whole(
    takes: Sequence[Callable[[str, PerExampleGradient], None]],
    examples: int,
    root: Scaling | None,
) -> Visit:
    """A visitor that hands on gradients of all examples of a batch at once, however they come."""
    blocks: dict[str, list[Tensor]] = {}

    def visit(name: str, form: PerExampleGradient, row: int) -> None:
        form = form if root is None else root.scaled_in_parts(name, form)
        if form.examples < examples:
            rows = blocks.setdefault(name, [])
            rows.append(form.dense())
            if sum(map(len, rows)) < examples:
                return
            form = Dense(torch.cat(blocks.pop(name)))
        for take in takes:
            take(name, form)

    return visit


def groups_of(
    weights: Sequence[float | dict[str, float]], parameters: Mapping[str, Tensor]
) -> dict[str, int]:
    """The parameters by what they weigh at every checkpoint: the number of each one's group."""
    by_name = [by_parameter(weight, parameters) for weight in weights]
    keys = {name: tuple(each[name] for each in by_name) for name in parameters}
    number = {key: at for at, key in enumerate(dict.fromkeys(keys.values()))}
    return {name: number[key] for name, key in keys.items()}


def group_weights(
    weight: float | dict[str, float], groups: Mapping[str, int], name: str
) -> list[float]:
    """What each group of an index weighs at one checkpoint: [groups].

    Raises:
        IndexingError: Parameters of one group have different weights.
    """
    found: dict[int, float] = {}
    for parameter, value in by_parameter(weight, groups).items():
        if found.setdefault(groups[parameter], value) != value:
            raise IndexingError(
                f"The index sketches '{parameter}' together with parameters of weight "
                f"{found[groups[parameter]]:g} at {name}, but its own weight is {value:g}. They "
                "had one learning rate when the index was built. Build another index with these "
                "rates."
            )
    return [found[at] for at in range(len(found))]
