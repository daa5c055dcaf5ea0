"""Every model of the zoo gets the scores that one backward pass an example gives."""

import math
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor

import slow_twin
import tracin
from slow_twin import part
from tracin.losses import open_loss
from zoo import EXAMPLES, REFUSED, ZOO, Case, relative_error, truth

pytestmark = [
    # torch's own remarks on slow kernels that the zoo asks for on purpose
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

RATE = 0.5
DOUBLE = [name for name, entry in ZOO.items() if entry.double is not None]
FAST = [name for name, entry in ZOO.items() if entry.way == "fast"]

each = pytest.mark.parametrize("name", ZOO)
each_in_double = pytest.mark.parametrize("name", DOUBLE)


def made(name: str) -> tuple[Case, float]:
    """An entry in its finest precision, with the relative error it may have there."""
    entry = ZOO[name]
    if entry.double is None:
        return entry.build(), entry.single
    return entry.build().to(torch.float64), entry.double


def opened(case: Case) -> "tracin.TracIn":
    return tracin.TracIn(case.model, case.loss, [case.model.state_dict()], learning_rates=[RATE])


def check_scores(name: str, case: Case, tolerance: float, own_size: int, size: int) -> None:
    """Self-influence in batches of `own_size`, and influence among the examples in those of `size`.

    That influence is symmetric, with self-influence on its diagonal, is true of the twin's.
    """
    expected, run = truth(name), opened(case)
    # Three examples tell as much of batches of one as five.
    own_count, count = (3 if each == 1 else EXAMPLES for each in (own_size, size))

    own = run.self_influence(part(case.data, slice(own_count)), batch_size=own_size)
    scores = run.influence(part(case.data, slice(count)), case.data, batch_size=size)

    assert relative_error(own / RATE, expected.self_influence[:own_count]) <= tolerance
    assert relative_error(scores / RATE, expected.among[:count]) <= tolerance


def test_the_slow_twin_gives_gradients_known_by_hand():
    model = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    kept = model.weight.grad = torch.full((1, 2), 7.0)
    batch = (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1.0, -1.0]))

    rows = slow_twin.gradients(model, squared_error, batch)
    own = slow_twin.self_influence(model, squared_error, batch)
    cross = slow_twin.influence(model, squared_error, batch, batch, names=["bias"])

    # d (w x + b - y)^2 at w = b = 0 is -2 y (x, 1).
    assert rows["weight"].tolist() == [[[-2.0, -4.0]], [[6.0, 0.0]]]
    assert rows["bias"].tolist() == [[-2.0], [2.0]]
    assert own.tolist() == [24.0, 40.0]
    assert cross.tolist() == [[4.0, -4.0], [-4.0, 4.0]]
    assert model.weight.grad is kept
    assert model.training


@each
def test_every_entry_trains_something(name: str):
    sizes = truth(name).sizes

    assert sizes
    assert all(map(math.isfinite, sizes.values()))
    idle = [key for key, size in sizes.items() if size <= 1e-6 * max(sizes.values())]
    unexpected = [key for key in idle if not any(fnmatch(key, glob) for glob in ZOO[name].idle)]
    assert not unexpected


@each
def test_the_examples_of_an_entry_do_not_touch_each_other(name: str):
    case, tolerance = made(name)
    case.model.eval()
    loss = open_loss(case.loss)

    together = loss(case.model, case.data)

    alone = torch.cat([loss(case.model, part(case.data, slice(i, i + 1))) for i in range(EXAMPLES)])
    assert relative_error(together, alone) <= tolerance


@each_in_double
def test_float64_scores_equal_the_slow_twin(name: str):
    case, tolerance = made(name)
    # Both kinds of scores read the same gradients, so each of them takes one of three sizes, and
    # with the next model another one. Queries of their own come below.
    sizes = (1, 3, EXAMPLES, 1)
    turn = DOUBLE.index(name) % 3

    check_scores(name, case, tolerance, *sizes[turn : turn + 2])


@pytest.mark.parametrize("name", [name for name in ZOO if name not in DOUBLE])
@pytest.mark.parametrize("size", [1, EXAMPLES])
def test_scores_without_float64_equal_the_slow_twin(name: str, size: int):
    case, tolerance = made(name)

    check_scores(name, case, tolerance, size, size)


@each
def test_float32_scores_in_another_order_equal_the_slow_twin_and_nothing_is_left_changed(name: str):
    case, order = ZOO[name].build(), torch.tensor([3, 0, 4, 2, 1])
    for number, module in enumerate(case.model.modules()):
        module.training = number % 2 == 0
    for parameter in list(case.model.parameters())[::2]:
        parameter.grad = torch.full_like(parameter, 3.0)
    train, queries = part(case.data, order), case.queries
    given = [leaf.clone() for leaf in leaves([train, queries])]
    before, seed = state(case.model), torch.get_rng_state()
    run = opened(case)

    own = run.self_influence(train, batch_size=3)
    scores = run.influence(train, queries, batch_size=3)

    expected, tolerance = truth(name), ZOO[name].single
    assert relative_error(own / RATE, expected.self_influence[order]) <= tolerance
    assert relative_error(scores / RATE, expected.influence[order]) <= tolerance
    changed = [key for key, value in state(case.model).items() if not same(before[key], value)]
    assert changed == []
    assert torch.equal(torch.get_rng_state(), seed)
    assert same(leaves([train, queries]), given)


@pytest.mark.parametrize("name", FAST)
def test_fast_rules_alone_cover_every_parameter(name: str):
    case = ZOO[name].build()

    coverage = opened(case).coverage(case.data)

    trainable = {key for key, value in case.model.named_parameters() if value.requires_grad}
    assert set(coverage.entries) >= trainable
    slow = {key: str(coverage.entries[key].method) for key in trainable}
    assert {key: way for key, way in slow.items() if way != "fast"} == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_gradient_of_its_own_is_refused_with_the_reason(name: str):
    refusal = REFUSED[name]
    case = refusal.build()

    with pytest.raises(refusal.error, match=refusal.words):
        opened(case).self_influence(case.data)


def squared_error(model: torch.nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x)[:, 0] - y).square()


def state(model: torch.nn.Module) -> dict[str, Any]:
    """All that a caller could notice of a model: values, identities, gradients, modes, hooks."""
    found: dict[str, Any] = {"keys": list(model.state_dict())}
    for key, value in model.state_dict().items():
        found[f"{key}: value"] = value.clone()
    for key, value in model.named_parameters():
        found[f"{key}: identity"] = id(value)
        found[f"{key}: type"] = type(value)
        found[f"{key}: gradient"] = None if value.grad is None else value.grad.clone()
        found[f"{key}: requires_grad"] = value.requires_grad
        found[f"{key}: hooks"] = len(value._backward_hooks or {})
    for key, module in model.named_modules():
        found[f"{key}: mode"] = module.training
        found[f"{key}: hooks of the module"] = (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._backward_hooks),
        )
        found[f"{key}: attributes"] = sorted(vars(module))
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def leaves(batch: Any) -> list[Tensor]:
    """The tensors of a batch, whatever its structure."""
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch
    return [leaf for value in values for leaf in leaves(value)]
