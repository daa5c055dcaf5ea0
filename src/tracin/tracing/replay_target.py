"""What a replay is asked about its queries: of the classes that the training predicted at last."""

from typing import Any

from torch.nn import Module

from tracin.checkpoints import Checkpoint
from tracin.data import open_examples
from tracin.gradients.compute import Compute
from tracin.losses import PerExampleLoss
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.query_classes import with_classes
from tracin.scoring.query_loss import ForClasses, query_loss
from tracin.scoring.targets import ClassTarget, Target
from tracin.wrappers import unwrapped


def with_last_predictions(
    model: Module, loss: PerExampleLoss, last: Checkpoint, queries: Any, target: Target | None
) -> tuple[Any, Target | None]:
    """The queries, with a class each where the target leaves it open, and the target then.

    Args:
        model: The model that is replayed; it comes back as it was.
        loss: The queries' loss.
        last: The last checkpoint of the recorded training.
        queries: The queries; None for none.
        target: What is explained of them; None for their loss.

    Raises:
        QueryError: It is no target, or the model has no such class.
        LossError: It is about classes, and the loss tells none.
    """
    if queries is None or not isinstance(target, ClassTarget) or target.label is not None:
        return queries, target
    outcome: Compute | None = getattr(loss, "outcome", None)
    query_loss(outcome, loss, target)
    if outcome is None:
        raise RuntimeError("a class without scores; a bug in tracin")
    bare = unwrapped(model)
    walk = CheckpointPass(bare, outcome, dict(bare.named_parameters()), [last], [1.0], None)
    given = open_examples(queries, name="queries")
    labelled, _ = with_classes(walk, target, given, None, progress=False)
    return labelled, ForClasses(outcome, target)
