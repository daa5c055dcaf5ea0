"""Damaged checkpoints of every kind are refused in words; with checksums nothing is silent."""

import pytest
from experiments.checkpoint_faults import CRASH, KINDS, REFUSED, SILENT, cut, flip, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_flipped_bit_is_refused_or_changes_nothing(kind):
    found = outcomes(kind, flip, tries=120, seed=1)

    assert not [one for one in found if one.startswith(CRASH)]
    assert found[REFUSED] > 20
    assert found[SILENT] == 0 or not kind.is_sealed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_cut_anywhere_is_refused(kind):
    found = outcomes(kind, cut, tries=40, seed=1)

    assert found == {REFUSED: 40}
