"""Put a checkpoint's weights into the user's model within a block."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from tracin.checkpoints.applied_adapters import refuse_merged, refuse_other_scales
from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.frozen_weights import FrozenWeights
from tracin.checkpoints.own_place import fits_own_place
from tracin.checkpoints.places import Places, fits, fitted
from tracin.checkpoints.readers.formats import (
    SAFETENSORS,
    is_adapter,
    is_saved_pretrained,
    suffix_of,
)
from tracin.checkpoints.readers.peft import adapter_weights
from tracin.checkpoints.readers.pretrained import as_in_memory, has_other_layouts, pretrained_parts
from tracin.checkpoints.state_dict import refuse_other_kinds, weights_within
from tracin.errors import CheckpointError, DeviceError, UnsupportedModelError
from tracin.guards import is_same_table, owned, use_eval
from tracin.plain_text import listed
from tracin.restoring import Restoring
from tracin.sharding import is_dtensor, is_sharded, local_part, own, recover, rest, whole

Device = torch.device | str | int | None


@contextmanager
def loaded(
    model: Module,
    checkpoint: Checkpoint | Mapping[str, Tensor],
    device: Device = None,
    *,
    read: Mapping[str, Tensor] | None = None,
) -> Iterator[Module]:
    """Put a checkpoint's weights and buffers into `model`, in eval mode; take them out on leaving.

    On leaving, also by an exception, the model is as it was, bit for bit. The parameters stay the
    same objects, so that optimizers, hooks and `.grad` know them. Weights take the model's dtype.
    For the rest of what a computation may change, see `untouched`.

    Of a model on the CPU no number is written to: within, its parameters and buffers point to the
    checkpoint's. A model on another device is held there once: its own numbers wait in the host's
    memory while those of the checkpoint are written into their place, one tensor after the other.
    (Where tensors share memory, or `device` is another one, they point to the checkpoint's, too.)

    If `fully_shard` has divided the model over ranks, all ranks must call this together. Each
    reads the checkpoint and writes its own part into the parameters' memory, to which FSDP2 keeps
    other references; on leaving, what was there is written back.

    A checkpoint of PEFT that has the adapter alone replaces what it has, and must have every
    parameter that requires a gradient; the base model's weights, which training left alone, stay.
    So do the weights that a `tracin.Recorder` left out as frozen; they must be those of training.

    Args:
        model: The model, on one device.
        checkpoint: A checkpoint, or a state dict. A state dict is copied, so that nothing that a
            layer does to its weights reaches it.
        device: Where the weights go; by default where the model is.
        read: What `checkpoint.weights()` has returned already; None reads it here.

    Yields:
        The same model.

    Raises:
        CheckpointError: The weights cannot be read, or do not fit the model; the first names
            that differ are in the message.
        DeviceError: The model is on several devices, or on none ("meta").
        ModelInUseError: Another thread holds the model indefinitely.
        UnsupportedModelError: A parameter has no shape yet, is quantised and not frozen, or is
            divided over ranks in another way than by `fully_shard` alone; or adapters are merged.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> zeros = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
        >>> with loaded(model, zeros):
        ...     model(torch.ones(1, 1)).item()
        0.0
    """
    with owned(model, "tracin.checkpoints.loaded"):
        pairs, parts = exchanged_parts(model, checkpoint, device, read)
        del read  # with each tensor that is in its place
        with swapped(model, pairs), overwritten(model, parts):
            yield model


def exchanged_parts(
    model: Module,
    checkpoint: Checkpoint | Mapping[str, Tensor],
    device: Device,
    read: Mapping[str, Tensor] | None,
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Each tensor with its new memory; and memory that is kept, with the numbers to write there."""
    refuse_unfit(model, device)
    refuse_merged(model)
    if isinstance(checkpoint, Checkpoint):
        name, weights = checkpoint.name, checkpoint.weights() if read is None else read
        left_out = checkpoint.left_out()
        path = checkpoint.source if isinstance(checkpoint.source, Path) else None
    else:
        name, path, left_out = "the state dict", None, FrozenWeights({})
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
        places = places.without(left_out.by_name)
        is_saved = path is not None and is_saved_pretrained(path)
        weights = under_live_names(model, places, weights, name, is_saved)
    matches = fitted(places, weights, name)
    left_out.refuse_others(model, name)
    if path is not None and suffix_of(path) == SAFETENSORS:
        refuse_other_scales(model, path, name)
    refuse_no_plain_tensor([(key, tensor) for key, tensor, _ in matches])
    for key, tensor, values in matches:
        refuse_other_numbers(values, tensor, f"{name}: {key}")
    plain = [(tensor, values) for _, tensor, values in matches if not is_dtensor(tensor)]
    parts = [
        (local_part(tensor), own(values, tensor).detach())
        for _, tensor, values in matches
        if is_dtensor(tensor)
    ]
    if fits_own_place(model, plain, device):
        pairs = [(tensor, tensor.data) for tensor, _ in plain]
        parts += [(tensor.data, values.detach()) for tensor, values in plain]
    else:
        pairs = [(tensor, placed(values, tensor, device, is_own)) for tensor, values in plain]
    covered = {id(tensor) for _, tensor, _ in matches}
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


def under_live_names(
    model: Module, places: Places, weights: Mapping[str, Tensor], name: str, is_saved: bool
) -> Mapping[str, Tensor]:
    """The weights under the model's names, also where transformers saves it under others.

    If `is_saved`, `save_pretrained` wrote them, perhaps in another layout under equal names.
    """
    parts = pretrained_parts(model)
    if not parts:
        return weights
    is_alike = not is_saved or "" not in parts or not has_other_layouts(parts[""])
    if is_alike and fits(places, weights):
        return weights
    renamed = as_in_memory(parts, weights, name)
    return renamed if is_saved or fits(places, renamed) else weights


def refuse_unfit(model: Module, device: Device) -> None:
    """Refuse models whose tensors cannot be swapped, or do not meet on one device."""
    devices: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UnsupportedModelError(
                f"{name} has no shape yet: run one batch through the model before."
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


def refuse_no_plain_tensor(named: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse to replace what is no plain tensor; frozen weights may be quantised, and stay."""
    for name, tensor in named:
        if type(local_part(tensor)) is not Tensor:
            raise UnsupportedModelError(
                f"{name} is a {type(tensor.data).__name__}, no plain tensor: quantised weights "
                "cannot be replaced by a checkpoint's. Give the model in floating point."
            )


def refuse_other_numbers(values: Tensor, tensor: Tensor, name: str) -> None:
    """Refuse whole numbers for real ones, or complex ones, and the other way round."""
    if values.is_floating_point() != tensor.is_floating_point() or (
        values.is_complex() != tensor.is_complex()
    ):
        raise CheckpointError(
            f"{name} is {values.dtype} and {tensor.dtype} in the model: numbers would be lost. "
            "Build the model as it was when these weights were saved."
        )


def placed(values: Tensor, tensor: Tensor, device: Device, is_own: bool) -> Tensor:
    """A checkpoint's values in the dtype and on the device that the model needs."""
    new = values.detach().to(tensor.device if device is None else device, tensor.dtype)
    # Some layers write to their weights in a forward pass (max_norm): not to the user's tensors.
    is_shared = not is_own and new.data_ptr() == values.data_ptr()
    return new.clone() if is_shared else new


def moved_copy(buffer: Tensor, device: Device) -> Tensor:
    """A buffer's own numbers, in memory that may be written to."""
    return buffer.detach().to(buffer.device if device is None else device, copy=True)


@contextmanager
def overwritten(model: Module, parts: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Write other numbers into a model's own memory; put back what was there on leaving.

    Args:
        model: The model.
        parts: Memory, each with its new numbers; emptied as they are written.
    """
    if not parts:
        yield
        return
    before: list[tuple[Tensor, Tensor]] = []
    devices = {memory.device for memory, _ in parts}

    def put_back() -> None:
        rest(model)
        finish(devices)
        for memory, numbers in before:
            memory.copy_(numbers)
        finish(devices)

    finish(devices)
    with Restoring(put_back):
        try:
            write_over(parts, before)
            yield
        except BaseException:
            recover(model)
            raise


def write_over(parts: list[tuple[Tensor, Tensor]], before: list[tuple[Tensor, Tensor]]) -> None:
    """Write numbers into memory, one tensor after the other; keep what was there on the host."""
    while parts:
        memory, values = parts.pop()
        before.append((memory, memory.to("cpu", copy=True)))
        memory.copy_(values)


def finish(devices: Iterable[torch.device]) -> None:
    """Let all streams come to their end: any of them may still read or write a model's memory."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


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
        use_eval(model)
        yield
