"""Adam's moments are written by default, and a run that leaves them out is warned of."""

import warnings

import pytest
import torch
from torch import nn

import tracin
from tracin.errors import CheckpointError, CheckpointWarning

DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def recorded(folder, kind=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = kind(model.parameters(), lr=0.01)
    with tracin.Recorder(model, optimizer, folder, **options) as recorder:
        nn.functional.cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
        recorder.epoch()
    return model, optimizer


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_moments_are_written_by_default(tmp_path, kind):
    model, optimizer = recorded(tmp_path, kind)

    [found] = tracin.open_checkpoints(tmp_path)

    assert found.optimizer_kind == kind.__name__
    assert torch.equal(
        found.optimizer_state().moments["weight"]["exp_avg_sq"],
        optimizer.state[model.weight]["exp_avg_sq"],
    )


def test_other_optimizers_moments_are_not(tmp_path):
    recorded(tmp_path, torch.optim.SGD)

    [found] = tracin.open_checkpoints(tmp_path)

    assert found.optimizer_kind == "SGD"
    assert found.optimizer_state() is None


def test_a_run_of_adam_without_a_preconditioner_warns(tmp_path):
    model, _ = recorded(tmp_path)

    with pytest.warns(CheckpointWarning, match=r"with AdamW, scored as if by SGD.*=tracin.Adam\("):
        tracin.TracIn(model, "cross_entropy", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracin.TracIn(model, "cross_entropy", tmp_path, preconditioner=tracin.Adam())
        tracin.TracIn(model, "cross_entropy", tmp_path, preconditioner=tracin.KFAC())
        warnings.filterwarnings("ignore", "Trained with Adam")
        tracin.TracIn(model, "cross_entropy", tmp_path)


def test_the_warning_says_how_to_get_the_moments(tmp_path):
    model, _ = recorded(tmp_path, optimizer_state=False)

    with pytest.warns(CheckpointWarning, match=r"moments, which are not with 'step-0*1.*from_"):
        tracin.TracIn(model, "cross_entropy", tmp_path)
    with pytest.raises(CheckpointError, match=r"tracin.Recorder writes them, unless"):
        tracin.TracIn(model, "cross_entropy", tmp_path, preconditioner=tracin.Adam())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(torch.optim.AdamW, True), (torch.optim.SGD, False), (torch.optim.NAdam, False)],
    ids=["AdamW", "SGD", "NAdam"],
)
def test_a_file_with_adams_state_in_it_is_known(tmp_path, kind, expected):
    model, optimizer = recorded(tmp_path / "recorded", kind)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "a.pt")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tracin.TracIn(model, "cross_entropy", tmp_path / "a.pt")

    assert [one.category for one in caught] == [CheckpointWarning] * expected
    assert all(one.filename == __file__ for one in caught)
