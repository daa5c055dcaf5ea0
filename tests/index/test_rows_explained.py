"""Stored rows as queries: the same answers as from the model, each row left out of its own."""

import numpy as np
import pytest
import torch
from test_index import ROWS, TRAIN, built, run_of

import tracin
from tracin import QueryError


def some(positions):
    return tuple(column[list(positions)] for column in TRAIN)


def test_rows_are_explained_as_their_examples_are_less_themselves(tmp_path):
    run = run_of()
    index = built(tmp_path, run, dim=1000)
    positions = [40, 3, 17]

    found = tracin.Index.open(index.store.place.url).explain_rows(positions, k=6)
    known = run.influence(TRAIN, some(positions))

    assert found.query_ids.tolist() == positions
    assert found.checkpoints == ("epoch 1", "epoch 2")
    for query, position in enumerate(positions):
        scores = known[:, query].clone()
        scores[position] = -torch.inf
        order = scores.argsort(descending=True, stable=True)
        assert found.proponents.positions[query].tolist() == order[:6].tolist()
        torch.testing.assert_close(
            found.proponents.scores[query], scores[order[:6]], rtol=1e-4, atol=1e-6
        )
        scores[position] = torch.inf
        assert found.opponents.positions[query].tolist() == scores.argsort()[:6].tolist()


def test_many_rows_at_once_are_explained_as_each_alone(tmp_path):
    index = built(tmp_path)
    every = index.explain_rows(np.arange(ROWS), k=4)

    for position in (0, 33, ROWS - 1):
        alone = index.explain_rows(torch.tensor([position]), k=4)
        for side in ("proponents", "opponents"):
            one, other = getattr(alone, side), getattr(every, side)
            assert (one.positions[0] == other.positions[position]).all()
            torch.testing.assert_close(one.by_checkpoint[0], other.by_checkpoint[position])
            torch.testing.assert_close(one.errors[0], other.errors[position])


def test_all_other_rows_can_be_listed(tmp_path):
    found = built(tmp_path).explain_rows([5], k=ROWS - 1)

    assert sorted(found.proponents.positions[0]) == [at for at in range(ROWS) if at != 5]
    with pytest.raises(QueryError, match=f"Give a k from 1 to {ROWS - 1}"):
        built(tmp_path).explain_rows([5], k=ROWS)


def test_a_search_that_is_stopped_reads_no_further_block(tmp_path):
    index = built(tmp_path)  # of several files, so that there is a next block
    asked = []

    def is_stopped():
        asked.append(None)
        return len(asked) > 2

    assert index.explain_rows([1], k=2, is_stopped=is_stopped) is None
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([], r"got \[0\]"),
        ([[1]], r"got \[1, 1\]"),
        ([1.5], "whole numbers"),
        ([True], "torch.bool"),
        ([-1], f"Position -1 is no row of the index: it has rows 0 to {ROWS - 1}"),
        ([ROWS], "is no row"),
        ([2, 2], "comes twice"),
    ],
)
def test_what_names_no_rows_is_refused(tmp_path, positions, words):
    with pytest.raises(QueryError, match=words):
        built(tmp_path).explain_rows(positions, k=2)
