"""Probabilities from models that have not seen the example."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from tracin.baselines.baseline import check_run
from tracin.baselines.forward import check_classes, outcome_of
from tracin.checks import is_int
from tracin.data import content_of, move
from tracin.errors import NonFiniteError, QueryError
from tracin.gradients.wording import worded
from tracin.guards import untouched
from tracin.guards.new_models import NewModels
from tracin.run import Run, open_data
from tracin.scoring.label_scores import probabilities_of
from tracin.scoring.named_examples import examples_named
from tracin.sharding import device_of
from tracin.wrappers import unwrapped


def cross_validated(
    run: Run,
    train: Any,
    fit: Callable[[np.ndarray], Module],
    *,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 256,
) -> Tensor:
    """Class probabilities of each example under a model trained without it: [train, classes].

    Args:
        run: Its loss says what scores and labels of a batch are; its model is not used.
        train: The labelled examples.
        fit: Trains a new model on the examples at these positions of `train`, [positions], and
            returns it. It is called once per fold.
        folds: How many parts the data is cut into at random, at least 2.
        seed: Of the parts.
        batch_size: Examples per call of a model.

    Raises:
        QueryError: `folds` is no whole number from 2 to the number of examples, or `fit` returned
            no model, or one model twice.
        NonFiniteError: A class score is NaN or infinite.
        LossError: The loss knows no classes, or an example has several labels.

    Example:
        >>> import torch, tracin
        >>> from tracin.baselines import cross_validated
        >>> model = torch.nn.Linear(1, 2)
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], learning_rates="equal"
        ... )
        >>> train = torch.randn(9, 1), torch.randint(2, (9,))
        >>> cross_validated(run, train, lambda positions: torch.nn.Linear(1, 2), folds=3).shape
        torch.Size([9, 2])
    """
    check_run(run, "cross_validated")
    examples = open_data(run, train, "train")
    if not is_int(folds, 2, len(examples)):
        raise QueryError(
            f"folds is a whole number from 2 to the {len(examples)} examples of train; {folds!r} "
            "was given."
        )
    compute = outcome_of(run, "cross_validated")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    found: Tensor | None = None
    models = NewModels()
    for fold in range(folds):
        held = order[fold::folds].sort().values
        is_kept = torch.ones(len(examples), dtype=torch.bool)
        is_kept[held] = False
        fitted = fit(is_kept.nonzero()[:, 0].numpy())
        if not isinstance(fitted, Module):
            raise QueryError(
                "fit(positions) returns the trained model, a torch.nn.Module; it returned "
                f"{type(fitted).__name__}."
            )
        models.check(fitted)
        model, part = unwrapped(fitted), examples.subset(held.tolist())
        with untouched(model), torch.no_grad():
            model.eval()
            for positions, batch in part.batches(batch_size):
                with examples_named(part, positions, batch):
                    outcome = worded(compute)(model, content_of(move(batch, device_of(model))))
                check_classes(outcome, "cross_validated")
                if not bool(outcome.logits.isfinite().all()):
                    raise NonFiniteError(
                        f"The class scores of the model of fold {fold} are NaN or infinite: that "
                        "training diverged. Lower its learning rate."
                    )
                own = probabilities_of(outcome).cpu()
                found = own.new_zeros(len(examples), own.shape[1]) if found is None else found
                found[held[list(positions)]] = own
    if found is None:
        raise RuntimeError("no fold had examples; a bug in tracin")
    return found
