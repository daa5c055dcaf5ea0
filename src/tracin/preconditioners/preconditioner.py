"""What stands between the gradients of a training example and of a query in their product."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, final, runtime_checkable

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.data import Examples
from tracin.gradients.forms import (
    PerExampleGradient,
    ProductCache,
    added,
    scaled,
    scaled_factors,
    scaled_in_parts,
)
from tracin.preconditioners.kept_metrics import KeptMetrics

T = TypeVar("T")


class HasOptimizerState(Protocol):
    """A checkpoint, or anything else that has a name and an optimizer's state."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def optimizer_state(self) -> OptimizerState | None:
        """What the optimizer remembered then, if that is known."""
        ...


class Metric(Protocol):
    """What a preconditioner is at one checkpoint: a symmetric matrix, applied name by name."""

    def scaled(self, name: str, form: PerExampleGradient) -> Mapping[str, PerExampleGradient]:
        """The gradients of one parameter times the matrix: what they give, by parameter.

        A parameter may give the share of another along with its own, or leave its own to it.
        """
        ...

    def scaled_sum(self, name: str, form: PerExampleGradient) -> Mapping[str, PerExampleGradient]:
        """As `scaled`, of the sum over all examples, as the gradients of one."""
        ...

    def squared_norm(self, name: str, form: PerExampleGradient) -> Tensor:
        """What one parameter adds to the squared lengths under the matrix: [examples]."""
        ...


@final
@dataclass(frozen=True, eq=False)
class SolvedQueries:
    """What scores under a joint metric need of the queries, from their products with directions.

    Attributes:
        kept: 1 where a query's plain products count, 0 where those with the directions say all:
            [queries].
        along: What products with the examples whose gradients are directions count: [directions
            from examples, queries].
        scores: Of these examples: [directions from examples, queries].
    """

    kept: Tensor
    along: Tensor
    scores: Tensor


class JointMetric(ABC):
    """A matrix that mixes the parameters: it is not applied, products are corrected by it.

    Its directions are gradients of examples, whose products with those of training examples and
    queries are all that it needs, so that nothing is written out.
    """

    @property
    @abstractmethod
    def directions(self) -> int:
        """How many there are."""

    @abstractmethod
    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the products with them: [examples, directions]; None if zero."""

    @abstractmethod
    def solved(self, products: Tensor, *, together: bool) -> SolvedQueries:
        """What `scores` needs of the queries, or of their sum.

        Args:
            products: Theirs with the directions: [queries, directions].
            together: Whether the queries are one, their sum.
        """

    @abstractmethod
    def scores(
        self, plain: Tensor, own: Tensor, solved: SolvedQueries, positions: Sequence[int]
    ) -> Tensor:
        """The products under the matrix: [examples, queries].

        Args:
            plain: The products without it: [examples, queries].
            own: The examples' products with the directions: [examples, directions].
            solved: What `solved` gave for the queries.
            positions: Where the examples are in the training data.
        """

    @abstractmethod
    def squared_norms(self, plain: Tensor, own: Tensor, positions: Sequence[int] | None) -> Tensor:
        """The squared lengths under the matrix, [examples], from those without it; as `scores`.

        `positions` is None for examples that are queries.
        """

    @abstractmethod
    def squared_norm_of_sum(self, plain: Tensor, products: Tensor) -> Tensor:
        """The squared length of the queries' sum under the matrix: [1].

        Args:
            plain: That without it: [1].
            products: The queries' with the directions: [queries, directions].
        """

    @property
    @abstractmethod
    def scaling(self) -> "Scaling | None":
        """What scales the entries of gradients in the products that it corrects; None if nothing.

        The products with the directions are under it, too.
        """


class BatchFit(Protocol):
    """Takes the gradients of one batch that a metric is made from."""

    def visit(self, name: str, form: PerExampleGradient, row: int) -> None:
        """Take one parameter's gradients; the first example of `form` is that row of the batch."""
        ...

    def commit(self) -> None:
        """The batch is done; before this, nothing of it counts."""
        ...


class DescribedFit(Protocol):
    """A fit that says how it holds each parameter's curvature."""

    def batch(self, examples: int) -> BatchFit:
        """Begin a batch of so many examples."""
        ...

    def described(self) -> Mapping[str, str]:
        """Parameter -> in what form its curvature is held."""
        ...


