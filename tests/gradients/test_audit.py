"""Every pass is measured against autograd while it runs: whatever moves examples is found."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

import slow_twin
import tracin
from tracin.errors import CoupledExamplesError, DataWarning, LossError
from tracin.gradients import Gradients, random_products, schedule
from tracin.gradients.audit import Audit, Reference, audit_factors
from tracin.gradients.exchange import exchanged
from tracin.gradients.forms import Dense
from tracin.gradients.reference import weighted_gradients
from tracin.gradients.schedule import Schedule
from tracin.losses import open_loss

EXAMPLES = 24


@pytest.fixture(params=["whole", "random products"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's gradients, as those of small and of large matrices are held."""
    if request.param != "whole":
        monkeypatch.setattr(random_products, "LARGE", 1)
        monkeypatch.setattr(random_products, "ROWS", 1)


class SortsThenBack(nn.Module):
    """Runs a layer on a sorted batch, in the way that `move` sorts."""

    def __init__(self, move: Callable[[Tensor, Tensor], Tensor], after: int = 0) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.move, self.after = move, after

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x))
        if float(x[0, 3]) >= self.after:  # the last column counts the examples
            order = x[:, 0].argsort()
        moved = self.move(x, order)
        return self.head(torch.tanh(self.layer(moved)))[order.argsort()]


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.order = order
        return x[order].clone()

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> Any:
        return deltas[0][ctx.order.argsort()], None


def by_setitem(x: Tensor, order: Tensor) -> Tensor:
    moved = torch.empty_like(x)
    moved[order.argsort()] = x
    return moved


def by_slices(x: Tensor, order: Tensor) -> Tensor:
    moved = torch.empty_like(x)
    for to, source in enumerate(order.tolist()):
        moved[to : to + 1] = x[source : source + 1]
    return moved


def by_storage(x: Tensor, order: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy()[order.numpy()])


MOVES = {
    "setitem": by_setitem,
    "slices": by_slices,
    "index_copy": lambda x, o: torch.zeros_like(x).index_copy(0, o.argsort(), x),
    "index_add": lambda x, o: torch.zeros_like(x).index_add(0, o.argsort(), x),
    "index_put": lambda x, o: torch.zeros_like(x).index_put((o.argsort(),), x),
    "scatter": lambda x, o: torch.zeros_like(x).scatter(0, o.argsort()[:, None].expand_as(x), x),
    "numpy index": lambda x, o: x[o.numpy()],
    "list index": lambda x, o: x[o.tolist()],
    "tuple of an index": lambda x, o: x[(o.numpy(), slice(None))],
    "custom function": lambda x, o: _Moved.apply(x, o),
    "through numpy": by_storage,
    "einsum": lambda x, o: torch.einsum("ij,j...->i...", F.one_hot(o, len(o)).to(x), x),
    "tensordot": lambda x, o: torch.tensordot(F.one_hot(o, len(o)).to(x), x, 1),
    "linear": lambda x, o: F.linear(F.one_hot(o, len(o)).to(x), x.T),
    "sparse product": lambda x, o: torch.sparse.mm(F.one_hot(o, len(o)).to(x).to_sparse(), x),
    "stack": lambda x, o: torch.stack([x.unbind(0)[at] for at in o.tolist()]),
}


def data(examples: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    some = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 4, generator=some, dtype=torch.float64)
    x[:, 3] = torch.arange(examples)
    return x, torch.arange(examples) % 3


def opened(model: nn.Module, loss: Any = "cross_entropy") -> "tracin.TracIn":
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# In one batch of all the first example is example 0, so it is sorted with `after=0` alone.
@pytest.mark.parametrize(
    ("after", "batch_size"),
    [(0, 6), (6, 6), (12, 6), (EXAMPLES - 6, 6), (0, EXAMPLES), (EXAMPLES - 6, EXAMPLES)],
)
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_examples_that_are_moved_keep_their_own_scores(
    move: Callable[[Tensor, Tensor], Tensor], after: int, batch_size: int
):
    model = SortsThenBack(move, after).double()
    expected = slow_twin.self_influence(model, "cross_entropy", data())

    found = opened(model).self_influence(data(), batch_size=batch_size)

    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.usefixtures("held")
