"""Put a checkpoint's weights into the user's model for a while, and take them out again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.readers.formats import is_adapter, is_saved_pretrained
from tracin.checkpoints.readers.peft import adapter_weights
from tracin.checkpoints.readers.pretrained import as_in_memory, has_other_layouts, pretrained_parts
from tracin.checkpoints.state_dict import (
    AVERAGE_COUNT,
    bare_name,
    refuse_other_kinds,
    weights_within,
)
from tracin.errors import CheckpointError, DeviceError, UnsupportedModelError
from tracin.guards import is_same_table, owned
from tracin.plain_text import listed
from tracin.restoring import Restoring
from tracin.sharding import is_dtensor, is_sharded, local, own, recover, rest, whole

Device = torch.device | str | int | None
Shape = tuple[int, ...]
# Of batches and of averaged models: nothing depends on them in eval mode, and some files lack them.
COUNTS = ("num_batches_tracked", AVERAGE_COUNT)


@contextmanager
def loaded(
    model: Module, checkpoint: Checkpoint | Mapping[str, Tensor], device: Device = None
) -> Iterator[Module]:
    """Put a checkpoint's weights and buffers into `model`, in eval mode; take them out on leaving.

    The model's tensors are never written to: each parameter and buffer points to the
    checkpoint's numbers within, and back to its own memory after, also after an exception. The
    parameters stay the same objects, so that optimizers, hooks and `.grad` know them. Weights
    take the model's dtype. For the rest of what a computation may change, see `untouched`.

    If `fully_shard` has divided the model over ranks, all ranks must call this together. Each
    reads the checkpoint and writes its own part into the parameters' memory, to which FSDP2 keeps
    other references; on leaving, what was there is written back.

    A checkpoint of PEFT that has the adapter alone replaces what it has, and must have every
    parameter that requires a gradient; the base model's weights, which training left alone, stay.

    Args:
        model: The model, on one device.
        checkpoint: A checkpoint, or a state dict. A state dict is copied, so that nothing that a
            layer does to its weights reaches it.
        device: Where the weights go; by default where the model is.

    Yields:
        The same model.

    Raises:
        CheckpointError: The weights cannot be read, or do not fit the model; the first names
            that differ are in the message.
        DeviceError: The model is on several devices, or on none ("meta").
        ModelInUseError: Another thread has the model for as long as it likes.
        UnsupportedModelError: A parameter has no shape yet, is quantised, or is divided over ranks
            in another way than by `fully_shard` alone.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> zeros = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
        >>> with loaded(model, zeros):
        ...     model(torch.ones(1, 1)).item()
        0.0
    """
    with owned(model, "tracin.checkpoints.loaded"):
        pairs, parts = exchanged_parts(model, checkpoint, device)
        with swapped(model, pairs), overwritten(model, parts):
            yield model


def exchanged_parts(
    model: Module, checkpoint: Checkpoint | Mapping[str, Tensor], device: Device
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Tensors with what they are to point to; and, of a divided model, with what to write."""
    refuse_unfit(model, device)
    if isinstance(checkpoint, Checkpoint):
        name, weights = checkpoint.name, checkpoint.weights()
        path = checkpoint.source if isinstance(checkpoint.source, Path) else None
    else:
        name, path = "the state dict", None
        weights = weights_within(checkpoint, name)
        refuse_other_kinds(weights, name)
    is_own = path is not None
    if is_sharded(model):
        whole(model)  # refuses what is divided in another way
    if divided := [key for key, one in weights.items() if is_dtensor(one)]:
        raise CheckpointError(
            f"{name} holds parts of tensors, divided over ranks ({listed(divided)}), and every "
            "rank needs a whole checkpoint. Write it by torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(..., full_state_dict=True), and give its file."
        )
    places = Places.of(model)
    if path is not None and is_adapter(path):
        folder = path if path.is_dir() else path.parent
        weights, places = adapter_weights(model, folder, weights, name), places.trained(model)
    else:
        is_saved = path is not None and is_saved_pretrained(path)
        weights = under_live_names(model, places, weights, name, is_saved)
    found = fitted(places, weights, name)
    pairs = [
        (tensor, placed(values, tensor, device, is_own, f"{name}: {key}"))
        for key, tensor, values in found
        if not is_dtensor(tensor)
    ]
    parts = [
        (local(tensor), placed(own(values, tensor), local(tensor), None, True, f"{name}: {key}"))
        for key, tensor, values in found
        if is_dtensor(tensor)
    ]
    covered = {id(tensor) for _, tensor, _ in found}
    # What an adapter leaves alone comes along to another device, and is not copied on its own.
    pairs += [
        (parameter, parameter.detach().to(device))
        for parameter in model.parameters()
        if id(parameter) not in covered and device is not None
    ]
    # Other buffers (caches, a mask made at construction) may change in a forward pass as well.
    pairs += [
        (buffer, moved_copy(buffer, device))
        for buffer in model.buffers()
        if id(buffer) not in covered
    ]
    return pairs, parts


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

    def all(self) -> dict[str, Tensor]:
        """Every place by its name."""
        return self.required | self.optional


