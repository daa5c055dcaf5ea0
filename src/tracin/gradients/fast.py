"""The fast way: one forward pass, one backward pass without weight gradients, rules in between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.errors import LossError
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.graph import leaves_of, reached, refuse_foreign
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
from tracin.gradients.ledger import GradientAccumulator, Visit
from tracin.gradients.routed import Routed, factors_of
from tracin.gradients.rules import Leaf, Use
from tracin.gradients.watch import FunctionWatch
from tracin.losses import Outcome
from tracin.sharding import is_sharded

Compute = Callable[[Module, Batch], Any]  # the loss, or a loss with its logits: an Outcome


@final
@dataclass(frozen=True)
class Pass:
    """What one pass over a batch gave beside the gradients."""

    outcome: Any  # what the loss returned
    losses: Tensor  # [examples]
    missed: dict[str, str]  # parameters that this pass could not cover, and why
    reference: Any = None  # what autograd says of a stretch of the batch, if it was audited


def fast_pass(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    trial: ShapeProbe,
    visit: Visit,
    kept: frozenset[int] = frozenset(),
) -> Pass:
    """Hand every parameter's per-example gradients on a batch to `visit`, as forms.

    Args:
        model: In eval mode, its parameters requiring grad where they are to be traced.
        compute: The per-example loss.
        batch: Examples first.
        parameters: Those to trace, by name.
        trial: What `learn` found.
        visit: Called with (name, form) inside the backward pass, once per parameter.
        kept: Storages that no call may write to.

    Raises:
        WritesError: A call would, in the forward pass.
        LossError: The loss gives no value per example, or depends on trained tensors outside the
            model.
    """
    anchor = new_anchor(next(iter(parameters.values())).device)
    # Whole weights of a sharded model are others than the model's parameters, and gone as soon as
    # their module's turn is over.
    is_whole = is_sharded(model)
    ledger = GradientAccumulator(parameters, visit, is_settled=is_whole)
    try:
        watch = FunctionWatch(
            parameters, trial, length(batch), anchor, ledger, kept=kept, follows=not is_whole
        )
        with torch.enable_grad(), watch:
            outcome = compute(model, batch)
        losses = checked_losses(outcome, length(batch))
        leaves = leaves_of(losses)
        if not is_whole:
            known = {id(anchor), *map(id, parameters.values())}
            unknown = [leaf for leaf in leaves if id(leaf) not in known]
            if unknown:
                refuse_foreign(unknown, model.parameters(), compute)
        missed = dict.fromkeys(reached(leaves, parameters), "used in a call that has no rule")
        ledger.leave_out(missed)
        if losses.requires_grad:
            # Whatever leads to these is walked, nothing else: no weight gradient of covered calls.
            ends = [anchor, *(parameters[name] for name in missed)]
            _follow(losses, watch.routed, ends)
        ledger.close()
    finally:
        ledger.let_go()
    missed |= {name: f"its rule failed: {error}" for name, error in ledger.failures.items()}
    return Pass(outcome, losses.detach(), missed)


@torch.enable_grad()  # also within a user's no_grad
def _follow(
    losses: Tensor,
    routed: Sequence[tuple[Routed, GradientEdge, Callable[[Tensor], None]]],
    ends: Sequence[Tensor],
) -> None:
    """Go back from the losses; once more for rows that the data moved, to learn whose they are."""
    edges: Any = [edge for _, edge, _ in routed]  # torch's stubs do not know a mix of both
    codes = factors_of(len(losses)) if routed else []
    found = torch.autograd.grad(
        losses.sum(), [*ends, *edges], allow_unused=True, retain_graph=bool(codes)
    )[len(ends) :]
    coded: list[Sequence[Tensor | None]] = []
    for number, factors in enumerate(codes, start=1):
        weighted = (losses * factors.to(losses)).sum()
        again = number < len(codes)
        coded.append(torch.autograd.grad(weighted, edges, allow_unused=True, retain_graph=again))
    for place, ((use, _, deliver), delta) in enumerate(zip(routed, found, strict=True)):
        use.coded = [one for each in coded if (one := each[place]) is not None]
        if delta is not None:
            deliver(delta)


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
        with torch.enable_grad(), ShapeRecorder(parameters) as trace:
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

    def meet(self, use: Use | Routed) -> Callable[[Tensor], None]:
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
        FunctionWatch(parameters, guessed, MORE, anchor, touched, is_live=is_live),
    ):
        outcome = compute(model, batch)
    losses = checked_losses(outcome, MORE)
    ends = [anchor, *(parameters[name] for name in reached(leaves_of(losses), parameters))]
    if losses.requires_grad:
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


def checked_losses(outcome: Any, examples: int) -> Tensor:
    """The losses of an outcome, if they are one differentiable value an example."""
    losses = outcome.losses if isinstance(outcome, Outcome) else outcome
    if not isinstance(losses, Tensor):
        raise LossError(
            f"The loss returned {type(losses).__name__}, but a tensor of one value per example is "
            "needed: [examples]."
        )
    if losses.shape != (examples,):
        raise LossError(
            f"The loss returned shape {tuple(losses.shape)} for {examples} examples, but one value "
            "per example is needed: [examples]. If it averages over the batch, pass "
            "reduction='none' to it; if it gives one value a token, average them over each "
            "example."
        )
    if not losses.dtype.is_floating_point:
        raise LossError(f"The loss returned {losses.dtype}, but floating point values are needed.")
    return losses
