"""Influence functions: what leaving an example out would do, by the curvature of the loss."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from tracin.baselines.baseline import check_run, checkpoint_number
from tracin.baselines.curvature import SHARE, Curvature
from tracin.baselines.gradient_rows import (
    places_of_parameters,
    plain_pass,
    products_with,
    written_gradients,
)
from tracin.baselines.solvers import Direct, InverseHessian, Solver
from tracin.baselines.suspect_scores import SuspectScores
from tracin.checks import positive_int
from tracin.data import Examples, Tokens, in_data_order, open_examples, places
from tracin.errors import QueryError
from tracin.guards import guarded
from tracin.progress import bar
from tracin.run import HELD, Run, open_data
from tracin.scoring.batch_size import BatchSize, checked_size
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.settled import settled

WORKING = 8  # tensors in float64 that a solver holds, for each of gradients in float32


@final
@dataclass(frozen=True, eq=False)
class InfluenceFunctions:
    """How much a query's loss would rise if a training example were left out.

    P. W. Koh and P. Liang, "Understanding black-box predictions via influence functions", 2017,
    https://arxiv.org/abs/1703.04730: gradient(query) . (H + damping)^-1 . gradient(example) / n,
    where H is the mean Hessian of the n training losses. Positive: a proponent, without which the
    loss would be higher; the unit is that of the loss. The parameters are those of the run: the
    TracIn paper inverts the Hessian of the last layer, `TracIn(..., parameters="last")` and
    `Direct()`; for more parameters there are `ConjugateGradient()` and `LiSSA()`.

    It predicts retraining where the checkpoint is a minimum of (mean loss + damping / 2 x squared
    weights): with weight decay, `damping` is its factor. Elsewhere `damping` stands for what
    keeps retraining nearby.

    Args:
        run: The model, its loss, its checkpoints and the parameters.
        damping: What is added to each eigenvalue of the Hessian, at least 0. There is no default:
            it decides how much the flattest directions count. Under softmax some directions are
            flat, and 0 is refused.
        solver: How the inverse is taken.
        checkpoint: The place of the checkpoint in the run; the last by default.

    Raises:
        QueryError: There is no run or no such checkpoint, or the damping is negative.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import InfluenceFunctions
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> weights = {"weight": torch.ones(1, 1)}
        >>> run = tracin.TracIn(model, "mse", [weights], learning_rates="equal")
        >>> train = torch.ones(4, 1), torch.tensor([0.5, 1.0, 1.0, 1.5])
        >>> query = torch.ones(1, 1), torch.tensor([1.5])
        >>> InfluenceFunctions(run, damping=0.0).influence(train, query)[:, 0]
        tensor([-0.1250,  0.0000,  0.0000,  0.1250], dtype=torch.float64)
    """

    run: Run
    damping: float
    solver: Solver = field(default_factory=Direct)
    checkpoint: int = -1

    def __post_init__(self) -> None:
        check_run(self.run, "InfluenceFunctions")
        checkpoint_number(self.run, self.checkpoint)
        is_number = isinstance(self.damping, int | float) and not isinstance(self.damping, bool)
        if not is_number or not (self.damping >= 0 and math.isfinite(self.damping)):
            raise QueryError(
                "damping is a number of at least 0, such as 0.01 or the weight decay of the "
                f"training; {self.damping!r} was given."
            )
        if not hasattr(self.solver, "inverse") or isinstance(self.solver, type):
            raise QueryError(
                "solver is Direct(), ConjugateGradient() or LiSSA(), of tracin.baselines; "
                f"{self.solver!r} was given."
            )

    @guarded
    @settled
    def fit(self, train: Any, *, batch_size: BatchSize = "auto") -> "FittedInfluence":
        """Take the curvature over the training data, once for any number of questions.

        `Direct` forms and inverts the Hessian here; the other solvers keep `train` and read it
        again for every solution.

        Args:
            train: The examples that the model was trained on.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            NonFiniteError: A loss is NaN or infinite; names example and checkpoint.
            QueryError: `Direct` and too many parameters.
            UnsupportedModelError: A part of the model has no second derivatives.
        """
        examples = open_data(self.run, train, "train")
        walk, number = plain_pass(self.run), checkpoint_number(self.run, self.checkpoint)
        with walk.at(number) as device:
            reader = walk.reader(examples, range(len(examples)), checked_size(batch_size), device)
            size = reader.batch_size
            if batch_size == "auto" and not isinstance(
                size, Tokens
            ):  # what the caller gave is kept
                size = max(1, size // SHARE)
            curvature = Curvature(walk, examples, size, self.run.checkpoints[number].name)
            inverse = self.solver.inverse(curvature, float(self.damping))
        return FittedInfluence(self.run, number, len(examples), inverse)

    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """How much each example's own loss would rise without it: [train].

        `Direct` makes one pass for all; the other solvers solve for each example by itself, which
        suits small data.

        Args:
            train: The examples that the model was trained on.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        examples = open_data(self.run, train, "train")
        fitted = self.fit(examples, batch_size=batch_size)
        return fitted.scores(examples, batch_size=batch_size, progress=progress)

    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """How much each query's loss would rise without each example: [train, queries], float64.

        Args:
            train: The examples that the model was trained on.
            queries: The examples whose loss is explained.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        examples = open_data(self.run, train, "train")
        fitted = self.fit(examples, batch_size=batch_size)
        return fitted.influence(examples, queries, batch_size=batch_size, progress=progress)


@final
@dataclass(frozen=True, eq=False)
class FittedInfluence:
    """Influence functions with the curvature of some training data; `InfluenceFunctions.fit`.

    Attributes:
        run: The model, its loss and its parameters.
        checkpoint: The place of the checkpoint in the run.
        examples: How many training examples the curvature is the mean of.
        inverse: The inverse of the damped Hessian.
    """

    run: Run
    checkpoint: int
    examples: int
    inverse: InverseHessian

    @guarded
    @settled
    def scores(
        self, train: Any, *, batch_size: BatchSize = "auto", progress: bool | None = None
    ) -> SuspectScores:
        """How much each example's own loss would rise without it: [train].

        Args:
            train: Those of the training data, or others like them.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        examples = open_data(self.run, train, "train")
        found = torch.zeros(len(examples), dtype=torch.float64)
        with self._at() as (walk, device), bar(len(examples), "influence", progress) as shown:
            size, name = checked_size(batch_size), self.run.checkpoints[self.checkpoint].name
            span = range(len(examples))
            for positions, rows in written_gradients(walk, examples, span, device, size, name):
                own = rows.cpu().double()
                found[places(positions)] = (own * self.inverse.solve(own)).sum(1)
                shown.update(len(positions))
        return SuspectScores("InfluenceFunctions", examples.ids, (found / self.examples).numpy())

    @guarded
    @settled
    def estimated_scores(
        self,
        train: Any,
        *,
        probes: int = 32,
        seed: int = 0,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> SuspectScores:
        """`scores` from random vectors, for solvers that solve for each example: [train].

        With v of random signs, (gradient . v)(gradient . H^-1 v) is on average gradient . H^-1
        gradient (M. F. Hutchinson, 1990, https://doi.org/10.1080/03610919008812866). One solution
        per probe and one pass over the data replace one solution per example. The standard error
        is about sqrt(2 / probes) of the score, or more.

        Args:
            train: Those of the training data, or others like them.
            probes: How many random vectors.
            seed: Of their signs.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            QueryError: `probes` is no whole number of at least 1.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        positive_int(probes, "probes", QueryError)
        examples = open_data(self.run, train, "train")
        found = torch.zeros(len(examples), dtype=torch.float64)
        size, name = checked_size(batch_size), self.run.checkpoints[self.checkpoint].name
        generator = torch.Generator().manual_seed(seed)
        with self._at() as (walk, device), bar(len(examples), "influence", progress) as shown:
            numbers = max(place.stop for place in places_of_parameters(walk).values())
            signs = torch.randint(0, 2, (probes, numbers), generator=generator)
            vectors = 2.0 * signs.double() - 1
            both = torch.cat([vectors, self.inverse.solve(vectors)])
            for positions, products in products_with(walk, examples, both, device, size, name):
                found[places(positions)] = (products[:, :probes] * products[:, probes:]).mean(1)
                shown.update(len(positions))
        return SuspectScores("InfluenceFunctions", examples.ids, (found / self.examples).numpy())

    @guarded
    @settled
    def influence(
        self,
        train: Any,
        queries: Any,
        *,
        batch_size: BatchSize = "auto",
        progress: bool | None = None,
    ) -> Tensor:
        """How much each query's loss would rise without each example: [train, queries], float64.

        Args:
            train: Those of the training data, or others like them.
            queries: The examples whose loss is explained.
            batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
            progress: None shows a bar on a terminal or in a notebook.

        Raises:
            CurvatureError: The damped Hessian is not positive definite.
            NonFiniteError: A loss or a gradient is NaN or infinite.
        """
        examples = open_data(self.run, train, "train")
        asked = open_examples(queries, name="queries")
        total = torch.zeros(len(examples), len(asked), dtype=torch.float64)
        size, name = checked_size(batch_size), self.run.checkpoints[self.checkpoint].name
        with self._at() as (walk, device):
            spans = _spans(walk, asked)
            with bar(len(examples) * len(spans), "influence", progress) as shown:
                for span in spans:
                    found = written_gradients(walk, asked, span, device, size, name, "query")
                    rows = in_data_order((each, some.cpu().double()) for each, some in found)
                    solved = self.inverse.solve(rows)
                    for positions, products in products_with(
                        walk, examples, solved, device, size, name
                    ):
                        total[places(positions), places(span)] = products
                        shown.update(len(positions))
        return total / self.examples

    @contextmanager
    def _at(self) -> Iterator[tuple[CheckpointPass, torch.device]]:
        walk = plain_pass(self.run)
        with walk.at(self.checkpoint) as device:
            yield walk, device


def _spans(walk: CheckpointPass, queries: Examples) -> list[range]:
    """Runs of queries whose gradients and solutions stay within bounds."""
    numbers = sum(each.numel() for each in walk.gradients.parameters.values())
    step, count = max(1, HELD // (WORKING * numbers)), len(queries)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]
