"""What ranks CIFAR-10's training images: TracIn as in section 4.2 of the paper, and its rivals."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import tracin
from tracin import baselines
from tracin.demo.training import emptied

Train = tuple[Tensor, Tensor]
DIM = 64  # numbers per checkpoint in place of the last layer's 650
STEPS = 10_000  # of L-BFGS, at most


def at_each_checkpoint(model: nn.Module, train: Train, folder: Path, device: str) -> Tensor:
    """Self-influence over the last layer at each checkpoint, unweighted: [checkpoints, train]."""
    each = []
    for checkpoint in tracin.open_checkpoints(folder):
        run = tracin.TracIn(
            model,
            "cross_entropy",
            [checkpoint],
            parameters="last",
            learning_rates="equal",
            device=device,
        )
        each.append(run.self_influence(train).double())
    return torch.stack(each)


def in_one_pass(model: nn.Module, train: Train, folder: Path, device: str) -> dict[str, Tensor]:
    """What `find_mislabelled` gives, each [train] and high where suspect."""
    run = tracin.TracIn(model, "cross_entropy", folder, device=device)
    suspects = run.find_mislabelled(train)
    back = torch.from_numpy(np.argsort(suspects.positions, kind="stable"))
    columns = {
        "TracIn, all layers": suspects.self_influence,
        "TracIn, last layer": suspects.self_influence_last,
        "loss": suspects.loss,
        "EL2N": suspects.el2n,
        "margin": -suspects.margin,
        "mean rank of loss and margin": suspects.loss_and_margin,
    }
    return {name: column.cpu().double()[back] for name, column in columns.items()}


def projected(
    model: nn.Module, train: Train, folder: Path, index: Path, device: str, seed: int
) -> Tensor:
    """Self-influence from random projections of the last layer's gradients: [train]."""
    run = tracin.TracIn(model, "cross_entropy", folder, parameters="last", device=device)
    built = run.index(
        train, emptied(index), tracin.Projection(dim=DIM, seed=seed), recall_queries=0
    )
    return torch.from_numpy(built.table()["self_influence_sketched"]).double()


def compared(
    model: nn.Module, train: Train, folder: Path, device: str, damping: float
) -> dict[str, Tensor]:
    """The paper's rivals and confident learning, each [train] and high where suspect.

    Args:
        model: Any net of the shape that was trained.
        train: The images with the labels they were trained on.
        folder: The checkpoints; influence functions and representer points take the last one.
        device: Where to compute.
        damping: Of the Hessian: the weight decay of the training, at whose minimum the loss and
            the decay are in balance.
    """
    run = tracin.TracIn(model, "cross_entropy", folder, parameters="last", device=device)
    last = tracin.TracIn(model, "cross_entropy", run.checkpoints[-1:], device=device)
    methods: dict[str, baselines.Baseline] = {
        "influence functions": baselines.InfluenceFunctions(run, damping=damping),
        "representer points": baselines.RepresenterPoints(run, steps=STEPS),
        "confident learning": baselines.ConfidentLearning(run),
        "loss, last checkpoint": baselines.Loss(last),
    }
    return {
        name: torch.from_numpy(method.scores(train).values).double()
        for name, method in methods.items()
    }
