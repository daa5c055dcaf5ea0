"""The rows of the benchmark: a work, the subject it is done on, and the ratio to reach."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

from benchmarks.many_queries import many_queries_subject
from benchmarks.subjects import Subject, lm_subject, mlp_subject, resnet_subject
from benchmarks.training import TrainingSubject, training_subject
from tracin import Projection
from tracin.tracing import Quadrature


class HasPlainPass(Protocol):
    """What is timed: it knows what its work is compared to."""

    def plain_pass(self) -> None:
        """The work without tracin."""
        ...


@final
@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    target: float
    subject: Callable[[bool], HasPlainPass]  # is_quick -> what is timed
    work: Callable[[Any], object]


def self_influence(subject: Subject) -> object:
    """Every example's influence on itself."""
    return subject.traced().self_influence(subject.train, batch_size=subject.batch_size)


def influence(subject: Subject) -> object:
    """Every example's influence on all the subject's queries."""
    return subject.traced().influence(subject.train, subject.queries, batch_size=subject.batch_size)


def explain_one(subject: Subject) -> object:
    """The top and bottom of one query."""
    return subject.traced().explain(
        subject.train, subject.some_queries(1), k=10, batch_size=subject.batch_size
    )


def index(subject: Subject) -> None:
    """An index of the training examples, 1,024 numbers a row, written to a folder.

    Without measuring its recall: that is 16 queries whatever the examples, and not building.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject.traced().index(
            subject.train,
            folder,
            Projection(1024),
            recall_queries=0,
            batch_size=subject.batch_size,
        )


def first_order(subject: TrainingSubject) -> None:
    """First-order TracIn of a training, as the paper has it."""
    subject.traced_pass(subject.queries, [Quadrature.FIRST_ORDER])


def trapezoid(subject: TrainingSubject) -> None:
    """Both paths that a Tracer follows unless told otherwise."""
    subject.traced_pass(subject.queries, [Quadrature.TRAPEZOID, Quadrature.FIRST_ORDER])


def traced_self_influence(subject: TrainingSubject) -> None:
    """Self-influence along a training."""
    subject.traced_pass(None, [Quadrature.FIRST_ORDER])


def _mlp(is_quick: bool) -> Subject:
    return mlp_subject(2000 if is_quick else 10_000)


def _resnet20(is_quick: bool) -> Subject:
    return resnet_subject(20, 128 if is_quick else 2048)


def _resnet56(is_quick: bool) -> Subject:
    return resnet_subject(56, 64 if is_quick else 512)


def _lm(is_quick: bool) -> Subject:
    return lm_subject(32 if is_quick else 256)


def _large_lm(is_quick: bool) -> Subject:
    return lm_subject(64 if is_quick else 1024)


def _many_queries(is_quick: bool) -> Subject:
    return many_queries_subject("tiny" if is_quick else "gpt2", 64 if is_quick else 1024)


def _training(is_quick: bool) -> TrainingSubject:
    return training_subject(5000 if is_quick else 59_000)


ROWS = [
    Row("mlp", "self-influence, MLP, 3 checkpoints", 0.95, _mlp, self_influence),
    Row("mlp", "influence on 100 queries, MLP, 3 checkpoints", 1.1, _mlp, influence),
    Row("mlp", "explain one query, MLP, 3 checkpoints", 1.2, _mlp, explain_one),
    Row("resnet", "self-influence, ResNet-20", 1.35, _resnet20, self_influence),
    Row("resnet", "influence on 16 queries, ResNet-20", 1.6, _resnet20, influence),
    Row("resnet", "explain one query, ResNet-20", 1.2, _resnet20, explain_one),
    Row("resnet56", "self-influence, ResNet-56", 1.3, _resnet56, self_influence),
    Row("lm", "self-influence, transformer LM", 1.0, _lm, self_influence),
    Row("lm", "influence on 8 queries, transformer LM", 1.5, _lm, influence),
    Row("lm", "explain one query, transformer LM", 1.2, _lm, explain_one),
    Row("lm-queries", "influence on 100 queries, 124 M LM", 2.0, _many_queries, influence),
    Row("index", "build an index, MLP, 3 checkpoints", 1.1, _mlp, index),
    Row("index", "build an index, ResNet-20", 1.5, _resnet20, index),
    Row("index", "build an index, transformer LM", 1.1, _lm, index),
    Row("index-large", "build an index, LM, 1,024 sequences", 1.1, _large_lm, index),
    Row("tracing", "trace 100 queries, first order, MLP", 1.35, _training, first_order),
    Row("tracing", "trace 100 queries, default paths, MLP", 1.35, _training, trapezoid),
    Row("tracing", "trace self-influence alone, MLP", 1.1, _training, traced_self_influence),
]
