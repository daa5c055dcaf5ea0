"""The empirical Fisher's kernel: curvature from products of gradients alone, for any layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint
from tracin.checks import is_int, positive_int
from tracin.data import Examples
from tracin.errors import PreconditionerError
from tracin.files import fingerprint
from tracin.gradients.forms import PerExampleGradient, ProductCache
from tracin.preconditioners.adam import Adam
from tracin.preconditioners.fit_data import LARGEST, data_at_hand
from tracin.preconditioners.fitted import Fitted
from tracin.preconditioners.landmarks import FitProducts, Landmarks
from tracin.preconditioners.preconditioner import JointMetric, Place, Scaling, SolvedQueries
from tracin.preconditioners.recognised import Recognised

# How many landmarks are passed over again, to see how far two passes are apart.
AGAIN = 4


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

    Its curvature leaves so little of a landmark that products in float32 would drown in rounding.
    Scores of landmarks, and of queries or training examples with a landmark's gradient, are
    therefore computed from the products among landmarks alone, in which nothing cancels.

    Memory: the landmarks' gradients of one checkpoint, and of further ones up to 1 GiB that a run
    keeps for its next question, factored where that is cheaper (of a
    linear layer with one position its inputs and output gradients; of a convolution the whole
    gradient), and [landmarks, landmarks] in float64. A pass over training data costs what
    `landmarks` further queries cost. Source: Singh and Alistarh, 2020,
    https://arxiv.org/abs/2004.14340, invert the empirical Fisher so.

    Args:
        damping: lambda in units of F's typical eigenvalue, tr F^2 / tr F, where the products of
            examples with themselves are left out of tr F^2.
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
        held.add_probes(place.parameters)
        held.join()
        number = len(landmarks)
        with torch.no_grad():
            products = held.own_products()
            gram = (products[:, :number] + products[:, :number].mT) / 2
            # Apple's GPUs have no float64.
            gram = gram if gram.device.type == "mps" else gram.double()
            damping = self.damping * _typical(gram)
            if not damping > 0:
                raise PreconditionerError(
                    f"The landmarks' gradients at checkpoint '{place.checkpoint.name}' are all "
                    "zero, so that they have no curvature. Leave the checkpoint out, or pass fit= "
                    "data that the model does not fit perfectly."
                )
            eye = torch.eye(number, dtype=gram.dtype, device=gram.device)
            factor, failed = torch.linalg.cholesky_ex(gram + number * damping * eye)
            if bool(failed):
                raise PreconditionerError(
                    f"With damping={self.damping:g} the kernel at checkpoint "
                    f"'{place.checkpoint.name}' is singular in the precision of its gradients. "
                    "Use more damping, or a model in float64."
                )
            inverse = torch.cholesky_inverse(factor)
            among = number * gram @ inverse
            # Either order gives it; the shorter gradient's row is as precise as that gradient.
            lengths = gram.diagonal().sqrt()
            among = torch.where(lengths.unsqueeze(1) <= lengths, among, among.mT)
        # Those with the largest gradients lose most to rounding.
        largest = gram.diagonal().topk(min(AGAIN, number)).indices.sort().values
        again = FitProducts(held)
        place.read(landmarks.subset(largest.tolist()), again.batch)
        recognised = Recognised.by(
            products[:, number:],
            lengths.to(products),
            again.products[:, number:],
            largest,
        )
        return KernelInverse(held, inverse, among, damping, recognised)

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
        among: G (F + lambda I)^-1 G^T, which is n G G^T times the inverse: [landmarks, landmarks].
            As n (1 - n lambda x the inverse) it would drown in rounding for gradients that are
            short beside the damping's root.
        damping: lambda.
        recognised: What landmarks are recognised by.
    """

    landmarks: Landmarks
    inverse: Tensor
    among: Tensor
    damping: float
    recognised: Recognised


