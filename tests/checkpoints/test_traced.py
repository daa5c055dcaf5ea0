"""What is traced must be what was trained, where a record says which."""

import pytest
import torch
from torch import nn

import tracin
from tracin.errors import CheckpointError

DATA = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def recorded(folder, frozen=()):
    model = net()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    with tracin.Recorder(model, optimizer, folder) as recorder:
        nn.functional.cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
        recorder.epoch()
    return folder


def test_a_parameter_that_was_not_trained_is_refused_by_name(tmp_path):
    recorded(tmp_path, frozen=["0.weight", "0.bias"])

    with pytest.raises(CheckpointError, match=r"while '0.bias', '0.weight' took no steps.*freeze"):
        tracin.TracIn(net(), "cross_entropy", tmp_path)
    with pytest.raises(CheckpointError, match="took no steps"):
        tracin.TracIn(net(), "cross_entropy", tmp_path, parameters=["0.*"])

    run = tracin.TracIn(net(), "cross_entropy", tmp_path, parameters=["2.*"])
    assert (run.self_influence(DATA) > 0).all()


def test_a_trained_parameter_that_is_frozen_now_is_refused_by_name(tmp_path):
    recorded(tmp_path)
    model = net()
    model[0].requires_grad_(False)

    with pytest.raises(CheckpointError, match=r"'0.bias', '0.weight' was trained, .*is_trainable"):
        tracin.TracIn(model, "cross_entropy", tmp_path)

    tracin.TracIn(model, "cross_entropy", tmp_path, parameters=["2.*"])


def test_a_choice_among_the_trained_ones_is_free(tmp_path):
    recorded(tmp_path)

    for parameters in (None, "last", ["0.*"]):
        tracin.TracIn(net(), "cross_entropy", tmp_path, parameters=parameters)


def test_the_recorded_names_are_those_without_wrappers(tmp_path):
    recorded(tmp_path)

    tracin.TracIn(nn.DataParallel(net()), "cross_entropy", tmp_path)
