"""Every form gives the products that its gradients, written out, give."""

import pytest
import torch

from tracin.gradients import forms
from tracin.gradients.forms import (
    ConvFactors,
    Dense,
    Geometry,
    OuterProduct,
    PerExampleGradient,
    ProductCache,
    SparseRows,
)

EXAMPLES, QUERIES, WORDS, WIDTH = 5, 3, 7, 4


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def outer(examples: int, positions: int, seed: int) -> OuterProduct:
    return OuterProduct(
        rand(examples, positions, WORDS, seed=seed), rand(examples, positions, WIDTH, seed=seed + 9)
    )


def rows(examples: int, positions: int, seed: int) -> SparseRows:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(WORDS, (examples, positions), generator=generator)
    return SparseRows(index, rand(examples, positions, WIDTH, seed=seed), WORDS)


def patches(examples: int, positions: int, seed: int) -> ConvFactors:
    geometry = Geometry((1,), (0,), (1,), False, (0,), 1)
    inputs = rand(2 * examples, WIDTH // 2, positions + 1, seed=seed)
    deltas = rand(2 * examples, WORDS, positions, seed=seed + 9)
    return ConvFactors(inputs, deltas, (WORDS, WIDTH // 2, 2), geometry, copies=2)


def dense(examples: int, positions: int, seed: int) -> Dense:
    return Dense(rand(examples, WORDS, WIDTH, seed=seed))


def tied(examples: int, positions: int, seed: int) -> PerExampleGradient:
    return forms.total([outer(examples, positions, seed), rows(examples, positions, seed + 1)])


def stacked(examples: int, positions: int, seed: int) -> PerExampleGradient:
    left = rand(examples, WORDS, positions, 2, seed=seed)
    return forms.Stacked(left, rand(examples, WORDS, positions, 2, seed=seed + 9))


def computed(examples: int, positions: int, seed: int) -> PerExampleGradient:
    rows = rand(examples, WORDS * WIDTH, seed=seed)
    return forms.Computed(
        lambda start, stop: rows[start:stop], examples, WORDS * WIDTH, 1 << 19, rows.device
    )


def scaled_rows(examples: int, positions: int, seed: int) -> PerExampleGradient:
    return forms.ScaledRows(rand(examples, WORDS, seed=seed), rand(WORDS, WIDTH, seed=seed + 9))


def scaled_entries(examples: int, positions: int, seed: int) -> PerExampleGradient:
    return forms.ScaledEntries(outer(examples, positions, seed), rand(WORDS * WIDTH, seed=seed + 5))


def mixed(examples: int, positions: int, seed: int) -> PerExampleGradient:
    kinds = (outer, rows, scaled_rows, computed, dense, patches)
    return forms.total([kind(examples, positions, seed + at) for at, kind in enumerate(kinds)])


KINDS = {
    "stacked": stacked,
    "computed": computed,
    "scaled rows": scaled_rows,
    "scaled entries": scaled_entries,
    "mixed": mixed,
    "outer": outer,
    "rows": rows,
    "patches": patches,
    "dense": dense,
    "tied": tied,
}
of_each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
of_each_other = pytest.mark.parametrize("other", KINDS.values(), ids=KINDS)
of_any_length = pytest.mark.parametrize("positions", [1, 2, 40])


@of_each_kind
@of_any_length
def test_squared_norms_are_those_of_the_written_out_rows(kind, positions: int):
    form = kind(EXAMPLES, positions, 0)

    assert form.dense().shape == (EXAMPLES, form.numbers) == (EXAMPLES, WORDS * WIDTH)
    assert torch.allclose(form.squared_norm(), form.dense().square().sum(1), rtol=1e-12)


@of_each_kind
@of_each_other
@of_any_length
def test_pairs_are_products_of_written_out_rows(kind, other, positions: int):
    form, query = kind(EXAMPLES, positions, 0), other(QUERIES, positions, 5)
    expected = form.dense() @ query.dense().T

    for chosen in (query, forms.as_query(query), Dense(query.dense())):
        assert torch.allclose(forms.pairs(form, chosen), expected, rtol=1e-10, atol=1e-10)
        assert torch.allclose(
            forms.pairs(form, chosen, ProductCache()), expected, rtol=1e-10, atol=1e-10
        )


@of_each_kind
@of_each_other
def test_aligned_products_meet_example_by_example(kind, other):
    form, query = kind(EXAMPLES, 3, 0), other(EXAMPLES, 3, 5)

    expected = (form.dense() * query.dense()).sum(1)
    assert torch.allclose(forms.aligned_products(form, query), expected, rtol=1e-10, atol=1e-10)


@of_each_kind
def test_a_sum_of_examples_is_the_sum_of_rows(kind):
    form = kind(EXAMPLES, 3, 0)

    assert torch.allclose(forms.added(form).dense(), form.dense().sum(0, keepdim=True))


@of_each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["alike", "narrower"])
def test_a_weighted_sum_is_added_in_place(kind, dtype: torch.dtype):
    form, weights = kind(EXAMPLES, 3, 0), rand(EXAMPLES, seed=3)
    into = rand(form.numbers, seed=4).to(dtype)
    expected = into.double() + weights @ form.dense()

    form.add_weighted_sum(weights, into)

    assert torch.allclose(into.double(), expected, rtol=1e-10 if dtype == torch.float64 else 1e-5)
    assert torch.allclose(form.weighted_sum(weights), weights @ form.dense(), rtol=1e-10)


@of_each_kind
@pytest.mark.parametrize("rows", [WORDS, WIDTH], ids=["its own rows", "others"])
def test_vectors_are_multiplied_with_a_weighted_sum(kind, rows: int):
    form, weights, vectors = kind(EXAMPLES, 3, 0), rand(EXAMPLES, seed=3), rand(4, rows, seed=6)

    found = form.along_weighted_sum(vectors, weights)

    assert torch.allclose(found, vectors @ (weights @ form.dense()).view(rows, -1), rtol=1e-10)


@of_each_kind
def test_a_projection_is_applied_to_every_row(kind):
    form, matrix = kind(EXAMPLES, 3, 0), rand(6, WORDS * WIDTH)

    assert torch.allclose(form.project(matrix), form.dense() @ matrix.T)


@of_each_kind
def test_a_part_holds_the_same_rows(kind):
    form = kind(EXAMPLES, 3, 0)

    assert torch.equal(form.part(1, 4).dense(), form.dense()[1:4])


def test_a_transposed_outer_product_is_the_gradient_of_the_transpose():
    form = outer(EXAMPLES, 3, 0)
    turned = form.dense().view(EXAMPLES, WORDS, WIDTH).mT.flatten(1)

    assert torch.allclose(form.transposed().dense(), turned)


def test_uses_in_several_places_add_up_with_their_cross_terms():
    uses = [outer(EXAMPLES, 2, 0), rows(EXAMPLES, 3, 1), outer(EXAMPLES, 4, 2)]
    expected = torch.stack([use.dense() for use in uses]).sum(0)

    together = forms.total(list(uses))

    assert torch.allclose(together.dense(), expected)
    assert torch.allclose(together.squared_norm(), expected.square().sum(1))


def test_a_shared_product_is_not_mistaken_for_another_layers():
    memo = ProductCache()
    first, second = rand(4, 3), rand(4, 3, seed=1)
    query, other = rand(2, 3, seed=2), rand(2, 3, seed=3)

    assert torch.equal(memo.product(first, query), first @ query.T)
    assert torch.equal(memo.product(second, query), second @ query.T)
    assert torch.equal(memo.product(second, other), second @ other.T)


@pytest.mark.parametrize("positions", [1, 4, 40])
def test_sides_in_half_precision_are_multiplied_as_float32(positions: int) -> None:
    """Products of bfloat16 numbers are exact in float32, so only the order of sums may differ."""

    def halves(examples: int, seed: int) -> OuterProduct:
        form = outer(examples, positions, seed)
        return OuterProduct(form.left.bfloat16(), form.right.bfloat16())

    half, query = halves(EXAMPLES, 1), halves(QUERIES, 2)
    full, full_query = (OuterProduct(each.left, each.right) for each in (half, query))
    weights = rand(EXAMPLES).float()
    for one, other in (
        (half.dense(), full.dense()),
        (half.squared_norm(), full.squared_norm()),
        (half.weighted_sum(weights), full.weighted_sum(weights)),
        (forms.pairs(half, query), forms.pairs(full, full_query)),
        (forms.pairs(half, query, ProductCache()), forms.pairs(full, full_query)),
        (forms.pairs(half, forms.as_query(query)), forms.pairs(full, full_query)),
        (forms.total([half, half]).squared_norm(), 4 * full.squared_norm()),
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
