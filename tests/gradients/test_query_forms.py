"""How queries' gradients are held and multiplied, against rows that are written out."""


import pytest
import torch
from torch import Tensor

from tracin.gradients import forms
from tracin.gradients.forms import Dense, Growing, OuterProduct, PerExampleGradient, Streamed
from tracin.gradients.forms import outer_products as products

OUT, IN = 7, 5
SHAPES = {"wide": (OUT, IN), "narrow": (IN, OUT)}
of_each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def rand(*shape: int, seed: int) -> Tensor:
    some = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=some, dtype=torch.float64)


def outer(examples: int, positions: int, seed: int, shape: tuple[int, int] = (OUT, IN)):
    out, width = shape
    return OuterProduct(
        rand(examples, positions, out, seed=seed), rand(examples, positions, width, seed=seed + 1)
    )


def rows(examples: int, positions: int, seed: int) -> forms.SparseRows:
    some = torch.Generator().manual_seed(seed)
    index = torch.randint(OUT, (examples, positions), generator=some)
    return forms.SparseRows(index, rand(examples, positions, IN, seed=seed), OUT)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@of_each_shape
@pytest.mark.parametrize("written", [1, 40, 1 << 24])
@pytest.mark.parametrize("together", [2, 512])
def test_rows_written_a_few_at_a_time_multiply_like_whole_matrices(
    shape: tuple[int, int], written: int, together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(products, "WRITTEN", written)
    monkeypatch.setattr(products, "TOGETHER", together)
    form, query, factors = outer(5, 3, 0, shape), outer(3, 4, 7, shape), rand(OUT * IN, seed=3)

    assert close(products.by_rows(form, query), form.dense() @ query.dense().T)
    expected = form.dense() @ (query.dense() * factors).T
    assert close(products.by_rows(form, query, factors), expected)
    assert close(products.by_factors(form, query), form.dense() @ query.dense().T)


def test_many_positions_on_both_sides_are_written_out_and_single_ones_are_not():
    assert products.factors_win(outer(64, 1, 0, (300, 200)), outer(100, 1, 1, (300, 200)))
    assert not products.factors_win(outer(64, 64, 0, (300, 200)), outer(100, 64, 1, (300, 200)))


@pytest.mark.parametrize("factors", [None, rand(OUT * IN, seed=9)], ids=["plain", "scaled"])
def test_streamed_queries_multiply_with_every_form(factors: Tensor | None):
    query = Streamed(outer(3, 4, 7), factors)
    others: list[PerExampleGradient] = [
        outer(5, 3, 0),
        rows(5, 3, 1),
        Dense(rand(5, OUT, IN, seed=2)),
        forms.SumOf((outer(5, 3, 3), rows(5, 2, 4))),
        forms.ScaledRows(rand(5, OUT, seed=5), rand(OUT, IN, seed=6)),
    ]

    for form in others:
        assert close(forms.pairs(form, query), form.dense() @ query.dense().T)


def test_without_room_the_smaller_form_is_held():
    few, many = outer(3, 2, 0), outer(3, 4, 0)
    factors = rand(OUT * IN, seed=2)
    tied = forms.SumOf((few, rows(3, 2, 4)))

    def held(form: PerExampleGradient) -> PerExampleGradient:
        return forms.as_query(form, queries=1 << 30, is_roomy=False)

    assert isinstance(held(few), OuterProduct)
    assert isinstance(held(many), Dense)  # 4 x (7 + 5) > 7 x 5
    assert isinstance(held(forms.ScaledEntries(few, factors)), Streamed)
    assert isinstance(held(forms.ScaledEntries(many, factors)), Dense)
    assert isinstance(held(tied), forms.SumOf)
    train = outer(4, 3, 5)
    scaled = forms.scaled_factors(tied, factors)
    assert isinstance(held(scaled), forms.SumOf)
    assert close(scaled.dense(), tied.dense() * factors)
    for form in (few, many, tied, scaled, forms.ScaledEntries(few, factors)):
        assert close(forms.pairs(train, held(form)), train.dense() @ form.dense().T)


def test_factors_whose_terms_cancel_are_held_and_written_out_for_each_product():
    left, right = rand(2, 1, OUT, seed=0), rand(2, 1, IN, seed=1)
    form = OuterProduct(torch.cat([left, -left], 1), torch.cat([right, right + 1e-9], 1))

    held = forms.as_query(form, queries=1 << 30, is_roomy=False)

    assert isinstance(held, Streamed)
    train = outer(3, 3, 5)
    assert close(1e9 * forms.pairs(train, held), 1e9 * (train.dense() @ form.dense().T))


def test_batches_of_unlike_lengths_grow_into_one_form():
    growing, batches = Growing(), [outer(2, 3, 0), outer(3, 5, 10), outer(1, 4, 20)]

    for row, form in zip((0, 2, 5), batches, strict=True):
        growing.add(row, form, 8)

    ((start, form),) = growing.forms
    assert (start, form.examples) == (0, 6)
    assert close(form.dense(), torch.cat([each.dense() for each in batches]))
    assert growing.bytes == 6 * 5 * (OUT + IN) * 8


def test_batches_that_do_not_fit_each_other_are_held_apart_and_cut_together():
    growing, factors = Growing(), rand(OUT * IN, seed=1)
    growing.add(0, forms.SumOf((outer(2, 1, 0), rows(2, 1, 2))), 9)
    growing.add(2, forms.SumOf((outer(2, 9, 0), rows(2, 2, 2))), 9)  # nine times as long
    growing.add(4, Streamed(outer(1, 2, 0), factors), 9)
    growing.add(5, Streamed(outer(1, 2, 0), factors.clone()), 9)  # factors of something else

    assert [(start, form.examples) for start, form in growing.forms] == [
        (0, 2), (0, 4), (2, 2), (4, 1), (5, 1),
    ]  # fmt: skip
    growing.cut(3)
    assert [(start, form.examples) for start, form in growing.forms] == [(0, 2), (0, 3), (2, 1)]


def test_half_precision_adds_up_in_float32():
    form, query = outer(2, 3, 0, (4096, 8)), outer(3, 3, 7, (4096, 8))
    half = [OuterProduct(each.left.half(), each.right.half()) for each in (form, query)]

    found = products.by_rows(half[0], half[1])

    expected = form.dense() @ query.dense().T
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 4e-3
