"""An index of MNIST's 60,000 images at 5 checkpoints, beside exact scores, Captum and TRAK.

python -m experiments.index_mnist           # reads TRACIN_DATA; ten minutes
python -m experiments.index_mnist --quick   # seconds: a tenth of the data, few epochs

The net, its training and its checkpoints are those of experiments.mnist, on the right labels. The
queries are the first test images. Rivals need `pip install '.[bench]'`; without, they are left
out. TRAK takes 25 minutes for all rows, so it is run on some of them, and its time is multiplied.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from benchmarks.pairs import timed
from torch import Tensor

import tracin
from experiments.index_rivals import Pair, Told, captum, trak
from experiments.mnist_images import Images, open_mnist
from experiments.training import PAPER_EPOCHS, Recipe, accuracy, chosen, net, trained
from tracin.statistics import pearson

K = 10
DIMS = (1024, 2048)
HEAD = (
    "tool", "build, s", "explain, s", "kept, MB",
    "recall@10", "Pearson", "recall@10, own target", "Pearson, own target",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Train, build, ask, compare, and print tables."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    recipe, images = Recipe(epochs=options.epochs, seed=options.seed), open_mnist()
    if options.quick:
        images = cut(images, 6000)
        recipe = replace(recipe, epochs=min(recipe.epochs, 14), rate=0.1, batch=100)
    train = images.train_images, images.train_labels
    test = images.test_images[: options.queries], images.test_labels[: options.queries]
    some = train[0][: options.trak_rows], train[1][: options.trak_rows]
    with tempfile.TemporaryDirectory() as folder:
        model = net(recipe)
        learnt = trained(model, *train, recipe, Path(folder) / "recorded")
        checkpoints = chosen(Path(folder) / "recorded", recipe)
        print(
            f"{told_versions()}, {options.threads} threads, seed {options.seed}; "
            f"{len(train[0]):,} images at {len(checkpoints)} checkpoints, {len(test[0]):,} queries "
            f"of {accuracy(model, images.test_images, images.test_labels):.2%} test accuracy, "
            f"{learnt.epoch_seconds:.2f} s a training epoch\n\n{line(HEAD)}\n{line(['---'] * 8)}",
            flush=True,
        )
        run = run_of(model, checkpoints)
        exact = exactly(run, train, test)
        tell(exact, exact.scores)
        tell_indexes(run, train, test, Path(folder), exact.scores)
        last = run_of(model, checkpoints, [f"{len(model) - 1}.weight"])
        with_rival(
            lambda: captum(model, checkpoints, recipe.rate, train, test, K),
            exact.scores,
            lambda: last.influence(train, test),
        )
        tell_one_query(run, train, (test[0][:1], test[1][:1]), Path(folder))
        print(f"\nOn the first {len(some[0]):,} images alone:\n\n{line(HEAD)}\n{line(['---'] * 8)}")
        few = exact.scores[: len(some[0])]
        tell_indexes(run, some, test, Path(folder) / "some", few)
        seconds = with_rival(lambda: trak(model, checkpoints, some, test, K, DIMS[0]), few, None)
        if seconds is not None:
            whole = seconds * len(train[0]) / len(some[0])
            print(f"\nTRAK's build for all {len(train[0]):,} images at this pace: {whole:,.0f} s.")


def run_of(
    model: torch.nn.Module, checkpoints: Sequence[tracin.Checkpoint], names: list[str] | None = None
) -> tracin.TracIn:
    """The checkpoints with their recorded rates, which are all the same."""
    return tracin.TracIn(model, "cross_entropy", list(checkpoints), parameters=names)


def exactly(run: tracin.TracIn, train: Pair, test: Pair) -> Told:
    """TracInCP with no index."""
    began = perf_counter()
    found = run.explain(train, test, k=K)
    took = perf_counter() - began
    scores = run.influence(train, test)
    hits = tuple(torch.from_numpy(one.positions) for one in (found.proponents, found.opponents))
    return Told("tracin, exact, no index", 0.0, took, 0, scores, (hits[0], hits[1]))


def tell_indexes(run: tracin.TracIn, train: Pair, test: Pair, folder: Path, target: Tensor) -> None:
    """A row an index, and one more for its candidates scored exactly."""
    for dim in DIMS:
        at = folder / f"index of {dim}"
        began = perf_counter()
        index = run.index(train, at, tracin.Projection(dim), recall_queries=0)
        build = perf_counter() - began
        size = sum(path.stat().st_size for path in at.rglob("*") if path.is_file())
        scores = index.with_run(run).influence(test)
        for is_exact in (False, True):
            began = perf_counter()
            found = index.with_run(run).explain(test, k=K, exact=is_exact)
            took = perf_counter() - began
            hits = [torch.from_numpy(one.positions) for one in (found.proponents, found.opponents)]
            name = f"tracin index, dim {dim}" + (", exact=True" if is_exact else "")
            tell(Told(name, build, took, size, scores, (hits[0], hits[1])), target)


def tell_one_query(run: tracin.TracIn, train: Pair, query: Pair, folder: Path) -> None:
    """What a single question takes: the middle of five."""
    index = tracin.Index.open(folder / f"index of {DIMS[0]}", train=train)
    works = {
        "no index": lambda: run.explain(train, query, k=K),
        f"index of {DIMS[0]}": lambda: index.with_run(run).explain(query, k=K),
        "exact=True": lambda: index.with_run(run).explain(query, k=K, exact=True),
    }
    for work in works.values():
        work()
    seconds = timed(works, 5)
    told = ", ".join(f"{name} {median(each):.2f} s" for name, each in seconds.items())
    print(f"\nOne query alone: {told}.")


def with_rival(
    work: Callable[[], Told], target: Tensor, own: Callable[[], Tensor] | None
) -> float | None:
    """A row of another tool, if it is installed; the seconds of its build."""
    try:
        told = work()
    except ImportError as error:
        print(f"({error.name} is not installed: pip install '.[bench]')")
        return None
    tell(told, target, None if own is None else own())
    return told.build


def tell(told: Told, target: Tensor, own: Tensor | None = None) -> None:
    """One line of the table."""
    numbers = [f"{told.build:.1f}", f"{told.explain:.1f}", f"{told.bytes / 1e6:,.0f}"]
    for each in (target, own):
        if each is None:
            numbers += ["", ""]
        else:
            correlation = float(pearson(told.scores.double(), each.double()).nanmean())
            numbers += [f"{recall(told.hits, each):.3f}", f"{correlation:.3f}"]
    print(line([told.name, *numbers]), flush=True)


def recall(hits: tuple[Tensor, Tensor], target: Tensor) -> float:
    """The share of the target's K strongest proponents and opponents that were found."""
    shares = []
    for found, is_top in zip(hits, (True, False), strict=True):
        wanted = target.topk(K, 0, largest=is_top).indices.T  # [queries, k]
        shares.append((found.long()[:, :, None] == wanted[:, None, :]).any(1).double().mean())
    return float(torch.stack(shares).mean())


def line(cells: Sequence[str]) -> str:
    """A line of Markdown."""
    return f"| {' | '.join(cells)} |"


def cut(images: Images, count: int) -> Images:
    """The first training images alone."""
    return replace(
        images, train_images=images.train_images[:count], train_labels=images.train_labels[:count]
    )


def told_versions() -> str:
    """Of all that takes part."""
    names = [f"Python {platform.python_version()}"]
    for name in ("tracin", "torch", "captum", "annoy", "traker"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.index_mnist", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--epochs", type=int, default=PAPER_EPOCHS, help="passes (default 140)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--trak-rows", type=int, default=4000, help="on which TRAK is run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="6,000 images, at most 14 epochs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except tracin.TracInError as error:
        sys.exit(f"error: {error}")
