"""An optimizer's moments at a checkpoint, by parameter name, in a safetensors file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from tracin.checkpoints.adam_kind import adam_kind
from tracin.checkpoints.readers.safetensors import (
    read_tensors,
    refuse_other_file,
    unreadable,
    write_sealed,
)
from tracin.checkpoints.state_dict import bare_name
from tracin.errors import CheckpointError

KIND = "tracin.optimizer"
GROUPS = "tracin.groups"
PARAMETERS = "parameters"  # in a group's options: the names of its parameters


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What an optimizer remembers after some step.

    Attributes:
        kind: The name of its class, such as "AdamW".
        groups: The options of each group (lr, betas, eps, ...) as they were at that moment, with
            the names of its parameters under "parameters".
        moments: Parameter name -> what is kept for it, such as "exp_avg_sq" or "step".
    """

    kind: str
    groups: tuple[Mapping[str, Any], ...]
    moments: Mapping[str, Mapping[str, Tensor]]

    @classmethod
    def of(cls, model: Module, optimizer: Optimizer) -> "OptimizerState":
        """The state of `optimizer` now; its tensors are the optimizer's own, not copies.

        Raises:
            CheckpointError: A parameter in the optimizer is not the model's.
        """
        names = {id(parameter): bare_name(name) for name, parameter in model.named_parameters()}
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        strangers = sum(id(parameter) not in names for parameter in parameters)
        if strangers:
            raise CheckpointError(
                f"The optimizer holds {strangers} parameters that are not the model's, so its "
                "state cannot be kept by name. Give the model whose parameters it was made from."
            )
        groups = tuple(
            {
                **{key: _plain(value) for key, value in group.items() if key != "params"},
                PARAMETERS: [names[id(parameter)] for parameter in group["params"]],
            }
            for group in optimizer.param_groups
        )
        moments = {
            names[id(parameter)]: {
                key: torch.as_tensor(value)
                for key, value in optimizer.state.get(parameter, {}).items()
                if value is not None
            }
            for parameter in parameters
        }
        return cls(
            type(optimizer).__name__, groups, {n: values for n, values in moments.items() if values}
        )

    @classmethod
    def of_state_dict(
        cls, content: Any, names: Sequence[Sequence[str]], path: Path
    ) -> "OptimizerState":
        """The state in the state dict of torch's Adam or AdamW.

        Args:
            content: What `optimizer.state_dict()` gave.
            names: The names of the parameters in each group, in its order.
            path: Where it was read, for messages.

        Raises:
            CheckpointError: It is another optimizer's, or its groups have other sizes.
        """
        kind = adam_kind([content])
        groups = content["param_groups"] if kind else []
        sizes = [len(group["params"]) for group in groups]
        if not kind or sizes != [len(group) for group in names]:
            raise CheckpointError(
                f"{path} does not hold the state of Adam or AdamW over groups of "
                f"{[len(group) for group in names]} parameters: it was rewritten since it was "
                "opened. Open it again."
            )
        by_number = {
            at: bare_name(name)
            for group, held in zip(groups, names, strict=True)
            for at, name in zip(group["params"], held, strict=True)
        }
        moments = {
            by_number[at]: {key: torch.as_tensor(one) for key, one in values.items()}
            for at, values in content["state"].items()
        }
        options = tuple(
            {
                **{key: _plain(value) for key, value in group.items() if key != "params"},
                PARAMETERS: [bare_name(name) for name in held],
            }
            for group, held in zip(groups, names, strict=True)
        )
        return cls(kind, options, moments)

    def restore(self, model: Module, optimizer: Optimizer) -> None:
        """Put this state into an optimizer of the same kind over the same parameters.

        Raises:
            CheckpointError: Another kind of optimizer, or other parameters in its groups.
        """
        here = OptimizerState.of(model, optimizer)
        if here.kind != self.kind:
            raise CheckpointError(
                f"The state is of the optimizer {self.kind}, but {here.kind} was given."
            )
        ours = [list(group[PARAMETERS]) for group in here.groups]
        theirs = [list(group[PARAMETERS]) for group in self.groups]
        if ours != theirs:
            raise CheckpointError(
                "The optimizer's groups hold other parameters than when the state was saved: "
                f"{ours} here, {theirs} there. Make the optimizer as it was made then."
            )
        named = {bare_name(name): parameter for name, parameter in model.named_parameters()}
        for group, saved in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(
                {key: _lists_as(group.get(key), saved[key]) for key in saved if key != PARAMETERS}
            )
        for name, values in self.moments.items():
            parameter = named[name]
            optimizer.state[parameter] = {
                # Steps stay where torch keeps them: on the CPU unless the optimizer is fused.
                key: value.clone() if value.ndim == 0 else value.to(parameter.device, copy=True)
                for key, value in values.items()
            }

    def write(self, path: Path) -> str:
        """Write a `.safetensors` file, whole or not at all.

        Returns:
            The file's checksum.
        """
        tensors = {
            f"{name}/{key}": value
            for name, values in self.moments.items()
            for key, value in values.items()
        }
        metadata = {"format": "pt", KIND: self.kind, GROUPS: json.dumps(self.groups)}
        return write_sealed(tensors, path, metadata)

    @classmethod
    def read(cls, path: Path, checksum: str = "") -> "OptimizerState":
        """Read what `write` wrote.

        Args:
            path: The file.
            checksum: What `write` returned; "" if that is not known.

        Raises:
            CheckpointError: The file is missing, truncated, damaged, or of another kind.
        """
        if checksum:
            refuse_other_file(path, checksum)
        tensors, metadata = read_tensors(path)
        moments: dict[str, dict[str, Tensor]] = {}
        for entry, value in tensors.items():
            name, _, key = entry.rpartition("/")
            moments.setdefault(name, {})[key] = value
        try:
            kind, groups = metadata[KIND], json.loads(metadata[GROUPS])
            if not _are_groups(groups):
                raise ValueError("its groups are not those of an optimizer")
        except (ValueError, KeyError, RecursionError) as error:
            raise unreadable(path, error) from error
        return cls(kind, tuple(groups), moments)


def _are_groups(groups: Any) -> bool:
    """Whether this is a list of groups, each with options and the names of its parameters."""
    return isinstance(groups, list) and all(
        isinstance(group, dict)
        and isinstance(group.get(PARAMETERS), list)
        and all(isinstance(name, str) for name in group[PARAMETERS])
        for group in groups
    )


def _plain(value: Any) -> Any:
    """An option as JSON can hold it: a learning rate may be a tensor."""
    return value.item() if isinstance(value, Tensor) else value


def _lists_as(here: Any, saved: Any) -> Any:
    """A value from JSON, which makes lists of tuples and numbers of tensors, as it is kept here."""
    if isinstance(here, tuple) and isinstance(saved, list):
        return tuple(saved)
    if isinstance(here, Tensor) and not isinstance(saved, Tensor):
        return torch.as_tensor(saved).to(here)
    return saved
