"""Interrupt a call at every line of tracin's own code, and by timer, and look what is left changed.

    python -m experiments.interrupts [--timer 300] [--occurrences 2] [--only NAME]

By line: a trace function raises KeyboardInterrupt at each call and each line of the package's
files, at its first, second, ... and last occurrence, one run each. By timer: SIGALRM's handler
raises it after a random while, as Ctrl-C does. After each run the model, torch's state, handlers
and the random state must be those from before, and nobody may hold the model.
"""

import argparse
import collections
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tracin
from tracin.guards import ownership
from tracin.guards.settings import dispatches_now, functions_now
from tracin.torch_internals import C

PACKAGE = str(Path(tracin.__file__).parent)
Place = tuple[str, str, int]  # event, file, line


class Net(nn.Module):
    """A little of everything: rules, a parameter without one, dropout, buffers, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        self.mix = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The class scores: [examples, 3]."""
        self.calls += 1
        x = self.body(x)
        return self.head(torch.einsum("ni,ij->nj", x, self.mix))


@dataclass(frozen=True)
class Case:
    """A call, on a model of its own."""

    model: nn.Module
    call: Callable[[], Any]


def cases(folder: Path) -> dict[str, Callable[[], Case]]:
    """The calls that are interrupted, by name."""
    torch.manual_seed(0)
    for number in (0, 1):
        save_file(Net().state_dict(), folder / f"{number}.safetensors")
    files = [folder / f"{number}.safetensors" for number in (0, 1)]
    train = torch.randn(24, 6), torch.arange(24) % 3
    queries = torch.randn(2, 6), torch.arange(2)

    def made(do: Callable[[tracin.TracIn], Any]) -> Callable[[], Case]:
        def make() -> Case:
            torch.manual_seed(1)
            model = Net()
            for parameter in list(model.parameters())[:2]:
                parameter.grad = torch.ones_like(parameter)
            model.head.bias.requires_grad_(False)
            run = tracin.TracIn(model, "cross_entropy", files, learning_rates="equal")
            return Case(model, lambda: do(run))

        return make

    def traced(run: tracin.TracIn) -> Any:
        with tracin.checkpoints.loaded(run.model, run.checkpoints[0]):
            return run.model.get_submodule("head")(torch.zeros(1, 8))

    return {
        "self_influence": made(lambda run: run.self_influence(train, batch_size=8)),
        "influence": made(lambda run: run.influence(train, queries, batch_size=8)),
        "explain": made(lambda run: run.explain(train, queries, k=2, batch_size=8)),
        "find_mislabelled": made(lambda run: run.find_mislabelled(train, batch_size=8)),
        "coverage": made(lambda run: run.coverage(train)),
        "verify": made(lambda run: run.verify(train, examples=2)),
        "loaded": made(traced),
    }


def seen(model: nn.Module) -> dict[str, Any]:
    """All that must be the same afterwards, in a form that compares."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found: dict[str, Any] = {
        "tensors": [
            (name, id(one), one.data_ptr(), one.tolist(), one.requires_grad, id(one.grad))
            for name, one in tensors.items()
        ],
        "modules": [
            (name, id(one), one.training, sorted(vars(one)), list(one._buffers))
            for name, one in model.named_modules()
        ],
        "attribute": getattr(model, "calls", None),
        "hooks": [len(one._forward_pre_hooks) for one in model.modules()],
        "function modes": functions_now(),
        "dispatch modes": dispatches_now(),
        "grad mode": torch.is_grad_enabled(),
        "transforms": C._functorch.get_dynamic_layer_stack_depth(),
        "default dtype": torch.get_default_dtype(),
        "attention": torch.backends.cuda.flash_sdp_enabled(),
        "float32": torch.get_float32_matmul_precision(),
        "convolutions": torch.backends.cudnn.allow_tf32,
        "autocast": torch.is_autocast_enabled("cpu"),
        "warnings": id(warnings.filters),
        "saved tensors' hooks": C._autograd._top_saved_tensors_default_hooks(True),
        "torch's random state": torch.get_rng_state().tolist(),
        "NumPy's random state": _numpy_state(),
        "Python's random state": random.getstate(),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
        "alarm": signal.getsignal(signal.SIGALRM),
        "holds": ownership.queue(),
    }
    return found


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return state[1].tolist()


def differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was."""
    return [key for key in before if before[key] != after[key]]


