"""The gradients as the backward pass left them, before clipping or unscaling changes them."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from tracin.gradients.forms import full


@final
@dataclass(frozen=True, eq=False)
class RawGradient:
    """A parameter's gradient as the backward pass left it.

    Attributes:
        version: The count of in-place changes at that time.
        length: Its length, a tensor that is not waited for.
    """

    version: int
    length: Tensor

    @classmethod
    def of(cls, gradient: Tensor) -> "RawGradient":
        """Look at a gradient."""
        return cls(gradient._version, torch.linalg.vector_norm(full(densified(gradient))))


@final
class RawGradients:
    """Notes the parameters' gradients whenever a backward pass of the training loop ends.

    Attributes:
        latest: Parameter -> its gradient after the last backward pass of this step.
    """

    def __init__(self) -> None:
        self.latest: dict[str, RawGradient] = {}
        self._handles: dict[str, Any] = {}
        self._is_paused = False

    def watch(self, parameters: Mapping[str, Tensor]) -> None:
        """Watch these parameters from now on, and no others."""
        for name in self._handles.keys() - parameters.keys():
            self._handles.pop(name).remove()
        for name in parameters.keys() - self._handles.keys():
            self._handles[name] = parameters[name].register_post_accumulate_grad_hook(
                partial(_note, weakref.ref(self), name)
            )

    def note(self, name: str, parameter: Tensor) -> None:
        """Take down a parameter's gradient."""
        if not self._is_paused and parameter.grad is not None:
            self.latest[name] = RawGradient.of(parameter.grad)

    def clear(self) -> None:
        """Forget the gradients of this step."""
        self.latest = {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Backward passes within are the library's own, and not noted."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False


def densified(gradient: Tensor) -> Tensor:
    """A gradient with its zeros: embeddings may give sparse ones."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _note(gradients: "weakref.ref[RawGradients]", name: str, parameter: Tensor) -> None:
    """Pass a gradient on.

    The parameter holds the hook where Python's collector does not look, so the hook must not hold
    anything that a Tracer refers to: one that was left unclosed would never be collected.
    """
    watching = gradients()
    if watching is not None:
        watching.note(name, parameter)
