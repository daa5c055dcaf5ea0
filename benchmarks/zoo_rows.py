"""The zoo of the tests, scored on a device, against one backward pass per example on the CPU."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import tracin
from tracin.data import move
from tracin.losses import open_loss

_TESTS = str(Path(__file__).parent.parent / "tests")
_FEW = 12


def zoo_row(
    device: torch.device, setting: str, chosen: str, seconds: float, *, is_quick: bool
) -> dict[str, Any]:
    """How far self-influence is from the truth, over as many entries as the time allows.

    Args:
        device: Where to score.
        setting: "TF32 as torch has it", "no TF32" or "float64".
        chosen: A glob of entries.
        seconds: After which no further entry begins.
        is_quick: A dozen entries, from all over the zoo.
    """
    if _TESTS not in sys.path:
        sys.path.append(_TESTS)
    from zoo import ZOO  # type: ignore[import-not-found]

    names = [name for name in ZOO if fnmatch(name, chosen)]
    names = names[:: max(1, len(names) // _FEW)] if is_quick else names
    end = time.perf_counter() + seconds
    errors: dict[str, float] = {}
    wrong: dict[str, str] = {}
    unrunnable: dict[str, str] = {}
    other: dict[str, str] = {}
    for name in names:
        if time.perf_counter() > end:
            break
        with _tf32(setting):
            _score(device, name, setting, errors, wrong, unrunnable, other)
    return {
        "entries": len(names),
        "scored": len(errors),
        "largest error": max(errors.values(), default=None),
        "wrong": wrong,
        "as the device itself": other,
        "not to be run here": unrunnable,
        "errors": errors,
    }


def _score(
    device: torch.device,
    name: str,
    setting: str,
    errors: dict[str, float],
    wrong: dict[str, str],
    unrunnable: dict[str, str],
    other: dict[str, str],
) -> None:
    from slow_twin import gradients  # type: ignore[import-not-found]
    from zoo import ZOO, relative_error, truth  # type: ignore[import-not-found]

    entry = ZOO[name]
    if setting == "float64" and entry.double is None:
        return
    try:
        case = entry.build().to(torch.float64) if setting == "float64" else entry.build()
        model, data = case.model.to(device), move(case.data, device)
        with torch.no_grad():
            open_loss(case.loss)(model.eval(), data)
    except Exception as error:  # the model itself makes tensors on the CPU, or lacks a kernel
        unrunnable[name] = _line(error)
        return
    try:
        run = tracin.TracIn(model, case.loss, [model.state_dict()], learning_rates="equal")
        errors[name] = relative_error(run.self_influence(data).cpu(), truth(name).self_influence)
        coverage = run.coverage(data)
    except Exception as error:
        wrong[name] = _line(error)
        return
    allowed = entry.double if setting == "float64" else entry.single
    if errors[name] > allowed:
        # A device's own kernels may be less precise than the CPU's: ask one by one there, too.
        rows = gradients(model, case.loss, data).values()
        twin = torch.stack([row.flatten(1).abs().double().square().sum(1) for row in rows]).sum(0)
        apart = relative_error(run.self_influence(data).cpu(), twin.cpu())
        said = f"{errors[name]:.1e} from the CPU, {apart:.1e} from one by one on the device"
        (wrong if apart > allowed else other)[name] = f"{said}; {allowed:.0e} is allowed"
    slow = coverage.by(tracin.GradientMethod.VMAP) + coverage.by(tracin.GradientMethod.LOOP)
    if entry.way == "fast" and slow:
        wrong.setdefault(name, f"no fast rule held for {', '.join(slow)}")


@contextmanager
def _tf32(setting: str) -> Iterator[None]:
    """What a user's own program may have set."""
    before = torch.get_float32_matmul_precision()
    choose: Callable[[str], None] = torch.set_float32_matmul_precision
    try:
        choose("high" if setting == "TF32 as torch has it" else "highest")
        yield
    finally:
        choose(before)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
