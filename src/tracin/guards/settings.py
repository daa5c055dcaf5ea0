"""Settings of torch and of the process that a block may change, noted and restored."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, final

import torch
from torch.autograd import forward_ad

from tracin.random_state import random_state_restorer
from tracin.torch_internals import C

Getter: TypeAlias = Callable[[], Any]
Setter: TypeAlias = Callable[[Any], object]


def _private(getter: str, setter: str) -> list[tuple[Getter, Setter]]:
    """A setting by torch's own names for it, where this release has them."""
    get, put = getattr(C, getter, None), getattr(C, setter, None)
    return [] if get is None or put is None else [(get, put)]


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _put_deterministic(found: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(found[0], warn_only=found[1])


# The whole process has these.
PROCESS: list[tuple[Getter, Setter]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (_deterministic, _put_deterministic),
    *_private("_get_cudnn_enabled", "_set_cudnn_enabled"),
    *_private("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
    *_private("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
    *_private("_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    *_private("_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    *_private("_get_math_sdp_enabled", "_set_sdp_use_math"),
    *_private("_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
]


# Each thread has its own of these.
THREAD: list[tuple[Getter, Setter]] = [
    (torch.is_grad_enabled, torch.set_grad_enabled),
    *_private("_get_torch_function_state", "_set_torch_function_state"),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    *_private("_is_fwd_grad_enabled", "_set_fwd_grad_enabled"),
]


@final
@dataclass(frozen=True, eq=False)
class ThreadSettings:
    """Modes and stacks of torch in this thread."""

    values: list[Any]
    autocast: list[tuple[str, bool, torch.dtype]]
    autocast_depth: int
    functions: list[Any]
    dispatches: list[Any]
    saved_hooks: Any
    transforms: int
    dual_level: int

    @classmethod
    def now(cls) -> Self:
        """The settings at this moment."""
        devices = ["cpu", *(d for d in ("cuda", "mps", "xpu") if _is_in_use(d))]
        return cls(
            [get() for get, _ in THREAD],
            [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices],
            _autocast_depth(),
            functions_now(),
            dispatches_now(),
            _saved_hooks(),
            C._functorch.get_dynamic_layer_stack_depth(),
            forward_ad._current_level,
        )

    def put_back(self) -> None:
        """Restore them."""
        # First of all the modes: they would see, and may refuse, the calls that follow.
        if not _are_same(functions_now(), self.functions):
            while C._len_torch_function_stack():
                C._pop_torch_function_stack()
            for mode in self.functions:
                C._push_on_torch_function_stack(mode)
        if not _are_same(dispatches_now(), self.dispatches):
            while C._len_torch_dispatch_stack():
                C._pop_torch_dispatch_stack()
            for mode in self.dispatches:
                C._push_on_torch_dispatch_stack(mode)
        functorch = C._functorch
        if functorch.get_dynamic_layer_stack_depth() > self.transforms:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.transforms)
        while forward_ad._current_level > self.dual_level:
            forward_ad.exit_dual_level()
        for (get, put), value in zip(THREAD, self.values, strict=True):
            if get() != value:
                put(value)
        for device, is_enabled, dtype in self.autocast:
            if torch.is_autocast_enabled(device) != is_enabled:
                torch.set_autocast_enabled(device, is_enabled)
            if torch.get_autocast_dtype(device) != dtype:
                torch.set_autocast_dtype(device, dtype)
        if _autocast_depth() != self.autocast_depth:
            while _autocast_depth() > self.autocast_depth:
                torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()
        while (top := _saved_hooks()) is not None and not _is_same_pair(top, self.saved_hooks):
            C._autograd._pop_saved_tensors_default_hooks()


@final
@dataclass(frozen=True, eq=False)
class ProcessSettings:
    """The random state, and the switches of torch that all threads share."""

    values: list[Any]
    filters: Any
    restore_random: Callable[[], None]
    device_random: dict[str, list[torch.Tensor]]

    @classmethod
    def now(cls) -> Self:
        """The settings at this moment; no random number is drawn."""
        return cls(
            [get() for get, _ in PROCESS],
            warnings.filters,
            random_state_restorer(),
            _other_random_states(),
        )

    def put_back(self) -> None:
        """Restore them."""
        for (get, put), value in zip(PROCESS, self.values, strict=True):
            if get() != value:
                put(value)
        if warnings.filters is not self.filters:  # a catch_warnings() that was broken off
            warnings.filters = self.filters  # type: ignore[assignment]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        self.restore_random()
        for kind, states in self.device_random.items():
            _put_random_states(kind, states)


def functions_now() -> list[Any]:
    """The stack of torch's function modes."""
    depth = C._len_torch_function_stack()
    return [C._get_function_stack_at(at) for at in range(depth)]


def dispatches_now() -> list[Any]:
    """The stack of torch's dispatch modes."""
    depth = C._len_torch_dispatch_stack()
    return [C._get_dispatch_stack_at(at) for at in range(depth)]


def _are_same(ones: list[Any], others: list[Any]) -> bool:
    return len(ones) == len(others) and all(a is b for a, b in zip(ones, others, strict=True))


def _saved_hooks() -> Any:
    top = getattr(C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(True)


def _is_same_pair(one: Any, other: Any) -> bool:
    return other is not None and all(a is b for a, b in zip(one, other, strict=True))


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _is_in_use(kind: str) -> bool:
    """Whether a kind of device is here and was used, without starting it."""
    if kind == "mps":
        return torch.backends.mps.is_available()
    module = getattr(torch, kind, None)
    return module is not None and module.is_available() and module.is_initialized()


def _other_random_states() -> dict[str, list[torch.Tensor]]:
    """Those of devices that a `RandomState` leaves out."""
    states = {}
    if _is_in_use("xpu"):
        states["xpu"] = torch.xpu.get_rng_state_all()
    if _is_in_use("mps"):
        states["mps"] = [torch.mps.get_rng_state()]
    return states


def _put_random_states(kind: str, states: list[torch.Tensor]) -> None:
    if kind == "mps":
        torch.mps.set_rng_state(states[0])
    else:
        torch.xpu.set_rng_state_all(states)
