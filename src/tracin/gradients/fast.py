"""The fast method: one forward pass, one backward pass without weight gradients, rules in between.

The squared length of a product of an input and an output gradient comes from two small Gram
matrices, without the product itself (Goodfellow 2015, https://arxiv.org/abs/1510.01799).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Module

from tracin.data import Batch, length
from tracin.gradients.accumulator import GradientAccumulator
from tracin.gradients.checkpointing import watched_checkpoints
from tracin.gradients.compute import Compute, checked_losses
from tracin.gradients.grad_hook import new_anchor
from tracin.gradients.graph import leaves_of, reached, refuse_foreign
from tracin.gradients.layouts import ShapeProbe
from tracin.gradients.routed import Routed, factors_of
from tracin.gradients.visit import Visit
from tracin.gradients.watch import FunctionWatch
from tracin.sharding import is_sharded


@final
@dataclass(frozen=True)
class Pass:
    """What one pass over a batch gave, apart from the gradients.

    Attributes:
        outcome: What the loss returned.
        losses: [examples].
        missed: The parameters that the fast method could not cover, and why.
        scores: The products of the gradients with given directions, if forward mode computed them:
            [examples, directions].
        path: Tells which torch functions the pass called, in order; None if it was not watched.
        reasons: Parameter -> the rules that read its calls, in words.
    """

    outcome: Any
    losses: Tensor
    missed: dict[str, str]
    scores: Tensor | None = None
    path: int | None = None
    reasons: Mapping[str, Iterable[str]] = field(default_factory=dict)


def fast_pass(
    model: Module,
    compute: Compute,
    batch: Batch,
    parameters: Mapping[str, Tensor],
    probe: ShapeProbe,
    visit: Visit,
    kept: frozenset[int] = frozenset(),
) -> Pass:
    """Hand every parameter's per-example gradients on a batch to `visit`.

    Args:
        model: In eval mode; the traced parameters require grad.
        compute: The per-example loss.
        batch: Examples first.
        parameters: Those to trace, by name.
        probe: What `learn` found.
        visit: Called inside the backward pass, once per parameter.
        kept: Storages that no call may write to.

    Raises:
        WritesError: A call in the forward pass is about to write to one.
        LossError: The loss returns no value per example, or depends on trained tensors outside the
            model.
    """
    anchor = new_anchor(next(iter(parameters.values())).device)
    # Whole weights of a sharded model are others than the model's parameters, and gone as soon as
    # their module's turn is over.
    is_whole = is_sharded(model)
    accumulator = GradientAccumulator(parameters, visit, is_settled=is_whole)
    try:
        watch = FunctionWatch(
            parameters,
            probe,
            length(batch),
            anchor,
            accumulator,
            kept=kept,
            follows=not is_whole,
        )
        with torch.enable_grad(), watched_checkpoints(), watch:
            outcome = compute(model, batch)
        losses = checked_losses(outcome, length(batch))
        leaves = leaves_of(losses)
        unknown: list[Tensor] = []
        if not is_whole:
            known = {id(anchor), *map(id, parameters.values())}
            unknown = [leaf for leaf in leaves if id(leaf) not in known]
            if unknown:
                refuse_foreign(unknown, model.parameters(), compute)
        missed = {
            name: ", ".join(watch.reasons.get(name, ["used in a call that has no rule"]))
            for name in reached(leaves, parameters)
        }
        accumulator.leave_out(missed)
        if losses.requires_grad:
            # Only what leads to these is computed: no weight gradient of covered calls. Beneath
            # reentrant stretches others require grad, and a call's output may hang on these alone.
            ends = [anchor, *(parameters[name] for name in missed), *unknown]
            with watched_checkpoints():  # a stretch that is repeated may have stretches within
                _backward(losses, watch.routed, ends)
        accumulator.close()
    finally:
        accumulator.let_go()
    missed |= {name: f"its rule failed: {error}" for name, error in accumulator.failures.items()}
    return Pass(outcome, losses.detach(), missed, path=watch.path, reasons=watch.reasons)


@torch.enable_grad()  # also within a user's no_grad
def _backward(
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
