"""What may stand as a learning rate: a positive, finite number, or one for each parameter."""

import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from tracin.errors import LearningRateError

Rate: TypeAlias = float | Mapping[str, float]


def valid_rate(rate: Any, name: str) -> float | dict[str, float]:
    """Check the learning rate given for the checkpoint called `name`.

    A mapping gives one rate for each parameter name. Some of its rates may be zero, since an
    optimizer can hold a group still, but not all.

    Raises:
        LearningRateError: It is zero, negative, NaN, infinite, or no number.
    """
    if not isinstance(rate, Mapping):
        value = number(rate)
        if value is None or not math.isfinite(value) or value <= 0:
            raise LearningRateError(refusal(name, rate))
        return value
    rates: dict[str, float] = {}
    for parameter, one in rate.items():
        value = number(one)
        if value is None or not math.isfinite(value) or value < 0:
            raise LearningRateError(refusal(name, one, f" for {parameter!r}"))
        rates[str(parameter)] = value
    if not any(rates.values()):
        raise LearningRateError(refusal(name, dict(rate)))
    return rates


def refusal(name: str, rate: Any, of: str = "") -> str:
    """The message for a learning rate that cannot be one."""
    return (
        f"A checkpoint's learning rate must be a positive, finite number; {name} gives "
        f"{rate!r}{of}. Leave that checkpoint out, or weigh all of them equally with "
        'learning_rates="equal".'
    )


def number(value: Any) -> float | None:
    """`value` as a float if it is a number, NumPy's and torch's included; else None."""
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # whatever its sign: no learning rate and no step
    return None