def places_of(case: Case) -> list[Place]:
    """Every call and every line within the package, in the order in which they come."""
    found: list[Place] = []

    def note(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # An exception at a return would skip the handlers of the frame, as no real one does.
        if event in ("call", "line"):
            found.append((event, frame.f_code.co_filename, frame.f_lineno))
        return note

    sys.settrace(note)
    try:
        case.call()
    finally:
        sys.settrace(None)
    return found


def interrupted_at(case: Case, place: Place, occurrence: int) -> str:
    """Run with an exception at a place; what came of the call."""
    count = 0
    kind, file, line = place

    def watch(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != file:  # other files run at full speed
            return None
        if frame.f_lineno == line and event == kind:
            count += 1
            if count == occurrence:
                sys.settrace(None)
                raise KeyboardInterrupt
        return watch

    return outcome(lambda: _traced(watch, case.call))


def _traced(watch: Any, call: Callable[[], Any]) -> Any:
    sys.settrace(watch)
    try:
        return call()
    finally:
        sys.settrace(None)


def outcome(call: Callable[[], Any]) -> str:
    """How a call ended."""
    try:
        call()
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return "finished"


def by_line(make: Callable[[], Case], occurrences: int) -> tuple[int, collections.Counter[str]]:
    """Interrupt at every place of a call; how often, and what was left changed."""
    make().call()  # what is imported or cached once
    places = collections.Counter(places_of(make()))
    runs, faults = 0, collections.Counter[str]()
    for place, count in places.items():
        for at in sorted({*range(1, min(occurrences, count) + 1), count}):
            case = make()
            before = seen(case.model)
            said = interrupted_at(case, place, at)
            runs += 1
            where = f"{place[0]} {Path(place[1]).relative_to(PACKAGE)}:{place[2]} ({at})"
            faults.update(f"{what} at {where}" for what in differing(before, seen(case.model)))
            if said not in ("KeyboardInterrupt", "finished"):
                faults[f"{said} at {where}"] += 1
            heal()
    return runs, faults


def by_timer(make: Callable[[], Case], runs: int) -> tuple[int, collections.Counter[str]]:
    """Interrupt at random moments; how often one was, and what was left changed."""
    chance, armed = random.Random(1), [False]

    def ring(*_: Any) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    make().call()  # what is imported or cached once
    case, began = make(), time.perf_counter()
    case.call()
    seconds = time.perf_counter() - began
    was = signal.signal(signal.SIGALRM, ring)
    interrupts, faults = 0, collections.Counter[str]()
    for _ in range(runs):
        case = make()
        before = seen(case.model)

        def call(case: Case = case) -> None:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, seconds))
            armed[0] = True
            case.call()
            armed[0] = False

        said = outcome(call)
        armed[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        interrupts += said == "KeyboardInterrupt"
        faults.update(differing(before, seen(case.model)))
        if said not in ("KeyboardInterrupt", "finished"):
            faults[said] += 1
        heal()
    signal.signal(signal.SIGALRM, was)
    return interrupts, faults


def heal() -> None:
    """So that one fault is counted once."""
    torch.set_grad_enabled(True)
    while functions_now():
        torch._C._pop_torch_function_stack()
    ownership._queue.clear()


def main() -> None:
    """Print a table: the call, how often it was interrupted, and how often something was left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timer", type=int, default=300, help="runs by timer for each call")
    parser.add_argument("--occurrences", type=int, default=2, help="of each line, beside its last")
    parser.add_argument("--only", help="the name of one call")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda said: None  # a generator that is thrown away may be interrupted
    with tempfile.TemporaryDirectory() as folder:
        for name, make in cases(Path(folder)).items():
            if options.only not in (None, name):
                continue
            lines, left = by_line(make, options.occurrences)
            timed, more = by_timer(make, options.timer)
            print(f"{name:18} by line {lines:6} left {sum(left.values()):4}", end="")
            print(f"   by timer {timed:6} left {sum(more.values()):4}", flush=True)
            for what, count in (left + more).most_common(25):
                print(f"    {count} x {what}")


if __name__ == "__main__":
    main()
