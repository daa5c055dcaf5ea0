"""Two functions have one fingerprint where they compute the same, as far as that can be seen."""

from functools import partial

import numpy as np
import pytest
import torch

from tracin.code_fingerprint import code_fingerprint, settings_fingerprint

RATE = 0.1


class Loss:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, model, batch):
        return model(batch) * self.weight

    def outcome(self, model, batch):
        return model(batch)


def closed(value):
    return lambda x: x + value


def of_a_global(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def of_a_callee(x):
    return helper(x)


def helper(x):
    return x * 2


def with_default(factor):
    def found(x, factor=factor):
        return x * factor

    return found


CHANGES = {
    "an attribute": (Loss(1.0), Loss(2.0)),
    "a tensor": (Loss(torch.tensor([1.0, 2.0])), Loss(torch.tensor([1.0, 3.0]))),
    "an array": (Loss(np.array([1.0, 2.0])), Loss(np.array([1.0, 3.0]))),
    "a number of NumPy's": (Loss(np.longdouble(1)), Loss(np.longdouble(2))),
    "texts": (Loss(np.array(["a"], dtype=object)), Loss(np.array(["b"], dtype=object))),
    "a bound method": (Loss(1.0).outcome, Loss(2.0).outcome),
    "a closure": (closed(1), closed(2)),
    "a default": (with_default(1), with_default(2)),
    "a partial's argument": (
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.SGD, lr=0.2),
    ),
    "a partial's function": (partial(closed(1)), partial(closed(2))),
    "a module's weights": (
        torch.nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
        torch.nn.CrossEntropyLoss(torch.tensor([1.0, 1.0])),
    ),
    "a module's setting": (
        torch.nn.CrossEntropyLoss(label_smoothing=0.1),
        torch.nn.CrossEntropyLoss(),
    ),
    "nested settings": (Loss({"a": [1, Loss(2)]}), Loss({"a": [1, Loss(3)]})),
    "the source": (lambda x: x + 1, lambda x: x + 2),
    "the class": (torch.nn.Linear, torch.nn.Conv2d),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change):
    one, other = CHANGES[change]

    assert code_fingerprint(one) != code_fingerprint(other)
    assert code_fingerprint(one) == code_fingerprint(one)


def test_equal_settings_are_equal():
    assert code_fingerprint(Loss([1, "a"])) == code_fingerprint(Loss([1, "a"]))
    assert code_fingerprint(partial(closed(3), a=1)) == code_fingerprint(partial(closed(3), a=1))


@pytest.mark.parametrize(("name", "value"), [("RATE", 0.5), ("helper", closed(2))])
def test_what_a_function_names_is_seen(monkeypatch, name, value):
    before = code_fingerprint(of_a_global), code_fingerprint(of_a_callee)

    monkeypatch.setitem(globals(), name, value)

    assert (code_fingerprint(of_a_global), code_fingerprint(of_a_callee)) != before


def test_an_object_that_holds_itself_ends():
    loss = Loss(1.0)
    loss.weight = {"self": loss}

    assert code_fingerprint(loss) == code_fingerprint(loss)


def test_a_models_settings_are_not_its_weights_or_its_mode():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    before = settings_fingerprint(model)

    model[0].weight.data.mul_(2)
    assert settings_fingerprint(model.eval()) == before

    model[1].p = 0.1
    assert settings_fingerprint(model) != before
