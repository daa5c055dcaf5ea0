"""Queries of low rank: exact where the rank suffices, and else off by no more than is told."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.errors import PreconditionerError, QueryError, TracInWarning
from tracin.gradients.forms import (
    Dense,
    OuterProduct,
    PerExampleGradient,
    SparseRows,
    SumOf,
    at_rank,
)

WORDS, WIDTH, LENGTH = 24, 20, 9


class Tied(nn.Module):
    """A tied embedding and head, a Linear layer, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, dtype=torch.float64)
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, dtype=torch.float64)

    def forward(self, words: Tensor) -> Tensor:
        hidden = torch.tanh(self.linear(self.words(words)))
        return F.linear(hidden + self.conv(hidden.mT).mT, self.words.weight)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    scores = model(batch)[:, :-1].transpose(1, 2)
    return F.cross_entropy(scores, batch[:, 1:], reduction="none").sum(1)


def texts(count: int, seed: int) -> Tensor:
    return torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


def run(
    preconditioner: Any = None, checkpoints: int = 2, parameters: list[str] | None = None
) -> tracin.TracIn:
    torch.manual_seed(0)
    states = [Tied().state_dict() for _ in range(checkpoints)]
    rates = [0.1, 0.3][:checkpoints]
    return tracin.TracIn(
        Tied(),
        loss,
        states,
        parameters=parameters,
        learning_rates=rates,
        preconditioner=preconditioner,
    )


def forms() -> dict[str, PerExampleGradient]:
    torch.manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    outer = OuterProduct(draw(3, 7, 16), draw(3, 7, 20))
    rows = SparseRows(torch.randint(16, (3, 4)), draw(3, 4, 20), 16)
    return {
        "outer": outer,
        "dense": Dense(draw(3, 16, 20)),
        "rows and outer": SumOf((outer, rows)),
        "cancelled": OuterProduct(
            torch.cat([outer.left, 1e4 * outer.left, -1e4 * outer.left], 1),
            torch.cat([outer.right, 1e4 * outer.right, 1e4 * outer.right], 1),
        ),
    }


@pytest.mark.parametrize("name", forms())
def test_what_is_left_out_is_that_of_the_written_matrices(name: str) -> None:
    form, state = forms()[name], torch.get_rng_state()
    found = at_rank(form, (16, 20), 3, 0)
    assert torch.equal(torch.get_rng_state(), state)
    gap = (form.dense() - found.form.dense()).square().sum(1)
    torch.testing.assert_close(found.lost, gap, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.whole, form.dense().square().sum(1))
    again = at_rank(form, (16, 20), 3, 0)
    assert torch.equal(again.form.dense(), found.form.dense())
    if name != "rows and outer":
        best = torch.linalg.svdvals(form.dense().view(3, 16, 20))[:, 3:].square().sum(1)
        assert bool((gap <= 1.05 * best + 1e-9).all())


@pytest.mark.parametrize("kind", ["written", "factors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_little_that_is_left_out_does_not_drown_in_rounding(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    falling = 0.2 ** torch.arange(12.0)[:, None]
    form: PerExampleGradient = OuterProduct(
        (falling * torch.randn(3, 12, 30)).to(dtype), torch.randn(3, 12, 40).to(dtype)
    )
    if kind == "written":
        form = Dense(form.dense().to(dtype).view(3, 30, 40))
    found = at_rank(form, (30, 40), 6, 0)
    gap = (form.dense().double() - found.form.dense().double()).square().sum(1)
    assert 0 < float((gap / found.whole).sqrt().max()) < 5e-3
    torch.testing.assert_close(found.lost, gap, rtol=0.05, atol=0)


@pytest.mark.parametrize("rank", [8, 100], ids=["the rank of texts", "more than there is"])
def test_a_rank_that_suffices_gives_exact_scores(rank: int) -> None:
    train, queries = texts(6, 0), texts(3, 1)
    form = tracin.LowRank(rank)
    own = run(parameters=["linear.*"])
    found = own.influence(train, queries, query_form=form)
    torch.testing.assert_close(found, own.influence(train, queries))
    left_out = own.explain(train, queries, 2, query_form=form).left_out
    assert left_out is not None
    assert float(left_out.max()) < 1e-6


@pytest.mark.parametrize("batch_size", [2, 5])
def test_scores_are_off_by_no_more_than_is_told(batch_size: int) -> None:
    train, queries, own = texts(6, 0), texts(5, 1), run()
    form = tracin.LowRank(2)
    exact = own.influence(train, queries)
    with pytest.warns(TracInWarning, match=r"LowRank\(rank=2, seed=0\).*higher rank"):
        found = own.influence(train, queries, query_form=form, batch_size=batch_size)
    with pytest.warns(TracInWarning) as warned:
        explained = own.explain(train, queries, 6, query_form=form, batch_size=batch_size)
    assert {each.filename for each in warned} == {__file__}  # the line to change
    assert explained.left_out is not None
    assert "is left out on average" in explained.notes[0]
    lengths = own.self_influence(train).sqrt()[:, None] * own.self_influence(queries).sqrt()
    bound = explained.left_out * lengths
    gap = (found - exact).abs()
    assert bool((gap <= bound + 1e-12).all())
    assert float((gap / bound).max()) > 0.01  # the bound says something
    assert explained[1:3].left_out is not None
    torch.testing.assert_close(explained[1:3].left_out, explained.left_out[1:3])
    torch.testing.assert_close(explained.proponents.scores, found.T.sort(1, descending=True).values)


def test_what_is_little_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tracin"):
        run().influence(texts(4, 0), texts(2, 1), query_form=tracin.LowRank(8))
    assert "is left out on average" in caplog.text


def test_curvature_multiplies_before_the_rank_is_lowered() -> None:
    train, queries, own = texts(30, 0), texts(3, 1), run(tracin.KFAC(), 1, ["linear.*"])
    exact = own.influence(train, queries)
    torch.testing.assert_close(own.influence(train, queries, query_form=tracin.LowRank(9)), exact)


@pytest.mark.filterwarnings("ignore::tracin.TracInWarning")
def test_where_low_rank_means_nothing_it_is_refused() -> None:
    train, form = texts(30, 0), tracin.LowRank(2)
    with pytest.raises(QueryError, match="A group is one gradient"):
        run().influence(train, train[:2], group="sum", query_form=form)
    with pytest.raises(QueryError, match=r"query_form is None or tracin\.LowRank"):
        run().explain(train, train[:2], query_form=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PreconditionerError, match="corrects the products of exact gradients"):
        run(tracin.Kernel(landmarks=8), 1).influence(train, train[:2], query_form=form)
    with pytest.raises(QueryError, match="rank is a whole number"):
        tracin.LowRank(0)
    with pytest.raises(QueryError, match="seed is a whole number"):
        tracin.LowRank(2, seed=-1)
