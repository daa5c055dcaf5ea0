"""Models that FSDP2 has divided over the ranks of a torchrun, and what keeps ranks in step."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import Module

from tracin.errors import IndexingError, UnsupportedModelError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
R = TypeVar("R")


def is_dtensor(value: object) -> "TypeGuard[DTensor]":
    """Whether a tensor is in parts on several ranks, as FSDP2 and tensor parallelism make them.

    Importing the class takes as long as half of torch; code that made such a tensor has done so.
    """
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def divided_modules(model: Module) -> list[Any]:
    """The modules that `fully_shard` was called on, outer ones first."""
    # Code that called it has imported it; other code need not wait for the import.
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if kind is None else [one for one in model.modules() if isinstance(one, kind)]


def is_sharded(model: Module) -> bool:
    """Whether any parameter is in parts on several ranks."""
    return bool(divided_modules(model)) or any(is_dtensor(p) for p in model.parameters())


def is_divided(parameters: Mapping[str, Tensor]) -> bool:
    """Whether any of these is in parts on several ranks."""
    return any(is_dtensor(parameter) for parameter in parameters.values())


def rest(model: Module) -> None:
    """Have every parameter in its parts, as FSDP2 leaves only some of them after a forward pass."""
    for module in divided_modules(model):
        module.reshard()


def recover(model: Module) -> None:
    """After an error in the middle of a pass: make the next pass possible."""
    modules = divided_modules(model)
    inner = {id(one) for module in modules for one in module.modules() if one is not module}
    for module in modules:
        if id(module) not in inner and hasattr(module, "reset_iter_state"):  # since torch 2.13
            module.reset_iter_state()
    rest(model)


def whole(model: Module) -> dict[str, Tensor]:
    """The plain tensors that stand in for the parameters within forward passes, by name.

    They are the same objects in every pass. All ranks must call this together. Only one module's
    weights are whole at a time; the tensors are empty afterwards.
    """
    rest(model)
    divided = {n: p for n, p in model.named_parameters() if is_dtensor(p)}
    found: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if not is_dtensor(p)}
    for name, parameter in divided.items():
        mesh = parameter.device_mesh
        if mesh.size() != distributed.get_world_size():
            raise UnsupportedModelError(
                f"'{name}' is divided over {mesh.size()} of the {distributed.get_world_size()} "
                "ranks, but all ranks must share one model. Call fully_shard with a mesh of all "
                "ranks that torchrun has started."
            )
    modules = {id(module) for module in divided_modules(model)}
    for prefix, module in model.named_modules():
        if id(module) not in modules:
            continue
        module.unshard()  # type: ignore[operator]
        for name, parameter in module.named_parameters(prefix):
            if name in divided and not is_dtensor(parameter):
                found[name] = parameter
        module.reshard()  # type: ignore[operator]
    other = [name for name in divided if name not in found]
    if other:
        raise UnsupportedModelError(
            f"{other[0]} is a DTensor that fully_shard does not make whole (with "
            f"{len(other) - 1} more): tensor parallel layers are not supported. Divide the model "
            "by torch.distributed.fsdp.fully_shard alone, or gather it on one device."
        )
    return found


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or the tensor itself; no gradient flows through it."""
    detached = tensor.detach()
    return detached.to_local() if is_dtensor(detached) else detached


