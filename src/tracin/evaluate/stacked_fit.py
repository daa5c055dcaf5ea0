"""Many small models trained at once: their weights stacked, one forward pass for all.

A small model leaves a processor idle between its many small calls. Stacked, each call does the work
of all models: J. Chen et al., "torch.func: model ensembling",
https://docs.pytorch.org/tutorials/intermediate/ensembling.html.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Optimizer

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.seeded import seeded
from tracin.checks import positive_int
from tracin.code_fingerprint import code_fingerprint
from tracin.data import Examples, content_of, length, move, open_examples
from tracin.data.batches import leaves, mapped
from tracin.errors import DataError, LossError, QueryError, UnsupportedModelError
from tracin.losses import PerExampleLoss, open_loss
from tracin.plain_text import a_kind
from tracin.sharding import device_of

# Optimizers whose step treats every number of a weight by itself, so that a stack of weights takes
# the steps that each would take alone.
ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta")


@final
@dataclass(frozen=True, eq=False)
class StackedFit:
    """A training loop that fits one model, or many small ones at once.

    As a function of data it trains one model, so it goes wherever a `fit` is asked for. `fit_many`
    trains several on parts of the data, each with its own first weights and its own order of
    examples by its own seed: exactly what training each alone gives, up to rounding.

    Args:
        model: Makes a new model with random weights.
        loss: As for `tracin.TracIn`; training minimises its mean over a batch.
        optimizer: Makes the optimizer of some parameters, such as
            `partial(torch.optim.SGD, lr=0.1)`.
        epochs: Passes over the data, each in a new random order.
        batch_size: Examples per step; the last batch of an epoch may be smaller.
        at_once: How many models are in memory at once, with their optimizer's state and their
            batch's activations.
        device: Where to train; None for where `model()` makes them.

    Raises:
        QueryError: A number is no whole number of at least 1.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from tracin.evaluate import StackedFit, half_subsets
        >>> fit = StackedFit(
        ...     lambda: torch.nn.Linear(2, 2),
        ...     "cross_entropy",
        ...     partial(torch.optim.SGD, lr=0.1),
        ...     epochs=2,
        ...     batch_size=5,
        ... )
        >>> train = torch.randn(20, 2), torch.arange(20) % 2
        >>> models = fit.fit_many(train, half_subsets(20, 3), seeds=[0, 1, 2])
        >>> len(models), models[0].weight.shape
        (3, torch.Size([2, 2]))
    """

    model: Callable[[], nn.Module]
    loss: str | PerExampleLoss
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    epochs: int
    batch_size: int
    at_once: int = 20
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no training."""
        for name in ("epochs", "batch_size", "at_once"):
            positive_int(getattr(self, name), name, QueryError)

    @property
    def fingerprint(self) -> str:
        """Equal where models are trained alike, as far as the code of what it was given tells."""
        return code_fingerprint(self.model, self.loss, self.optimizer, self.epochs, self.batch_size)

    def __call__(self, train: Any) -> nn.Module:
        """Train one model on all of the data, by torch's generator as it is.

        Args:
            train: The data, as for `tracin.TracIn`.
        """
        examples, loss = open_examples(train, name="train"), open_loss(self.loss)
        model = self._made()
        optimizer = self.optimizer(list(_trained(model)))
        for order in self._orders(len(examples)):
            for rows in order.split(self.batch_size):
                batch = content_of(move(examples.take(rows.tolist()), device_of(model)))
                optimizer.zero_grad()
                loss(model, batch).mean().backward()
                optimizer.step()
        return model

    def fit_many(
        self, train: Any, subsets: Sequence[Tensor] | Tensor, seeds: Sequence[int]
    ) -> list[nn.Module]:
        """Train one model per subset and seed, all at once.

        Args:
            train: The data that the subsets are of.
            subsets: [models, kept]; the positions that each is trained on, all equally many.
            seeds: [models]; each decides its model's first weights and order of examples.

        Returns:
            The trained models, in the same order.

        Raises:
            QueryError: Not one seed per subset, subsets of several sizes, or an optimizer that does
                not treat each number by itself.
            UnsupportedModelError: The model draws random numbers as it trains, or does what
                `torch.func.vmap` cannot.
            DataError: A batch holds something else than tensors.
        """
        kept = _same_sizes(subsets, seeds)
        examples, loss = open_examples(train, name="train"), open_loss(self.loss)
        models, orders = self._begun(seeds, kept.shape[1])
        parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
        learned = {name: each for name, each in parameters.items() if each.requires_grad}
        fixed = {**buffers, **{name: parameters[name] for name in parameters.keys() - learned}}
        optimizer = self.optimizer(list(learned.values()))
        _check_elementwise(optimizer)
        every_loss = vmap(_LossOf(models[0], loss).losses, in_dims=0, randomness="error")
        for epoch in range(self.epochs):
            rows = kept.gather(1, orders[:, epoch])  # [models, kept]
            for step in rows.split(self.batch_size, dim=1):
                batch = _stacked(examples, step, next(iter(learned.values())).device)
                optimizer.zero_grad()
                with _vmap_in_words():
                    losses = every_loss(learned, fixed, batch)  # [models, batch]
                _check_losses(losses, step.shape)
                # The sum over models: each one's gradient is that of its own mean.
                losses.mean(1).sum().backward()
                optimizer.step()
        _write_back(models, {**fixed, **learned})
        return models

    def _made(self) -> nn.Module:
        model = self.model()
        if not isinstance(model, nn.Module):
            raise QueryError(
                f"model makes a new torch.nn.Module each time it is called; {a_kind(model)} came."
            )
        return (model if self.device is None else model.to(self.device)).train()

    def _orders(self, examples: int) -> Iterator[Tensor]:
        for _ in range(self.epochs):
            yield torch.randperm(examples)

    def _begun(self, seeds: Sequence[int], examples: int) -> tuple[list[nn.Module], Tensor]:
        """New models, and their orders of examples: [models, epochs, examples]."""
        models, orders = [], []
        for seed in seeds:
            with seeded(seed):  # as training alone draws them: first weights, then each order
                models.append(self._made())
                orders.append(torch.stack(list(self._orders(examples))))
        return models, torch.stack(orders)