def test_two_swapped_examples_among_many_are_found():
    def swap(x: Tensor, order: Tensor) -> Tensor:
        return by_setitem(x, order)

    class Swaps(SortsThenBack):
        def forward(self, x: Tensor) -> Tensor:
            order = torch.arange(len(x))
            if len(x) > 10:
                order[[7, 9]] = order[[9, 7]]
            return self.head(torch.tanh(self.layer(self.move(x, order))))[order.argsort()]

    model = Swaps(swap).double()
    expected = slow_twin.influence(model, "cross_entropy", data(), data(3))

    found = opened(model).influence(data(), data(3), batch_size=EXAMPLES)

    assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.usefixtures("held")
def test_scores_that_an_audit_did_not_cover_are_made_again():
    model = SortsThenBack(by_setitem, after=12).double()
    run = opened(model)

    found = run.self_influence(data(), batch_size=2)

    # Batches 1, 2, 4 and 8 are in order; 7 was unaudited and is not.
    assert torch.allclose(
        found, slow_twin.self_influence(model, "cross_entropy", data()), rtol=1e-9
    )
    assert "in a batch its rules and autograd differ by" in str(run.coverage(data()))


@pytest.mark.usefixtures("held")
def test_queries_are_audited_as_well():
    model = SortsThenBack(by_setitem, after=EXAMPLES - 4).double()
    train, queries = data(8), tuple(each[-4:] for each in data())

    found = opened(model).influence(train, queries, batch_size=4)

    expected = slow_twin.influence(model, "cross_entropy", train, queries)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_units_of_an_index_are_audited_as_well(tmp_path):
    model = SortsThenBack(by_setitem, after=12).double()
    projection = tracin.Projection(256)

    index = opened(model).index(
        data(), tmp_path, projection, shard_size=8, number_format="float32", recall_queries=0
    )

    expected = slow_twin.self_influence(model, "cross_entropy", data())
    assert torch.allclose(index.self_influence().double(), expected, rtol=1e-5)


def test_experts_that_take_turns_by_slots_are_exact():
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.router, self.head = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
            self.experts = nn.Parameter(torch.randn(3, 6, 6) / 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.tanh(self.stem(x))
            share, expert = self.router(hidden).softmax(-1).max(-1)
            chosen = F.one_hot(expert, 3)
            place = (chosen.cumsum(0) * chosen).sum(1) - 1
            slots = hidden.new_zeros(3, len(x), 6)
            slots[expert, place] = hidden
            return self.head(
                hidden + share[:, None] * torch.bmm(slots, self.experts).tanh()[expert, place]
            )

    for seed in range(5):
        torch.manual_seed(seed)
        model = Switch().double()
        found = opened(model).self_influence(data())
        expected = slow_twin.self_influence(model, "cross_entropy", data())
        assert torch.allclose(found, expected, rtol=1e-9)


def test_models_that_write_into_their_batch_leave_the_data_as_it_was():
    class Clamps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            x[x > 1] = 1
            return self.layer(x.clamp_(-1))

    model, (x, y) = Clamps().double(), data()
    before = x.clone()
    expected = slow_twin.self_influence(model, "cross_entropy", (x.clone(), y))
    x.copy_(before)

    run = opened(model)
    found = [run.self_influence((x, y), batch_size=6) for _ in range(2)]
    arrays = x.numpy().copy(), y.numpy()
    run.influence(arrays, arrays, batch_size=6)

    assert torch.equal(x, before)
    assert np.array_equal(arrays[0], before.numpy())
    assert torch.equal(*found)
    assert torch.allclose(found[0], expected, rtol=1e-9)


def by_numpy(x: Tensor) -> Tensor:
    np.clip(x.numpy(), -1, 1, out=x.numpy())
    return x


WRITES = {
    "method": lambda x: x.clamp_(-1, 1),
    "view of a view": lambda x: (x.T[1:].detach()[0].mul_(2), x)[1],
    "setitem": lambda x: (x.__setitem__((slice(None), 0), 1.0), x)[1],
    "operator": lambda x: x.__imul__(2),
    "out": lambda x: torch.clamp(x, -1, 1, out=x),
    "flag": lambda x: F.relu(x, inplace=True),
    "flag by place": lambda x: F.leaky_relu(x, 0.1, True),
    "data": lambda x: (x.data.zero_(), x)[1],
    "foreach": lambda x: (torch._foreach_mul_([x], 2.0), x)[1],
    "overload": lambda x: (torch.ops.aten.mul_.Tensor(x, x), x)[1],
    "packet": lambda x: (torch.ops.aten.neg_(x), x)[1],
    "numpy": by_numpy,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_in_a_later_batch_do_not_reach_the_data(write: Callable[[Tensor], Tensor]):
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(write(x) if float(x[0, 3]) >= 12 else x)

    model, (x, y) = Writes().double(), data()
    before = x.clone()
    expected = slow_twin.self_influence(model, "cross_entropy", (x.clone(), y))
    assert torch.equal(x, before)

    found = opened(model).self_influence((x, y), batch_size=4)

    assert torch.equal(x, before)
    assert torch.allclose(found, expected, rtol=1e-9)


def test_what_is_only_read_is_not_copied():
    seen: list[int] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.storage_offset() if len(x) == 4 else -1)
            return self.layer(x)

    opened(Looks().double()).self_influence(data(), batch_size=4)

    assert {4 * 4 * at for at in range(1, 6)} <= set(seen)  # views of the data, but the first


def test_writes_that_no_watch_sees_are_said():
    @torch.jit.script
    def clamped(x: Tensor) -> Tensor:
        return x.clamp_(-1.0, 1.0)

    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(clamped(x) if float(x[0, 3]) == 8 else x)

    with pytest.raises(tracin.errors.DataError, match="wrote into its batch in code that torch"):
        opened(Scripted().double()).self_influence(data(), batch_size=4)


@pytest.mark.parametrize(
    "noise",
    [torch.rand_like, torch.randn_like, lambda x: torch.from_numpy(np.random.rand(*x.shape))],
    ids=["rand", "randn", "numpy"],
)
def test_random_losses_are_called_random(noise: Callable[[Tensor], Tensor]):
    model = nn.Linear(4, 4).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0] + noise(batch[0])) - batch[0]).square().mean(1)

    with pytest.raises(LossError, match="draws random numbers: the same example has loss"):
        opened(model, loss).self_influence(data())


