"""Complex parameters: real and imaginary parts count as parameters each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin

DOUBLE, SINGLE = torch.complex128, torch.complex64


class Linear(nn.Module):
    """A complex layer, whose sizes become logits."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, dtype=kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)).abs()


class Product(nn.Module):
    """Plain products with complex matrices, also conjugated ones: autograd conjugates lazily."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 5, dtype=kind))
        self.outer = nn.Parameter(torch.randn(4, 5, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.inner.dtype) @ self.inner @ self.outer.mH).abs()


class Spectral(nn.Module):
    """As in Fourier neural operators: a real layer, weights for frequencies, a real head."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        real = kind.to_real()
        self.stem = nn.Linear(6, 8, dtype=real)
        self.modes = nn.Parameter(torch.randn(5, dtype=kind))
        self.mix = nn.Parameter(torch.randn(5, 5, dtype=kind))
        self.head = nn.Linear(8, 4, dtype=real)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft(torch.tanh(self.stem(x))) * self.modes
        waves = torch.einsum("bi,io->bo", waves, self.mix) + waves @ self.mix
        return self.head(torch.fft.irfft(waves, n=8))


class Real(nn.Module):
    """Real parameters among complex data: a scale, a matrix and a shift."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        real = kind.to_real()
        self.kind = kind
        self.scale = nn.Parameter(torch.randn(6, dtype=real))
        self.matrix = nn.Parameter(torch.randn(6, 4, dtype=real))
        self.shift = nn.Parameter(torch.randn(4, dtype=real))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.polar(x.abs() + 1, 3 * x) * self.scale
        return (waves @ self.matrix.to(self.kind) + self.shift).abs()


class Table(nn.Module):
    """Rows, a convolution, a tensor made of two real parameters, a tied head."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        real = kind.to_real()
        self.rows = nn.Parameter(torch.randn(7, 4, dtype=kind))
        self.conv = nn.Conv1d(4, 4, 3, padding=1, dtype=kind)
        self.re = nn.Parameter(torch.randn(4, 4, dtype=real))
        self.im = nn.Parameter(torch.randn(4, 4, dtype=real))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.rows[(x * 5).abs().long() % 7]
        hidden = hidden + self.conv(hidden.mT).mT
        hidden = F.linear(hidden, torch.complex(self.re, self.im))
        return F.linear(hidden, self.rows[:4]).abs().mean(1)


class Operator(nn.Module):
    """A layer of a Fourier neural operator in two dimensions: few frequencies, written in place."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 3, dtype=kind.to_real())
        self.low = nn.Parameter(torch.randn(3, 2, 2, 2, dtype=kind))
        self.high = nn.Parameter(torch.randn(3, 2, 2, 2, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.lift((x[:, :, None] * x[:, None, :])[..., None]).movedim(-1, 1)
        waves = torch.fft.rfft2(grid)
        out = waves.new_zeros(len(x), 2, 6, 4)
        out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :2, :2], self.low)
        out[:, :, -2:, :2] = torch.einsum("bixy,ioxy->boxy", waves[:, :, -2:, :2], self.high)
        return torch.fft.irfft2(out, s=(6, 6)).square().mean(2)[:, :, :2].flatten(1)


class Rotation(nn.Module):
    """Trained rotary angles: real numbers that make complex ones, and complex ones themselves."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        real = kind.to_real()
        self.query, self.key = nn.Linear(2, 4, dtype=real), nn.Linear(2, 4, dtype=real)
        self.pace = nn.Parameter(torch.rand(2, dtype=real))
        self.phase = nn.Parameter(torch.randn(2, dtype=kind))
        self.head = nn.Linear(9, 4, dtype=real)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 3, 2)
        angles = torch.arange(3, device=x.device)[:, None] * self.pace
        turn = torch.polar(torch.ones_like(angles), angles) * self.phase
        pairs = torch.view_as_complex(self.query(x).unflatten(-1, (2, 2))) * turn
        return self.head((torch.view_as_real(pairs).flatten(2) @ self.key(x).mT).flatten(1))


MODELS: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "linear": Linear,
    "product": Product,
    "spectral": Spectral,
    "real among complex": Real,
    "table": Table,
    "operator": Operator,
    "rotation": Rotation,
}
of_each = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
in_both = pytest.mark.parametrize("kind", [DOUBLE, SINGLE], ids=["double", "single"])


def made(build: Callable[[torch.dtype], nn.Module], kind: torch.dtype) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = build(kind)
    data = torch.randn(9, 6, dtype=kind.to_real()), torch.arange(9) % 4
    return model, data, tuple(column[:3] for column in data)


def true_rows(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """One backward pass per example; real and imaginary parts are numbers each."""
    rows = []
    for i in range(len(data[1])):
        loss = F.cross_entropy(model(data[0][i : i + 1]), data[1][i : i + 1])
        found = torch.autograd.grad(loss, list(model.parameters()))
        parts = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in found]
        rows.append(torch.cat([part.flatten() for part in parts]).double())
    return torch.stack(rows)


@of_each
@in_both
def test_scores_are_those_of_real_and_imaginary_parts(build, kind: torch.dtype):
    model, data, queries = made(build, kind)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    rows = true_rows(model, data)
    rtol, atol = (1e-8, 1e-10) if kind == DOUBLE else (1e-3, 1e-4)

    own = run.self_influence(data, batch_size=4)
    scores = run.influence(data, queries, batch_size=4)
    first = run.explain(data, queries, k=3)[0]

    expected = rows @ rows[:3].T
    assert not scores.is_complex()
    assert torch.allclose(own.double(), rows.square().sum(1), rtol=rtol, atol=atol)
    assert torch.allclose(scores.double(), expected, rtol=rtol, atol=atol)
    best = [hit.id for hit in first.proponents]
    assert best == expected[:, 0].argsort(descending=True)[:3].tolist()
    assert run.verify(data).is_exact


@of_each
def test_an_index_holds_real_and_imaginary_parts(build, tmp_path: Path):
    model, data, queries = made(build, SINGLE)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    rows = true_rows(model, data)

    whole = tracin.Projection(dim=rows.shape[1] + 10)
    index = run.index(data, tmp_path / "index", projection=whole, recall_queries=0)

    assert torch.allclose(index.self_influence().double(), rows.square().sum(1), rtol=1e-3)
    found = index.with_run(run).influence(queries).double()
    assert torch.allclose(found, rows @ rows[:3].T, rtol=1e-2, atol=1e-3)


@of_each
def test_complex_parameters_have_fast_rules(build):
    model, data, _ = made(build, DOUBLE)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    coverage = run.coverage(data)

    assert {str(each.method) for each in coverage.entries.values()} == {"fast"}


def test_a_tracer_refuses_complex_parameters_by_name(tmp_path: Path):
    model, data, queries = made(Linear, SINGLE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with (
        pytest.raises(tracin.UnsupportedModelError, match=r"'layer\.weight'.* complex .*TracIn"),
        tracin.Tracer(model, optimizer, "cross_entropy", queries, data, tmp_path) as tracer,
        tracer.batch(range(9)),
    ):
        F.cross_entropy(model(data[0]), data[1]).backward()
