"""Whether scores come from what the model learned: those of shuffled weights should be unlike them.

J. Adebayo et al., "Sanity checks for saliency maps", 2018, https://arxiv.org/abs/1810.03292.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracin.analysis.correlations import ranks
from tracin.analysis.given_scores import as_numbers
from tracin.checkpoints import Checkpoint, loaded
from tracin.checkpoints.learning_rates import LearningRates
from tracin.data import Examples
from tracin.errors import QueryError
from tracin.evaluate.query_mean import QueryMean, query_mean
from tracin.guards import untouched
from tracin.preconditioners import Preconditioner
from tracin.preconditioners.trained_with_adam import plain_on_purpose
from tracin.run import Run, last_layer
from tracin.statistics import pearson
from tracin.tracin import TracIn


def randomised(scores: Any, other: Any) -> QueryMean:
    """The mean over queries of the rank correlation between scores and those of a shuffled model.

    Near 0 where scores depend on what was learned. Likeness of the inputs themselves survives
    shuffling, so a value above 0 says how much of a ranking the data alone make.

    Args:
        scores: [train, queries], of the model as it was trained.
        other: The same shape, of `randomised_run`.

    Raises:
        QueryError: The shapes differ.
        NonFiniteError: A score is NaN.

    Example:
        >>> import torch
        >>> from tracin.evaluate import randomised
        >>> print(randomised([[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]]))
        1.000 [1.000 1.000]
    """
    ours, theirs = as_numbers(scores, "scores"), as_numbers(other, "other")
    if ours.ndim != 2 or ours.shape != theirs.shape:
        raise QueryError(
            "Scores of both models are [train, queries], of one shape; came "
            f"{list(ours.shape)} and {list(theirs.shape)}."
        )
    return query_mean(pearson(ranks(ours), ranks(theirs)))


def randomised_run(run: Run, seed: int = 0) -> TracIn:
    """The same run with its weights shuffled: each traced tensor's numbers in a random order.

    Shuffled, not drawn anew: every tensor keeps its sizes, whatever the model, and nothing that was
    learned is left but those. All checkpoints are shuffled in the same order. The run's
    preconditioner stays, which must not need an optimizer's state.

    Args:
        run: The model, its loss and its checkpoints.
        seed: Decides the order.

    Raises:
        CheckpointError: Weights cannot be read, or the preconditioner needs an optimizer's state.

    Example:
        >>> import torch, tracin
        >>> from tracin.evaluate import randomised_run
        >>> model = torch.nn.Linear(3, 2)
        >>> run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[0.1])
        >>> shuffled = randomised_run(run).checkpoints[0].source["weight"]
        >>> bool((shuffled.sort().values.sum() - model.weight.sum()).abs() < 1e-5)
        True
    """
    names = list(run.parameters)
    checkpoints = []
    for checkpoint in run.checkpoints:
        generator = torch.Generator().manual_seed(seed)
        with untouched(run.model), loaded(run.model, checkpoint, run.device):
            state = {name: each.detach().clone() for name, each in run.model.state_dict().items()}
        for name in names:
            state[name] = _shuffled(state[name], generator)
        checkpoints.append(Checkpoint(state, name=f"{checkpoint.name}, shuffled"))
    return run_like(run, checkpoints, run.weights, run.preconditioner, names)


def run_like(
    run: Run,
    checkpoints: Sequence[Checkpoint],
    learning_rates: LearningRates,
    preconditioner: Preconditioner | None,
    names: list[str],
) -> TracIn:
    """The same model, loss and parameters, with other checkpoints or another preconditioner."""
    if isinstance(learning_rates, list):
        # A span may be empty; as a list, a weight of 0 is refused.
        kept = [pair for pair in zip(checkpoints, learning_rates, strict=True) if pair[1]]
        checkpoints, learning_rates = [each for each, _ in kept], [rate for _, rate in kept]
    with plain_on_purpose():
        return TracIn(
            run.model,
            run.loss,
            checkpoints,
            parameters=names,
            learning_rates=learning_rates,
            device=run.device,
            preconditioner=preconditioner,
        )


def traced_names(run: Run, examples: Examples) -> list[str]:
    """The names of the traced parameters; the first example shows which layer is used last."""
    return list(last_layer(run, examples) if run._is_last else run.parameters)


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(values.numel(), generator=generator).to(values.device)
    return values.flatten()[order].reshape(values.shape)
