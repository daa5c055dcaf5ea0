"""What a Recorder's checkpoint leaves out: weights that training left alone, known by checksums."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.readers.safetensors import read_metadata, unreadable
from tracin.checkpoints.state_dict import bare_name
from tracin.checkpoints.tensor_checksum import tensor_checksum
from tracin.errors import CheckpointError
from tracin.plain_text import listed
from tracin.sharding import is_dtensor
from tracin.torch_internals import is_made_of_others

KEY = "tracin.frozen"  # in the metadata of a checkpoint's file
# A base may be scored in another precision than it was trained in.
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class FrozenWeight:
    """One weight that is not in a file.

    Attributes:
        shape: Its shape.
        dtype: Its dtype in training, such as "float32".
        checksums: By dtype, of its numbers and of what they are rounded to.
    """

    shape: tuple[int, ...]
    dtype: str
    checksums: Mapping[str, str]

    @classmethod
    def of(cls, weight: Tensor) -> "FrozenWeight":
        """What identifies a weight."""
        name = dtype_name(weight.dtype)
        others = PRECISIONS if is_plain_real(weight) else ()
        checksums = {name: tensor_checksum(weight)} | {
            dtype_name(one): tensor_checksum(weight, one) for one in others if one != weight.dtype
        }
        return cls(tuple(weight.shape), name, checksums)

    def is_same(self, weight: Tensor) -> bool:
        """Whether this is the weight, perhaps in another precision."""
        if tuple(weight.shape) != self.shape:
            return False
        name = dtype_name(weight.dtype)
        if name in self.checksums:
            return tensor_checksum(weight) == self.checksums[name]
        # Wider than in training: what it was made from comes back exactly.
        dtype = getattr(torch, self.dtype)
        is_comparable = is_plain_real(weight) and dtype.is_floating_point
        return is_comparable and tensor_checksum(weight, dtype) == self.checksums[self.dtype]


@dataclass(frozen=True)
class FrozenWeights:
    """The weights that a checkpoint's file leaves out.

    Attributes:
        by_name: Name, without wrappers -> what identifies the weight.
    """

    by_name: Mapping[str, FrozenWeight]

    @classmethod
    def read(cls, path: Path) -> "FrozenWeights":
        """What the head of a `.safetensors` file says; nothing where another program wrote it.

        Raises:
            CheckpointError: The file is damaged.
        """
        text = read_metadata(path).get(KEY)
        if text is None:
            return cls({})
        try:
            return cls({name: weight_of(one) for name, one in json.loads(text).items()})
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise unreadable(path, error) from error

    def metadata(self) -> dict[str, str]:
        """For the head of a file."""
        if not self.by_name:
            return {}
        content = {
            name: {"shape": one.shape, "dtype": one.dtype, "checksums": dict(one.checksums)}
            for name, one in self.by_name.items()
        }
        return {KEY: json.dumps(content)}

    def without(self, names: Iterable[str]) -> "FrozenWeights":
        """The same without some, which are known otherwise."""
        others = {bare_name(name) for name in names}
        return FrozenWeights({n: one for n, one in self.by_name.items() if n not in others})

    def refuse_others(self, model: Module, name: str) -> None:
        """Refuse a model in which these weights are others.

        Args:
            model: The model that holds them.
            name: What messages call the checkpoint.

        Raises:
            CheckpointError: A weight is missing, or has other numbers.
        """
        ours = parameters_by_bare_name(model)
        if missing := [key for key in self.by_name if key not in ours]:
            raise CheckpointError(
                f"{name} does not fit the model, which lacks {listed(missing)}: frozen in "
                "training, and so not in the file. Give the model that was trained."
            )
        if differing := [key for key, one in self.by_name.items() if not one.is_same(ours[key])]:
            raise CheckpointError(
                f"{name} holds the trained weights alone, and {len(differing)} of the "
                f"{len(self.by_name)} weights that were frozen are others in this model: "
                f"{listed(differing)}. Build it on the base that was trained on: the same "
                "pretrained weights, or the same seed. To keep a base that cannot be built again, "
                "record with frozen_weights=True."
            )


def weight_of(content: Mapping[str, Any]) -> FrozenWeight:
    """One weight, as JSON holds it."""
    shape, dtype, checksums = content["shape"], content["dtype"], content["checksums"]
    if not isinstance(checksums, dict) or not isinstance(checksums.get(dtype), str):
        raise ValueError("a frozen weight has no checksum")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"a frozen weight is of the type {dtype!r}")
    return FrozenWeight(tuple(shape), dtype, checksums)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype: "float32"."""
    return str(dtype).removeprefix("torch.")


def is_plain_real(weight: Tensor) -> bool:
    """Whether its numbers can be rounded to another precision: no integers, no tensor of others."""
    is_own = is_dtensor(weight) or not is_made_of_others(weight)
    return weight.is_floating_point() and is_own


def parameters_by_bare_name(model: Module) -> dict[str, Tensor]:
    """All parameters, under every name that they have, without wrappers."""
    named = model.named_parameters(remove_duplicate=False)
    return {bare_name(name): parameter for name, parameter in named}
