"""Torch's errors that a user can cure at the data or by a setting, in words of these."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from tracin.data import Batch
from tracin.data.batches import content_of, leaves
from tracin.errors import DataError, UnsupportedModelError
from tracin.gradients.compute import Compute
from tracin.torch_internals import is_functorch_wrapped_tensor

# "mat1 and mat2 must have the same dtype", "expected scalar type Double", "Input type (double) and
# bias type (float) should be the same": torch has no error of its own for these.
_UNLIKE = re.compile(
    r"dtype|scalar type|type torch\.|not implemented for|type \([\w ]+\) and .*type \([\w ]+\)",
    re.IGNORECASE,
)


def worded(compute: Compute) -> Compute:
    """The same loss; where it mixes two number formats, the error names the column of the data.

    Raises:
        DataError: Torch could not compute with the data's kind of floating point numbers.
        UnsupportedModelError: The model multiplies its experts in groups, in float64.
    """

    def compute_or_say(model: Module, batch: Batch) -> Any:
        try:
            return compute(model, batch)
        except (RuntimeError, ValueError) as error:  # RNNs raise the latter
            experts = experts_way_out(model, str(error))
            if experts is not None:
                raise UnsupportedModelError(experts) from error
            message = _message(dict(model.named_parameters()), batch, str(error))
            if message is None:
                raise
            raise DataError(message) from error

    compute_or_say.__wrapped__ = compute  # type: ignore[attr-defined]  # for names in errors
    return compute_or_say


# torch's grouped product of a mixture of experts names the kinds of numbers that it takes.
_GROUPED = re.compile(r"mat_a to be Float32, BFloat16 or Float16|grouped_mm", re.IGNORECASE)


def experts_way_out(model: Module, error: str) -> str | None:
    """What to do where the experts of a Hugging Face model cannot compute in float64.

    Args:
        model: Any.
        error: What torch said.

    Returns:
        None if the error is another one.
    """
    if not _GROUPED.search(error):
        return None
    if not any(hasattr(each, "set_experts_implementation") for each in model.modules()):
        return None
    return (
        "The model multiplies its experts in groups, which torch does in float32 and half "
        'precision alone. Call model.set_experts_implementation("eager"), or load the model with '
        'experts_implementation="eager", or keep it in float32.'
    )


def _message(parameters: Mapping[str, Tensor], batch: Batch, error: str) -> str | None:
    kinds = {each.dtype for each in parameters.values() if each.is_floating_point()}
    if not _UNLIKE.search(error) or not kinds or _is_transformed(parameters):
        return None
    wanted = " and ".join(sorted(str(kind)[6:] for kind in kinds))
    convert = f"Convert the data, with .to(torch.{wanted.split(' ')[0]})"
    for path, leaf in leaves(content_of(batch)):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_floating_point() and leaf.dtype not in kinds:
            way_out = f"{convert}, or the model, with .to(torch.{_name(leaf)})"
        elif _is_named(leaf, error) and not path.endswith(("_ids']", "labels']")):
            way_out = f"{convert}; if they are pixels, scale them as in training"
        else:
            continue
        return (
            f"batch{path} of the data is {_name(leaf)}, but the model's weights are {wanted}, and "
            f"torch does not compute with both: {error.strip().splitlines()[0].rstrip('.')}. "
            f"{way_out}."
        )
    return None


# What torch's errors call integers.
_INTEGERS = {
    "bool": "bool",
    "uint8": "uint8|byte|unsigned char",
    "int8": "int8|char|signed char",
    "int16": "int16|short",
    "int32": "int32|int",
    "int64": "int64|long",
}


def _is_named(tensor: Tensor, error: str) -> bool:
    """Whether an error is about integers of this tensor's kind."""
    names = _INTEGERS.get(_name(tensor))
    if "inputs must share same datatype" in error:  # layer norm names no kind
        return names is not None
    return names is not None and bool(
        re.search(rf"(got|type|and|for):? [('\"]?(torch\.)?({names})\b", error, re.IGNORECASE)
    )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_transformed(parameters: Mapping[str, Tensor]) -> bool:
    """Within torch.func, where an error only means that another method is needed."""
    return any(is_functorch_wrapped_tensor(each) for each in parameters.values())
