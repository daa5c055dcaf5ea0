"""Refuses sharded models whose parameters the fast method cannot cover: no other one is right."""

from collections.abc import Mapping

from tracin.errors import UnsupportedModelError


class LateError(UnsupportedModelError):
    """What one rank of a sharded model found after a pass: it stays in step with the others."""


def without_fast_method(missed: Mapping[str, str]) -> str:
    """The message for parameters of a sharded model that the fast method missed, and why."""
    name, reason = min(missed.items())  # the same on every rank
    counted = "1 parameter" if len(missed) == 1 else f"{len(missed)} parameters"
    have = "has" if len(missed) == 1 else "have"
    return (
        f"{counted} of this sharded model, such as '{name}', {have} no vectorised per-example "
        f"gradient: {reason}. The slower methods need whole parameters. Leave out such parameters "
        "by `parameters`, or gather the model on one device."
    )