@final
class LandmarkMetric(JointMetric):
    """(F + lambda I)^-1 at one checkpoint, from products with landmarks.

    Args:
        kernel: What the landmarks give.
        rows: Position in the training data -> landmark.
    """

    def __init__(self, kernel: KernelInverse, rows: dict[int, int]) -> None:
        self._landmarks, self._inverse = kernel.landmarks, kernel.inverse
        self._among = kernel.among
        self._damping, self._rows = kernel.damping, rows
        self._recognised = kernel.recognised
        self._number = len(kernel.inverse)
        # 1 - g (F + lambda I)^-1 g / n, which is below 1 for each landmark, and above 0.
        own = self._number * kernel.damping * kernel.inverse.diagonal()
        self._left = own.clamp(min=torch.finfo(own.dtype).eps)

    @property
    def scaling(self) -> Scaling | None:
        """Adam's factors, where gradients are under them."""
        return self._landmarks.scaling

    @property
    def directions(self) -> int:
        """How many there are: the landmarks, and those that landmarks are recognised by."""
        return self._landmarks.directions

    def products(self, name: str, form: PerExampleGradient, cache: ProductCache) -> Tensor | None:
        """One parameter's share of the products with the directions: [examples, directions]."""
        return self._landmarks.products(name, form, cache)

    def solved(self, products: Tensor, *, together: bool) -> SolvedQueries:
        """What `scores` needs of the queries; landmarks among them need no plain products."""
        landmarks, own = self._which(products, None), self._with_landmarks(products)
        scores = self._number * self._inverse @ own.mT
        found = landmarks >= 0
        columns = self._inverse[:, landmarks.clamp(min=0)] * self._number * self._damping
        scores = torch.where(found, self._among[:, landmarks.clamp(min=0)], scores)
        if together and not bool(found.all()):
            found = torch.zeros_like(found)  # of their sum nothing can be left out
        along = torch.where(found, columns, -scores / self._number)
        kept = (~found).to(along)
        if together:
            along, scores = along.sum(1, keepdim=True), scores.sum(1, keepdim=True)
            kept = kept.amax(0, keepdim=True)
        return SolvedQueries(kept, along, scores)

    def scores(
        self, plain: Tensor, own: Tensor, solved: SolvedQueries, positions: Sequence[int]
    ) -> Tensor:
        """The products under the matrix: [examples, queries]."""
        landmarks, with_landmarks = self._which(own, positions), self._with_landmarks(own)
        found = plain.to(solved.kept) * solved.kept + with_landmarks @ solved.along
        among = solved.scores[landmarks.clamp(min=0)]
        found = torch.where((landmarks >= 0).unsqueeze(1), among, found / self._damping)
        return (found / self._shares(positions, landmarks).unsqueeze(1)).to(plain)

    def squared_norms(self, plain: Tensor, own: Tensor, positions: Sequence[int] | None) -> Tensor:
        """The squared lengths under the matrix: [examples]."""
        landmarks, with_landmarks = self._which(own, positions), self._with_landmarks(own)
        spanned = torch.linalg.vecdot(with_landmarks @ self._inverse, with_landmarks)
        found = (plain.to(spanned) - spanned) / self._damping
        among = self._among.diagonal()[landmarks.clamp(min=0)]
        found = torch.where(landmarks >= 0, among, found).clamp(min=0)
        if positions is not None:
            found = found / self._shares(positions, landmarks)
        return found.to(plain)

    def squared_norm_of_sum(self, plain: Tensor, products: Tensor) -> Tensor:
        """The squared length of the queries' sum under the matrix: [1]."""
        landmarks = self._which(products, None)
        if bool((landmarks >= 0).all()):
            return self._among[landmarks][:, landmarks].sum().view(1).to(plain)
        own = self._with_landmarks(products).sum(0, keepdim=True)
        spanned = torch.linalg.vecdot(own @ self._inverse, own)
        return ((plain.to(own) - spanned) / self._damping).clamp(min=0).to(plain)

    def _with_landmarks(self, products: Tensor) -> Tensor:
        """Those of the products that are with landmarks, in the inverse's precision."""
        return products[:, : self._number].to(self._inverse)

    def _which(self, products: Tensor, positions: Sequence[int] | None) -> Tensor:
        """Which landmark each example is; -1 where it is none: [examples]."""
        probed = products[:, self._number :]
        found = self._recognised.landmarks(probed)
        at, rows = self._placed(positions or (), found.device)
        # What is a landmark by its position need not be recognised, if only it is the same data.
        near = self._recognised.is_near(probed[at], rows)
        found[at] = torch.where(near, rows, found[at])
        return found

    def _placed(self, positions: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Which of these examples landmarks were taken from, and which landmarks these are."""
        found = [(at, self._rows[one]) for at, one in enumerate(positions) if one in self._rows]
        both = torch.tensor(found, dtype=torch.long, device=device).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def _shares(self, positions: Sequence[int], landmarks: Tensor) -> Tensor:
        """What is left of an example's score when it is a landmark; 1 where it is none.

        An example in a landmark's place is none where the data have changed since.
        """
        shares = torch.ones(len(positions), dtype=self._left.dtype, device=self._left.device)
        at, rows = self._placed(positions, shares.device)
        shares[at] = torch.where(landmarks[at] == rows, self._left[rows], 1.0)
        return shares
