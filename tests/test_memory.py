"""No question leaves memory behind, and none takes more than training does."""

import functools
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracin
from own_process import run_script

TIMES = 2  # counts are equal to the last tensor: what stays behind shows at once


@pytest.fixture(autouse=True)
def _few_objects():
    """Leave what other tests have made out of the count, which takes seconds otherwise."""
    gc.collect()
    gc.freeze()


def alive() -> tuple[int, int]:
    """How many tensors Python knows, and the bytes beneath them: a graph's own are among them."""
    gc.collect()
    found: dict[int, int] = {}
    for each in gc.get_objects():
        # Other tests of the process may have left sparse ones, which have no storage.
        if type(each) in (Tensor, nn.Parameter) and each.layout is torch.strided:
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return len(found), sum(found.values())


class Small(nn.Module):
    """Layers of every kind of rule: factors, rows, convolution, written out, derived weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.act = nn.PReLU()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.normed(self.words(ids))
        hidden = torch.relu_(self.conv(hidden.mT)).mT
        return self.head(self.norm(self.act(hidden)).mean(1))


def made() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return Small(), (torch.randint(7, (12, 5)), torch.arange(12) % 3)


def questions(folder: Path) -> dict[str, Callable[[], Any]]:
    model, data = made()
    queries = tuple(column[:3] for column in data)
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    projection = tracin.Projection(dim=16)

    @functools.cache
    def index() -> tracin.Index:
        return run.index(data, folder / "kept", projection=projection, progress=False)

    number = iter(range(1000))
    return {
        "self_influence": lambda: run.self_influence(data),
        "self_influence in small batches": lambda: run.self_influence(data, batch_size=5),
        "influence": lambda: run.influence(data, queries),
        "explain": lambda: run.explain(data, queries, k=2),
        "explain a sum": lambda: run.explain(data, queries, k=2, group="sum"),
        "find_mislabelled": lambda: run.find_mislabelled(data),
        "coverage": lambda: run.coverage(data),
        "verify": lambda: run.verify(data),
        "index": lambda: run.index(data, folder / str(next(number)), projection=projection),
        "index.explain": lambda: index().explain(queries, k=2),
        "index.influence": lambda: index().influence(queries),
        "index.self_influence": lambda: index().self_influence(),
    }


QUESTIONS = (
    "self_influence", "self_influence in small batches", "influence", "explain", "explain a sum",
    "find_mislabelled", "coverage", "verify", "index", "index.explain", "index.influence",
    "index.self_influence",
)  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_asked_again_and_again_leaves_nothing_behind(name: str, tmp_path: Path):
    ask = questions(tmp_path)[name]
    for _ in range(2):
        ask()
    before = alive()

    for _ in range(TIMES):
        ask()

    assert alive() == before


def test_what_was_asked_goes_with_the_run(tmp_path: Path):
    before = alive()

    asked = questions(tmp_path)
    for name in QUESTIONS:
        asked[name]()
    del asked

    assert alive() == before


def test_a_loss_that_goes_back_through_the_graph_itself_leaves_nothing_behind():
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].detach().requires_grad_()
        values = model(x)[:, 0]
        (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return slope.square().sum(1) + values

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    data = torch.randn(9, 4), torch.zeros(9)
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
    run.self_influence(data)
    before = alive()

    for _ in range(TIMES):
        run.self_influence(data)

    assert alive() == before


def train(tracer: tracin.Tracer, model: nn.Module, optimizer: Any, data: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        with tracer.batch(range(12)):
            loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        optimizer.step()


def test_a_traced_step_leaves_nothing_behind(tmp_path: Path):
    model, data = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    queries = tuple(column[:3] for column in data)
    tracer = tracin.Tracer(model, optimizer, "cross_entropy", queries, data, tmp_path / "trace")
    train(tracer, model, optimizer, data, 3)
    before = alive()

    train(tracer, model, optimizer, data, TIMES)

    assert alive() == before
    tracer.close()


def test_a_tracer_left_unclosed_is_let_go_with_its_model(tmp_path: Path):
    model, data = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracer = tracin.Tracer(model, optimizer, "cross_entropy", data, data, tmp_path / "trace")
    train(tracer, model, optimizer, data, 2)
    left = weakref.ref(model), weakref.ref(tracer)

    del model, optimizer, tracer
    gc.collect()

    assert [each() for each in left] == [None, None]


def test_a_replay_leaves_nothing_behind(tmp_path: Path):
    model, data = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracin.Recorder(model, optimizer, tmp_path / "run", every=2) as recorder:
        recorder.save()
        for _ in range(4):
            optimizer.zero_grad()
            recorder.batch(range(12))
            nn.functional.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()

    def replay(number: int) -> None:
        walked = tracin.Replay(model, optimizer, tmp_path / "run", data, progress=False)
        walked.trace("cross_entropy", data, tmp_path / f"trace {number}")

    replay(-1)
    before = alive()

    for number in range(TIMES):
        replay(number)

    assert alive() == before


MODELS = {
    "spectral norm": "spectral_norm(nn.Linear(256, 256))",
    "weight norm": "weight_norm(nn.Linear(256, 256))",
    "weight norm, written by hand": "Weight(lambda x, w: x @ (w / w.norm(dim=1, keepdim=True)).T)",
    "orthogonal": "orthogonal(nn.Linear(256, 256), orthogonal_map='cayley')",
    "pruned": "prune.l1_unstructured(nn.Linear(256, 256), 'weight', 0.3)",
    "cast": "Weight(lambda x, w: x @ w.double().float())",
    "einsum": "Weight(lambda x, w: torch.einsum('bi,io->bo', x, w))",
    "einsum of three": "Weight(lambda x, w: torch.einsum('bi,io,bo->bo', x, w, x))",
    "stacked": "Weight(lambda x, w: torch.bmm(x.view(-1, 4, 64).mT.mT.transpose(0, 1),"
    " w.view(16, 64, 64)[:4]).transpose(0, 1).flatten(1))",
    "bilinear": "Pair(nn.Bilinear(256, 256, 2))",
}
PEAK = """
import resource, warnings, torch, tracin
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
class Weight(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call, self.w = call, nn.Parameter(torch.randn(256, 256) / 16)
    def forward(self, x):
        return self.call(x, self.w)
class Pair(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
    def forward(self, x):
        return self.layer(x, x).repeat(1, 128)
model = nn.Sequential({layer}, nn.ReLU(), nn.Linear(256, 10))
data = torch.randn(1024, 256), torch.arange(1024) % 10
run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
few = tuple(column[:8] for column in data)
run.self_influence(few), run.influence(few, few)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run.self_influence(data), run.influence(data, few)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layer", MODELS.values(), ids=MODELS)
def test_gradients_without_factors_take_bounded_memory(layer: str, tmp_path: Path):
    # Written out for 1,024 examples they would take 256 MB and more.
    ran = run_script(PEAK.replace("{layer}", layer), folder=tmp_path)

    assert ran.code == 0, ran.stderr
    assert int(ran.stdout) < 100
