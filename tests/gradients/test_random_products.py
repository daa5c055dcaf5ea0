"""Random products tell how long a large matrix is, and an audit lets go of the matrix."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from tracin.gradients.audit import Audit, Reference
from tracin.gradients.forms import OuterProduct
from tracin.gradients.random_products import (
    LARGE,
    VECTORS,
    along_matrix,
    is_large,
    random_vectors,
)

ROWS, COLUMNS = 1024, 256


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_their_mean_square_is_the_squared_length(rank: int, dtype: torch.dtype):
    matrix = (rand(ROWS, rank, seed=101) @ rand(rank, COLUMNS, seed=102)).to(dtype)

    drawn = [
        random_vectors({"a": matrix}, torch.Generator().manual_seed(seed)) for seed in range(64)
    ]
    found = [along_matrix(vectors["a"], matrix).double() for vectors in drawn]

    lengths = torch.stack([each.square().sum() / VECTORS for each in found]).sqrt()
    length = torch.linalg.vector_norm(matrix.double())
    assert float(lengths.square().mean() / length**2) == pytest.approx(1, abs=0.2)
    assert 0.2 < float(lengths.min() / length) < float(lengths.max() / length) < 2


def test_what_is_large():
    assert is_large(torch.empty(ROWS, COLUMNS, device="meta"))
    assert is_large(torch.empty(64, 64, 8, 8, device="meta"))
    for shape in ((LARGE,), (8, LARGE), (512, 511)):
        assert not is_large(torch.empty(shape, device="meta"))
    assert not is_large(torch.empty(ROWS, COLUMNS, dtype=torch.complex64, device="meta"))


@pytest.mark.parametrize("is_moved", [False, True])
def test_an_audit_of_a_large_matrix_finds_two_swapped_examples_and_holds_no_matrix(is_moved: bool):
    form = OuterProduct(rand(6, 2, ROWS, seed=1), rand(6, 2, COLUMNS, seed=2))
    factors = torch.tensor([0.5, -1.0, 1.5, 0.7, -0.6, 1.1], dtype=torch.float64)
    wanted = form.weighted_sum(factors).view(ROWS, COLUMNS)
    held = weakref.ref(wanted)
    reference = Reference(range(6), factors, {"a": wanted}, [list(range(6))], torch.zeros(6))
    audit = Audit(reference, 1e-5, torch.Generator().manual_seed(0))
    del reference, wanted
    gc.collect()

    order = [0, 2, 1, 3, 4, 5] if is_moved else list(range(6))
    audit.take("a", OuterProduct(form.left[order][:4], form.right[order][:4]), 0)
    audit.take("a", OuterProduct(form.left[order][4:], form.right[order][4:]), 4)

    assert held() is None
    assert list(audit.gaps() or {}) == ["a"] * is_moved


def test_what_is_needed_whole_stays_whole():
    wanted = rand(ROWS, COLUMNS, seed=3)
    reference = Reference(range(1), torch.ones(1), {"a": wanted}, [[0]], torch.zeros(1))

    audit = Audit(reference, 1e-5, torch.Generator(), kept=["a"])

    assert torch.equal(audit.reference.gradients["a"], wanted)
