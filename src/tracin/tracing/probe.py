"""How the loss weighs its examples: read off the gradients of a few, never asked for."""

import torch
from torch import Tensor
from torch.nn import Dropout, Module
from torch.nn.modules.batchnorm import _BatchNorm

from tracin.checkpoints import untouched
from tracin.data import Examples, move
from tracin.gradients.compute import Compute
from tracin.gradients.reference import weighted_gradients
from tracin.losses import CrossEntropy, MeanSquaredError
from tracin.precision import in_double
from tracin.tracing.buffers import buffers_kept
from tracin.tracing.micro_batches import MicroBatch

PROBED = 4  # examples
AGREED = 1e-3  # how far their weights may be apart where nothing is random
NOISE = 1.5  # by which dropout and statistics of the batch may mislead


def loss_factor(
    model: Module,
    compute: Compute,
    train: Examples,
    micro_batch: MicroBatch,
    parameters: dict[str, Tensor],
) -> float | None:
    """Each example's weight in the loss, times the number of examples: 1 for a mean over them.

    An example's share of the gradient is its weight times its own gradient. Under dropout or
    BatchNorm in train mode that holds roughly, which is enough to tell a mean from a sum where
    each example has one label.

    Returns:
        The factor; None where the examples do not have one weight, or it cannot be inferred.
    """
    examples = len(micro_batch)
    rows = sorted({at * (examples - 1) // max(1, PROBED - 1) for at in range(PROBED)})
    factors = []
    for row in rows:
        example = train.take([int(micro_batch.positions[row])])
        batch = move(example, next(iter(parameters.values())).device)
        with untouched(model), buffers_kept(model):
            for module in model.modules():
                module.training = False
            own, _ = weighted_gradients(model, compute, batch, parameters)
        inner = squares = 0.0
        for name, gradient in own.items():
            squares += float(in_double(gradient).square().sum())
            if name in micro_batch.forms:
                part = micro_batch.forms[name].part(row, row + 1).dense()[0]
                inner += float(in_double(part) @ in_double(gradient).flatten())
        if squares > 0:
            factors.append(inner / squares * examples / micro_batch.scale)
    if not factors:
        return None
    least, most = min(factors), max(factors)
    if least > 0 and most - least <= AGREED * most:
        mean = sum(factors) / len(factors)
        # A mean or a sum over examples is meant exactly.
        return next((n for n in (1.0, float(examples)) if abs(n - mean) <= AGREED * n), mean)
    if _is_noisy(model) and isinstance(compute, CrossEntropy | MeanSquaredError):
        middle = float(torch.tensor(factors).median())
        near = [n for n in (1.0, float(examples)) if n / NOISE < middle < n * NOISE]
        return near[0] if len(near) == 1 else None
    return None


def _is_noisy(model: Module) -> bool:
    return any(
        module.training and isinstance(module, Dropout | _BatchNorm) for module in model.modules()
    )
