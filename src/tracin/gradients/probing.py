"""Learns what each call does with its parameters, from copies of one example."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Module

from tracin.data import Batch, part
from tracin.gradients.checkpointing import watched_checkpoints
from tracin.gradients.compute import Compute, checked_losses
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.graph import leaves_of, reached
from tracin.gradients.layouts import (
    FEW,
    MORE,
    Derived,
    Meeting,
    Role,
    ShapeProbe,
    ShapeRecorder,
    compared,
)
from tracin.gradients.regions import LaterUse
from tracin.gradients.routed import Routed
from tracin.gradients.rules import Leaf, Use
from tracin.gradients.watch import FunctionWatch


def learn(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    *,
    is_live: bool = False,
) -> ShapeProbe:
    """Learn what each call does with its parameters, from copies of the batch's first example.

    With `is_live` the model may be in train mode, as it is beneath a training step.
    """
    traces = []
    for copies in (FEW, MORE):
        copied = part(batch, [0] * copies)
        with (
            torch.enable_grad(),
            watched_checkpoints(),
            ShapeRecorder(parameters, is_live=is_live) as trace,
        ):
            compute(model, copied)
        traces.append(trace)
    trial = compared(*traces)
    if any(_is_merged(role) for role in trial.roles.values()):
        copied = part(batch, [0] * MORE)
        return _with_orders(model, compute, copied, parameters, trial, is_live=is_live)
    return trial


class _Touched:
    """Notes which rows of each call's output the loss of one example depends on."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = {}

    def derive(self, leaf: Leaf) -> None:
        pass

    def meet(self, use: Use | LaterUse | Routed) -> Callable[[Tensor], None]:
        found = self.rows.setdefault(use.name, [])
        return lambda delta: found.append(
            delta.movedim(use.output.dim, 0).flatten(1).abs().sum(1) > 0
        )


def _with_orders(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    trial: ShapeProbe,
    *,
    is_live: bool,
) -> ShapeProbe:
    """Where positions are merged with examples: which of the two is the slow index."""
    guessed = replace(trial, roles={n: _ordered(role, True) for n, role in trial.roles.items()})
    touched = _Touched()
    anchor = new_anchor(next(iter(parameters.values())).device)
    with (
        torch.enable_grad(),
        watched_checkpoints(),
        FunctionWatch(parameters, guessed, MORE, anchor, touched, is_live=is_live),
    ):
        outcome = compute(model, batch)
    losses = checked_losses(outcome, MORE)
    ends = [anchor, *(parameters[name] for name in reached(leaves_of(losses), parameters))]
    if losses.requires_grad:
        with watched_checkpoints():
            for loss in losses:
                torch.autograd.grad(loss, ends, allow_unused=True, retain_graph=True)
    roles = {
        name: _ordered(role, _order(touched.rows.get(name, []))) if _is_merged(role) else role
        for name, role in trial.roles.items()
    }
    return replace(trial, roles=roles)


def _order(rows: list[Tensor]) -> bool | None:
    """Whether examples are the slow index, if the rows that each one touches can tell."""
    if len(rows) != MORE:
        return None
    touched = torch.stack(rows)  # [examples, rows]
    if not bool(touched.any()):
        return None
    is_outer = _is_own(touched.view(MORE, MORE, -1))
    is_inner = _is_own(touched.view(MORE, -1, MORE).mT)
    return None if is_outer == is_inner else is_outer


def _is_own(touched: Tensor) -> bool:
    """Whether example e touches rows of example e alone, and all copies touch the same ones."""
    own = torch.diagonal(touched).mT  # [examples, positions]
    return int(own.sum()) == int(touched.sum()) and bool((own == own[0]).all())


def _is_merged(role: Role) -> bool:
    return isinstance(role, Meeting) and role.output.copies > 1


def _ordered(role: Role, outer: bool | None) -> Role:
    if isinstance(role, Derived) or role.output.copies == 1:
        return role
    return replace(role, output=replace(role.output, outer=outer))
