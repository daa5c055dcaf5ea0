"""A model that FSDP2 divides over two processes, against the same model in one.

All that needs two processes runs in one pair of them (`ranks`), for starting them takes seconds;
each test looks at what rank 0 and rank 1 reported of it.
"""

import contextlib
import os
import pickle
import socket
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils.data import Dataset

import tracin
import tracin.engines
from own_process import SERVER
from tracin import IndexingError, Projection, TracIn
from tracin.checkpoints import loaded
from tracin.index.index import Index

WORDS, WIDTH, PLACES, ROWS, QUERIES = 11, 8, 6, 13, 3  # 13: no number of ranks divides it


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 13), nn.Linear(13, WIDTH)

    def forward(self, x):
        query, key, value = self.mix(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return x + self.down(F.gelu(self.up(x)))


class Language(nn.Module):
    """A small transformer whose output layer is its table of words."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def language(seed=0):
    torch.manual_seed(seed)
    return Language()


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def divided(build):
    model = build()
    mesh = init_device_mesh("cpu", (2,))
    if isinstance(model, Language):
        fully_shard(model.places, mesh=mesh)  # made of parameters alone, in a module of its own
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    return model


def next_words(model, tokens):
    scores = model(tokens)[:, :-1]
    return F.cross_entropy(scores.mT, tokens[:, 1:], reduction="none").mean(1)


def data(build, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    if build is language:
        return torch.randint(0, WORDS, (rows, PLACES), generator=generator)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    return torch.randn(rows, 5, generator=generator), labels


LOSSES = {mlp: "cross_entropy", language: next_words}


def run_of(model, build, folder, count=2, **options):
    checkpoints = [tracin.Checkpoint(folder / f"{build.__name__}{n}.pt") for n in (1, 2)][:count]
    return TracIn(model, LOSSES[build], checkpoints, learning_rates=[0.1, 0.05][:count], **options)


class Repaired(Dataset):
    """Examples of which one is not finite, until it is looked after."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels, self.is_broken = inputs, labels, True

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, at):
        inputs = self.inputs[at]
        # None of the few that an index keeps fingerprints of.
        return (inputs * torch.nan if self.is_broken and at == 11 else inputs), self.labels[at]


def index_of(run, build, where, train=None, **options):
    # The recall of a divided model is not measured.
    kept = {"shard_size": 9, "number_format": "float32", "recall_queries": 0}
    options = {**kept, "batch_size": 4, **options}
    train = data(build, ROWS, 1) if train is None else train
    return run.index(train, where, Projection(dim=120), progress=False, **options)


def parts(model):
    return [p.to_local().clone() if isinstance(p, DTensor) else p for p in model.parameters()]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What the two processes do; each returns what its test looks at.


def builds(build, folder):
    model = divided(build)
    before = parts(model)
    run = run_of(model, build, folder)
    where = folder / f"{build.__name__} divided"
    index = index_of(run, build, where, engine=tracin.engines.Mesh())
    found = index.with_run(run).explain(data(build, QUERIES, 2), k=4, batch_size=2)
    is_same = all(torch.equal(a, b) for a, b in zip(before, parts(model), strict=True))
    flags = [p.grad is None and p.requires_grad for p in model.parameters()]
    return found.proponents.positions, found.proponents.scores, is_same, all(flags)


def goes_on(build, folder):
    """A build that is broken off by an error in one batch, and goes on."""
    model = divided(build)
    run = run_of(model, build, folder)
    where = folder / "broken off"
    examples = Repaired(*data(build, ROWS, 1))
    said = ""
    try:
        run.index(
            examples,
            where,
            Projection(dim=120),
            shard_size=9,
            number_format="float32",
            batch_size=4,
            engine=tracin.engines.Mesh(),
            progress=False,
        )
    except IndexingError as error:
        said = str(error)
    distributed.barrier()
    there = sorted(p.name for p in where.rglob("*") if p.is_file())
    examples.is_broken = False
    index_of(run, build, where, examples, engine=tracin.engines.Mesh(), batch_size="auto")
    return said, there