class _LossOf:
    """The losses of one model of a stack, as a function of its weights."""

    def __init__(self, model: nn.Module, loss: PerExampleLoss) -> None:
        self._whole = _WithLoss(model, loss)

    def losses(self, learned: dict[str, Tensor], fixed: dict[str, Tensor], batch: Any) -> Tensor:
        weights = {f"model.{name}": each for name, each in {**learned, **fixed}.items()}
        return functional_call(self._whole, weights, (batch,))


class _WithLoss(nn.Module):
    """A model whose output are its losses: `functional_call` exchanges weights of modules alone."""

    def __init__(self, model: nn.Module, loss: PerExampleLoss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (each for each in model.parameters() if each.requires_grad)


def _same_sizes(subsets: Sequence[Tensor] | Tensor, seeds: Sequence[int]) -> Tensor:
    """The subsets as one tensor: [models, kept]."""
    sizes = sorted({len(each) for each in subsets})
    if len(subsets) != len(seeds) or len(sizes) != 1 or sizes[0] == 0:
        raise QueryError(
            "fit_many takes one seed per subset, and subsets of one size, so that all models take "
            f"the same steps; {len(subsets)} subsets of {sizes} examples and {len(seeds)} seeds "
            "were given."
        )
    return torch.stack([cpu_tensor(each) for each in subsets])


def _check_elementwise(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if name not in ELEMENTWISE:
        raise QueryError(
            f"Models are trained at once by an optimizer that treats each number by itself, one of "
            f"{', '.join(ELEMENTWISE)}; {name} came. Train each alone: pass fit=lambda data: "
            "stacked(data) instead of the StackedFit."
        )


def _stacked(examples: Examples, rows: Tensor, device: torch.device) -> Any:
    """One batch per model, from one look at the data: tensors [models, batch, ...]."""
    flat = examples.take(rows.flatten().tolist())
    other = [
        path
        for path, leaf in leaves(flat)
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or length(flat) != rows.numel()
    ]
    if other or examples.alone is not None:
        raise DataError(
            "Models are trained at once on tensors with the examples first; the batch's "
            f"{other[0] if other else 'content'} is none. Train each alone: pass fit=lambda data: "
            "stacked(data) instead of the StackedFit."
        )
    return content_of(move(mapped(lambda leaf: leaf.unflatten(0, rows.shape), flat), device))


@contextmanager
def _vmap_in_words() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"These models cannot be trained at once: torch.func.vmap says {str(error)[:300]!r}. "
            "Dropout, whose random numbers would not be those of training alone, is one reason. "
            "Train each alone: pass fit=lambda data: stacked(data) instead of the StackedFit."
        ) from error


def _check_losses(losses: Tensor, shape: torch.Size) -> None:
    if losses.shape != shape:
        raise LossError(
            f"The loss returned shape {tuple(losses.shape[1:])} per model, but one value per "
            f"example is needed: ({shape[1]},). If it averages over the batch, pass "
            "reduction='none' to it."
        )


@torch.no_grad()
def _write_back(models: Sequence[nn.Module], stacks: dict[str, Tensor]) -> None:
    for at, model in enumerate(models):
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, stack in stacks.items():
            own[name].copy_(stack[at])
