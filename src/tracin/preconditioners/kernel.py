"""The empirical Fisher's kernel: curvature from products of gradients alone, for any layer."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.checks import is_int, positive_int
from tracin.data import Examples
from tracin.errors import PreconditionerError, TracInWarning
from tracin.files import fingerprint
from tracin.gradients.forms import PerExampleGradient, ProductCache
from tracin.preconditioners.adam import Adam
from tracin.preconditioners.fit_data import LARGEST, data_at_hand
from tracin.preconditioners.fitted import Fitted
from tracin.preconditioners.landmarks import Landmarks
from tracin.preconditioners.preconditioner import JointMetric, Place, Scaling

# A query whose products with all landmarks are those of one of them, up to this share of its
# squared length, is that one.
SAME = 1e-4


@final
@dataclass(frozen=True, eq=False)
class Kernel(Fitted):
    """A query's gradient times (F + lambda I)^-1, with F the second moments of whole gradients.

    F is the mean of g g^T over `landmarks` training examples. It is never written out: by
    Woodbury's identity (F + lambda I)^-1 q = (q - G^T (n lambda I + G G^T)^-1 G q) / lambda, with
    the n landmarks' gradients G, so that products of gradients are all that is needed. It takes
    any layer and any loss: use it where `tracin.KFAC()` has one number per parameter, since the
    model's gradients have no factors. Parameters are not treated one by one, so that all must
    have one weight at a checkpoint.

    A training example that is a landmark scores under the others' F: its own gradient would
    shorten its score, and not those of the examples that are none. With `fit` all examples score
    alike, and the scores of two of them do not depend on which is the query.

    With `under=tracin.Adam()` all gradients are first multiplied by the roots of Adam's factors,
    the landmarks' too: F, damping and products are then in the units of the optimizer's steps. For
    a language model that AdamW has trained it finds more than either alone (docs/llm.md).

    Its curvature leaves little of a query that is a landmark itself; in float32 rounding then
    reaches the scores with all others, and a `TracInWarning` says so.

    Memory: the landmarks' gradients of one checkpoint, and of further ones up to 1 GiB that a run
    keeps for its next question, factored where that is cheaper (of a
    linear layer with one position its inputs and output gradients; of a convolution the whole
    gradient), and [landmarks, landmarks] in float64. A pass over training data costs what
    `landmarks` further queries cost. Source: Singh and Alistarh, 2020,
    https://arxiv.org/abs/2004.14340, invert the empirical Fisher so.

    Args:
        damping: lambda in units of F's typical eigenvalue, tr F^2 / tr F.
        landmarks: From how many examples F is computed, at most all.
        fit: The data to choose them from; None for the training data of the question.
        seed: Of the choice.
        under: `tracin.Adam()`, for F of gradients under its factors; None for plain gradients.

    Raises:
        PreconditionerError: `damping` is not a number above 0, or another argument makes no sense.

    Example:
        >>> import torch, tracin
        >>> model = torch.nn.Linear(3, 2)
        >>> data = torch.randn(50, 3), torch.arange(50) % 2
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], preconditioner=tracin.Kernel()
        ... )
        >>> run.influence(data, (torch.randn(2, 3), torch.tensor([0, 1]))).shape
        torch.Size([50, 2])
    """

    damping: float = 0.003
    landmarks: int = 1000
    fit: Any = field(default=None, repr=False)
    seed: int = 0
    under: Adam | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        is_number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not (is_number and 0 < self.damping <= LARGEST):
            raise PreconditionerError(
                f"damping is a number above 0, {LARGEST:g} at most, in units of the typical "
                "eigenvalue: without any, what landmarks do not span has no inverse. "
                f"{self.damping!r} was given; {Kernel.damping} suits most."
            )
        positive_int(self.landmarks, "landmarks", PreconditionerError)
        if not is_int(self.seed, 0):
            raise PreconditionerError(
                f"seed is a whole number from 0 on; {self.seed!r} was given. Use seed=0."
            )
        if not (self.under is None or isinstance(self.under, Adam)):
            raise PreconditionerError(
                "under is tracin.Adam(), or None for plain gradients; "
                f"{type(self.under).__name__} was given."
            )

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints without Adam's moments where they are asked for.

        Raises:
            CheckpointError: There are such.
        """
        if self.under is not None:
            self.under.check(checkpoints)

    @property
    def is_made_once(self) -> bool:
        """Whether the metric of the last checkpoint serves all."""
        return False

    def metric(self, place: Place) -> "LandmarkMetric":
        """Pass over the landmarks at a checkpoint, and invert.

        Raises:
            PreconditionerError: There are no data, or the landmarks' gradients are all zero or do
                not fit.
            CheckpointError: `under` lacks what it is made from.
        """
        data = data_at_hand("tracin.Kernel() takes landmarks", "Kernel", self.fit, place)
        chosen = self._chosen(data)
        landmarks = data.subset(chosen)
        scaling = None
        if self.under is not None:
            scaling = self.under.metric(place)
            place = replace(place, about=partial(self._about, place))
        kernel = place.metric_of(landmarks, lambda: self._made(place, landmarks, scaling))
        # Equal landmarks may lie at other positions of other data.
        rows = {at: number for number, at in enumerate(chosen)} if self.fit is None else {}
        return LandmarkMetric(kernel, rows)

    def _about(self, place: Place, examples: Examples) -> str:
        """What a kernel under Adam is kept by: its moments may be those of another training."""
        assert self.under is not None
        moments = fingerprint(self.under.read_at(place.checkpoint))
        return f"{place.about(examples)} {moments}"

    def _made(self, place: Place, landmarks: Examples, scaling: Scaling | None) -> "KernelInverse":
        held = Landmarks(scaling)
        place.read(landmarks, held.batch)
        held.join()
        with torch.no_grad():
            gram = held.gram()
            # Apple's GPUs have no float64.
            gram = gram if gram.device.type == "mps" else gram.double()
            damping = self.damping * _typical(gram)
            if not damping > 0:
                raise PreconditionerError(
                    f"The landmarks' gradients at checkpoint '{place.checkpoint.name}' are all "
                    "zero, so that they have no curvature. Leave the checkpoint out, or pass fit= "
                    "data that the model does not fit perfectly."
                )
            eye = torch.eye(len(landmarks), dtype=gram.dtype, device=gram.device)
            factor, failed = torch.linalg.cholesky_ex(
                (gram + gram.mT) / 2 + len(landmarks) * damping * eye
            )
            if bool(failed):
                raise PreconditionerError(
                    f"With damping={self.damping:g} the kernel at checkpoint "
                    f"'{place.checkpoint.name}' is singular in the precision of its gradients. "
                    "Use more damping, or a model in float64."
                )
            return KernelInverse(held, torch.cholesky_inverse(factor), damping, gram)

    def _chosen(self, data: Examples) -> list[int]:
        """The positions of the landmarks, ascending."""
        if self.landmarks >= len(data):
            return list(range(len(data)))
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randperm(len(data), generator=generator)[: self.landmarks].sort()[0].tolist()


