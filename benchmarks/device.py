"""python -m benchmarks.device: everything that depends on the device, in under eight minutes.

The zoo's models by the fast rules, in float32 with TF32 as torch has it and without, and in
float64, against one backward pass per example in float64 on the CPU; ratios to a plain forward and
backward pass; peak memory; how often the host waits for the device. Rows go to a JSON file one by
one, so that what was measured is kept if a later row fails.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tracin
from benchmarks.many_queries import main as many_queries
from benchmarks.models import LanguageModel, ResNet, ResNet50, mlp, settle_norms
from benchmarks.report import Report
from benchmarks.subjects import Pair, Subject
from benchmarks.zoo_rows import zoo_row
from tracin.precision import exact_matmuls, precision_of_products

Loss = Callable[[nn.Module, Pair], Tensor]

QUERIES = 100
QUERY_LENGTH = 64  # tokens
ROUNDS = 2
LONG = 15.0  # seconds: what takes longer is not run again
PRECISIONS = ("float32", "bfloat16 autocast")
# Language models with many queries, of the quick form and of the whole one.
LANGUAGE_MODELS = {
    True: (("tiny", "float32"),),
    False: (("gpt2", "float32"), ("0.5B", "bfloat16"), ("1B", "bfloat16")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per row; returns 1 if a row failed."""
    options = _options(arguments)
    device = torch.device(options.device or _found())
    report = Report(_about(device), options.budget, options.json)
    for setting in ("TF32 as torch has it", "no TF32", "float64"):
        if setting != "float64" or device.type != "mps":
            most = options.budget * (0.1 if options.quick else 0.15)
            report.add(
                f"zoo, {setting}",
                partial(zoo_row, device, setting, options.zoo, most, is_quick=options.quick),
            )
    report.add("checks and audits, MLP", partial(_passes, device, is_quick=options.quick))
    for build in [one for one in SUBJECTS if fnmatch(one.__name__, options.subjects)]:
        for precision in PRECISIONS:
            try:
                subject = _on(device, build(options.quick), precision)
            except Exception as error:  # memory, or a kind of numbers that the device lacks
                report.add(f"{build.__name__}, {precision}", partial(_failed, error))
                continue
            for name, work in WORKS.items():
                rounds = 1 if options.quick else ROUNDS
                measure = partial(_ratio, device, subject, work, rounds)
                report.add(f"{name}, {subject.name}, {precision}", measure)
            report.add(f"host waits, {subject.name}, {precision}", partial(_waits, subject))
            del subject
            _empty(device)
    if fnmatch("many_queries", options.subjects):
        for size, precision in LANGUAGE_MODELS[options.quick]:
            name = f"influence on {QUERIES} queries of {QUERY_LENGTH} tokens, {size}, {precision}"
            report.add(name, partial(_many_queries, device, size, precision))
            _empty(device)
    return int(any("error" in row for row in report.rows))


# Subjects -----------------------------------------------------------------------------------------


def mlp_on_noise(is_quick: bool) -> Subject:
    """784-256-128-64-10."""
    return _classes("MLP", mlp(), (784,), *((500, 100) if is_quick else (65_536, 8192)))


def resnet20(is_quick: bool) -> Subject:
    """ResNet-20 on 32 x 32 images."""
    return _classes("ResNet-20", ResNet(20), (3, 32, 32), *((8, 2) if is_quick else (4096, 512)))


def resnet50(is_quick: bool) -> Subject:
    """ResNet-50 on 224 x 224 images; in the quick form a narrow one on smaller images."""
    model = ResNet50(8, 10) if is_quick else ResNet50()
    side = 32 if is_quick else 224
    return _classes("ResNet-50", model, (3, side, side), *((4, 2) if is_quick else (512, 64)))


def gpt2(is_quick: bool) -> Subject:
    """A language model of GPT-2's size, 124 M parameters and a head of its own.

    Queries are shorter than training examples: `benchmarks.many_queries` varies both.
    """
    words, length = (128, 16) if is_quick else (50_304, 512)
    sizes = {"width": 32, "layers": 2, "heads": 2} if is_quick else _GPT2
    examples, queries = (4, 2) if is_quick else (64, QUERIES)
    some = torch.randint(words, (examples + queries, length + 1))
    inputs, labels = some[:, :-1].contiguous(), some[:, 1:].contiguous()
    model = LanguageModel(words, length, sizes["width"], sizes["layers"], sizes["heads"]).eval()
    subject = _subject("GPT-2-size LM", model, _word_losses, inputs, labels, examples, 16)
    short = min(length, QUERY_LENGTH)
    asked = inputs[examples:, :short].contiguous(), labels[examples:, :short].contiguous()
    return replace(subject, queries=asked)


