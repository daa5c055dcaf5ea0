"""A parameter's per-example gradients, kept in factors where that is cheaper."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

# Numbers in one temporary block. On a CPU 4 MB in float32: memory that was just used is written
# again, which is worth a third of a ResNet's time; a GPU would rather have few, large kernels.
BLOCK = 1 << 20
GPU_BLOCK = 1 << 26


class PerExampleGradient(ABC):
    """The gradients of one parameter, one per example, in whatever shape is cheapest to hold.

    Products of two forms are in `products.py`, since they depend on both kinds.
    """

    @property
    @abstractmethod
    def examples(self) -> int:
        """How many examples this holds gradients of."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the gradients are."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """How many numbers one example's gradient has, written out."""

    @property
    def written(self) -> int:
        """How many numbers are made where one example's gradient is written out."""
        return self.numbers

    @abstractmethod
    def part(self, start: int, stop: int) -> "PerExampleGradient":
        """The gradients of examples `start` to `stop`."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Written out: [examples, numbers]."""

    @abstractmethod
    def squared_norm(self) -> Tensor:
        """The squared length of each example's gradient: [examples]."""

    def terms(self) -> Tensor | None:
        """The squared lengths of the terms that `squared_norm` adds up, of either sign: [examples].

        Where they are much more than their sum, the terms cancelled and rounding is what is left;
        `written_norm` has no such terms. None where there are none.
        """
        return None

    def settled(self) -> "PerExampleGradient":
        """The same gradients, if need be written out: the weights may change from here on."""
        return self

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum over examples of weight x gradient: [numbers].

        Args:
            weights: [examples].
        """
        total: Tensor | None = None
        for start, stop in blocks(self.examples, self.written, self.device):
            rows = self.part(start, stop).dense()
            total = rows.new_zeros(rows.shape[1]) if total is None else total
            total.addmv_(rows.mT, weights[start:stop].to(rows))
        return torch.zeros(self.numbers) if total is None else total

    def add_weighted_sum(self, weights: Tensor, into: Tensor) -> None:
        """Add the sum over examples of weight x gradient to other numbers, in place.

        Args:
            weights: [examples].
            into: What is added to: [numbers].
        """
        into.add_(self.weighted_sum(weights))

    def along_weighted_sum(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """The products of some vectors with the sum over examples of weight x gradient.

        Args:
            vectors: Multiplied from the left, with that sum as a matrix of `rows`: [vectors, rows].
            weights: [examples].

        Returns:
            [vectors, numbers / rows], as precise as the vectors.
        """
        return vectors @ self.weighted_sum(weights).reshape(vectors.shape[1], -1).to(vectors)

    def squared_norm_under(self, metric: Tensor) -> Tensor:
        """The sum over entries of metric x gradient^2, [examples]: a length in scaled units.

        Args:
            metric: What each entry counts: [numbers].
        """

        def one(start: int, stop: int) -> Tensor:
            squares = self.part(start, stop).dense().square()
            return squares @ metric.to(squares)

        return by_blocks(self.examples, self.written, metric.device, one)

    def written_norm(self) -> Tensor:
        """The squared lengths from gradients that are written out, block by block: [examples]."""
        return by_blocks(
            self.examples,
            self.written,
            self.device,
            lambda start, stop: squared_lengths(self.part(start, stop).dense()),
        )

    def project(self, matrix: Tensor) -> Tensor:
        """Each gradient times a projection [columns, numbers]: [examples, columns]."""
        columns = matrix.shape[0]
        out = matrix.new_empty(self.examples, columns)
        # The matrix is read once a block, so a block holds a few examples even of a large layer.
        most = max(BLOCK, min(16 * self.numbers, 16 * BLOCK))
        for start, stop in blocks(self.examples, self.numbers, matrix.device, most):
            out[start:stop] = self.part(start, stop).dense().to(matrix.dtype) @ matrix.mT
        return out


def squared_lengths(rows: Tensor) -> Tensor:
    """[examples, numbers] -> [examples], reading the rows once and writing nothing between."""
    return torch.linalg.vector_norm(rows, dim=1).square_()


def blocks(
    examples: int, numbers: int, device: torch.device, most: int = BLOCK
) -> list[tuple[int, int]]:
    """Cut `examples` into runs of at most `most` numbers, so that memory stays bounded."""
    step = max(1, (most if device.type == "cpu" else GPU_BLOCK) // max(1, numbers))
    return [(start, min(start + step, examples)) for start in range(0, examples, step)]


def by_blocks(
    examples: int,
    numbers: int,
    device: torch.device,
    one: Callable[[int, int], Tensor],
    most: int = BLOCK,
) -> Tensor:
    """What `one(start, stop)` gives for every run of examples, joined: [examples, ..].

    Results are put in one place at once. Kept apart until the end, each would lie in the memory
    that its block had, the next block would not fit there, and all blocks would be held after all.
    """
    first, *others = blocks(examples, numbers, device, most)
    values = one(*first)
    if not others:
        return values
    out = values.new_empty(examples, *values.shape[1:])
    out[: first[1]] = values
    for start, stop in others:
        del values
        values = one(start, stop)
        out[start:stop] = values
    return out
