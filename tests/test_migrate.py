"""What docs/migrate.md says of other libraries, measured in them where they are installed."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import tracin
from shown_code import run_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # those of the other libraries
]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def captum():
    return pytest.importorskip("captum.influence")


def off(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, relative to the largest score."""
    return float((theirs - ours).abs().max() / ours.abs().max())


@dataclass(frozen=True)
class Problem:
    """A net in float64 at two checkpoints, with data."""

    model: nn.Module
    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    rates: dict[str, float]

    def run(self, loss: Any = "cross_entropy", parameters: Any = None) -> tracin.TracIn:
        rates = list(self.rates.values())
        return tracin.TracIn(
            self.model, loss, list(self.rates), parameters=parameters, learning_rates=rates
        )

    def load(self, model: nn.Module, path: str) -> float:
        model.load_state_dict(torch.load(path))
        return self.rates[path]

    def captum(self, kind: Any, *layer: nn.Module, **options: Any) -> Any:
        options = {"checkpoints_load_func": self.load, "batch_size": 8, **options}
        return kind(self.model, *layer, TensorDataset(*self.train), list(self.rates), **options)


def problem(*last: nn.Module) -> Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3), *last)
    rates = {"a.pt": 0.1, "b.pt": 0.03}
    for path in rates:
        for parameter in model.double().parameters():
            parameter.data += torch.randn_like(parameter) / 3
        torch.save(model.state_dict(), path)
    inputs, labels = torch.randn(27, 4).double(), torch.arange(27) % 3
    return Problem(model, (inputs[:21], labels[:21]), (inputs[21:], labels[21:]), rates)


def test_captums_code_on_the_page_gives_our_numbers_and_the_figures(captum):
    names = run_blocks("migrate.md", "import TracInCP\n", "import TracInCPFast\n")
    model, train, queries = names["model"], names["train"], names["queries"]
    scores, found = names["scores"], names["found"]

    assert off(names["captum_scores"], scores.mT) < 1e-6
    assert off(names["captum_own"], names["own"]) < 1e-6
    for theirs, ours in (("proponents", found.proponents), ("opponents", found.opponents)):
        top = names[f"captum_{theirs}"]
        assert top.indices.tolist() == ours.positions.tolist()
        assert off(top.influence_scores, ours.scores) < 1e-6
    without_bias = names["without_bias"].influence(train, queries).mT
    assert off(names["fast_scores"], without_bias) < 1e-6
    with_bias = names["last_layer"].influence(train, queries).mT
    assert off(names["fast_scores"], with_bias) == pytest.approx(0.07, abs=0.005)

    by_layers = captum.TracInCP(
        model,
        TensorDataset(*train),
        names["paths"],
        checkpoints_load_func=names["load"],
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=30,
        sample_wise_grads_per_batch=True,
    )
    matrix = by_layers.influence(queries)
    assert off(matrix, scores.mT) == pytest.approx(0.02, abs=0.005)
    fc = tracin.TracIn(
        model, "cross_entropy", names["paths"], parameters=["fc.*"], learning_rates=names["weights"]
    )
    assert off(matrix, fc.influence(train, queries).mT) == pytest.approx(0.21, abs=0.005)
    rows, columns = (names["captum"].compute_intermediate_quantities(x) for x in (queries, train))
    assert off(rows @ columns.mT, scores.mT) == pytest.approx(0.92, abs=0.005)


def test_captums_arguments_are_ours(captum):
    it = problem()
    run = it.run()
    wanted = run.influence(it.train, it.queries).mT
    each = nn.CrossEntropyLoss(reduction="none")
    made = it.captum(captum.TracInCP, loss_fn=each)

    assert off(made.influence(it.queries), wanted) < 1e-12
    total = made.influence(it.queries, aggregate=True)
    assert off(total[0], run.influence(it.train, it.queries, group="sum")) < 1e-12
    assert off(made.self_influence(it.queries), run.self_influence(it.queries)) < 1e-12
    layer = it.captum(captum.TracInCP, loss_fn=each, layers=["3"]).influence(it.queries)
    assert off(layer, it.run(parameters=["3.*"]).influence(it.train, it.queries).mT) < 1e-12
    output = it.captum(captum.TracInCP).influence(it.queries)
    summed = it.run(lambda model, batch: model(batch[0]).sum(1))
    assert off(output, summed.influence(it.train, it.queries).mT) < 1e-12
    targets = tuple((inputs, inputs[:, :3].contiguous()) for inputs, _ in (it.train, it.queries))
    squared = Problem(it.model, *targets, it.rates)
    theirs = squared.captum(captum.TracInCP, loss_fn=nn.MSELoss(reduction="none"))
    ours = squared.run("mse").influence(*targets).mT
    assert off(theirs.influence(targets[1]), 9 * ours) < 1e-12  # three outputs, on both sides


def test_captums_test_loss_is_the_negative_of_a_target(captum):
    it = problem()
    if "target" not in inspect.signature(tracin.TracIn.influence).parameters:
        pytest.skip("influence takes no target")
    made = it.captum(
        captum.TracInCP,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        test_loss_fn=lambda output, labels: output[:, 0],
    )

    raised: Any = {"target": lambda model, batch: -model(batch[0])[:, 0]}
    assert (
        off(made.influence(it.queries), it.run().influence(it.train, it.queries, **raised).mT)
        < 1e-12
    )


