"""What a trace says of its own trustworthiness."""

import pytest
import torch

from traced_training import (
    OPTIMIZERS,
    QUERIES,
    batches,
    mlp,
    sgd,
    traced,
)
from tracin.tracing import Quadrature

pytestmark = pytest.mark.usefixtures("float64")


def test_goodness_says_what_to_make_of_it(tmp_path, train, queries):
    fine, _ = traced(tmp_path / "a", mlp, sgd, train, queries, batches(10))
    assert "Trust rankings and magnitudes" in str(fine.goodness())
    wild, _ = traced(
        tmp_path / "b", mlp, lambda p: torch.optim.SGD(p, lr=30.0), train, queries, batches(10)
    )
    found = wild.goodness(Quadrature.FIRST_ORDER)
    assert "may not" in found.verdict or "Do not trust" in found.verdict
    assert not found.magnitudes_reliable
    fine.goodness().plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
    predicted, real = fine.goodness().totals
    assert predicted.shape == real.shape == (QUERIES,)
    assert fine.goodness().residuals.shape == (10,)


def test_goodness_has_words_for_what_it_cannot_judge(tmp_path, train, queries):
    still, _ = traced(
        tmp_path / "a", mlp, lambda p: torch.optim.SGD(p, lr=0.0), train, queries, batches(2)
    )
    assert "Cannot judge these scores" in still.goodness().verdict
    decayed, _ = traced(
        tmp_path / "b", mlp, OPTIMIZERS["SGD, weight decay"], train, queries, batches(5)
    )
    assert "weight_decay, which belong to no example" in decayed.goodness().verdict
    steps = decayed.steps
    broken = steps.rows.copy()
    broken[2, 3 : 3 + QUERIES] += 1  # the losses before a step are not those after the one before
    from tracin.tracing.diagnostics import goodness_of
    from tracin.tracing.step_table import Steps

    gone = goodness_of(Steps(broken, QUERIES, steps.paths), Quadrature.TRAPEZOID)
    assert "Lemma 3.1" in gone.verdict
    assert "Do not trust" in gone.verdict