def scores(model, build, folder):
    run = run_of(model, build, folder)
    train, test = data(build, ROWS, 1), data(build, QUERIES, 2)
    own = run.self_influence(train, batch_size=8, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Queries are held by LowRank")  # at half of their length
        short = run.influence(train, test, query_form=tracin.LowRank(1), progress=False)
    return own, run.influence(train, test, progress=False), short


def made_up_length(example):
    """So that batches differ in number from rank to rank where each plans its own."""
    return 1 + int(40 * example[0][0].abs())


def by_tokens(model, folder, where, **options):
    """Scores and rows of batches in tokens, which ranks pass in step."""
    run = run_of(model, mlp, folder)
    train, test = (list(zip(*data(mlp, *of), strict=True)) for of in ((ROWS, 1), (QUERIES, 2)))
    size = tracin.Tokens(90, made_up_length)
    index_of(run, mlp, folder / where, train, batch_size=size, **options)
    own = run.self_influence(train, batch_size=size, progress=False)
    return own, run.influence(train, test, batch_size=size, progress=False)


CURVATURES = {
    "KFAC": tracin.KFAC(),
    "KFAC last": tracin.KFAC(at="last"),
    "EKFAC": tracin.EKFAC(),
    "Kernel": tracin.Kernel(0.1, landmarks=9),
}
# `at="last"` chooses a checkpoint, whatever the model is: one model will do.
CURVED = [(mlp, name) for name in CURVATURES]
CURVED += [(language, name) for name in CURVATURES if name != "KFAC last"]


def curved(model, build, name, folder):
    # Two checkpoints matter to `at="last"` alone; each rank takes seconds for the second one.
    count = 1 if build is language else 2
    run = run_of(model, build, folder, count, preconditioner=CURVATURES[name])
    train, test = data(build, ROWS, 1), data(build, QUERIES, 2)
    own = run.self_influence(train, batch_size=8, progress=False)
    return own, run.influence(train, test, batch_size=8, progress=False)


def under_curvature(build, folder):
    """Scores under each preconditioner that is computed from data."""
    found = {}
    for name in (name for other, name in CURVED if other is build):
        found[name] = curved(divided(build), build, name, folder)
    return found


def mixed(folder):
    """Weights rounded to bfloat16 within passes."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = mlp()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    run = run_of(model, mlp, folder)
    return run.self_influence(data(mlp, ROWS, 1), batch_size=4, progress=False)


class Sorting(nn.Module):
    """A layer that meets examples out of their order: no fast rule holds."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.inner(x[order])[order.argsort()]


def refusals(folder):
    found = {}

    def refused(name, do):
        try:
            do()
            found[name] = "nothing was raised"
        except tracin.TracInError as error:
            found[name] = str(error)

    model = divided(mlp)
    run = run_of(model, mlp, folder)
    refused("engine", lambda: index_of(run, mlp, folder / "refused"))
    mesh = tracin.engines.Mesh()
    one = run_of(mlp(), mlp, folder)
    refused(
        "whole", lambda: index_of(one, mlp, folder / f"whole{distributed.get_rank()}", engine=mesh)
    )
    refused("verify", lambda: run.verify(data(mlp, 4, 1)))
    kept = run_of(model, mlp, folder, preconditioner=tracin.KFAC(folder=folder / "curvature"))
    refused("folder", lambda: kept.self_influence(data(mlp, ROWS, 1), progress=False))
    refused("device", lambda: enter(loaded(model, mlp().state_dict(), "cpu")))
    refused("parts", lambda: enter(loaded(model, model.state_dict())))

    sliced = mlp()
    weight = distribute_tensor(sliced[0].weight, init_device_mesh("cpu", (2,)), [Shard(1)])
    sliced[0].weight = nn.Parameter(weight)
    refused("tensor parallel", lambda: enter(loaded(sliced, mlp().state_dict())))

    sorting = Sorting()
    states = [sorting.state_dict()]
    states = [{key: one.clone() for key, one in state.items()} for state in states]
    fully_shard(sorting, mesh=init_device_mesh("cpu", (2,)))
    other = TracIn(sorting, "cross_entropy", states, learning_rates=[1.0])
    refused("uncovered", lambda: other.self_influence(data(mlp, 9, 1), progress=False))

    def failing(model, batch):
        raise tracin.LossError("what the loss says")

    broken = TracIn(model, failing, [mlp(3).state_dict()], learning_rates=[1.0])
    before = parts(model)
    refused("loss", lambda: broken.self_influence(data(mlp, 9, 1), progress=False))
    same = all(torch.equal(a, b) for a, b in zip(before, parts(model), strict=True))
    found["back"] = same and bool(model(data(mlp, 2, 1)[0]).isfinite().all())
    return found


def enter(context):
    with context:
        pass


def work(rank, port, folder, results):
    """One rank: everything once, in an order that both ranks share."""
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    try:
        for build in (mlp, language):
            found["builds", build] = builds(build, folder)
            found["scores", build] = scores(divided(build), build, folder)
            found["curved", build] = under_curvature(build, folder)
        mesh = tracin.engines.Mesh()
        found["tokens"] = by_tokens(divided(mlp), folder, "tokens divided", engine=mesh)
        found["goes on"] = goes_on(mlp, folder)
        found["mixed"] = mixed(folder)
        found["refusals"] = refusals(folder)
    except Exception:
        found["failed"] = traceback.format_exc()
    (results / f"{rank}").write_bytes(pickle.dumps(found))
    if "failed" in found:
        os._exit(1)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("sharded")
    for build in (mlp, language):
        for number in (1, 2):
            torch.save(build(number).state_dict(), found / f"{build.__name__}{number}.pt")
    return found


@pytest.fixture(scope="module")
def ranks(folder):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(target=work, args=(rank, port, folder, folder)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    processes[0].join(240)
    processes[1].join(10)
    for process in processes:
        if process.is_alive():
            process.kill()
    found = [pickle.loads(Path(folder / str(rank)).read_bytes()) for rank in range(2)]
    for one in found:
        assert "failed" not in one, one["failed"]
    return found


@pytest.mark.parametrize("build", [mlp, language])
def test_rows_are_those_of_the_whole_model(ranks, folder, build):
    run = run_of(build(), build, folder)
    whole = index_of(run, build, folder / f"{build.__name__} whole")
    index = Index.open(folder / f"{build.__name__} divided")

    assert index.store.manifest.about == whole.store.manifest.about
    keys = [each.key for each in whole.store.manifest.checkpoints]
    assert [each.key for each in index.store.manifest.checkpoints] == keys
    for key in keys:
        for one, other in zip(index.store.shards(key), whole.store.shards(key), strict=True):
            for name, values in other.tensors.items():
                torch.testing.assert_close(one.tensors[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, language])
def test_every_rank_has_the_same_answer_to_a_query(ranks, folder, build):
    run = run_of(build(), build, folder)
    whole = index_of(run, build, folder / f"{build.__name__} whole")
    expected = whole.with_run(run).explain(data(build, QUERIES, 2), k=4).proponents

    for rank in ranks:
        positions, scores, _, _ = rank["builds", build]
        assert (positions == expected.positions).all()
        torch.testing.assert_close(scores, expected.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [mlp, language])
def test_weights_come_back_as_they_were(ranks, build):
    for rank in ranks:
        _, _, is_same, are_flags_back = rank["builds", build]
        assert is_same
        assert are_flags_back


@pytest.mark.parametrize("build", [mlp, language])
def test_scores_without_an_index_are_those_of_the_whole_model(ranks, folder, build):
    expected = scores(build(), build, folder)

    for rank in ranks:
        for found, one in zip(rank["scores", build], expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)


def test_batches_in_tokens_keep_ranks_in_step(ranks, folder):
    run, train = run_of(mlp(), mlp, folder), data(mlp, ROWS, 1)
    expected = run.self_influence(train), run.influence(train, data(mlp, QUERIES, 2))

    for rank in ranks:
        for found, one in zip(rank["tokens"], expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-5)
    whole = index_of(run, mlp, folder / "mlp whole")
    by_tokens = Index.open(folder / "tokens divided")
    assert not by_tokens.store.missing()
    torch.testing.assert_close(by_tokens.self_influence(), whole.self_influence())


@pytest.mark.parametrize(("build", "name"), CURVED)
def test_scores_under_curvature_are_those_of_the_whole_model(ranks, folder, build, name):
    expected = curved(build(), build, name, folder)

    for rank in ranks:
        for found, one in zip(rank["curved", build][name], expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-4)


def test_an_error_is_every_ranks_and_the_same_call_goes_on(ranks, folder):
    for rank in ranks:
        said, there = rank["goes on"]
        assert "is nan at checkpoint" in said
        assert len([name for name in there if name.endswith(".safetensors")]) == 1
    whole = index_of(run_of(mlp(), mlp, folder), mlp, folder / "mlp whole")
    index = Index.open(folder / "broken off")
    assert not index.store.missing()
    torch.testing.assert_close(index.self_influence(), whole.self_influence())


def test_mixed_precision_is_as_near_as_its_numbers(ranks, folder):
    expected = run_of(mlp(), mlp, folder).self_influence(data(mlp, ROWS, 1))

    for rank in ranks:
        torch.testing.assert_close(rank["mixed"], expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("engine", "engine=tracin.engines.Mesh"),
        ("whole", "got Mesh for a model that is whole"),
        ("verify", "divided over ranks averages over them"),
        ("folder", "keeps the curvature of whole models"),
        ("device", "stays on their devices"),
        ("parts", "every rank needs a whole checkpoint"),
        ("tensor parallel", "tensor parallel layers are not supported"),
        ("uncovered", "'inner.bias', ha(s|ve) no vectorised"),
        ("loss", "what the loss says"),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank(ranks, what, message):
    for rank in ranks:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(rank["refusals"][what])


def test_after_an_error_the_model_is_as_it_was(ranks):
    assert all(rank["refusals"]["back"] for rank in ranks)


def test_the_engine_asks_for_torchrun(tmp_path):
    with pytest.raises(IndexingError, match="Start the program by torchrun"):
        tracin.engines.Mesh().run(None, [])