def test_a_state_that_changes_in_each_pass_is_named():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.layer(x) * (1 + 0.1 * self.seen)

    with pytest.raises(LossError, match="the buffer 'seen' changes in each pass"):
        opened(Counts().double()).self_influence(data())


def test_coupled_examples_are_called_coupled_with_the_gap():
    def centred(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0])
        return (outputs - 1e-3 * outputs.mean(0)).square().mean(1)

    model = nn.Linear(4, 3).double()

    words = r"in a smaller batch and .* with more"
    with pytest.raises(CoupledExamplesError, match=words) as caught:
        opened(model, centred).self_influence(data())

    assert "0.0%" not in str(caught.value)


def test_examples_coupled_by_a_full_expert_are_found():
    def capacity(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        kept = torch.ones(len(x), dtype=torch.bool)
        kept[12:] = False  # only so many examples have room
        return F.cross_entropy(model(x) * kept[:, None], y, reduction="none")

    with pytest.raises(CoupledExamplesError):
        opened(nn.Linear(4, 3).double(), capacity).self_influence(data())


def test_trained_tensors_outside_the_model_are_refused_by_name():
    class Proxies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proxies = nn.Parameter(torch.randn(3, 6, dtype=torch.float64))

        def forward(self, model: nn.Module, batch: Any) -> Tensor:
            outputs = F.linear(model(batch[0]), self.proxies)
            return F.cross_entropy(outputs, batch[1], reduction="none")

    model, loss = nn.Linear(4, 6).double(), Proxies()
    raw = loss.proxies.detach().clone().requires_grad_()

    def closure(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(F.linear(model(batch[0]), raw), batch[1], reduction="none")

    with pytest.raises(LossError, match=re.escape("'proxies' of the loss, [3, 6]")):
        opened(model, loss).self_influence(data())
    with pytest.raises(LossError, match=re.escape("a tensor of shape [3, 6]")):
        opened(model, closure).self_influence(data())
    raw.requires_grad_(False)
    assert opened(model, closure).self_influence(data()).isfinite().all()


def test_leaves_that_a_loss_makes_for_itself_are_no_trained_tensors():
    def smooth(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].detach().requires_grad_()
        outputs = model(x)
        (slope,) = torch.autograd.grad(outputs.sum(), x, create_graph=True)
        return outputs.square().mean(1) + slope.square().mean(1)

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    assert opened(model, smooth).verify(data()).is_exact


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(ids)).mean(1))


