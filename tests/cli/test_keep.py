"""Conditions of `--keep` on the rows of an index."""

import numpy as np
import pytest

from tracin.cli.keep import keep_of
from tracin.errors import QueryError

ROWS = {"label": np.arange(4), "loss": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label=x", "the column 'label' holds int64; 'x' is not one"),
        ("label=99999999999999999999", "the column 'label' holds int64; '99999999999999999999' is"),
        ("colour=3", "the columns are label, loss"),
        ("label", "--keep takes 'right', or a column and a value"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_in_words(text, words):
    keep = keep_of([text])

    assert keep is not None
    with pytest.raises(QueryError, match=words):
        keep(ROWS)


def test_all_conditions_hold():
    keep = keep_of(["label=3", "loss=1"])

    assert keep is not None
    assert keep(ROWS).tolist() == [False, False, False, True]
