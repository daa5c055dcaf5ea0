"""Selection as in LESS, by the model and by an index, against the plain way in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin import Projection, TracIn, select
from tracin.errors import QueryError

GROUPS = ["a", "b", "a", "b", "b"]


def data(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator).double()
    return inputs * (1 + torch.arange(examples) % 5)[:, None], torch.arange(examples) % 3


POOL, TARGETS = data(30, 1), data(5, 2)


pytestmark = pytest.mark.filterwarnings("ignore:Trained with Adam")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracIn:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("recorded")
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with tracin.Recorder(model, optimizer, folder, optimizer_state=True) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(POOL[0]), POOL[1]).backward()
            optimizer.step()
            recorder.epoch()
    rates = [0.3, 0.2, 0.1]
    return TracIn(
        model, "cross_entropy", folder, learning_rates=rates, preconditioner=tracin.Adam()
    )


def gradients(run: TracIn, at: int, examples: tuple[Tensor, Tensor]) -> Tensor:
    before = {name: each.clone() for name, each in run.model.state_dict().items()}
    run.model.load_state_dict(run.checkpoints[at].weights())
    rows = []
    for x, y in zip(*examples, strict=True):
        loss = F.cross_entropy(run.model(x[None]), y[None])
        each = torch.autograd.grad(loss, list(run.model.parameters()))
        rows.append(torch.cat([one.flatten() for one in each]))
    run.model.load_state_dict(before)
    return torch.stack(rows)


def best_of_groups(run: TracIn, *, of_steps: bool) -> Tensor:
    """LESS, section 4, one checkpoint after another: [pool]."""
    total = torch.zeros(30, 2).double()
    for at, rate in enumerate([0.3, 0.2, 0.1]):
        factors = tracin.Adam().scaling(run.checkpoints[at], run.parameters).factors
        scale = torch.cat([factors[name] for name in run.parameters])
        mine, theirs = gradients(run, at, POOL), gradients(run, at, TARGETS)
        for group, name in enumerate("ab"):
            mean = theirs[[each == name for each in GROUPS]].mean(0)
            one, other = (mine * scale, mean) if of_steps else (mine, mean * scale)
            total[:, group] += rate * F.cosine_similarity(one, other[None])
    return total.amax(1) / 0.6


def test_cosines_of_adams_steps_are_averaged_over_checkpoints_and_the_best_group_counts(run):
    found = select(
        run, POOL, TARGETS, 30, groups=GROUPS, normalise="checkpoint_cosine", duplicates=None
    )

    expected = best_of_groups(run, of_steps=True)
    order = expected.argsort(descending=True)
    assert found.positions.tolist() == order[expected[order] > 0].tolist()
    assert found.scores.tolist() == pytest.approx(expected[found.positions].tolist(), rel=1e-9)


def test_an_index_selects_by_its_rows_alone(run, tmp_path: Path):
    rates = [0.3, 0.2, 0.1]
    plain = TracIn(run.model, "cross_entropy", run.checkpoints, learning_rates=rates)
    kept: Any = {"number_format": "float32", "recall_queries": 0}
    rows = plain.index(POOL, tmp_path / "plain", Projection(200), **kept)
    index = rows.with_run(run)

    found = select(
        index, None, TARGETS, 30, groups=GROUPS, normalise="checkpoint_cosine", duplicates=None
    )

    expected = best_of_groups(run, of_steps=False)
    assert found.scores.tolist() == pytest.approx(expected[found.positions].tolist(), rel=1e-4)
    assert len(found) == int((expected > 0).sum())
    for normalise in (None, "cosine"):
        options = {"groups": GROUPS, "normalise": normalise, "duplicates": 0.95}
        by_rows = select(index.with_run(plain), None, TARGETS, 10, **options)
        by_model = select(plain, POOL, TARGETS, 10, **options)
        assert by_rows.positions.tolist() == by_model.positions.tolist()
        assert by_rows.dropped == by_model.dropped
        assert by_rows.scores.tolist() == pytest.approx(by_model.scores.tolist(), rel=1e-4)
    under_adam = run.index(POOL, tmp_path / "adam", Projection(200), **kept)
    options = {"groups": GROUPS, "normalise": "cosine", "duplicates": None}
    by_rows, by_model = (
        select(under_adam, None, TARGETS, 10, **options),
        select(run, POOL, TARGETS, 10, **options),
    )
    assert by_rows.positions.tolist() == by_model.positions.tolist()
    assert by_rows.scores.tolist() == pytest.approx(by_model.scores.tolist(), rel=1e-3)
    select(under_adam, None, TARGETS, 10, groups=GROUPS, duplicates=0.95)
    with pytest.raises(QueryError, match="the pool must be None"):
        select(index, POOL, TARGETS)
