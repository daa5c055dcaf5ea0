"""The slow twin of the engine: the plainest way to an example's own gradient, to judge by.

One forward and one backward pass per example, in float64 where the model allows it. It shares no
code with what it judges: no rules, no watching, no vmap.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module

from tracin.data import Batch, length, part
from tracin.data.batches import content_of, mapped_within
from tracin.errors import LossError, UnsupportedModelError
from tracin.losses import Outcome, TargetOutcome
from tracin.precision import Precision, lowest_precision
from tracin.sharding import is_sharded

Loss = Callable[[Module, Batch], Any]  # gives losses, or an Outcome that holds them
Differentiate = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor | None]]


@final
@dataclass(frozen=True)
class Own:
    """One example's own loss and gradient.

    Attributes:
        loss: []
        gradient: Per parameter, as real numbers: [numbers], twice as many where it is complex.
        precision: The lowest in what the loss was computed from.
    """

    loss: Tensor
    gradient: dict[str, Tensor]
    precision: Precision

    def length(self) -> float:
        """Of the whole gradient, over all parameters."""
        return sum(float(torch.linalg.vector_norm(g)) ** 2 for g in self.gradient.values()) ** 0.5


@final
@dataclass(frozen=True)
class Weights:
    """What stands in the place of a model's weights while a gradient is taken.

    Attributes:
        name: As in a sentence.
        are_copies: Copies, or the model's own.
        dtype: Of the copies, and of floating point inputs; None for what they are.
    """

    name: str
    are_copies: bool
    dtype: torch.dtype | None


IN_FLOAT64 = Weights("in float64", are_copies=True, dtype=torch.float64)
AS_THEY_ARE = Weights("in the model's own precision", are_copies=True, dtype=None)
THEMSELVES = Weights("with respect to the parameters themselves", are_copies=False, dtype=None)


@final
class SlowTwin:
    """Takes gradients with respect to copies of the weights, so that the model's own stay apart.

    No hook of a parameter runs, and no `.grad` is written. Where the loss reaches a weight without
    the model, as a closure does, no copy can take its place: its gradient is taken with respect to
    the weight itself.

    Args:
        model: In eval mode, without wrappers.
        loss: loss(model, batch) -> [examples].
        parameters: Those to take gradients of, by name.

    Raises:
        UnsupportedModelError: The model is divided over ranks.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> loss = lambda model, batch: model(batch)[:, 0].square()
        >>> twin = SlowTwin(model, loss, dict(model.named_parameters()))
        >>> twin.own(torch.tensor([[0.0, 9.0], [3.0, 1.0]]), 1, IN_FLOAT64).gradient
        {'weight': tensor([24.,  8.], dtype=torch.float64)}
    """

    def __init__(self, model: Module, loss: Loss, parameters: Mapping[str, Tensor]) -> None:
        if is_sharded(model):
            raise UnsupportedModelError(
                "A backward pass of a model that is divided over ranks averages over them, so "
                "there is no gradient of a single example to compare with. Gather the model on "
                "one device first, for example with torch.distributed.checkpoint.state_dict."
                "get_model_state_dict(..., full_state_dict=True) into an undivided copy."
            )
        self._task = _Task(model, loss)
        self._keys = self._task.keys_of(parameters)
        self._parameters = dict(parameters)

    def own(self, batch: Batch, example: int, weights: Weights) -> Own:
        """The gradient of one example of a batch.

        Raises:
            LossError: The loss is no single value.
            RuntimeError: The model cannot run with these weights; torch says why.
        """
        one = batch if length(batch) == 1 else part(batch, slice(example, example + 1))
        with _as_they_were(self._task):
            try:
                return self._differentiated(one, weights, _by_grad)
            except _UnreachedError:
                pass
            except RuntimeError as error:
                if "checkpoint" not in str(error):
                    raise
            # Reentrant checkpointing computes a part of the graph anew, and allows backward() only.
            before = [(each, each.grad) for each in self._task.parameters()]
            try:
                return self._differentiated(one, weights, _by_backward)
            finally:
                for each, grad in before:
                    each.grad = grad

    def _differentiated(self, one: Batch, weights: Weights, differentiate: Differentiate) -> Own:
        copies = {}
        if weights.are_copies:
            # Reentrant checkpointing has gradients only where its inputs require grad, so that what
            # was trained requires grad here as well.
            copies = {
                name: _copy(each, weights.dtype).requires_grad_(each.requires_grad)
                for name, each in self._task.tensors()
            }
        places = {name: [parameter] for name, parameter in self._parameters.items()}
        for name, key in self._keys.items():
            if key in copies:
                places[name].append(copies[key].requires_grad_())
        inputs = mapped_within(lambda leaf: _copy(leaf, weights.dtype), one)

        def run(model: Module, loss: Loss) -> Own:
            # The backward pass belongs here, where copies are in place: checkpointing runs parts
            # of the model again.
            losses = _single(loss(model, content_of(inputs)))
            ends = [tensor for tensors in places.values() for tensor in tensors]
            gradients = differentiate(losses, ends)
            by_end = {id(end): each for end, each in zip(ends, gradients, strict=True)}
            if differentiate is _by_grad and losses.requires_grad:
                for tensors in places.values():
                    if all(by_end[id(tensor)] is None for tensor in tensors):
                        raise _UnreachedError
            gradient = {
                name: _sum([by_end[id(tensor)] for tensor in tensors], tensors[-1])
                for name, tensors in places.items()
            }
            return Own(losses.detach()[0], gradient, lowest_precision(losses))

        with torch.enable_grad(), _requiring(self._parameters.values()):
            return functional_call(self._task, copies, (run,))


class _Task(Module):
    """Model and loss in one module, so that the weights of both can be exchanged."""

    def __init__(self, model: Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, run: Callable[[Module, Loss], Own]) -> Own:
        return run(self.model, self.loss)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights and buffers; of several names of one, the first."""
        yield from self.named_parameters()
        yield from self.named_buffers()

    def keys_of(self, parameters: Mapping[str, Tensor]) -> dict[str, str]:
        """The names here of what has another name outside; those that are not here are left out."""
        first = {id(tensor): key for key, tensor in reversed(list(self.tensors()))}
        names = {id(tensor): name for name, tensor in parameters.items()}
        return {name: first[at] for at, name in names.items() if at in first}


