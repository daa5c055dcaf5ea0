"""Likeness of texts and embeddings, and the two controls that know nothing of a query."""

import math

import pytest
import torch

import tracin
from tracin.baselines import BM25, EmbeddingCosine, Loss, RandomScores
from tracin.errors import DataError, NonFiniteError, QueryError

TEXTS = ["the cat sat on the mat", "a dog", "the cat and the cat and the dog", "", "birds fly"]


def slowly(texts, query, k1=1.2, b=0.75):
    mean = sum(map(len, texts)) / len(texts)
    found = []
    for text in texts:
        total = 0.0
        for token in query:
            held = sum(token in each for each in texts)
            idf = math.log(1 + (len(texts) - held + 0.5) / (held + 0.5))
            times = text.count(token)
            if times == 0:
                continue
            total += idf * times * (k1 + 1) / (times + k1 * (1 - b + b * len(text) / mean))
        found.append(total)
    return found


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_bm25_is_its_formula(k1, b):
    queries = ["The cat?", "dog dog birds", "unknown words", ""]

    found = BM25(k1, b).influence(TEXTS, queries)

    split = [text.split() for text in TEXTS]
    for at, query in enumerate(["the cat", "dog dog birds", "unknown words", ""]):
        assert found[:, at].tolist() == pytest.approx(slowly(split, query.split(), k1, b))


def test_bm25_takes_tokens_in_every_form():
    tokens = [[1, 2, 2], [3, 1], [2, 4, 5]]
    padded = torch.tensor([[1, 2, 2, 0], [3, 1, 0, 0], [2, 4, 5, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    wanted = BM25().influence(tokens, [[2, 3]])

    columns = {"input_ids": padded, "attention_mask": mask}
    rows = [{"input_ids": padded[at], "attention_mask": mask[at]} for at in range(3)]

    for train in (
        columns,
        rows,
        [torch.tensor(each) for each in tokens],
        tracin.WithIds(tokens, list("abc")),
    ):
        assert torch.equal(BM25().influence(train, [[2, 3]]), wanted)
    assert torch.equal(
        BM25().influence([list("ab"), ["c"]], [["c"]])[:, 0] > 0, torch.tensor([False, True])
    )


@pytest.mark.parametrize("data", ["one text", {"x": 1}, 3, [1.5, 2.5], [[0.5]], torch.ones(2, 2)])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(DataError, match="BM25 compares texts: train holds texts, lists of tokens"):
        BM25().influence(data, ["a"])


def test_bm25s_numbers_are_checked():
    with pytest.raises(QueryError, match=r"k1=-1 and b=0.75 were given"):
        BM25(k1=-1)
    with pytest.raises(QueryError, match="b one from 0 to 1"):
        BM25(b=2)
    with pytest.raises(DataError, match="train holds no text"):
        BM25().influence([], ["a"])


def test_embeddings_are_compared_by_their_cosine():
    data, queries = torch.randn(300, 5), torch.randn(3, 5)

    found = EmbeddingCosine(lambda batch: batch * 2).influence(data, queries)

    wanted = torch.nn.functional.cosine_similarity(data[:, None], queries[None], dim=2)
    assert torch.allclose(found.float(), wanted, atol=1e-6)
    assert torch.equal(
        EmbeddingCosine(lambda x: x).influence(data, queries, batch_size=7),
        EmbeddingCosine(lambda x: x).influence(data, queries),
    )


def test_what_is_no_embedding_is_refused():
    data = torch.randn(4, 5)

    with pytest.raises(DataError, match=r"one row of numbers per example, \[4, numbers\]; \[4\]"):
        EmbeddingCosine(lambda batch: batch.sum(1)).influence(data, data)
    with pytest.raises(NonFiniteError, match="An embedding of train is NaN or infinite"):
        EmbeddingCosine(lambda batch: batch * torch.nan).influence(data, data)
    with pytest.raises(QueryError, match="embed is a function of a batch"):
        EmbeddingCosine(3)  # type: ignore[arg-type]


def test_random_scores_depend_on_their_seed_alone():
    data, queries = torch.zeros(500, 1), torch.zeros(3, 1)

    one, again, other = (RandomScores(seed).influence(data, queries) for seed in (0, 0, 1))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert float(one.mean()) == pytest.approx(0, abs=0.1)


def test_the_loss_explains_every_query_alike():
    model = torch.nn.Linear(2, 2)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    train, queries = ((torch.randn(n, 2), torch.arange(n) % 2) for n in (6, 3))

    found = Loss(run).influence(train, queries)

    assert found.shape == (6, 3)
    assert all(found[:, at].tolist() == Loss(run).scores(train).values.tolist() for at in range(3))
