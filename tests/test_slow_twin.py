"""The twin that judges the engine: right by itself, without a trace in what belongs to users."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slow_twin as naive
import tracin
from tracin.data import part
from tracin.losses import open_loss
from tracin.precision import BFLOAT16, FLOAT32, FLOAT64
from tracin.slow_twin import AS_THEY_ARE, IN_FLOAT64, THEMSELVES, SlowTwin, Weights
from zoo import ZOO

EVERY = [AS_THEY_ARE, THEMSELVES]
TELLING = (
    "mlp",
    "activation_checkpointing",
    "activation_checkpointing_reentrant",
    "scripted_module",
    "frozen_among_trainable",
    "expert_unused_by_the_first_examples",
    "llama_in_its_own_precision",
)


def twin_of(model: nn.Module, loss: Any) -> SlowTwin:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return SlowTwin(model, open_loss(loss), parameters)


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum(1)


@pytest.mark.parametrize("weights", EVERY, ids=lambda weights: weights.name)
@pytest.mark.parametrize(
    "name",
    [
        name if name in TELLING else pytest.param(name, marks=pytest.mark.slow)
        for name, entry in ZOO.items()
        if entry.double is not None
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_it_gives_what_backward_gives(name: str, weights: Weights):
    case = ZOO[name].build().to(torch.float64)
    expected = naive.gradients(case.model, case.loss, case.data)
    case.model.eval()

    own = twin_of(case.model, case.loss).own(case.data, 2, weights)

    assert list(own.gradient) == list(expected)
    most = max(float(rows[2].abs().max()) for rows in expected.values())
    for key, rows in expected.items():
        gap = own.gradient[key] - rows[2].flatten()
        assert float(gap.abs().max()) <= 1e-10 * most


def test_a_float32_model_is_judged_in_float64():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(3, 4)

    own = twin_of(model, squares).own(batch, 1, IN_FLOAT64)
    plain = twin_of(model, squares).own(batch, 1, AS_THEY_ARE)

    expected = naive.gradients(model.double(), squares, batch.double())
    for name, rows in expected.items():
        torch.testing.assert_close(own.gradient[name], rows[1].flatten(), rtol=1e-12, atol=1e-14)
        assert plain.gradient[name].dtype == torch.float32
    assert (own.precision, plain.precision) == (FLOAT64, FLOAT32)


def test_a_weight_that_the_loss_reaches_by_itself_is_counted():
    model, batch = nn.Linear(3, 3), torch.randn(4, 3)
    weight = model.weight

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.linear(model(batch), weight).square().sum(1)

    own = twin_of(model, loss).own(batch, 0, AS_THEY_ARE)

    expected = naive.gradients(model, loss, batch)
    torch.testing.assert_close(own.gradient["weight"], expected["weight"][0].flatten())


def test_a_loss_with_weights_of_its_own_may_have_them_traced():
    class Proxies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6))

        def forward(self, model: nn.Module, batch: Tensor) -> Tensor:
            return F.linear(model(batch), self.weight).square().sum(1)

    model, loss, batch = nn.Linear(4, 6), Proxies(), torch.randn(5, 4)

    own = SlowTwin(model, loss, {"proxies": loss.weight}).own(batch, 1, IN_FLOAT64)

    loss(model, batch)[1].backward()
    expected = loss.weight.grad
    assert expected is not None
    torch.testing.assert_close(own.gradient["proxies"].float(), expected.flatten())


def test_complex_gradients_come_as_real_numbers():
    model = nn.Linear(2, 1, bias=False, dtype=torch.cdouble)
    batch = torch.randn(3, 2).to(torch.cdouble)

    own = twin_of(model, lambda model, batch: model(batch).abs()[:, 0]).own(batch, 0, AS_THEY_ARE)

    model(batch)[0].abs().sum().backward()
    assert model.weight.grad is not None
    expected = torch.view_as_real(model.weight.grad).flatten()
    torch.testing.assert_close(own.gradient["weight"], expected)


def test_what_is_not_used_has_a_gradient_of_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})

    own = twin_of(model, lambda model, batch: model["used"](batch)[:, 0]).own(
        torch.randn(3, 2), 0, IN_FLOAT64
    )

    assert own.gradient["idle.weight"].tolist() == [0.0, 0.0]


def test_the_precision_of_autocast_is_seen():
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch).square().sum(1)

    twin = twin_of(nn.Linear(3, 2), loss)

    assert twin.own(torch.randn(2, 3), 0, AS_THEY_ARE).precision == BFLOAT16
    assert twin.own(torch.randn(2, 3), 0, IN_FLOAT64).precision == FLOAT64


class Remembers(nn.Module):
    """Keeps what it computed, in an attribute, a dict, a list and a buffer, and writes into x."""

    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale: Tensor | None = None
        self.cache: dict[int, Tensor] = {}
        self.seen: list[Tensor] = []
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.full((3,), 2.0, dtype=x.dtype)
        self.cache.setdefault(len(x), x)
        self.seen.append(x)
        self.counted += 1
        return self.layer(x.mul_(self.scale))


@pytest.mark.parametrize("weights", [IN_FLOAT64, *EVERY], ids=lambda weights: weights.name)
def test_the_model_the_batch_and_hooks_are_left_alone(weights: Weights):
    model, batch, fired = Remembers(), torch.randn(4, 3), []
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.register_post_accumulate_grad_hook(fired.append)
        if weights.are_copies:
            parameter.register_hook(fired.append)
    model.layer.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept, grads = batch.clone(), [parameter.grad for parameter in model.parameters()]

    twin_of(model, squares).own(batch, 1, weights)

    assert not fired
    assert torch.equal(batch, kept)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert (model.scale, model.cache, model.seen) == (None, {}, [])
    assert not model.layer.bias.requires_grad
    if weights.are_copies:
        assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())


def test_the_model_is_left_alone_after_an_error():
    model = Remembers()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model(batch)
        raise KeyboardInterrupt

    weight = model.layer.weight
    with pytest.raises(KeyboardInterrupt):
        twin_of(model, loss).own(torch.randn(4, 3), 0, IN_FLOAT64)

    assert model.layer.weight is weight
    assert model.scale is None


WRONG: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "no tensor": (lambda model, batch: 1.0, "float"),
    "a mean": (lambda model, batch: model(batch).mean(), r"\(\)"),
    "two values": (lambda model, batch: model(batch), r"\(1, 2\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_loss_of_another_shape_is_refused(case: str):
    loss, came = WRONG[case]

    with pytest.raises(tracin.LossError, match=f"is {came}, but one value per example"):
        twin_of(nn.Linear(3, 2), loss).own(torch.randn(4, 3), 0, AS_THEY_ARE)


def test_a_batch_of_one_is_taken_as_it_is():
    model, batch = nn.Linear(3, 2), torch.randn(4, 3)
    twin = twin_of(model, squares)

    whole, alone = twin.own(batch, 2, IN_FLOAT64), twin.own(part(batch, [2]), 0, IN_FLOAT64)

    assert torch.equal(whole.gradient["weight"], alone.gradient["weight"])
    assert whole.length() == alone.length()