def own(values: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as a parameter is divided: a view."""
    if not is_dtensor(parameter):
        return values
    coordinate = parameter.device_mesh.get_coordinate() or ()
    for at, placement in enumerate(parameter.placements):
        if placement.is_shard():
            dim = getattr(placement, "dim", 0)
            pieces = values.chunk(parameter.device_mesh.size(at), dim)
            is_there = coordinate[at] < len(pieces)
            values = pieces[coordinate[at]] if is_there else values.narrow(dim, 0, 0)
    if values.shape != local_part(parameter).shape:
        raise UnsupportedModelError(
            f"A parameter of shape {list(parameter.shape)} is divided as {parameter.placements}, "
            f"by which rank {distributed.get_rank()} should hold {list(values.shape)} of it, but "
            f"it holds {list(local_part(parameter).shape)}. Divide the model by fully_shard alone."
        )
    return values


def device_of(model: Module) -> torch.device:
    """Where the model computes."""
    first = next(iter(model.parameters()))
    for parameter in model.parameters():
        if is_dtensor(parameter):
            kind = parameter.device_mesh.device_type
            if kind == first.device.type:
                return parameter.device
            # Parameters that wait on the CPU are used on this rank's device.
            return torch.device(kind, torch.get_device_module(kind).current_device())
    return first.device


def over_ranks(values: Mapping[str, float], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum one number per parameter over the ranks, each of which gives that of its own part."""
    places = [p for p in parameters.values() if is_dtensor(p)]
    if not places:
        return dict(values)
    shares = [value / copies(parameters[name]) for name, value in values.items()]
    kind = places[0].device_mesh.device_type
    sums = torch.tensor(shares, dtype=torch.float64, device=kind)
    distributed.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))


def copies(parameter: Tensor) -> int:
    """How many ranks hold the same numbers of a parameter."""
    if not is_dtensor(parameter):
        return distributed.get_world_size()
    count = 1
    for at, placement in enumerate(parameter.placements):
        count *= 1 if placement.is_shard() else parameter.device_mesh.size(at)
    return count


def part_of(span: range) -> range:
    """The stretch of `span` that this rank takes.

    All stretches are equally long, so that all ranks do the same passes; the last may overlap.
    """
    each = -(-len(span) // distributed.get_world_size())
    start = span.start + starts_of(len(span))[distributed.get_rank()]
    return range(start, start + each)


def starts_of(count: int) -> list[int]:
    """Where each rank's stretch of `count` begins."""
    size = distributed.get_world_size()
    each = -(-count // size)
    return [min(rank * each, count - each) for rank in range(size)]


def joined(part: Tensor, count: int, device: torch.device) -> Tensor:
    """All ranks' stretches of `count` rows, in order, on the CPU: [count, ...]."""
    sent = part.to(device).contiguous()
    parts = [torch.empty_like(sent) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, sent)
    rows = part.new_empty(count, *part.shape[1:])
    for start, one in zip(starts_of(count), parts, strict=True):
        rows[start : start + len(one)] = one.to(rows.device)
    return rows


def each_says(value: T) -> Sequence[T]:
    """Every rank's value, by rank: the same list on all of them."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files."""
    return distributed.get_rank() == 0


def by_first(do: Callable[[], T]) -> T:
    """Call `do` on rank 0 alone; every rank returns its result, or raises its error.

    Raises:
        IndexingError: On other ranks, with the words of the error that rank 0 raises.
    """
    answer: T | None = None
    failure: Exception | None = None
    if is_first():
        try:
            answer = do()
        except Exception as error:
            failure = error
    message = [answer, failure and f"{type(failure).__name__}: {failure}"]
    distributed.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise IndexingError(
            f"Rank 0 could not do its part, so no rank can continue. The error was:\n{message[1]}"
        )
    return message[0]  # type: ignore[return-value]


def led(lead: Callable[[Callable[..., T]], R], follow: Callable[..., T]) -> R:
    """Call `lead` on rank 0 alone, which may have all ranks call `follow` in between.

    Args:
        lead: Called on rank 0 with a function that has all ranks call `follow` together.
        follow: What they do together; the arguments come from rank 0.

    Returns:
        What `lead` returned, on every rank; an error is raised on every rank, as by `by_first`.
    """
    if is_first():

        def ask(*args: Any) -> T:
            distributed.broadcast_object_list([args], src=0)
            return follow(*args)

        def leading() -> R:
            try:
                return lead(ask)
            finally:
                distributed.broadcast_object_list([None], src=0)

        return by_first(leading)
    while (args := _received()) is not None:
        # An error is rank 0's as well, and comes back from there.
        with suppress(Exception):
            follow(*args)
    return by_first(_nothing)


def _received() -> Any:
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0)
    return message[0]


def _nothing() -> Any:
    raise RuntimeError("only rank 0 is asked; a bug in tracin")
