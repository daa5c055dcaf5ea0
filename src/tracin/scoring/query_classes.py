"""The class that each query's target is about."""

import torch

from tracin.data import Examples, Size
from tracin.results.example_facts import ExampleFacts
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.facts_of import FactsSoFar
from tracin.scoring.forward_pass import forward_pass
from tracin.scoring.query_loss import class_scores, refuse_no_class
from tracin.scoring.targets import ClassTarget


def with_classes(
    walk: CheckpointPass,
    target: ClassTarget,
    queries: Examples,
    batch_size: Size | None,
    progress: bool | None,
) -> tuple[Examples, ExampleFacts | None]:
    """The queries, each with the class that the target is about, and what is known of them.

    Args:
        walk: A pass whose loss gives class scores.
        target: What is explained of a class.
        queries: The queries.
        batch_size: Examples or tokens per model call; None finds the size.
        progress: None shows a bar on a terminal or in a notebook.

    Raises:
        LossError: The loss gives no score per class and query.
        QueryError: The model has no such class.
    """
    last = walk.checkpoints - 1
    found = torch.zeros(len(queries), dtype=torch.int64)
    facts = FactsSoFar(len(queries))
    for step in forward_pass(walk, queries, [last], "predictions", batch_size, progress):
        scores = class_scores(step.outcome, target)
        facts.take(step.rows, step.outcome)
        found[step.rows] = scores.argmax(1).cpu() if target.label is None else target.label
        refuse_no_class(target, scores.shape[1])
    return queries.with_column(found), facts.all()
