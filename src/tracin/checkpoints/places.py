"""Which of a checkpoint's tensors goes where in a model: matched by name and by shape."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from tracin.checkpoints.state_dict import AVERAGE_COUNT, bare_name, refuse_other_shapes
from tracin.errors import CheckpointError
from tracin.plain_text import listed

# Of batches and of averaged models: nothing depends on them in eval mode, and some files lack them.
COUNTS = ("num_batches_tracked", AVERAGE_COUNT)


@dataclass(frozen=True)
class Places:
    """Where a state dict's tensors go in a model.

    Attributes:
        required: Name -> parameter or buffer, under every name that it has.
        optional: What a state dict may lack.
    """

    required: dict[str, Tensor]
    optional: dict[str, Tensor]

    @classmethod
    def of(cls, model: Module) -> "Places":
        """The places of a model."""
        required: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        optional: dict[str, Tensor] = {}
        for prefix, module in model.named_modules(remove_duplicate=False):
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
                key = f"{prefix}.{name}" if prefix else name
                is_kept = name not in module._non_persistent_buffers_set
                kind = required if is_kept and name not in COUNTS else optional
                kind[key] = buffer
        return cls(required, optional)

    def trained(self, model: Module) -> "Places":
        """The same places, of which only the trained parameters must be filled."""
        needed = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        required = {key: one for key, one in self.required.items() if id(one) in needed}
        return Places(
            required, {key: one for key, one in self.all().items() if key not in required}
        )

    def without(self, names: Collection[str]) -> "Places":
        """The same places, of which those of these bare names need not be filled."""
        required = {key: one for key, one in self.required.items() if bare_name(key) not in names}
        return Places(
            required, {key: one for key, one in self.all().items() if key not in required}
        )

    def all(self) -> dict[str, Tensor]:
        """Every place by its name."""
        return self.required | self.optional


def fitted(
    places: Places, weights: Mapping[str, Tensor], name: str
) -> list[tuple[str, Tensor, Tensor]]:
    """Pair every parameter and buffer with its new values: (name, tensor, values)."""
    tensors = places.all()
    found, unexpected = matched(tensors, weights)
    missing = unfilled(places, found)
    if missing or unexpected:
        lacking = [f"it lacks {listed(missing)}"] if missing else []
        lacking += [f"the model lacks {listed(unexpected)}"] if unexpected else []
        raise CheckpointError(
            f"{name} does not fit the model: {'; '.join(lacking)}. {hint(tensors, weights)}"
        )
    # A tied tensor has several names, of which some formats keep one.
    by_tensor: dict[int, list[str]] = {}
    for key in found:
        by_tensor.setdefault(id(tensors[key]), []).append(key)
    for first, *others in by_tensor.values():
        refuse_untied(first, others, found, name)
    pairs = [(keys[0], tensors[keys[0]], found[keys[0]]) for keys in by_tensor.values()]
    empty = [key for key, tensor, values in pairs if tensor.numel() and not values.numel()]
    if empty:
        raise CheckpointError(
            f"{name} holds no numbers for {listed(empty)}: DeepSpeed's ZeRO-3 leaves such empty "
            "tensors, and keeps the weights in its global_step* folder. Merge them by python "
            "zero_to_fp32.py . output in the checkpoint's folder, and give what that writes."
        )
    refuse_other_shapes([(key, values.shape, tensor.shape) for key, tensor, values in pairs], name)
    return pairs


def fits(places: Places, weights: Mapping[str, Tensor]) -> bool:
    """Whether every place is filled, and nothing is left over."""
    found, unexpected = matched(places.all(), weights)
    return not unexpected and not unfilled(places, found)


def unfilled(places: Places, found: Mapping[str, Tensor]) -> list[str]:
    """The names of the places that must be filled, and are not under any of their names."""
    tensors = places.all()
    filled = {id(tensors[key]) for key in found}
    return [key for key, tensor in places.required.items() if id(tensor) not in filled]


def matched(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights by the model's names, and the names that the model lacks.

    Wrappers of the model or of the checkpoint are looked through, where that is unambiguous.
    """
    bare: dict[str, list[str]] = {}
    for key in tensors:
        bare.setdefault(bare_name(key), []).append(key)
    found: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, values in weights.items():
        keys = [key] if key in tensors else bare.get(bare_name(key), [])
        if len(keys) == 1 and keys[0] not in found:
            found[keys[0]] = values
        else:
            unexpected.append(key)
    return found, unexpected


def refuse_untied(first: str, others: list[str], found: Mapping[str, Tensor], name: str) -> None:
    """Refuse two sets of values for what is one tensor in the model."""
    for other in others:
        if not torch.equal(found[first].cpu(), found[other].cpu()):
            raise CheckpointError(
                f"{name} does not fit the model: {first} and {other} are one tied tensor in the "
                "model, but two different ones in the checkpoint. Build the model without the tie."
            )


def hint(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What would make the names meet."""
    ours = {bare_name(key) for key in tensors}
    theirs = {bare_name(key) for key in weights}
    for prefix, within in sorted(by_first_part(theirs).items()):
        if within <= ours:
            return (
                f"Its names that begin with {prefix!r} fit once that is taken away: give "
                f"{{name.removeprefix({prefix!r}): tensor, ...}}, or as model the one that was "
                "saved, with this one inside."
            )
    for prefix, within in sorted(by_first_part(ours).items()):
        if theirs <= within:
            return (
                f"Its names fit the model's part {prefix[:-1]!r}: give that part as the model, or "
                f"put {prefix!r} before them."
            )
    return "Give the model that these weights were saved from."


def by_first_part(names: Iterable[str]) -> dict[str, set[str]]:
    """The names within each part: "fc." -> {"weight", "bias"}."""
    found: dict[str, set[str]] = {}
    for name in names:
        part, dot, rest = name.partition(".")
        if dot:
            found.setdefault(part + dot, set()).add(rest)
    return found
