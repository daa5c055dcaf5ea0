"""Passes of the library's own must not move the model's running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Module


@contextmanager
def buffers_kept(model: Module) -> Iterator[None]:
    """Let buffers (running statistics) be written to, and restore their numbers on leaving."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, numbers in before:
                if not torch.equal(buffer, numbers):
                    buffer.copy_(numbers)
