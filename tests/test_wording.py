"""Data in another precision than the model is said so, by the name of its column."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin

LABELS = torch.arange(6) % 3


def run_of(model: nn.Module, loss: object = "cross_entropy") -> tracin.TracIn:
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")  # type: ignore[arg-type]


def last_state(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0])[1][0][-1].square().sum(1)


def images(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]).mean((2, 3)), batch[1], reduction="none")


CASES = {
    "linear": (nn.Linear(4, 3), "cross_entropy", (6, 4)),
    "without a bias": (nn.Linear(4, 3, bias=False), "cross_entropy", (6, 4)),
    "convolution": (nn.Conv2d(2, 3, 1), images, (6, 2, 4, 4)),
    "recurrent": (nn.LSTM(4, 3, batch_first=True), last_state, (6, 5, 4)),
    "layer norm first": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), "cross_entropy", (6, 4)),
}


@pytest.mark.parametrize("batch_size", ["auto", 2])
@pytest.mark.parametrize("name", CASES)
def test_float64_data_for_a_float32_model_is_named(name: str, batch_size):
    model, loss, shape = CASES[name]
    train = torch.randn(*shape).double(), LABELS

    with pytest.raises(tracin.DataError, match=r"batch\[0\] of the data is float64, but") as caught:
        run_of(model, loss).self_influence(train, batch_size=batch_size)

    assert ".to(torch.float32)" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError | ValueError)


INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_integers_for_a_model_of_floats_are_named(name: str, dtype: torch.dtype):
    model, loss, shape = CASES[name]
    train = torch.ones(*shape).to(dtype), LABELS

    words = rf"batch\[0\] of the data is {str(dtype)[6:]}, but the model's weights are float32"
    with pytest.raises(tracin.DataError, match=words) as caught:
        run_of(model, loss).self_influence(train)

    assert "Convert the data, with .to(torch.float32); if they are pixels" in str(caught.value)


def test_labels_are_not_blamed_for_integers():
    def tokens(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")

    train = {"labels": LABELS, "x": torch.ones(6, 4).long(), "input_ids": torch.ones(6, 4).long()}
    train["x"] = train.pop("x")

    with pytest.raises(tracin.DataError, match=r"batch\['x'\] of the data is int64"):
        run_of(nn.Linear(4, 3), tokens).self_influence(train)


def test_other_kinds_and_other_doors_say_the_same():
    run = run_of(nn.Linear(4, 3).bfloat16())
    train, unlike = (torch.randn(6, 4).bfloat16(), LABELS), (torch.randn(6, 4), LABELS)

    for ask in (run.coverage, run.verify, lambda data: run.influence(train, data)):
        with pytest.raises(tracin.DataError, match=r"batch\[0\] .* is float32, but .* bfloat16"):
            ask(unlike)


def test_a_column_that_torch_can_use_is_no_error():
    def weighted(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, labels, weights = batch
        return F.cross_entropy(model(inputs), labels, reduction="none") * weights

    train = torch.randn(6, 4), LABELS, torch.rand(6).double()

    assert run_of(nn.Linear(4, 3), weighted).self_influence(train).isfinite().all()


def test_an_error_of_the_model_itself_stays_its_own():
    def broken(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) @ torch.ones(3, 3).double())[:, 0]

    with pytest.raises(RuntimeError, match="dtype"):
        run_of(nn.Linear(4, 3), broken).self_influence((torch.randn(6, 4), LABELS))