def fitted(
    places: Places, weights: Mapping[str, Tensor], name: str
) -> list[tuple[str, Tensor, Tensor]]:
    """Pair every parameter and buffer with its new values: (name, tensor, values).

    Raises:
        CheckpointError: Names or shapes differ.
    """
    tensors = places.all()
    found, unexpected = matched(tensors, weights)
    missing = unfilled(places, found)
    if missing or unexpected:
        raise CheckpointError(unfit(missing, unexpected, tensors, weights, name))
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
    shapes = [
        f"{key} is {list(values.shape)} and not {list(tensor.shape)}"
        for key, tensor, values in pairs
        if values.shape != tensor.shape
    ]
    if shapes:
        more = f", and {len(shapes) - 3} more" if len(shapes) > 3 else ""
        raise CheckpointError(
            f"{name} does not fit the model: {'; '.join(shapes[:3])}{more}. Build the model as it "
            "was when these weights were saved."
        )
    return pairs


def under_live_names(
    model: Module, places: Places, weights: Mapping[str, Tensor], name: str, is_saved: bool
) -> Mapping[str, Tensor]:
    """The weights under the model's names, also where transformers saves it under others.

    Args:
        model: The model.
        places: Its places.
        weights: The weights by the names in the file.
        name: What messages call the checkpoint.
        is_saved: Whether `save_pretrained` wrote them, perhaps in another layout under equal names.
    """
    parts = pretrained_parts(model)
    if not parts:
        return weights
    is_alike = not is_saved or "" not in parts or not has_other_layouts(parts[""])
    if is_alike and fits(places, weights):
        return weights
    renamed = as_in_memory(parts, weights, name)
    return renamed if is_saved or fits(places, renamed) else weights


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


def unfit(
    missing: list[str],
    unexpected: list[str],
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    name: str,
) -> str:
    """The message for names that differ."""
    parts = []
    if missing:
        parts.append(f"it lacks {listed(missing)}")
    if unexpected:
        parts.append(f"the model lacks {listed(unexpected)}")
    return f"{name} does not fit the model: {'; '.join(parts)}. {hint(tensors, weights)}"


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


def refuse_unfit(model: Module, device: Device) -> None:
    """Refuse models whose tensors cannot be swapped, or do not meet on one device."""
    devices: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UnsupportedModelError(
                f"{name} has no shape yet: run one batch through the model before."
            )
        if type(local(parameter)) is not Tensor:
            raise UnsupportedModelError(
                f"{name} is a {type(parameter.data).__name__}, no plain tensor: quantised weights "
                "cannot be replaced by a checkpoint's. Give the model in floating point."
            )
        devices.setdefault(parameter.device, name)
    for place, name in devices.items():
        if place.type == "meta":
            raise DeviceError(
                f'{name} is on the device "meta", which holds no numbers. Build the model on the '
                'CPU or a GPU: model.to_empty(device="cpu") before loading is enough.'
            )
    if device is not None and is_sharded(model):
        raise DeviceError(
            "A model that is divided over ranks stays on their devices, but device="
            f"{str(device)!r} was given. Leave it out."
        )
    if len(devices) > 1 and device is None:
        where = ", ".join(f"{name} on {place}" for place, name in devices.items())
        raise DeviceError(
            f"The model must be on one device, but it is spread over {len(devices)}: {where}. "
            "Move it, or name the device: device=..."
        )


def placed(values: Tensor, tensor: Tensor, device: Device, is_own: bool, name: str) -> Tensor:
    """A checkpoint's values in the dtype and on the device that the model needs."""
    if values.is_floating_point() != tensor.is_floating_point() or (
        values.is_complex() != tensor.is_complex()
    ):
        raise CheckpointError(
            f"{name} is {values.dtype} and {tensor.dtype} in the model: numbers would be lost. "
            "Build the model as it was when these weights were saved."
        )
    new = values.detach().to(tensor.device if device is None else device, tensor.dtype)
    # Some layers write to their weights in a forward pass (max_norm): not to the user's tensors.
    is_shared = not is_own and new.data_ptr() == values.data_ptr()
    return new.clone() if is_shared else new


def moved_copy(buffer: Tensor, device: Device) -> Tensor:
    """A buffer's own numbers, in memory that may be written to."""
    return buffer.detach().to(buffer.device if device is None else device, copy=True)


@contextmanager
def overwritten(model: Module, parts: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Write other numbers into a divided model's memory; put back what was there on leaving."""
    if not parts:
        yield
        return
    before = [(memory, memory.clone()) for memory, _ in parts]

    def put_back() -> None:
        rest(model)
        for memory, numbers in before:
            memory.copy_(numbers)

    with Restoring(put_back):
        try:
            for memory, new in parts:
                memory.copy_(new)
            yield
        except BaseException:
            recover(model)
            raise


@contextmanager
def swapped(model: Module, pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Point tensors to other memory and switch to eval mode; undo both on leaving."""
    own = [(tensor, tensor.data) for tensor, _ in pairs]
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [dict(module._buffers.items()) for module in modules]

    def put_back() -> None:
        for module, mode, names in zip(modules, modes, buffers, strict=True):
            module.training = mode
            # A forward pass may have put a new tensor in a buffer's place. (A scripted module's
            # table is not a dict, and cannot be changed.)
            if isinstance(module._buffers, dict) and not is_same_table(module._buffers, names):
                module._buffers.clear()
                module._buffers.update(names)
        for tensor, data in own:
            tensor.data = data

    with Restoring(put_back):
        for tensor, new in pairs:
            tensor.data = new
        for module in modules:
            # Not through eval(): some layers override it to fold weights into others.
            module.training = False
        yield
