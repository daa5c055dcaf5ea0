"""Keeps torch's batching quiet about the functions for which it falls back to a loop."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_batching() -> Iterator[None]:
    """The fallback is exact, and coverage already tells which parameters are not on fast rules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield
