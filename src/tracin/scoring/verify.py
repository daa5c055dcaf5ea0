"""Measures gradients and scores of a few examples against plain autograd."""

from collections.abc import Callable, Sequence

from tracin.data import Examples, copied, move
from tracin.gradients import Coverage
from tracin.precision import FLOAT64, lowest
from tracin.results.verification import Verification
from tracin.scoring.checkpoint_pass import CheckpointPass
from tracin.scoring.comparison import Comparison


def verified(
    walk: CheckpointPass,
    names: Sequence[str],
    data: Examples,
    examples: int,
    covered: Callable[[], Coverage],
) -> Verification:
    """Compare the first examples at all checkpoints.

    Args:
        walk: The model at its checkpoints.
        names: Of the checkpoints.
        data: Where the examples are from.
        examples: How many.
        covered: Gives the coverage, once the passes are done.

    Raises:
        NonFiniteError: A loss or a gradient is NaN or infinite.
    """
    errors = dict.fromkeys(walk.gradients.parameters, 0.0)
    scores, precision, compared = 0.0, FLOAT64, ""
    for number, name in enumerate(names):
        with walk.at(number) as device:
            # Examples that come alone make several batches.
            for positions, batch in data.batches(examples, stop=examples):
                batch = move(batch, device)
                ids = data.ids[list(positions)]
                walk.gradients.check(copied(batch))
                comparison = Comparison(walk.gradients, batch, name, ids)
                for gaps in comparison.gaps():
                    scores = max(scores, gaps.scores)
                    errors = {each: max(error, gaps.errors[each]) for each, error in errors.items()}
                precision = lowest([precision, comparison.precision], device)
                compared = comparison.compared
    return Verification(errors, scores, covered(), precision, compared)
