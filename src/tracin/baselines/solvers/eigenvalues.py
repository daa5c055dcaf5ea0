"""The ends of a Hessian's spectrum, by Lanczos' method on products."""

import torch

from tracin.baselines.curvature import Curvature


def extreme_eigenvalues(curvature: Curvature, steps: int, seed: int) -> tuple[float, float]:
    """Bounds on the smallest eigenvalue, from above, and on the largest, from below.

    C. Lanczos, 1950; with each vector made orthogonal to all before it. Ends that stand apart from
    the rest of the spectrum are found in a few steps.

    Args:
        curvature: The Hessian.
        steps: The most products, each a pass over the data.
        seed: Of the random vector that it starts from.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(curvature.numbers, dtype=torch.float64, generator=generator)
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, curvature.numbers)):
        next_ = curvature.products(basis[-1][None])[0]
        diagonal.append(float(next_ @ basis[-1]))
        held = torch.stack(basis)
        for _ in range(2):  # once leaves rounding, twice does not
            next_ = next_ - held.mT @ (held @ next_)
        size = float(next_.norm())
        if size <= 1e-10 * max(abs(value) for value in diagonal) or size == 0:
            break
        beside.append(size)
        basis.append(next_ / size)
    count = len(diagonal)
    band = torch.tensor(beside[: count - 1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    matrix += torch.diag(band, 1) + torch.diag(band, -1)
    values = torch.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])
