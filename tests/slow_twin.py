"""The slow twin of the engine: one plain forward and backward pass an example, no cleverness.

Everything fast is tested against it, so it shares no code with what it judges; neither does
`tracin.slow_twin`, which `verify` ships, and which this one judges in its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

Loss = str | Callable[[Module, Any], Tensor]


def part(batch: Any, positions: slice | Tensor) -> Any:
    """The examples of `batch` at `positions`, in a batch of the same structure."""
    if isinstance(batch, Tensor):
        return batch[positions]
    if isinstance(batch, Mapping):
        return {key: part(value, positions) for key, value in batch.items()}
    return type(batch)(part(value, positions) for value in batch)


def length(batch: Any) -> int:
    """How many examples `batch` holds."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def gradients(
    model: Module, loss: Loss, batch: Any, names: Collection[str] | None = None
) -> dict[str, Tensor]:  # name -> [examples, *shape]
    """Each example's own gradient for every trainable parameter, in eval mode.

    `backward()` and `.grad`, not `torch.autograd.grad`: reentrant checkpointing knows no other way.
    """
    loss = _by_name(loss) if isinstance(loss, str) else loss
    wanted = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (names is None or name in names)
    }
    rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
    with _as_it_was(model):
        model.eval()
        for i in range(length(batch)):
            for parameter in model.parameters():
                parameter.grad = None
            with torch.enable_grad():
                losses = loss(model, part(batch, slice(i, i + 1)))
                if losses.shape != (1,):
                    raise ValueError(f"A batch of one gave losses of shape {tuple(losses.shape)}")
                losses.sum().backward()
            for name, parameter in wanted.items():
                gradient = parameter.grad
                if gradient is None:
                    gradient = torch.zeros_like(parameter)
                rows[name].append(gradient.to_dense() if gradient.is_sparse else gradient)
    return {name: torch.stack(row).detach() for name, row in rows.items()}


def self_influence(
    model: Module, loss: Loss, batch: Any, names: Collection[str] | None = None
) -> Tensor:  # [examples]
    """Each example's squared gradient norm, summed in float64."""
    rows = gradients(model, loss, batch, names).values()
    return sum_of(_flat(row).square().sum(1) for row in rows)


def influence(
    model: Module, loss: Loss, train: Any, test: Any, names: Collection[str] | None = None
) -> Tensor:  # [train, test]
    """Dot products of the gradients of two sets of examples, summed in float64."""
    return dots(gradients(model, loss, train, names), gradients(model, loss, test, names))


def dots(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:  # [left, right]
    """Dot products of every example's gradient in `left` with every one in `right`."""
    return sum_of(_flat(left[name]) @ _flat(right[name]).T for name in left)


def sum_of(terms: Iterator[Tensor]) -> Tensor:
    """The sum of at least one tensor; `sum` alone would return an int for none."""
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _flat(row: Tensor) -> Tensor:  # [examples, numbers]
    if row.is_complex():  # real and imaginary parts are numbers each
        return torch.view_as_real(row.resolve_conj()).double().reshape(len(row), -1)
    return row.double().reshape(len(row), -1)


def _by_name(name: str) -> Callable[[Module, Any], Tensor]:
    # A name means what the library says it means; tests/test_losses.py judges that.
    from tracin.losses import open_loss

    return open_loss(name)


@contextmanager
def _as_it_was(model: Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    kept = {parameter: parameter.grad for parameter in model.parameters()}
    # An optimizer may step in these.
    found: list[Any] = [getattr(each, "_post_accumulate_grad_hooks", None) for each in kept]
    hooks = [(each, dict(each)) for each in found if each]
    try:
        for each, _ in hooks:
            each.clear()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
        for each, own in hooks:
            each.update(own)
        for module, mode in modes.items():
            module.training = mode
