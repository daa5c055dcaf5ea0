"""An index of as many rows as ImageNet has training images, built and searched as a user does.

Each in a process of its own, so that its peak of memory is its own.
"""

import multiprocessing
import resource
import shutil
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tracin

ROUNDS = 3
MEGABYTE = 1e6
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, eq=False)
class LargeIndex:
    """An index to measure.

    Attributes:
        folder: Where it is built; it is deleted in the end.
        rows: How many training examples it has.
        dim: How many numbers per example and checkpoint.
        layers: The last layer at each checkpoint.
        rate: The learning rate.
        features: Real ones, of which the rows' are made: [examples, in].
        labels: [examples], sorted.
        queries: Features and labels of the queries.
        threads: Of each process.
    """

    folder: Path
    rows: int
    dim: int
    layers: list[dict[str, Tensor]]
    rate: float
    features: Tensor
    labels: Tensor
    queries: tuple[Tensor, Tensor]
    threads: int

    def run(self) -> tracin.TracIn:
        """The training run, of the last layer alone."""
        classes, inputs = self.layers[0]["weight"].shape
        rates = [self.rate] * len(self.layers)
        return tracin.TracIn(
            nn.Linear(inputs, classes), "cross_entropy", self.layers, learning_rates=rates
        )

    def train(self) -> DataLoader[Any]:
        """So many examples: each the mean of the features of two images, mostly of one class."""
        return DataLoader(
            range(self.rows),  # pyright: ignore[reportArgumentType]  # as good as a Dataset
            batch_size=256,
            collate_fn=Mixtures(self.features, self.labels),
        )

    def measured(self) -> dict[str, float]:
        """Build it, search it, and delete it; a build that was broken off continues."""
        found = in_new_process(built, self) | in_new_process(searched, self)
        shutil.rmtree(self.folder)
        return found


@dataclass(frozen=True, eq=False)
class Mixtures:
    """Collates numbers into examples; no two numbers mean the same pair of images.

    Attributes:
        features: [examples, in].
        labels: [examples].
    """

    features: Tensor
    labels: Tensor

    def __call__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Features [numbers, in] and labels [numbers]: the first image's."""
        chosen, count = torch.tensor(numbers), len(self.labels)
        first = chosen % count
        second = (first + chosen // count) % count
        return (self.features[first] + self.features[second]) / 2, self.labels[first]


def in_new_process(
    work: Callable[[LargeIndex], dict[str, float]], large: LargeIndex
) -> dict[str, float]:
    """What some work gives."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, large).result()


def built(large: LargeIndex) -> dict[str, float]:
    """Build the index: seconds, bytes, and the peak of memory."""
    torch.set_num_threads(large.threads)
    before, start, own = peak_memory(), perf_counter(), process_time()
    large.run().index(
        large.train(),
        large.folder,
        tracin.Projection(large.dim),
        recall_queries=0,
        progress=False,
    )
    return {
        "build": perf_counter() - start,
        "build_cpu": process_time() - own,
        "build_peak": peak_memory(),
        "start_peak": before,
        "bytes": sum(file.stat().st_size for file in large.folder.rglob("*") if file.is_file()),
    }


def searched(large: LargeIndex) -> dict[str, float]:
    """Search the index for one query and for all: the first time, and the median of more."""
    torch.set_num_threads(large.threads)
    index = tracin.Index.open(large.folder, run=large.run())
    found: dict[str, float] = {}
    inputs, labels = large.queries
    for name, count in (("one", 1), ("all", len(labels))):
        seconds, own = [], []
        for _ in range(1 + ROUNDS):
            start, own_start = perf_counter(), process_time()
            index.explain((inputs[:count], labels[:count]), k=10, progress=False)
            seconds.append(perf_counter() - start)
            own.append(process_time() - own_start)
        if name == "one":
            found |= {"first": seconds[0], "first_cpu": own[0]}
        found |= {name: statistics.median(seconds[1:]), f"{name}_cpu": statistics.median(own[1:])}
    return found | {"search_peak": peak_memory()}


def peak_memory() -> float:
    """The most memory that this process has held, in bytes, pages of mapped files among it."""
    # Not getrusage's on Linux: there a new process starts with the peak of the one that started it.
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * float(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
