"""What is lost when gradients are kept as sketches: figure 2 of the paper, and more, on three nets.

TRACIN_DATA=data python -m experiments.sketch_quality            # about ten minutes on one core
TRACIN_DATA=data python -m experiments.sketch_quality --quick    # two minutes: fewer examples
TRACIN_DATA=data python -m experiments.sketch_quality cifar10 --dims 64 128 256 --sketch-seeds 16
                                                                 # 25 minutes: are bars right?

Each net is trained for a few epochs on real data. An index is built at each size, as a user builds
it, and its influence and self-influence are compared with exact ones from the same checkpoints.
"""

import argparse
import gzip
import lzma
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from benchmarks.models import LanguageModel, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.mnist_images import open_mnist
from experiments.training import SIZES, fully_connected
from tracin.analysis.correlations import correlations
from tracin.errors import DataError
from tracin.index.index import Index
from tracin.sketches import Dot, Projection, standard_error
from tracin.sketches.kinds import KINDS

DIMS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
TOP, CANDIDATES = 10, 50
LENGTH, TEXTS = 64, 5000  # characters of a text, and texts that are learnt

Pair = tuple[Tensor, Tensor]
Loss = str | Callable[[nn.Module, Pair], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A trained net, and what is asked of it.

    Attributes:
        name: As printed.
        run: With its checkpoints.
        train: The first examples that it was trained on.
        queries: Examples that it was not trained on.
        told: How it was trained, in words.
    """

    name: str
    run: tracin.TracIn
    train: Pair
    queries: Pair
    told: str


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        train: Examples that are scored.
        queries: Examples that are asked about.
        epochs: Of the MNIST net; the others' are fixed.
    """

    train: int = 2000
    queries: int = 50
    epochs: int = 6


@dataclass(frozen=True, eq=False)
class Exact:
    """What sketches are measured against.

    Attributes:
        influence: [train, queries].
        self_influence: [train].
        seconds: How long the influence took.
    """

    influence: Tensor
    self_influence: Tensor
    seconds: float


@dataclass(frozen=True, eq=False)
class Sketched:
    """What an index gave.

    Attributes:
        influence: [train, queries].
        errors: The error bars, [train, queries].
        self_influence: From the sketches themselves, [train].
        seconds: How long it took to build.
        width: Numbers in a row.
        kept: What became of the parameters, in words.
    """

    influence: Tensor
    errors: Tensor
    self_influence: Tensor
    seconds: float
    width: int
    kept: str


def mnist_task(sizes: Sizes, seed: int) -> Task:
    """The paper's fully connected net."""
    images = open_mnist()
    model = fully_connected(SIZES, seed)
    train = images.train_images.flatten(1), images.train_labels
    test = images.test_images.flatten(1), images.test_labels
    return trained("MNIST, 784-256-128-64-10", model, "cross_entropy", train, test, sizes, seed)


def cifar_task(sizes: Sizes, seed: int) -> Task:
    """A residual net; BatchNorm runs with each checkpoint's own statistics."""
    folder = data_folder("cifar10")
    with np.load(folder / "labels.npz") as labels:
        train_labels, test_labels = labels["train"], labels["test"]
    train = pictures(folder / "train10k_x.npy.xz"), torch.from_numpy(train_labels).long()
    test = pictures(folder / "test2k_x.npy.xz"), torch.from_numpy(test_labels).long()
    model = seeded(lambda: ResNet(20), seed)
    sizes = replace(sizes, epochs=2, train=sizes.train // 2)
    name = "CIFAR-10, ResNet-20"
    return trained(name, model, "cross_entropy", train, test, sizes, seed, batch=100)


def shakespeare_task(sizes: Sizes, seed: int) -> Task:
    """A transformer on characters; an example is a text of 64."""
    text = gzip.decompress((data_folder("tinyshakespeare") / "input.txt.gz").read_bytes())
    known, words = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    words = torch.from_numpy(words).long()
    texts = words[: len(words) // LENGTH * LENGTH].view(-1, LENGTH)
    texts = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))]
    before, after = texts[:, :-1].contiguous(), texts[:, 1:].contiguous()
    model = seeded(lambda: LanguageModel(len(known), LENGTH, width=128, layers=4, heads=4), seed)
    learnt = slice(1000, 1000 + TEXTS)
    train, test = (before[learnt], after[learnt]), (before[:1000], after[:1000])
    sizes = replace(sizes, epochs=4, train=sizes.train // 2)
    name = "Tiny Shakespeare, transformer of 4 layers"
    return trained(name, model, text_losses, train, test, sizes, seed, batch=64, rate=0.5)


def text_losses(model: nn.Module, batch: Pair) -> Tensor:
    """The mean loss of each text's characters: [examples]."""
    before, after = batch
    losses = F.cross_entropy(model(before).flatten(0, 1), after.flatten(), reduction="none")
    return losses.view(after.shape).mean(1)


def trained(
    name: str,
    model: nn.Module,
    loss: Loss,
    train: Pair,
    test: Pair,
    sizes: Sizes,
    seed: int,
    *,
    batch: int = 100,
    rate: float = 0.1,
) -> Task:
    """Train by plain SGD with two checkpoints: half-way, and the last."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    states = []
    model.train()
    for epoch in range(1, sizes.epochs + 1):
        for rows in torch.randperm(len(train[0]), generator=order).split(batch):
            optimizer.zero_grad()
            losses_of(model, loss, (train[0][rows], train[1][rows])).mean().backward()
            optimizer.step()
        if epoch in (sizes.epochs // 2, sizes.epochs):
            states.append({key: value.clone() for key, value in model.state_dict().items()})
    run = tracin.TracIn(model.eval(), loss, states, learning_rates=[rate] * len(states))
    queries = test[0][: sizes.queries], test[1][: sizes.queries]
    with torch.no_grad():
        unseen = float(losses_of(model, loss, (test[0][:1000], test[1][:1000])).mean())
    numbers = sum(parameter.numel() for parameter in model.parameters())
    told = (
        f"{numbers:,} parameters; {sizes.epochs} epochs of {len(train[0]):,} examples in batches "
        f"of {batch} at rate {rate}, test loss {unseen:.3f}; checkpoints after epochs "
        f"{sizes.epochs // 2} and {sizes.epochs}; {sizes.train:,} training examples, "
        f"{sizes.queries} queries"
    )
    return Task(name, run, (train[0][: sizes.train], train[1][: sizes.train]), queries, told)


def losses_of(model: nn.Module, loss: Loss, batch: Pair) -> Tensor:
    """A loss as training has it: [examples]."""
    if callable(loss):
        return loss(model, batch)
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def exact(task: Task) -> Exact:
    """From the model, without an index."""
    start = perf_counter()
    influence = task.run.influence(task.train, task.queries, progress=False)
    seconds = perf_counter() - start
    own = task.run.self_influence(task.train, progress=False)
    return Exact(influence.double(), own.double(), seconds)


def sketched(task: Task, projection: Projection) -> Sketched:
    """From an index of the training examples and, behind them, the queries."""
    both = tuple(torch.cat(pair) for pair in zip(task.train, task.queries, strict=True))
    count, total = len(task.train[0]), len(both[0])
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        index = task.run.index(both, folder, projection, progress=False)
        seconds = perf_counter() - start
        influence = torch.zeros(count, total - count, dtype=torch.float64)
        variance, own = torch.zeros_like(influence), torch.zeros(count, dtype=torch.float64)
        columns = index.plan.columns
        for entry in index.store.manifest.checkpoints:
            rows = index.store.rows_at(entry.key, torch.arange(total))
            rows, queries = rows[:count], rows[count:]
            influence += columns.scores(rows, queries, entry.weights)
            variance += standard_error(columns, rows, queries, entry.weights).square()
            own += columns.squared_lengths(rows, entry.weights)
        width, kept = index.plan.width, kept_of(index)
    return Sketched(influence, variance.sqrt(), own, seconds, width, kept)


def kept_of(index: Index) -> str:
    """How many parameters went which way, and how the columns were divided."""
    names = {kind: name for name, kind in KINDS.items()}
    kinds = [names[type(kind)] for kind in index.plan.kinds.values()]
    told = ", ".join(f"{kinds.count(name)} {name}" for name in KINDS if name in kinds)
    widths = [
        str(block.side.width)
        if isinstance(block, Dot)
        else f"{block.left.width}+{block.right.width}"
        for block in index.plan.columns.blocks
    ]
    return f"{told}; columns {', '.join(widths)}"


def row_of(dim: int, known: Exact, found: Sketched) -> str:
    """A row of the table."""
    error = found.influence - known.influence
    told = correlations(found.influence, known.influence)
    own = found.self_influence / known.self_influence - 1
    bars = found.errors + 1e-4 * rms(known.influence)  # float16, where nothing is sketched
    numbers = [
        f"{rms(error) / rms(known.influence):.3f}",
        f"{rms(found.errors) / rms(known.influence):.3f}",
        f"{share(error.abs() <= bars):.0%}",
        f"{share(error.abs() <= 2 * bars):.0%}",
        f"{rms(own):.3f}",
        *(f"{recall(sign * found.influence, sign * known.influence, TOP):.2f}" for sign in (1, -1)),
        *(
            f"{recall(sign * found.influence, sign * known.influence, CANDIDATES):.2f}"
            for sign in (1, -1)
        ),
        f"{told.pooled:.3f}",
        f"{told.per_query:.3f}",
        f"{found.seconds:.1f}",
    ]
    return f"| {dim} | {' | '.join(numbers)} |"


HEADER = (
    "| dim | error | told | within 1 | within 2 | self-influence | proponents | opponents "
    "| of 50: proponents | opponents | pooled r | per-query r | seconds |\n"
    f"|{'---|' * 13}"
)


def rms(values: Tensor) -> float:
    """The root of the mean of the squares."""
    return float(values.double().square().mean().sqrt())


def share(truths: Tensor) -> float:
    """How many are true."""
    return float(truths.double().mean())


def recall(found: Tensor, known: Tensor, among: int) -> float:
    """The share of each query's ten highest of [train, queries] that are `among` those found."""
    top, candidates = known.topk(TOP, dim=0).indices, found.topk(among, dim=0).indices
    return share((top[:, None] == candidates[None]).any(1))


def tell(task: Task, dims: Sequence[int], seed: int) -> None:
    """One net's table."""
    known = exact(task)
    print(f"\n### {task.name}\n\n{task.told}. Exact influence: {known.seconds:.1f} s.\n\n{HEADER}")
    kinds = []
    for dim in dims:
        found = sketched(task, Projection(dim, seed))
        print(row_of(dim, known, found), flush=True)
        kinds.append(f"{dim}: {found.width} numbers, {found.kept}")
    print("\n" + "\n".join(f"- {each}" for each in kinds), flush=True)


def tell_seeds(task: Task, dims: Sequence[int], seeds: int) -> None:
    """Whether error bars are right over many indexes of one net, each with a seed of its own."""
    known = exact(task)
    size = rms(known.influence)
    print(f"\n### {task.name}, {seeds} seeds of the sketches\n\n{task.told}.\n")
    print(f"| dim | error | told | error by seed | told by seed |\n|{'---|' * 5}", flush=True)
    for dim in dims:
        errors, bars = [], []
        for seed in range(seeds):
            found = sketched(task, Projection(dim, seed))
            errors.append(rms(found.influence - known.influence) / size)
            bars.append(rms(found.errors) / size)
        cells = [f"{rms(torch.tensor(each)):.3f}" for each in (errors, bars)]
        cells += [f"{min(each):.3f}-{max(each):.3f}" for each in (errors, bars)]
        print(f"| {dim} | {' | '.join(cells)} |", flush=True)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def pictures(path: Path) -> Tensor:
    """[examples, 3, 32, 32], about -1 to 1."""
    with lzma.open(path) as file:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(file)
    return torch.from_numpy(array).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def data_folder(name: str) -> Path:
    """A folder in that which TRACIN_DATA names.

    Raises:
        DataError: There is none.
    """
    root = os.environ.get("TRACIN_DATA")
    folder = Path(root or ".").expanduser() / name
    if not root or not folder.is_dir():
        raise DataError(
            f"The data set {name} was looked for in a folder of this name within that of the "
            f"variable TRACIN_DATA, which is {root!r}. Put it there and set the variable."
        )
    return folder


TASKS = {"mnist": mnist_task, "cifar10": cifar_task, "shakespeare": shakespeare_task}


def main(arguments: list[str] | None = None) -> None:
    """Train, sketch, and print what came out, as Markdown."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(400, 20, 2) if options.quick else Sizes()
    print(
        f"tracin {tracin.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} of {os.cpu_count()} threads, "
        f"seed {options.seed}, rows in float16",
        flush=True,
    )
    start = perf_counter()
    for name in options.nets or TASKS:
        task = TASKS[name](sizes, options.seed)
        if options.sketch_seeds:
            tell_seeds(task, options.dims, options.sketch_seeds)
        else:
            tell(task, options.dims, options.seed)
    print(f"\nAll of it: {perf_counter() - start:.0f} s.")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sketch_quality", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("nets", nargs="*", choices=[*TASKS, []], help="which (default: all)")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, help="numbers an example")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and sketches")
    parser.add_argument(
        "--sketch-seeds", type=int, default=0, help="only compare bars with errors over so many"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="fewer examples, 2 epochs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
