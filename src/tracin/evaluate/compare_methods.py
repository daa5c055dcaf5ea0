"""Score the same queries by several methods, and measure each."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import class_steps
from tracin.checks import count_within
from tracin.data import Examples, in_data_order, open_examples
from tracin.errors import LossError, QueryError
from tracin.evaluate.duplicates import found_copies, with_copies
from tracin.evaluate.evaluation import Evaluation, MethodResult
from tracin.evaluate.identical_class import identical_class
from tracin.evaluate.lds import compare_lds
from tracin.evaluate.methods import Method, standard_methods
from tracin.evaluate.query_mean import QueryMean
from tracin.evaluate.randomised import randomised, randomised_run, run_like, traced_names
from tracin.evaluate.retrained_losses import RetrainedLosses
from tracin.evaluate.tail_patch import TailPatch, tail_patch
from tracin.run import Run
from tracin.scoring.batch_size import BatchSize
from tracin.tracin import TracIn

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)
class Texts:
    """The examples' texts, for methods that compare words.

    Attributes:
        train: One text, or list of tokens, per training example; or token ids.
        queries: The same of the queries.
    """

    train: Any
    queries: Any


def compare_methods(
    run: TracIn,
    train: Any,
    queries: Any,
    methods: Sequence[Method] | None = None,
    *,
    truth: RetrainedLosses | None = None,
    texts: Texts | None = None,
    k: int = 10,
    resamples: int = 1000,
    batch_size: BatchSize = "auto",
    progress: bool | None = None,
) -> Evaluation:
    """Measure several ways of scoring on your own problem, with and without retraining.

    Each method scores the training examples and a copy of each query in one pass. Where the loss
    knows classes, the first proponents' classes are compared with the query's; where the last
    checkpoint has a learning rate, a step on them is taken; scores are compared with those of
    shuffled weights; and with a truth, with what retrained models say.

    Args:
        run: The model, its loss and its checkpoints. Its own preconditioner is not used: methods
            say theirs.
        train: The training examples: tensors in a tuple or dict, or a map-style dataset.
        queries: The same kind of data.
        methods: What to compare, under different names; None for `standard_methods`.
        truth: What `retrained_losses` measured, of the same examples and queries; None to leave the
            LDS out.
        texts: The examples' texts; None leaves out methods that read texts.
        k: How many proponents to look at.
        resamples: As for `lds`.
        batch_size: "auto", a number of examples per model call, or `tracin.Tokens`.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        QueryError: There is no method, two have one name, k is no number of examples, or the truth
            is of other data.
        NonFiniteError: A score, a loss or a gradient is NaN or infinite.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate import compare_methods
        >>> model = torch.nn.Linear(2, 2)
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train, queries = ((torch.randn(n, 2), torch.arange(n) % 2) for n in (20, 4))
        >>> found = compare_methods(run, train, queries, k=5)
        >>> found["TracIn"].scores.shape
        torch.Size([20, 4])
    """
    check_run(run, "compare_methods")
    examples, asked = open_examples(train, name="train"), open_examples(queries, name="queries")
    there = f"train holds {len(examples)} examples"
    count_within(k, len(examples), there, QueryError, "proponents")
    if methods is None:
        methods = standard_methods(run, train, has_texts=texts is not None)
    _check_methods(methods, texts)
    _check_truth(truth, len(examples), len(asked))
    labels = _labels(run, examples, asked, batch_size)
    names = traced_names(run, examples)
    plain = run_like(run, run.checkpoints, run.weights, None, names)
    shuffled = randomised_run(plain)
    joined = with_copies(train, queries)
    found = []
    for method in methods:
        _log.debug("scoring by %s", method.name)
        began = time.perf_counter()
        data = (joined, queries)
        if method.reads_texts and texts is not None:
            data = ([*texts.train, *texts.queries], texts.queries)
        built = method.build(run)
        every = built.influence(*data, batch_size=batch_size, progress=progress).detach().cpu()
        seconds = time.perf_counter() - began
        scores = every[: len(examples)]
        other: QueryMean | None = None
        if method.reads_model:
            random = method.build(shuffled).influence(
                train, queries, batch_size=batch_size, progress=progress
            )
            other = randomised(scores, random)
        found.append(
            MethodResult(
                method.name,
                method.advice,
                scores,
                None if labels is None else identical_class(scores, *labels, k),
                found_copies(every),
                _patch(run, train, queries, scores, k, progress),
                other,
                seconds,
            )
        )
    by_name = {each.name: each.scores for each in found}
    return Evaluation(
        found, None if truth is None else compare_lds(by_name, truth, resamples=resamples)
    )


def _check_methods(methods: Sequence[Method], texts: Texts | None) -> None:
    names = [each.name for each in methods]
    if not names or len(set(names)) < len(names):
        raise QueryError(f"methods holds at least one, under different names; {names} were given.")
    reading = [each.name for each in methods if each.reads_texts]
    if reading and texts is None:
        raise QueryError(
            f"{reading[0]!r} reads texts, and none are known. Give texts=Texts(train, queries)."
        )


def _check_truth(truth: RetrainedLosses | None, examples: int, queries: int) -> None:
    if truth is None or (truth.examples, truth.losses.shape[2]) == (examples, queries):
        return
    raise QueryError(
        f"The truth is of {truth.examples} examples and {truth.losses.shape[2]} queries, but "
        f"{examples} and {queries} were given. Retrain with the same data."
    )


def _labels(
    run: Run, train: Examples, queries: Examples, batch_size: BatchSize
) -> tuple[Tensor, Tensor] | None:
    """The labels of both; None where the loss knows no classes."""
    last, found = len(run.checkpoints) - 1, []
    try:
        for examples in (train, queries):
            steps = class_steps(run, examples, [last], "the class check", batch_size, False)
            labels = ((step.positions, step.outcome.labels.cpu()) for step in steps)
            found.append(in_data_order(labels))
    except LossError:
        return None
    return found[0], found[1]


def _patch(
    run: Run, train: Any, queries: Any, scores: Tensor, k: int, progress: bool | None
) -> TailPatch | None:
    rate = run.checkpoints[-1].learning_rate
    if not isinstance(rate, int | float):
        return None
    return tail_patch(run, train, queries, scores, k, progress=progress)
