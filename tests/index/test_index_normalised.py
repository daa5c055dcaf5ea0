"""Normalised scores of an index are those of the model, where rows keep whole gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import tracin
from tracin import Projection, QueryError, TracIn
from tracin.index.index import Index

pytestmark = pytest.mark.filterwarnings("ignore:Trained with Adam")


def data(examples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    loud = 1 + 4 * torch.rand(examples, 1, generator=generator)
    inputs = loud * torch.randn(examples, 5, generator=generator)
    return inputs, torch.randint(0, 3, (examples,), generator=generator)


TRAIN, QUERIES = data(70, 1), data(6, 2)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracIn:
    folder, network = tmp_path_factory.mktemp("recorded"), model()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    with tracin.Recorder(network, optimizer, folder, optimizer_state=True) as recorder:
        for _ in range(2):
            nn.functional.cross_entropy(network(TRAIN[0]), TRAIN[1]).backward()
            optimizer.step()
            recorder.epoch()
    return TracIn(network, "cross_entropy", folder, learning_rates=[0.1, 0.02])


@pytest.fixture(scope="module")
def index(run: TracIn, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return run.index(TRAIN, folder, Projection(200), number_format="float32", shard_size=16)


@pytest.mark.parametrize("normalise", ["cosine", "query"])
def test_an_index_normalises_as_the_model_does(run: TracIn, index: Index, normalise: str):
    exact = run.explain(TRAIN, QUERIES, 5, normalise=normalise)

    found = index.explain(QUERIES, 5, normalise=normalise, memory=1 << 14)

    for side in ("proponents", "opponents"):
        mine, theirs = getattr(found, side), getattr(exact, side)
        assert (mine.positions == theirs.positions).all()
        assert torch.allclose(mine.scores, theirs.scores, rtol=1e-4)
        assert torch.allclose(mine.by_checkpoint.sum(2), mine.scores, rtol=1e-4, atol=1e-6)
        assert float(mine.errors.max()) < 1e-5
    assert "recall: unknown for normalised scores" in str(found)
    ranked = index.explain(QUERIES, 5).proponents.positions
    assert normalise == "query" or not np.array_equal(ranked, found.proponents.positions)


def test_under_adam_a_cosine_is_that_of_the_plain_gradient_with_the_queries_step(
    run: TracIn, index: Index
):
    adam = TracIn(
        run.model,
        "cross_entropy",
        run.checkpoints,
        learning_rates=[0.1, 0.02],
        preconditioner=tracin.Adam(),
    )
    scores = adam.influence(TRAIN, QUERIES)
    ratios = scores / run.self_influence(TRAIN).sqrt()[:, None]

    found = index.with_run(adam).explain(QUERIES, 5, normalise="cosine")

    assert (found.proponents.positions == ratios.topk(5, 0).indices.T.numpy()).all()
    assert float(found.proponents.scores.max()) <= 1 + 1e-5
    assert "cosines are with the rows' plain gradients" in str(found)


def test_candidates_chosen_by_other_scores_are_refused(index: Index):
    with pytest.raises(QueryError, match="candidates by the scores themselves"):
        index.explain(QUERIES, 5, exact=True, normalise="cosine")
    with pytest.raises(QueryError, match='normalise is None or one of "cosine", "query"'):
        index.explain(QUERIES, 5, normalise="loud")