def _typical(gram: Tensor) -> float:
    """The mean eigenvalue, each weighted by itself; an example's product with itself left out."""
    examples = len(gram)
    trace = gram.diagonal().sum()
    if examples == 1:
        return float(trace)
    squares = gram.square().sum() - gram.diagonal().square().sum()
    return float(squares / trace / (examples - 1)) if float(trace) > 0 else 0.0


@final
@dataclass(frozen=True, eq=False)
class KernelInverse:
    """What the landmarks give at one checkpoint.

    Attributes:
        landmarks: Their gradients.
        inverse: (n lambda I + G G^T)^-1: [landmarks, landmarks].
        damping: lambda.
        gram: G G^T: [landmarks, landmarks].
    """

    landmarks: Landmarks
    inverse: Tensor
    damping: float
    gram: Tensor


@final
class LandmarkMetric(JointMetric):
    """(F + lambda I)^-1 at one checkpoint, from products with landmarks.

    Args:
        kernel: What the landmarks give.
        rows: Position in the training data -> landmark.
    """

    def __init__(self, kernel: KernelInverse, rows: dict[int, int]) -> None:
        self._landmarks, self._inverse = kernel.landmarks, kernel.inverse
        self._damping, self._rows = kernel.damping, rows
        self._gram, self._has_warned = kernel.gram, False
        # 1 - g (F + lambda I)^-1 g / n, which is below 1 for each landmark, and above 0.
        own = len(kernel.inverse) * kernel.damping * kernel.inverse.diagonal()
        self._left = own.clamp(min=torch.finfo(own.dtype).eps)

    @property
    def scaling(self) -> Scaling | None:
        """Adam's factors, where gradients are under them."""
        return self._landmarks.scaling

    @property
    def directions(self) -> int:
        """How many landmarks there are."""
        return len(self._inverse)

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the products with the landmarks: [examples, landmarks]."""
        return self._landmarks.products(name, form, cache)

    def solved(self, products: Tensor) -> Tensor:
        """[landmarks, queries]."""
        if products.dtype != torch.float64 and not self._has_warned:
            self._warn_of_landmarks(products.to(self._gram), products.dtype)
        return self._inverse @ products.to(self._inverse).mT

    def _warn_of_landmarks(self, products: Tensor, kind: torch.dtype) -> None:
        """Say how many queries are landmarks: [queries, landmarks]."""
        lengths = self._gram.diagonal()
        nearest = (products - lengths).abs().argmin(1)
        apart = (products - self._gram[nearest]).abs().amax(1)
        found = int((apart < SAME * lengths[nearest]).sum())
        if found:
            self._has_warned = True
            name = str(kind).removeprefix("torch.")
            warnings.warn(
                f"{found} of {len(products)} queries are examples that tracin.Kernel() has for "
                "landmarks: its curvature leaves little of their gradients, so that their scores "
                "with other examples are differences of far larger numbers, which "
                f"{name} may round by tens of percent. Use a model in float64, more "
                "damping, or queries that it was not fitted on (fit=).",
                TracInWarning,
                stacklevel=2,
            )

    def scores(
        self, plain: Tensor, own: Tensor, solved: Tensor, positions: Sequence[int]
    ) -> Tensor:
        """The products under the matrix: [examples, queries]."""
        found = (plain.to(solved) - own.to(solved) @ solved) / self._damping
        return (found / self._shares(positions).unsqueeze(1)).to(plain)

    def squared_norms(self, plain: Tensor, own: Tensor, positions: Sequence[int] | None) -> Tensor:
        """The squared lengths under the matrix: [examples]."""
        own = own.to(self._inverse)
        spanned = torch.linalg.vecdot(own @ self._inverse, own)
        found = ((plain.to(own) - spanned) / self._damping).clamp(min=0)
        return (found if positions is None else found / self._shares(positions)).to(plain)

    def _shares(self, positions: Sequence[int]) -> Tensor:
        """What is left of an example's score when it is a landmark; 1 where it is none."""
        shares = torch.ones(len(positions), dtype=self._left.dtype, device=self._left.device)
        found = [(at, self._rows[one]) for at, one in enumerate(positions) if one in self._rows]
        if found:
            places, rows = (
                torch.tensor(each, device=shares.device) for each in zip(*found, strict=True)
            )
            shares[places] = self._left[rows]
        return shares