_GPT2 = {"width": 768, "layers": 12, "heads": 12}
SUBJECTS = (gpt2, resnet50, resnet20, mlp_on_noise)


def _classes(
    name: str, model: nn.Module, shape: tuple[int, ...], examples: int, batch_size: int
) -> Subject:
    queries = min(QUERIES, examples)
    inputs = torch.randn(examples + queries, *shape)
    labels = torch.randint(10, (len(inputs),))
    settle_norms(model, inputs[:16])
    return _subject(name, model, _class_losses, inputs, labels, examples, batch_size)


def _subject(
    name: str,
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    examples: int,
    batch_size: int,
) -> Subject:
    return Subject(
        name=name,
        model=model,
        loss=loss,
        mean_loss=lambda model, batch: loss(model, batch).mean(),
        checkpoints=[],
        train=(inputs[:examples], labels[:examples]),
        queries=(inputs[examples:], labels[examples:]),
        batch_size=batch_size,
    )


def _class_losses(model: nn.Module, batch: Pair) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


def _word_losses(model: nn.Module, batch: Pair) -> Tensor:
    words, following = batch
    scores = model(words).flatten(0, 1).float()
    losses = F.cross_entropy(scores, following.flatten(), reduction="none")
    return losses.view(following.shape).mean(1)


def _on(device: torch.device, subject: Subject, precision: str) -> Subject:
    model, loss = subject.model.to(device), cast(Loss, subject.loss)
    if precision == "bfloat16 autocast":
        loss = partial(_in_autocast, device.type, loss)
    return replace(
        subject,
        model=model,
        loss=loss,
        mean_loss=lambda model, batch: loss(model, batch).mean(),
        checkpoints=[{name: value.clone() for name, value in model.state_dict().items()}],
        train=(subject.train[0].to(device), subject.train[1].to(device)),
        queries=(subject.queries[0].to(device), subject.queries[1].to(device)),
    )


def _in_autocast(kind: str, loss: Loss, model: nn.Module, batch: Pair) -> Tensor:
    with torch.autocast(kind, torch.bfloat16):
        return loss(model, batch)


# Works --------------------------------------------------------------------------------------------


def _self_influence(subject: Subject, _: Path) -> object:
    return subject.traced().self_influence(subject.train, batch_size=subject.batch_size)


def _influence(subject: Subject, _: Path) -> object:
    return subject.traced().influence(subject.train, subject.queries, batch_size=subject.batch_size)


