"""`verify` says exact of what is exact, in any precision, and of nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.gradients import Gradients
from tracin.gradients.forms import Dense, PerExampleGradient
from tracin.precision import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Precision
from tracin.scoring import comparison

CLASSES = 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
    return inputs.to(dtype), torch.arange(12) % CLASSES


def run_of(model: nn.Module, loss: Any = "cross_entropy") -> tracin.TracIn:
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")


def autocast(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[0])
    return F.cross_entropy(logits.float(), batch[1], reduction="none")


class Casts(nn.Module):
    """Computes in float32, whatever it is given: float64 weights do not fit in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs.float(), self.layer.weight, self.layer.bias)


class Island(nn.Module):
    """Routes in float32 whatever the model's precision, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        shares = self.router(inputs).float().softmax(-1).to(inputs.dtype)
        return self.head(inputs * shares)


class Attends(nn.Module):
    """Attention, where the true gradient of the keys' bias is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.head = (nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        words = torch.stack([inputs, inputs.roll(1, 1), -inputs], 1)
        scores = self.query(words) @ self.key(words).mT
        return self.head(scores.softmax(-1) @ words).mean(1)


class Kink(nn.Module):
    """3 x 0.1 - 0.3 is zero in float32 and less in float64: a ReLU goes either way."""

    def __init__(self) -> None:
        super().__init__()
        self.tenth = nn.Parameter(torch.tensor([0.1]))
        self.head = nn.Linear(1, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        left = torch.tensor([0.3]).to(self.tenth) - 3 * self.tenth
        return self.head(F.relu(left.expand(len(inputs), 1)) * 1e6 + inputs[:, :1])


MODELS: dict[str, tuple[Callable[[], tracin.TracIn], Any, Precision, str]] = {
    "float64": (lambda: run_of(net().double()), data(torch.float64), FLOAT64, "in float64"),
    "float32": (lambda: run_of(net()), data(), FLOAT32, "in float64"),
    "bfloat16": (
        lambda: run_of(net().bfloat16()),
        data(torch.bfloat16),
        BFLOAT16,
        "in float64",
    ),
    "float16": (lambda: run_of(net().half()), data(torch.float16), FLOAT16, "in float64"),
    "autocast in the loss": (lambda: run_of(net(), autocast), data(), BFLOAT16, "in float64"),
    "casts inside": (
        lambda: run_of(Casts()),
        data(),
        FLOAT32,
        "in the model's own precision; in float64: mat1 and mat2 must have the same dtype",
    ),
    "a float32 island": (
        lambda: run_of(Island().double()),
        data(torch.float64),
        FLOAT32,
        "in float64",
    ),
    "a gradient that is zero but for rounding": (
        lambda: run_of(Attends()),
        data(),
        FLOAT32,
        "in float64",
    ),
    "a kink within rounding": (lambda: run_of(Kink()), data(), FLOAT32, "in float64"),
    "a scripted model": (
        lambda: run_of(torch.jit.script(net())),  # type: ignore[arg-type]
        data(),
        FLOAT32,
        "in float64",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_exact_is_called_exact_in_its_own_precision(name: str):
    build, train, precision, compared = MODELS[name]

    found = build().verify(train)

    assert found.is_exact, str(found)
    assert found.precision == precision
    assert found.compared.startswith(compared)
    assert f"since the model computes in {precision.name}: exact" in str(found)


def test_autocast_around_the_call_is_the_precision_of_the_model():
    with torch.autocast("cpu", torch.bfloat16):
        found = run_of(net()).verify(data())

    assert found.precision == BFLOAT16
    assert found.is_exact


def test_the_allowed_error_is_small_where_the_precision_is_high():
    allowed = [
        run_of(net().to(dtype)).verify(data(dtype)).allowed
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    ]

    assert allowed == [1e-10, 1e-4, 0.05]


def spoil(
    change: Callable[[str, PerExampleGradient], PerExampleGradient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have the engine give something else."""
    visit = Gradients.visit

    def spoiled(self: Gradients, batch: Any, each: Callable[..., None], **options: Any) -> Any:
        return visit(self, batch, lambda n, form, row: each(n, change(n, form), row), **options)

    monkeypatch.setattr(Gradients, "visit", spoiled)


def swapped(name: str, form: PerExampleGradient) -> PerExampleGradient:
    rows = form.dense()
    return Dense(torch.cat([rows[1:2], rows[:1], rows[2:]])) if name == "2.bias" else form


def scaled(name: str, form: PerExampleGradient) -> PerExampleGradient:
    return Dense(form.dense() * 1.001) if name == "0.weight" else form


def last_is_wrong(name: str, form: PerExampleGradient) -> PerExampleGradient:
    rows = form.dense().clone()
    rows[-1, -1] += 0.01
    return Dense(rows) if name == "0.bias" else form


@pytest.mark.parametrize("change", [swapped, scaled, last_is_wrong])
def test_one_wrong_parameter_of_one_example_is_not_exact(change, monkeypatch):
    run = run_of(net())
    spoil(change, monkeypatch)

    found = run.verify(data())

    wrong = {name for name, error in found.errors.items() if error > found.allowed}
    assert not found.is_exact
    assert len(wrong) == 1
    assert "NOT exact" in str(found)


def test_scores_are_measured_beside_gradients(monkeypatch: pytest.MonkeyPatch):
    run = run_of(net())
    pairs = comparison.pairs
    monkeypatch.setattr(comparison, "pairs", lambda form, query: 1.01 * pairs(form, query))

    found = run.verify(data())

    assert max(found.errors.values()) <= found.allowed < found.scores
    assert not found.is_exact


def test_a_parameter_that_the_engine_leaves_out_is_not_exact(monkeypatch: pytest.MonkeyPatch):
    run = run_of(net())
    visit = Gradients.visit

    def without(self: Gradients, batch: Any, each: Callable[..., None], **options: Any) -> Any:
        def others(name: str, form: PerExampleGradient, row: int) -> None:
            if name != "2.bias":
                each(name, form, row)

        return visit(self, batch, others, **options)

    monkeypatch.setattr(Gradients, "visit", without)

    found = run.verify(data())

    assert not found.is_exact
    assert max(found.errors, key=lambda name: found.errors[name]) == "2.bias"


def test_a_few_examples_at_a_time_give_the_same_errors(monkeypatch: pytest.MonkeyPatch):
    run = run_of(net().double())
    whole = run.verify(data(torch.float64), examples=7)
    monkeypatch.setattr(comparison, "_HELD", 400)

    found = run.verify(data(torch.float64), examples=7)

    assert found.is_exact
    assert set(found.errors) == set(whole.errors)


def test_every_checkpoint_is_compared():
    model = net()
    broken = {name: torch.full_like(w, float("nan")) for name, w in model.state_dict().items()}
    run = tracin.TracIn(
        model,
        "cross_entropy",
        [tracin.Checkpoint(model.state_dict(), 1.0), tracin.Checkpoint(broken, 1.0)],
    )

    with pytest.raises(tracin.NonFiniteError, match="loss of example 0 is nan at checkpoint"):
        run.verify(data())


@pytest.mark.parametrize("examples", [0, -1, 1.5, True])
def test_a_number_of_examples_that_is_none_is_refused(examples):
    with pytest.raises(tracin.QueryError, match="at least 1"):
        run_of(net()).verify(data(), examples=examples)


def test_texts_and_lists_in_a_batch_are_compared_as_they_are():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, CLASSES)

        def forward(self, texts: list[str]) -> Tensor:
            return torch.stack(
                [self.table.weight[[len(w) for w in t.split()]].sum(0) for t in texts]
            )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    texts = [("a bb ccc", 0), ("dddd e", 1), ("ff", 2), ("g hh", 0)]

    assert run_of(Words(), loss).verify(texts).is_exact