def padded(batch: list[Any]) -> tuple[Tensor, Tensor]:
    return pad_sequence([ids for ids, _ in batch], batch_first=True), torch.tensor(
        [label for _, label in batch]
    )


def test_padding_that_counts_is_warned_of():
    texts = [(torch.randint(1, 50, (3 + 2 * at,)), at % 3) for at in range(12)]
    loader = DataLoader(texts, batch_size=4, collate_fn=padded)  # pyright: ignore

    with pytest.warns(DataWarning, match=r"Padding counts: example 0 of train has loss .* apart"):
        opened(Mean()).self_influence(loader, batch_size=4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_padding_that_does_not_count_is_not_warned_of(batch_size: int):
    class Masked(Mean):
        def forward(self, ids: Tensor) -> Tensor:
            kept = (ids > 0)[:, :, None]
            return self.head((torch.tanh(self.words(ids)) * kept).sum(1) / kept.sum(1))

    texts = [(torch.randint(1, 50, (3 + 2 * at,)), at % 3) for at in range(12)]
    loader = DataLoader(texts, batch_size=4, collate_fn=padded)  # pyright: ignore

    opened(Masked()).self_influence(loader, batch_size=batch_size)  # warnings are errors


def test_random_data_is_warned_of_and_not_taken_for_rows_in_another_order():
    class Noisy(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 12

        def __getitem__(self, at: int) -> tuple[Tensor, int]:
            return torch.arange(4.0).double() + torch.rand(4), at % 3

    with pytest.warns(DataWarning, match="changes from one fetch to the next"):
        found = opened(nn.Linear(4, 3).double()).self_influence(Noisy())

    assert len(found) == 12


def test_optimizers_that_step_in_the_backward_pass_do_not():
    model = nn.Linear(4, 3).double()
    optimizers = {p: torch.optim.Adam([p], lr=0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
        parameter.register_hook(lambda grad: grad * 1000)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    run = opened(model)

    found = run.self_influence(data())
    run.explain(data(), data(3), k=2)
    run.find_mislabelled(data())
    run.coverage(data())
    assert run.verify(data()).is_exact

    assert all(not optimizer.state for optimizer in optimizers.values())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    inputs = data()[0].square().sum(1) + 1
    outputs = torch.softmax(model(data()[0]), 1) - F.one_hot(data()[1], 3)
    assert torch.allclose(found, (inputs * outputs.square().sum(1)).detach())


@pytest.mark.parametrize("is_fused", [False, True])
def test_optimizers_that_step_in_the_backward_pass_do_not_while_an_index_is_built(
    tmp_path: Path, is_fused: bool
):
    model = nn.Linear(4, 3).double()
    optimizers = {p: torch.optim.Adam([p], 0.1, fused=is_fused) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    before = [parameter.detach().clone() for parameter in model.parameters()]

    run = opened(model)
    index = run.index(data(), tmp_path, tracin.Projection(64), recall_queries=2)
    index.explain(data(3), k=2)
    index.influence(data(3))
    index.measure_recall(queries=2)

    assert all(not optimizer.state for optimizer in optimizers.values())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_that_runs_out_under_the_watch_is_no_reason_for_a_slower_way():
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.layer(x)

    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        opened(Full().double()).coverage(data())


def test_a_kink_that_the_batch_size_moves_is_no_reason_for_a_slower_way():
    class Kink(nn.Module):
        """A ReLU of an input that is zero but for a rounding that grows with the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            is_odd = x[:, 3:] == 5
            tiny = (len(x) % 2 - 0.5) * 1e-13
            return self.layer(x) + F.relu(torch.where(is_odd, tiny, 1.0) * self.layer(x))

    model = Kink().double()
    run = opened(model)

    run.self_influence(data(), batch_size=8)

    assert {covered.method for covered in run.coverage(data()).entries.values()} == {"fast"}


def test_a_module_under_two_names_gets_its_own_weights_back():
    layer = nn.Linear(4, 4).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    own = dict(model.named_parameters())
    others = {name: torch.zeros_like(one) for name, one in own.items()}

    with exchanged(model, own, others):
        assert not model(torch.ones(1, 4).double()).any()

    assert [id(one) for one in model.parameters()] == [id(one) for one in own.values()]


def test_reference_gradients_touch_no_grad_and_no_hook():
    model, called = nn.Linear(4, 3).double(), []
    model.weight.register_hook(called.append)
    model.weight.register_post_accumulate_grad_hook(called.append)
    model.bias.grad = kept = torch.ones(3).double()
    compute = tracin.losses.open_loss("cross_entropy")
    factors = audit_factors(EXAMPLES, torch.Generator().manual_seed(0))

    found, losses = weighted_gradients(
        model, compute, data(), dict(model.named_parameters()), factors
    )

    expected = torch.autograd.grad((compute(model, data()) * factors).sum(), model.bias)[0]
    assert torch.allclose(found["bias"], expected)
    assert torch.allclose(losses, compute(model, data()))
    assert called == []
    assert model.bias.grad is kept
    assert model.weight.grad is None


def test_parameters_that_a_loss_reaches_around_the_model_are_found():
    model = nn.Linear(4, 3).double()
    weight = model.weight

    def around(_: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(batch[0] @ weight.T, batch[1], reduction="none")

    assert opened(model, around).verify(data()).is_exact


def test_a_loss_that_counts_places_in_its_batch_is_coupled():
    def growing(model: nn.Module, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return losses * torch.arange(1, len(losses) + 1)

    with pytest.raises(CoupledExamplesError):
        opened(nn.Linear(4, 3).double(), growing).self_influence(data())


def test_an_audit_tells_which_parameter_is_wrong_and_by_how_much():
    rows = {"a": torch.eye(3), "b": torch.arange(6.0).view(3, 2)}
    factors = torch.tensor([0.5, -1.0, 1.5])
    wanted = {name: factors @ each for name, each in rows.items()}
    given = {name: each.clone() for name, each in wanted.items()}  # audits write to theirs
    reference = Reference(range(3), factors, given, [[0, 1, 2]], torch.zeros(3))
    audit = Audit(reference, 1e-6, torch.Generator())

    audit.take("a", Dense(rows["a"][:2]), 0)
    audit.take("a", Dense(rows["a"][2:]), 2)
    audit.take("b", Dense(rows["b"][[1, 0, 2]]), 0)

    found = audit.gaps()
    assert list(found) == ["b"]
    gap = torch.linalg.vector_norm(factors @ rows["b"][[1, 0, 2]] - wanted["b"])
    assert found["b"] == pytest.approx(float(gap / torch.linalg.vector_norm(wanted["b"])))


def test_factors_have_both_signs_and_sizes_from_a_half_to_one_and_a_half():
    factors = audit_factors(1000, torch.Generator().manual_seed(0))

    assert 0.5 <= float(factors.abs().min()) < float(factors.abs().max()) <= 1.5
    assert 400 < int((factors > 0).sum()) < 600


def test_a_tiny_pass_is_audited_whole_and_a_long_one_in_part():
    tiny, long = Schedule(96, held=100), Schedule(10_000, held=1 << 22)

    of_tiny = [tiny.next(32, is_last=at == 2) for at in range(3)]
    first = long.next(min(32, long.first), is_last=False)
    of_long = [long.next(32, is_last=at == 310) for at in range(311)]

    assert of_tiny == [range(32)] * 3
    assert first == range(32)
    audited = [rows for rows in of_long if rows is not None]
    assert len(audited) == 9  # batches 2, 4, 8, ..., 256 and the last
    assert of_long[-1] is not None
    assert len(first) + sum(map(len, audited)) <= 200


class Rounding(nn.Module):
    """Kernels for other batch sizes round otherwise: here an input of ReLU becomes zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 2), nn.Linear(2, 2)
        nn.init.constant_(self.inner.bias, 2e-5)

    def forward(self, x: Tensor) -> Tensor:
        values = self.inner(x)
        if len(x) > 1:
            values = (values + 1000) - 1000
        return self.outer(torch.relu(values))


def test_a_relu_that_rounding_switches_is_no_coupling() -> None:
    torch.manual_seed(0)
    model = Rounding()
    data = torch.zeros(6, 2), torch.zeros(6).long()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    run.self_influence(data)
    assert run.coverage(data).by(tracin.GradientMethod.FAST) == list(dict(model.named_parameters()))


def test_examples_coupled_by_their_gradients_alone_are_refused() -> None:
    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            values = self.inner(x)
            mean = values.mean(0, keepdim=True)
            return values + mean - mean.detach()

    model = Coupled()
    data = torch.randn(6, 2), torch.zeros(6).long()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    with pytest.raises(tracin.CoupledExamplesError, match="alone and together, the gradients of"):
        run.self_influence(data)


def test_a_slow_last_layer_that_only_one_call_traced_leaves_other_calls_alone() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight.T

        @staticmethod
        def backward(ctx: Any, *deltas: Any) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return deltas[0] @ weight, deltas[0].T @ x

    class WithoutRule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            product: Any = Product.apply(x, self.weight)
            return product

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), WithoutRule())
    train, states = (torch.randn(6, 4), torch.arange(6) % 3), [model.state_dict()]
    chosen: dict[str, Any] = {"learning_rates": "equal", "parameters": ["0.*"]}
    run = tracin.TracIn(model, "cross_entropy", states, **chosen)
    expected = tracin.TracIn(model, "cross_entropy", states, **chosen).influence(train, train)

    run.find_mislabelled(train)  # traces the last layer as well

    assert torch.equal(run.influence(train, train), expected)


class Recurrent(nn.Module):
    """Where examples are in its calls, an attribute says."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 3)
        self.is_turned = False

    def forward(self, x: Tensor) -> Tensor:
        words = x[:, None, :] * torch.linspace(0.5, 1.5, 6).to(x)[:, None]  # [examples, 6, 4]
        hidden = torch.tanh(self.inner(words.transpose(0, 1) if self.is_turned else words))
        return self.outer(hidden.transpose(0, 1) if self.is_turned else hidden).mean(1)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_a_model_that_changes_between_questions_is_read_anew(
    monkeypatch: pytest.MonkeyPatch, held: int
):
    monkeypatch.setattr(schedule, "BYTES", held)
    model = Recurrent().double()
    run = opened(model)
    found = []

    for model.is_turned in (False, True):
        found.append(run.influence(data(), data(6), batch_size=6))

    expected = slow_twin.influence(model, "cross_entropy", data(), data(6))
    assert all(torch.allclose(each, expected, rtol=1e-9) for each in found)
    assert {covered.method for covered in run.methods.values()} == {"fast"}


def test_a_batch_whose_audit_failed_is_audited_again_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "BYTES", 0)  # the first four examples alone are audited whole
    audited: list[int] = []
    first = Reference.of

    def noted(*args: Any) -> Reference:
        audited.append(sum(map(len, args[4])))
        return first(*args)

    monkeypatch.setattr(Reference, "of", noted)

    opened(SortsThenBack(by_setitem).double()).self_influence(data(), batch_size=6)

    assert audited.count(4) >= 2


def test_small_passes_are_few_and_fewer_once_the_model_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "BYTES", 0)  # as of a large model
    passes: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        passes.append(len(batch[0]))
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def asked() -> tuple[int, int]:
        passes.clear()
        run.influence(data(), data(12), batch_size=6)
        # Two batches of queries and four of training examples.
        return len(passes) - 6, sum(passes) - 12 - EXAMPLES

    run = opened(nn.Linear(4, 3).double(), loss)

    assert asked() == (11, 22)
    assert asked() == (9, 17)


@pytest.mark.parametrize("batch_size", [3, 6, "auto"])
def test_later_checkpoints_of_a_large_model_are_audited_as_the_first(
    monkeypatch: pytest.MonkeyPatch, batch_size: Any
):
    monkeypatch.setattr(schedule, "BYTES", 0)
    model = Recurrent().double()
    weights = [{n: each * by for n, each in model.state_dict().items()} for by in (1.0, 0.5, 2.0)]
    run = tracin.TracIn(model, "cross_entropy", weights, learning_rates="equal")
    expected = []
    for each in weights:
        model.load_state_dict(each)
        expected.append(slow_twin.influence(model, "cross_entropy", data(), data()))

    found = run.influence(data(), data(), batch_size=batch_size)
    alone = run.self_influence(data(), batch_size=batch_size)

    assert torch.allclose(found, torch.stack(expected).sum(0), rtol=1e-9)
    assert torch.allclose(alone, found.diagonal(), rtol=1e-9)


def test_a_check_at_other_weights_begins_with_a_short_batch_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "BYTES", 0)
    model, batch = nn.Linear(4, 3).double(), data(6)
    gradients = Gradients(model, open_loss("cross_entropy"), dict(model.named_parameters()))
    gradients.check_in_pass(batch)
    short = gradients.begin(100)
    gradients.visit(batch, lambda name, form, row: None)

    assert short < gradients.begin(100) == 100
    with torch.no_grad():
        model.weight.mul_(2)
    gradients.check(batch)
    assert gradients.begin(100) == short
