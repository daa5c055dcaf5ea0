"""One rule for ties: of equal scores the smallest position comes first, everywhere."""

import pytest
import torch

from tracin import NonFiniteError, TracIn
from tracin.scoring.top_k import top_k


def by_sorting(values, positions, k, largest):
    """The slow twin: Python's own sort by score, then by position."""
    chosen = []
    for row, at in zip(values.tolist(), positions.tolist(), strict=True):
        columns = range(len(row))
        chosen.append(sorted(columns, key=lambda c: (-row[c] if largest else row[c], at[c]))[:k])
    return torch.tensor(chosen).reshape(len(chosen), -1)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("kinds", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("k", [1, 4, 29, 30, 31, 50])
def test_ranks_as_a_sort_by_score_and_then_position(largest, kinds, k):
    generator = torch.Generator().manual_seed(kinds)
    values = torch.randint(-kinds, kinds, (5, 30), generator=generator).float()
    values[0] *= -0.0  # zeros of either sign are equal
    values[0, ::2] = 0.0
    positions = torch.stack([torch.randperm(100, generator=generator)[:30] for _ in range(5)])

    in_order = top_k(values, k, largest=largest)
    given = top_k(values, k, positions=positions, largest=largest)

    places = torch.arange(30).expand(5, -1)
    assert torch.equal(in_order.places, by_sorting(values, places, k, largest))
    assert torch.equal(given.places, by_sorting(values, positions, k, largest))
    assert torch.equal(given.values, values.gather(1, given.places))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_values_of_any_precision_keep_their_order(dtype):
    values = torch.ones(3, 5000, dtype=dtype)
    values[1, 4000] = 2

    assert top_k(values, 3).places.tolist() == [[0, 1, 2], [4000, 0, 1], [0, 1, 2]]
    assert top_k(values, 3, largest=False).places.tolist() == [[0, 1, 2]] * 3


def test_transposed_blocks_are_ranked_as_they_are():
    values = torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 3.0]])

    assert top_k(values.T, 2).places.tolist() == [[0, 1], [1, 2]]


def test_what_may_not_be_chosen_comes_last():
    values = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0]])

    assert top_k(values, 3).places.tolist() == [[1, 3, 0]]


def test_no_columns_and_no_queries_are_no_error():
    assert top_k(torch.zeros(2, 0), 3).places.shape == (2, 0)
    assert top_k(torch.zeros(0, 4), 3).places.shape == (0, 3)


@pytest.mark.parametrize("largest", [True, False])
def test_nan_has_no_rank(largest):
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]])

    with pytest.raises(NonFiniteError, match=r"A score is NaN.*no place in a ranking"):
        top_k(values, 1, largest=largest)


@pytest.mark.parametrize("batch_size", [1, 7, 200, "auto"])
def test_of_equal_examples_the_first_explain(batch_size):
    torch.manual_seed(0)
    inputs = torch.randn(1, 6).repeat(200, 1)
    labels = torch.zeros(200, dtype=torch.long)
    model = torch.nn.Linear(6, 3)
    run = TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    found = run.explain((inputs, labels), (inputs[:1], labels[:1]), k=5, batch_size=batch_size)

    assert found.proponents.positions.tolist() == [[0, 1, 2, 3, 4]]
    assert found.opponents.positions.tolist() == [[0, 1, 2, 3, 4]]