@runtime_checkable
class HasDescribedFit(Protocol):
    """A preconditioner that can say how it holds curvature, before a question is asked."""

    def described_fit(self, parameters: Mapping[str, Tensor]) -> DescribedFit:
        """A fit to see a few examples."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Place:
    """A checkpoint that is in place, for a metric to be made there.

    Attributes:
        checkpoint: Which it is.
        parameters: The traced ones, by name.
        train: The training data; None if none are at hand.
        device: Where the model is.
        read: Passes over examples: it calls its second argument at the begin of each batch, with
            the number of its examples.
        about: A fingerprint of the weights in place, and of how gradients are computed, which may
            look at some of the examples.
        kept: Metrics of earlier questions; None where none are kept.
        weights: A fingerprint of the weights in place alone; None where ranks hold parts of them.
    """

    checkpoint: HasOptimizerState
    parameters: Mapping[str, Tensor]
    train: Examples | None
    device: torch.device
    read: Callable[[Examples, Callable[[int], BatchFit]], None]
    about: Callable[[Examples], str] = str
    kept: KeptMetrics | None = None
    weights: Callable[[], str] | None = None

    def metric_of(self, data: Examples, make: Callable[[], T]) -> T:
        """What `make` computes from the data here, unless an earlier question has done so."""
        if self.kept is None:
            return make()
        return self.kept.get(lambda: self.about(data), data, self.checkpoint.name, make)


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """One factor per entry of a gradient, at one checkpoint.

    Attributes:
        factors: Parameter name -> [numbers], none below zero.
    """

    factors: Mapping[str, Tensor]

    def squared_norm(self, name: str, form: PerExampleGradient) -> Tensor:
        """The squared lengths of one parameter's gradients under the factors: [examples]."""
        return form.squared_norm_under(self.factors[name])

    def scaled(self, name: str, form: PerExampleGradient) -> Mapping[str, PerExampleGradient]:
        """One parameter's gradients times the factors, written out unless they are few rows."""
        return {name: scaled(form, self.factors[name])}

    def factored(self, name: str, form: PerExampleGradient) -> Mapping[str, PerExampleGradient]:
        """As `scaled`, but nothing is written out that has factors: each product does it anew."""
        return {name: scaled_factors(form, self.factors[name])}

    def scaled_sum(self, name: str, form: PerExampleGradient) -> Mapping[str, PerExampleGradient]:
        """The sum over examples times the factors."""
        return {name: scaled(added(form), self.factors[name])}

    def root(self) -> "Scaling":
        """The square roots of the factors: two gradients under it have the product under these."""
        roots = {
            name: one.to(torch.promote_types(one.dtype, torch.float32)).sqrt()
            for name, one in self.factors.items()
        }
        return Scaling(roots)

    def inverse(self) -> "Scaling":
        """What undoes the factors, where they are not zero."""
        factors = {
            name: one.to(torch.promote_types(one.dtype, torch.float32))
            for name, one in self.factors.items()
        }
        return Scaling(
            {name: one.reciprocal().masked_fill(one == 0, 0) for name, one in factors.items()}
        )

    def scaled_in_parts(self, name: str, form: PerExampleGradient) -> PerExampleGradient:
        """One parameter's gradients times the factors, written out only where parts are read.

        `scaled` writes all out at once, which suits a few queries; this suits batches of examples.
        """
        return scaled_in_parts(form, self.factors[name])


def metric_parts(
    metric: Metric | JointMetric | None,
) -> tuple[Metric | None, JointMetric | None]:
    """What multiplies a query's gradient, and what corrects the products; None where nothing."""
    if isinstance(metric, JointMetric):
        return metric.scaling, metric
    return metric, None


class Preconditioner(Protocol):
    """Multiplies the gradient of a query; the training side stays as it is."""

    @property
    def follows_training(self) -> bool:
        """Whether checkpoints weigh by their learning rates unless other weights are given."""
        ...

    @property
    def fits_sketches(self) -> bool:
        """Whether a query under it can be multiplied with sketches of plain gradients."""
        ...

    @property
    def is_made_once(self) -> bool:
        """Whether the metric of the last checkpoint serves all."""
        ...

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints that lack what it needs, before any is loaded.

        Raises:
            CheckpointError: One does.
        """
        ...

    def metric(self, place: Place) -> Metric | JointMetric:
        """The metric at a checkpoint, in the dtype and on the device of the parameters.

        Raises:
            CheckpointError: The checkpoint lacks what it is made from.
            PreconditionerError: It cannot be made from the data, or for the model.
        """
        ...
