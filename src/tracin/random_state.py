"""The state of all random generators at one moment, so that it can be compared or brought back."""

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tracin.errors import CheckpointError

PYTHON = struct.Struct("<i625I?d")  # version, words and place, whether a normal is left, which
NUMPY = struct.Struct("<q?d")  # place, whether a normal is left, which
MERSENNE = "MT19937"


@dataclass(frozen=True)
class RandomState:
    """The state of every generator that training draws from by default.

    Two states are equal if the same numbers would be drawn from them.

    Attributes:
        cpu: torch's on the CPU.
        cuda: torch's on each CUDA device; empty where CUDA was not in use.
        python: That of the module `random`.
        numpy: That of `np.random`'s functions; empty where a program has put a generator of
            another kind in their place, which `restore` then leaves alone.

    Example:
        >>> state = RandomState.now()
        >>> drawn = torch.rand(3)
        >>> state.restore()
        >>> torch.equal(torch.rand(3), drawn)
        True
    """

    cpu: bytes
    cuda: bytes
    python: bytes
    numpy: bytes

    @classmethod
    def now(cls) -> "RandomState":
        """The state at this moment; nothing is drawn."""
        version, words, normal = random.getstate()
        return cls(
            torch.get_rng_state().numpy().tobytes(),
            _cuda_now(),
            PYTHON.pack(version, *words, normal is not None, normal or 0.0),
            _numpy_now(),
        )

    def restore(self) -> None:
        """Make this the random state again."""
        try:
            self._restore()
        except (ValueError, TypeError, RuntimeError, IndexError, struct.error) as error:
            raise CheckpointError(
                f"These bytes are not a random state that torch, Python and NumPy have here "
                f"({error}). Restore it with the releases that it is from."
            ) from error

    def _restore(self) -> None:
        states = self._cuda_states()
        here = torch.cuda.device_count() if states else 0
        if len(states) > here:
            raise CheckpointError(
                f"The random state is of {len(states)} CUDA devices, but {here} are here, so the "
                "same numbers cannot be drawn. Restore it on a machine like the one it is from."
            )
        for device, state in enumerate(states):
            torch.cuda.set_rng_state(_tensor(state), device)
        torch.set_rng_state(_tensor(self.cpu))
        version, *words, has_normal, normal = PYTHON.unpack(self.python)
        random.setstate((version, tuple(words), normal if has_normal else None))
        if self.numpy:
            place, has_normal, normal = NUMPY.unpack(self.numpy[: NUMPY.size])
            key = np.frombuffer(self.numpy, "<u4", offset=NUMPY.size)
            np.random.set_state((MERSENNE, key, place, int(has_normal), normal))

    def _cuda_states(self) -> list[bytes]:
        """The states of the CUDA devices, one by one; all have the same size."""
        if not self.cuda:
            return []
        count, states = self.cuda[0], self.cuda[1:]
        size = len(states) // count
        return [states[place * size : (place + 1) * size] for place in range(count)]


def random_state_restorer() -> Callable[[], None]:
    """What makes the random state of this moment the random state again."""
    state = RandomState.now()
    other = None if state.numpy else np.random.get_state(legacy=False)  # of another kind

    def restore() -> None:
        state.restore()
        if other is not None:
            np.random.set_state(other)

    return restore


@contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the random states of Python, NumPy and torch as they were."""
    restore = random_state_restorer()
    try:
        yield
    finally:
        restore()


def _cuda_now() -> bytes:
    """How many CUDA devices there are, and their states."""
    if not torch.cuda.is_initialized():
        return b""
    states = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return bytes([len(states)]) + b"".join(states)


def _numpy_now() -> bytes:
    """The state of `np.random`'s functions, if it is of the usual kind."""
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != MERSENNE:
        return b""
    head = NUMPY.pack(state["state"]["pos"], bool(state["has_gauss"]), state["gauss"])
    return head + state["state"]["key"].astype("<u4", copy=False).tobytes()


def _tensor(state: bytes) -> torch.Tensor:
    """Bytes in the form that torch takes."""
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
