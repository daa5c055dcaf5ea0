"""What was compiled runs as it was written within passes, and compiled again afterwards."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import tracin
from slow_twin import self_influence
from tracin.eager import eagerly
from tracin.torch_internals import compiler_stance


class Counted:
    """A backend of `torch.compile` that counts what it is given to compile."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        self.graphs += 1
        return graph.forward


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs)))


def _whole(backend: Counted) -> nn.Module:
    return torch.compile(Net().double(), backend=backend)  # type: ignore[return-value]


def _in_place(backend: Counted) -> nn.Module:
    model = Net().double()
    model.compile(backend=backend)
    return model


def _part(backend: Counted) -> nn.Module:
    model = Net().double()
    model.first = torch.compile(model.first, backend=backend)  # type: ignore[assignment]
    return model


def _part_in_place(backend: Counted) -> nn.Module:
    model = Net()
    model.compile(backend=backend)
    return nn.Sequential(nn.Linear(4, 4), model).double()


def _method(backend: Counted) -> nn.Module:
    model = Net().double()
    model.forward = torch.compile(model.forward, backend=backend)
    return model


@pytest.mark.parametrize("build", [_whole, _in_place, _part, _part_in_place, _method])
def test_nothing_is_compiled_by_scoring_and_scores_are_right(build):
    torch.manual_seed(0)
    backend = Counted()
    model = build(backend)
    data = torch.randn(10, 4).double(), torch.arange(10) % 3

    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    found = run.self_influence(data, batch_size=4)

    assert backend.graphs == 0
    with eagerly():
        torch.testing.assert_close(found, self_influence(model, "cross_entropy", data))
    with torch.no_grad():
        model(data[0])
    assert backend.graphs == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_stance_of_the_compiler_comes_back(error):
    seen = []

    with torch.compiler.set_stance("eager_on_recompile"):
        before = compiler_stance()
        with suppress(error), eagerly(), eagerly():
            seen.append(compiler_stance())
            raise error
        after = compiler_stance()

    assert [stance.stance for stance in seen] == ["force_eager"]
    assert after == before
    assert compiler_stance().stance == "default"
