"""Columns of a ranking: small in memory, and equal to what was written."""

import numpy as np
import pyarrow as pa
import pytest

from tracin.decisions.cells import Cells
from tracin.files import fingerprint


@pytest.mark.parametrize("highest", [127, 128, 32_768, 1 << 31, 1 << 62])
def test_whole_numbers_take_few_bytes_and_stay_what_they_are(highest):
    numbers = np.array([0, -1, highest])
    cells = Cells.of(pa.chunked_array([numbers]))

    assert cells.array().dtype == np.int64
    assert cells.array().tolist() == numbers.tolist()
    assert cells[2] == highest
    assert cells.equal(highest).tolist() == [False, False, True]
    assert cells.equal(1 << 61).tolist() == [False] * 3
    assert cells.differing(Cells(numbers)).tolist() == [False] * 3
    # Decisions belong to a fingerprint of ids and labels, which must not depend on their bytes.
    assert fingerprint(cells.pieces()) == fingerprint(Cells(numbers).pieces())


def test_a_small_column_takes_one_byte_per_row():
    assert Cells.of(pa.chunked_array([np.arange(100)])).values.nbytes == 100


def test_a_column_without_rows_is_whole_still():
    assert Cells.of(pa.chunked_array([pa.array([], pa.int64())])).is_whole


def test_numbers_beyond_64_bits_with_a_sign_become_texts():
    cells = Cells.of(pa.chunked_array([pa.array([1, 2**63], pa.uint64())]))

    assert [cells[0], cells[1]] == ["1", str(2**63)]
