"""What `tracin evaluate` does: retrain where the task can, and compare methods."""

from pathlib import Path
from typing import Any

from tracin.analysis.edited_data import kept_examples
from tracin.cli.opened import Opened
from tracin.cli.task import Task
from tracin.code_fingerprint import code_fingerprint
from tracin.data import open_examples
from tracin.errors import RunFileError
from tracin.evaluate import (
    Evaluation,
    RetrainedLosses,
    StackedFit,
    Texts,
    compare_methods,
    half_subsets,
    retrained_losses,
)
from tracin.plain_text import a_kind

TRAININGS = "evaluate-trainings"


def evaluated(opened: Opened, run: Path) -> tuple[Evaluation, dict[str, Any]]:
    """Compare the methods that fit a run.

    Args:
        opened: The run.
        run: The RUN.toml, for messages.

    Returns:
        The evaluation, and what its settings file says of it.

    Raises:
        RunFileError: The task lacks queries, or returned something that this command cannot take.
        OutputError: The results' folder holds trainings of another task.
    """
    import torch

    task, options = opened.task, opened.settings.evaluate
    if task.queries is None:
        raise RunFileError(
            f"{run}: scores are judged on examples that were not trained on, so for tracin "
            "evaluate the task must also return 'queries'."
        )
    many = min(options.queries, len(open_examples(task.queries, name="queries")))
    queries = kept_examples(task.queries, torch.arange(many))
    texts = _texts(task, many, run)
    truth = _truth(opened, queries, run)
    found = compare_methods(
        opened.tracer,
        task.train,
        queries,
        truth=truth,
        texts=texts,
        k=min(options.k, len(open_examples(task.train, name="train"))),
        resamples=options.resamples,
        batch_size=opened.settings.tracin.size,
    )
    about = {"query_count": many, "recommendation": found.recommendation}
    return found, about


def _truth(opened: Opened, queries: Any, run: Path) -> RetrainedLosses | None:
    task, options = opened.task, opened.settings.evaluate
    if task.fit is None or options.subsets == 0:
        return None
    if not callable(task.fit):
        raise RunFileError(
            f"{run}: the task's 'fit' is a function that trains a new model, fit(data) -> model, "
            f"or a tracin.evaluate.StackedFit; {a_kind(task.fit)} came."
        )
    examples = len(open_examples(task.train, name="train"))
    return retrained_losses(
        task.train,
        queries,
        task.fit,
        task.loss,
        half_subsets(examples, options.subsets),
        seeds=range(options.first_seed, options.first_seed + options.seeds),
        folder=opened.destination.folder / TRAININGS,
        settings={
            "code of fit": fit_fingerprint(task.fit),
            "code of loss": code_fingerprint(task.loss),
        },
    )


def fit_fingerprint(fit: Any) -> str:
    """A fingerprint of how models are trained, as far as it can be seen."""
    return fit.fingerprint if isinstance(fit, StackedFit) else code_fingerprint(fit)


def _texts(task: Task, queries: int, run: Path) -> Texts | None:
    if task.texts is None and task.query_texts is None:
        return None
    if task.texts is None or task.query_texts is None:
        raise RunFileError(
            f"{run}: texts are compared with texts, so the task must return both 'texts' (of "
            "train) and 'query_texts', or neither."
        )
    sizes = [len(task.texts), len(task.query_texts)]
    train, asked = (open_examples(getattr(task, each), name=each) for each in ("train", "queries"))
    examples = [len(train), len(asked)]
    if sizes != examples:
        raise RunFileError(
            f"{run}: 'texts' and 'query_texts' hold one text per example, here {examples[0]} and "
            f"{examples[1]}; {sizes[0]} and {sizes[1]} came."
        )
    return Texts(list(task.texts), list(task.query_texts)[:queries])
