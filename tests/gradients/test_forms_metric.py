"""Lengths and products in which each entry counts as much as an optimizer's factor says."""

import pytest
import torch
from test_forms import EXAMPLES, KINDS, QUERIES, WIDTH, WORDS, outer, rand, rows

from tracin.gradients import forms
from tracin.gradients.forms import Dense, PerExampleGradient, SparseRows, products
from tracin.gradients.forms import form as blocked

NUMBERS = WORDS * WIDTH
of_each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
of_each_other = pytest.mark.parametrize("other", KINDS.values(), ids=KINDS)
of_any_length = pytest.mark.parametrize("positions", [1, 2, 40])
in_blocks_of = pytest.mark.parametrize("block", [1 << 20, 30])


def metric(seed: int = 3) -> torch.Tensor:
    return rand(NUMBERS, seed=seed).exp()


def mixed(examples: int, seed: int) -> PerExampleGradient:
    """Uses in unlike places, one of them with the same row many times."""
    return forms.total([outer(examples, 2, seed), rows(examples, 30, seed + 1)])


@of_each_kind
@of_any_length
@in_blocks_of
def test_squared_lengths_under_a_metric_are_those_of_the_written_out_rows(
    kind, positions: int, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocked.blocks, "__defaults__", (block,))
    form = kind(EXAMPLES, positions, 0)

    found = form.squared_norm_under(metric())

    assert found.shape == (EXAMPLES,)
    assert torch.allclose(found, form.dense().square() @ metric(), rtol=1e-12)


@of_each_kind
def test_a_metric_of_ones_gives_squared_lengths(kind):
    form = kind(EXAMPLES, 4, 0)

    found = form.squared_norm_under(torch.ones(NUMBERS, dtype=torch.float64))

    assert torch.allclose(found, form.squared_norm(), rtol=1e-12)


def test_a_row_that_comes_again_is_summed_before_it_is_squared():
    values = rand(1, 3, WIDTH)
    form = SparseRows(torch.tensor([[2, 2, 5]]), values, WORDS)
    table = metric().view(WORDS, WIDTH)

    expected = (values[0, 0] + values[0, 1]).square() @ table[2] + values[0, 2].square() @ table[5]

    assert torch.allclose(form.squared_norm_under(metric()), expected)
    together = mixed(EXAMPLES, 0)
    assert torch.allclose(
        together.squared_norm_under(metric()), together.dense().square() @ metric(), rtol=1e-12
    )


@of_each_kind
@of_any_length
@in_blocks_of
def test_scaled_rows_are_the_written_out_rows_times_the_factors(
    kind, positions: int, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocked.blocks, "__defaults__", (block,))
    form = kind(EXAMPLES, positions, 0)
    before = form.dense().clone()

    found = forms.scaled(form, metric())

    assert torch.allclose(found.dense(), before * metric(), rtol=1e-12)
    assert torch.equal(form.dense(), before)


@of_each_kind
@in_blocks_of
def test_products_with_written_out_queries_are_the_same_in_any_blocks(
    kind, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blocked.blocks, "__defaults__", (block,))
    monkeypatch.setattr(products, "ROWS", 1)
    form, query = kind(EXAMPLES, 1, 0), Dense(rand(6, WORDS, WIDTH, seed=8))

    assert torch.allclose(forms.pairs(form, query), form.dense() @ query.dense().T)


@of_each_kind
@of_each_other
def test_it_does_not_matter_which_side_is_scaled(kind, other):
    form, query = kind(EXAMPLES, 3, 0), other(QUERIES, 3, 5)

    there = forms.pairs(form, forms.as_query(forms.scaled(query, metric())))
    here = forms.pairs(query, forms.as_query(forms.scaled(form, metric()))).T

    assert torch.allclose(there, here, rtol=1e-10, atol=1e-10)
    assert torch.allclose(there, (form.dense() * metric()) @ query.dense().T, rtol=1e-10)


def test_a_large_tables_rows_stay_rows():
    assert isinstance(forms.scaled(rows(EXAMPLES, 3, 0), metric()), SparseRows)


def test_the_metric_takes_the_gradients_precision():
    single = outer(EXAMPLES, 1, 0)
    single = forms.OuterProduct(single.left.float(), single.right.float())

    assert single.squared_norm_under(metric()).dtype == torch.float32
    assert forms.scaled(single, metric()).dense().dtype == torch.float32