def _by_grad(losses: Tensor, ends: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not losses.requires_grad:
        return [None] * len(ends)
    return torch.autograd.grad(losses.sum(), ends, allow_unused=True)


class _UnreachedError(Exception):
    """A parameter is not in the graph: it is unused, or in a stretch whose graph is made later."""


def _by_backward(losses: Tensor, ends: Sequence[Tensor]) -> Sequence[Tensor | None]:
    before = [end.grad for end in ends]
    try:
        for end in ends:
            end.grad = None
        losses.sum().backward()
        return [end.grad for end in ends]
    finally:
        for end, grad in zip(ends, before, strict=True):
            end.grad = grad


def _sum(found: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Of what came from several places, as real numbers in a row."""
    total: Tensor | None = None
    for each in found:
        if each is not None:
            dense = each.detach().to_dense() if each.is_sparse else each.detach()
            # Not in place: autograd may give one tensor for several ends.
            total = dense if total is None else total + dense
    if total is None:
        total = torch.zeros_like(like, requires_grad=False)
    return (torch.view_as_real(total.resolve_conj()) if total.is_complex() else total).flatten()


def _single(outcome: Any) -> Tensor:
    losses = outcome.losses if isinstance(outcome, Outcome | TargetOutcome) else outcome
    if isinstance(losses, Tensor) and losses.shape == (1,):
        return losses
    came = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    raise LossError(
        f"The loss of one example by itself is {came}, but one value per example is needed: [1]."
    )


def _copy(leaf: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if dtype is not None and leaf.is_complex():
        dtype = dtype.to_complex()
    is_cast = dtype is not None and (leaf.is_floating_point() or leaf.is_complex())
    return leaf.detach().to(dtype, copy=True) if is_cast else leaf.detach().clone()


@contextmanager
def _requiring(tensors: Iterable[Tensor]) -> Iterator[None]:
    flags = [(tensor, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _ in flags:
            tensor.requires_grad_()
        yield
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)


@contextmanager
def _as_they_were(task: Module) -> Iterator[None]:
    """Undo what a pass leaves in the modules: a cache in float64 would spoil what comes later."""
    before = [_Attributes(module) for module in task.modules()]
    try:
        yield
    finally:
        for attributes in before:
            attributes.put_back()


class _Attributes:
    """A module's attributes, and what those hold that are plain dicts and lists."""

    def __init__(self, module: Module) -> None:
        self._of = vars(module)
        self._kept = dict(self._of)
        self._dicts = [(v, dict(v)) for v in self._kept.values() if type(v) is dict]
        self._lists = [(v, list(v)) for v in self._kept.values() if type(v) is list]

    def put_back(self) -> None:
        for found, kept in [(self._of, self._kept), *self._dicts]:
            found.update(kept)
            for key in found.keys() - kept.keys():
                del found[key]
        for found, kept in self._lists:
            found[:] = kept