def _build(subject: Subject, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as once:
        _index(subject, Path(once))


def _search(subject: Subject, folder: Path) -> object:
    """The top and bottom 10 of 16 queries; the first, unmeasured call builds the index."""
    k = min(10, len(subject.train[0]))
    return _index(subject, folder).explain(subject.some_queries(16), k=k)


def _index(subject: Subject, folder: Path) -> tracin.Index:
    run, size = subject.traced(), subject.batch_size
    return run.index(
        subject.train, folder / "index", tracin.Projection(1024), recall_queries=0, batch_size=size
    )


WORKS: dict[str, Callable[[Subject, Path], object]] = {
    "self-influence": _self_influence,
    "influence": _influence,
    "build an index": _build,
    "search 16 queries": _search,
}


# Measurements -------------------------------------------------------------------------------------


def _ratio(
    device: torch.device,
    subject: Subject,
    work: Callable[[Subject, Path], object],
    rounds: int,
) -> dict[str, Any]:
    """Ratios to a plain pass without TF32, as tracin computes, and to one as torch has it.

    The steady ratio is that of the second half of the examples: what a checkpoint costs once is
    left out.
    """
    half = _half(subject)
    with tempfile.TemporaryDirectory() as folder:
        traced, memory = _timed(device, lambda: work(subject, Path(folder)), rounds)
    with tempfile.TemporaryDirectory() as folder:
        of_half, _ = _timed(device, lambda: work(half, Path(folder)), rounds)
    as_torch_has_it, plain_memory = _timed(device, subject.plain_pass, rounds)
    with exact_matmuls():
        plain, _ = _timed(device, subject.plain_pass, rounds)
    return {
        "examples": len(subject.train[0]),
        "queries": len(subject.queries[0]) if work is _influence else None,
        "ratio": traced / plain,
        "steady ratio": 2 * (traced - of_half) / plain,
        "to a pass as torch has it": traced / as_torch_has_it,
        "seconds": traced,
        "plain seconds": plain,
        "memory ratio": memory / plain_memory if memory and plain_memory else None,
        "peak MiB": memory and memory / 2**20,
    }


def _many_queries(device: torch.device, size: str, precision: str) -> dict[str, Any]:
    """A row of `benchmarks.many_queries`."""
    given = {
        "device": str(device),
        "sizes": size,
        "precisions": precision,
        "lengths": "64" if size == "tiny" else "512",
        "queries": str(QUERIES),
        "query-length": str(QUERY_LENGTH),
        "rounds": "1",
    }
    if size == "tiny":
        given["tokens"] = "512"
    (row,) = many_queries([f"--{name}={value}" for name, value in given.items()])
    return row


def _half(subject: Subject) -> Subject:
    inputs, labels = subject.train
    few = max(1, len(inputs) // 2)
    return replace(subject, train=(inputs[:few], labels[:few]))


def _timed(
    device: torch.device, work: Callable[[], object], rounds: int
) -> tuple[float, int | None]:
    """The median seconds of a work that was run before, and what it adds to memory at most."""
    before = _start_peak(device)
    seconds = [_seconds(device, work)]
    memory = None if before is None else torch.cuda.max_memory_allocated(device) - before
    for _ in range(rounds if seconds[0] < LONG else 0):
        seconds.append(_seconds(device, work))
    return median(seconds[1:] or seconds), memory


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _start_peak(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


class _Waits(TorchDispatchMode):
    """Counts the calls for which the host waits for a device: on a CPU, those that would."""

    aten = torch.ops.aten
    WAITS = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        is_fetched = (
            func.overloadpacket is self.aten._to_copy
            and args[0].device.type != "cpu"
            and found.device.type == "cpu"
        )
        self.count += is_fetched or func.overloadpacket in self.WAITS
        return found


def _waits(subject: Subject) -> dict[str, Any]:
    """Per batch of self-influence: what a second pass over twice as many batches has more."""
    inputs, labels = subject.train
    size = max(1, len(inputs) // 8)
    counts = []
    for batches in (4, 8):
        rows = slice(0, batches * size)
        with _Waits() as waits:
            subject.traced().self_influence((inputs[rows], labels[rows]), batch_size=size)
        counts.append(waits.count)
    return {"per batch": (counts[1] - counts[0]) / 4, "per checkpoint": 2 * counts[0] - counts[1]}


def _passes(device: torch.device, *, is_quick: bool) -> dict[str, Any]:
    """How many examples go through the model for each that is scored, checks and audits included.

    An audit of a batch is one more pass over it; what it costs in time is little more than that.
    """
    subject = _on(device, mlp_on_noise(is_quick), "float32")
    seen = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    hook = subject.model.register_forward_pre_hook(count)
    subject.traced().self_influence(subject.train)
    hook.remove()
    examples = len(subject.train[0])
    return {"examples": examples, "forward passes per example": seen / examples}


def _failed(error: Exception) -> dict[str, Any]:
    raise error


# The device ---------------------------------------------------------------------------------------


def _found() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _about(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "torch": torch.__version__,
        "tracin": tracin.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "products of float32 numbers, as torch has it": precision_of_products(device).name,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _empty(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--device", help="cuda, mps or cpu; by default the first that is there")
    parser.add_argument("--budget", type=float, default=420, help="seconds to begin rows in")
    names = ", ".join([*(build.__name__ for build in SUBJECTS), "many_queries"])
    parser.add_argument("--subjects", default="*", help=f"a glob of {names}")
    parser.add_argument("--zoo", default="*", help="a glob of the zoo's entries")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--json", type=Path, default=Path("device.json"), help="where rows go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