def test_captums_option_for_batches_leaves_out_layers_and_scores_frozen_ones(captum):
    it = problem()
    options = {
        "sample_wise_grads_per_batch": True,
        "loss_fn": nn.CrossEntropyLoss(reduction="mean"),
    }
    linear = it.run(parameters=["0.*", "3.*"]).influence(it.train, it.queries).mT

    assert off(it.captum(captum.TracInCP, **options).influence(it.queries), linear) < 1e-12
    it.model[0].requires_grad_(False)  # type: ignore[index]
    assert off(it.captum(captum.TracInCP, **options).influence(it.queries), linear) < 1e-12
    loop = it.captum(captum.TracInCP, loss_fn=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(RuntimeError, match="does not require grad"):
        loop.influence(it.queries)
    it.model.requires_grad_(True)

    average = it.captum(
        captum.TracInCP,
        sample_wise_grads_per_batch=True,
        loss_fn=lambda *both: F.cross_entropy(*both),
    )
    ratios = (linear / average.influence(it.queries)).mean(0)
    # Batches of 8, 8 and 5 training examples, and one of 6 queries.
    torch.testing.assert_close(ratios, torch.tensor([48.0] * 16 + [30.0] * 5).double())


def test_captums_fast_kinds(captum):
    it = problem()
    summed = nn.CrossEntropyLoss(reduction="sum")
    wanted = it.run(parameters=["3.weight"]).influence(it.train, it.queries).mT
    fast = it.captum(captum.TracInCPFast, it.model[3], loss_fn=summed)  # type: ignore[index]
    assert off(fast.influence(it.queries), wanted) < 1e-12

    below = problem(nn.LogSoftmax(1))
    wrong = below.captum(
        captum.TracInCPFast,
        below.model[3],  # type: ignore[index]
        loss_fn=nn.NLLLoss(reduction="sum"),
    )
    assert off(wrong.influence(it.queries), wanted) > 0.1

    pytest.importorskip("annoy")
    near = it.captum(captum.TracInCPFastRandProj, it.model[3], loss_fn=summed)  # type: ignore[index]
    found = near.influence(it.queries)
    assert found.indices.tolist() == wanted.topk(5).indices.tolist()


def test_captums_checkpoints_and_what_it_leaves_behind(captum):
    it = problem()
    each = nn.CrossEntropyLoss(reduction="none")
    loaded = []

    def load(model: nn.Module, path: str) -> float:
        loaded.append(path)
        return it.load(model, path)

    backwards = Problem(it.model, it.train, it.queries, dict(reversed(it.rates.items())))
    made = backwards.captum(
        captum.TracInCP, loss_fn=each, checkpoints_load_func=load, batch_size=21
    )
    it.load(it.model, "a.pt")
    made.self_influence()
    assert loaded == ["a.pt", "b.pt"]
    assert torch.equal(it.model.state_dict()["3.weight"], torch.load("b.pt")["3.weight"])

    data = TensorDataset(*it.train)
    equal = captum.TracInCP(it.model, data, list(it.rates), loss_fn=each, batch_size=8)
    ones = tracin.TracIn(it.model, "cross_entropy", list(it.rates), learning_rates="equal")
    assert off(equal.self_influence(), ones.self_influence(it.train)) < 1e-12
    torch.save({**it.model.state_dict(), "learning_rate": 0.1}, "c.pt")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        captum.TracInCP(it.model, data, ["c.pt"], loss_fn=each).self_influence()

    noisy = problem(nn.Dropout())
    noisy.model.train()
    made = noisy.captum(captum.TracInCP, loss_fn=each)
    assert off(made.influence(it.queries), made.influence(it.queries)) > 0.1
    first, second = (noisy.run().influence(it.train, it.queries) for _ in range(2))
    assert torch.equal(first, second)


def test_dattris_code_on_the_page_gives_our_numbers():
    pytest.importorskip("dattri")
    names = run_blocks("migrate.md", "import TensorDataset", "from dattri")

    assert off(names["dattri_scores"], names["scores"]) < 1e-6
    assert off(names["dattri_own"], names["own"]) < 1e-6
    attributor, batches = names["TracInAttributor"], names["batches"]
    task, weights = names["task"], torch.tensor(names["weights"])
    default = attributor(task=task, weight_list=weights, normalized_grad=False)
    assert off(default.attribute(*batches), names["scores"]) == pytest.approx(0.10, abs=0.005)
    layer = attributor(
        task=task, weight_list=weights, normalized_grad=False, layer_name=["fc.weight", "fc.bias"]
    )
    layer.projector_kwargs = None
    wanted = names["last_layer"].influence(names["train"], names["queries"])
    assert off(layer.attribute(*batches), wanted) < 1e-6

    cosine = attributor(task=task, weight_list=weights, normalized_grad=True)
    cosine.projector_kwargs = None
    each = [
        tracin.TracIn(names["model"], "cross_entropy", [path], learning_rates=[rate])
        .explain(names["train"], names["queries"], k=90, normalise="cosine")
        .proponents
        for path, rate in names["rates"].items()
    ]
    total = torch.zeros(90, 18)
    for rate, one in zip(names["weights"], each, strict=True):
        total.scatter_add_(0, torch.from_numpy(one.positions.T).long(), rate * one.scores.T)
    assert off(cosine.attribute(*batches), total) < 1e-5

    attributor(
        task=task, weight_list=weights, normalized_grad=False, projector_kwargs={"proj_dim": 16}
    )
    after = attributor(task=task, weight_list=weights, normalized_grad=False)
    assert after.projector_kwargs["proj_dim"] == 16


def test_traks_code_on_the_page_runs():
    pytest.importorskip("trak")

    names = run_blocks("migrate.md", "from trak")

    assert names["traker_scores"].shape == (90, 18)
