"""What only a GPU can show; skipped where there is none."""

import copy
import gc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import slow_twin
import tracin
import zoo
from tracin.checkpoints import Checkpoint, loaded
from tracin.data import move as moved
from tracin.gradients.forms.summed_products import multiplied
from tracin.losses import CausalLM
from tracin.precision import BFLOAT16, FLOAT32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EXAMPLES = 48
Pair = tuple[Tensor, Tensor]


def convnet() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    with torch.no_grad():
        model(torch.randn(64, 3, 16, 16))
    return model.eval()


def images(seed: int = 1) -> Pair:
    made = torch.Generator().manual_seed(seed)
    inputs = torch.randn(EXAMPLES, 3, 16, 16, generator=made)
    return inputs, torch.randint(10, (EXAMPLES,), generator=made)


def traced(model: nn.Module, **options: object) -> tracin.TracIn:
    options = {"learning_rates": "equal", **options}
    return tracin.TracIn(model, "cross_entropy", [model.state_dict()], **options)  # type: ignore[arg-type]


def on_gpu(pair: Pair) -> Pair:
    return pair[0].cuda(), pair[1].cuda()


def true_influence(model: nn.Module, train: Pair, queries: Pair) -> Tensor:
    """[train, queries], by one backward pass per example in float64 on the CPU."""
    twin = copy.deepcopy(model).cpu().double()
    ones, others = (
        torch.cat(
            [g.flatten(1) for g in slow_twin.gradients(twin, "cross_entropy", pair).values()], 1
        )
        for pair in ((train[0].double(), train[1]), (queries[0].double(), queries[1]))
    )
    return ones @ others.T


def worst(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu().double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("tf32", ["highest", "high"])
@pytest.mark.parametrize("data_on_gpu", [False, True])
def test_influence_in_float32_is_exact_with_tf32_on(tf32: str, data_on_gpu: bool) -> None:
    model, train, queries = convnet(), images(), images(2)
    wanted = true_influence(model, train, queries)
    model.cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(tf32)
    try:
        given = on_gpu(train) if data_on_gpu else train
        found = traced(model).influence(given, queries)
        assert torch.get_float32_matmul_precision() == tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert worst(torch.as_tensor(found), wanted) < 1e-5
    assert torch.backends.cudnn.allow_tf32


def test_a_model_on_the_cpu_is_moved_for_the_call_and_back() -> None:
    model, train = convnet(), images()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    wanted = traced(model).self_influence(train)
    found = traced(model, device="cuda").self_influence(train)
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=1e-4, atol=0)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_verify_says_that_scores_are_exact() -> None:
    report = traced(convnet().cuda()).verify(images())
    assert report.is_exact, str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_models_are_as_near_as_their_numbers(dtype: torch.dtype) -> None:
    model, train = convnet(), images()
    wanted = true_influence(model, train, train).diag()
    model.cuda()

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        with torch.autocast("cuda", dtype):
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")
    assert worst(torch.as_tensor(run.self_influence(train)), wanted) < 0.05
    half = copy.deepcopy(model).to(dtype)
    found = traced(half).self_influence((train[0].to(dtype), train[1]))
    assert worst(torch.as_tensor(found), wanted) < 0.1


def test_products_of_half_numbers_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    for shape in ((64, 2048), (3, 64, 2048)):
        one, other = (torch.randn(shape, device="cuda").bfloat16() for _ in range(2))
        found, wanted = multiplied(one, other.mT), one.double() @ other.double().mT
        assert found.dtype == torch.float32
        assert worst(found, wanted.cpu()) < 1e-5


def test_allowing_tf32_costs_what_verify_says() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = traced(convnet().cuda(), allow_tf32=True).verify(images())
        exact = traced(convnet().cuda()).verify(images())
    finally:
        torch.set_float32_matmul_precision(before)
    assert "TF32" in str(found)
    assert exact.worst < 1e-5 < found.worst < 0.02


@pytest.mark.parametrize(
    "made", [tracin.KFAC, tracin.EKFAC, tracin.Kernel], ids=lambda m: m.__name__
)
def test_curvature_on_a_gpu_is_that_of_a_cpu(made: type) -> None:
    model, train, queries = convnet(), images(), images(2)
    found = {}
    for device in ("cpu", "cuda"):
        run = traced(copy.deepcopy(model).double(), device=device, preconditioner=made())
        doubled = [(each[0].double(), each[1]) for each in (train, queries)]
        found[device] = torch.as_tensor(run.influence(*doubled))
    assert worst(found["cuda"], found["cpu"].double()) < 1e-8


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_scored_in_eval_mode(layer: type[nn.RNNBase]) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 8)
            self.layer = layer(8, 12, num_layers=2, dropout=0.5, batch_first=True)
            self.head = nn.Linear(12, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.layer(self.words(words))[0][:, -1])

    torch.manual_seed(0)
    model = Reader().eval()
    train = torch.randint(20, (12, 7)), torch.randint(3, (12,))
    twin = copy.deepcopy(model).double()
    gradients = slow_twin.gradients(twin, "cross_entropy", train).values()
    wanted = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    run = traced(model.cuda())
    assert worst(torch.as_tensor(run.self_influence(train)), wanted) < 1e-5
    assert run.verify(train).is_exact
    assert not model.training


def test_random_states_are_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).cuda().train()
    torch.rand(3, device="cuda")
    train = torch.randn(9, 4, device="cuda"), torch.zeros(9).long().cuda()
    here, there = torch.get_rng_state(), torch.cuda.get_rng_state()
    traced(model).self_influence(train)
    assert torch.equal(torch.cuda.get_rng_state(), there)
    assert torch.equal(torch.get_rng_state(), here)
    assert model.training


def test_memory_that_runs_out_halves_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU())
    model.append(nn.Linear(4096, 10)).cuda()
    train = torch.randn(20_000, 64), torch.randint(10, (20_000,))
    wanted = torch.as_tensor(traced(model).self_influence(train, batch_size=500))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    room = torch.cuda.memory_allocated() + 700 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        found = torch.as_tensor(traced(model).self_influence(train, batch_size=20_000))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_memory_that_runs_out_for_one_example_is_torchs_own_error() -> None:
    model = nn.Linear(2**14, 2**12).cuda()
    before = [parameter.clone() for parameter in model.parameters()]
    train = torch.randn(4, 2**14), torch.zeros(4).long()
    run = traced(model)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((held + 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            run.self_influence(train)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(map(torch.equal, before, model.parameters()))
    assert len(torch.as_tensor(run.self_influence(train))) == 4


def test_repeated_questions_leave_no_memory_behind() -> None:
    model, train = convnet().cuda(), images()
    run = traced(model)
    held = []
    for _ in range(4):
        run.influence(train, train)
        run.self_influence(train)
        gc.collect()  # what earlier tests left in cycles
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[0]


def test_a_pinned_loader_with_workers() -> None:
    model, train = convnet().cuda(), images()
    loader = DataLoader(TensorDataset(*train), 16, num_workers=2, pin_memory=True)
    wanted = torch.as_tensor(traced(model).self_influence(train))
    found = torch.as_tensor(traced(model).self_influence(loader))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_a_compiled_model_runs_as_it_was_written() -> None:
    model, train = convnet().cuda(), images()
    wanted = torch.as_tensor(traced(model).self_influence(train))
    compiled = torch.compile(model)
    found = torch.as_tensor(traced(compiled).self_influence(train))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_on_a_stream_of_the_users() -> None:
    model, train = convnet().cuda(), on_gpu(images())
    wanted = torch.as_tensor(traced(model).self_influence(train))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = torch.as_tensor(traced(model).self_influence(train))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_deterministic_algorithms_are_asked_for_and_kept() -> None:
    model, train = convnet().cuda(), images()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first = torch.as_tensor(traced(model).self_influence(train))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.equal(first, torch.as_tensor(traced(model).self_influence(train)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_index_built_on_a_gpu_answers_as_one_built_on_a_cpu(tmp_path: Path) -> None:
    model, train, queries = convnet(), images(), images(2)
    some = queries[0][:4], queries[1][:4]
    answers = {}
    for device in ("cpu", "cuda"):
        run = traced(model, device=device)
        index = run.index(train, tmp_path / device, tracin.Projection(256))
        answers[device] = index.with_run(run).explain(some, k=5)
        exact = index.explain(some, k=5, exact=True)
        wanted = true_influence(model, train, some).topk(5, 0).indices.T
        assert torch.as_tensor(exact.proponents.positions).tolist() == wanted.tolist()
    one, other = (torch.as_tensor(answers[d].proponents.scores) for d in ("cpu", "cuda"))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "fused adamw", "sgd with a scaler"])
def test_a_traced_loop_is_the_same_as_on_a_cpu(optimizer: str, tmp_path: Path) -> None:
    scores = {}
    for device in ("cpu", "cuda"):
        if optimizer.startswith(("fused", "sgd with")) and device == "cpu":
            continue
        model = convnet().to(device)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        train, queries = (tuple(each.to(device) for each in pair) for pair in (images(), images(2)))
        scaler = torch.amp.GradScaler("cuda") if "scaler" in optimizer else None
        steps = torch.optim.SGD if "sgd" in optimizer else torch.optim.AdamW
        options = {"fused": True} if "fused" in optimizer else {}
        chosen = steps(model.parameters(), lr=0.01, **options)  # type: ignore[arg-type]
        given = (model, chosen, "cross_entropy", queries, train, tmp_path / device)
        with tracin.Tracer(*given, scaler=scaler) as tracer:  # type: ignore[arg-type]
            for start in range(0, EXAMPLES, 12):
                rows = range(start, start + 12)
                chosen.zero_grad()
                with tracer.batch(rows), torch.autocast(device, torch.float16, scaler is not None):
                    loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                if scaler is None:
                    loss.backward()
                    chosen.step()
                else:
                    scaler.scale(loss).backward()
                    scaler.step(chosen)
                    scaler.update()
        trace = tracin.tracing.Trace.open(tmp_path / device)
        scores[device] = trace.influence(tracin.tracing.Quadrature.TRAPEZOID)
        assert torch.isfinite(scores[device]).all()
        if scaler is None:
            assert trace.goodness().pearson > 0.9
    if len(scores) == 2:
        assert worst(scores["cuda"], scores["cpu"].double()) < 1e-2


def test_a_recording_on_a_gpu_is_read_on_a_cpu(tmp_path: Path) -> None:
    model, train = convnet().cuda(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, labels = on_gpu(train)
    with tracin.Recorder(model, optimizer, tmp_path / "run") as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            recorder.epoch()
    here = tracin.TracIn(convnet(), "cross_entropy", tmp_path / "run")
    there = tracin.TracIn(convnet().cuda(), "cross_entropy", tmp_path / "run")
    torch.testing.assert_close(
        torch.as_tensor(there.self_influence(train)),
        torch.as_tensor(here.self_influence(train)),
        rtol=1e-3,
        atol=0,
    )


def test_half_attention_by_the_kernels_of_a_gpu() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    words = torch.randint(100, (16, 24))
    data = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}
    wanted = tracin.TracIn(
        copy.deepcopy(model).double(), "causal_lm", [model.state_dict()], learning_rates="equal"
    ).self_influence(data)
    model.cuda()
    run = tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates="equal")
    assert worst(torch.as_tensor(run.self_influence(data)), torch.as_tensor(wanted)) < 1e-4
    half = model.bfloat16()
    run = tracin.TracIn(half, "causal_lm", [half.state_dict()], learning_rates="equal")
    assert worst(torch.as_tensor(run.self_influence(data)), torch.as_tensor(wanted)) < 0.1


def test_a_model_is_held_once_while_a_checkpoint_is_in_its_place(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16))).cuda()
    other = {name: one.cpu() + 1 for name, one in model.state_dict().items()}
    torch.save(other, tmp_path / "a.pt")
    before = {name: one.clone().cpu() for name, one in model.state_dict().items()}
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    with loaded(model, Checkpoint(tmp_path / "a.pt")):
        assert all(torch.equal(one.cpu(), other[name]) for name, one in model.state_dict().items())
    assert torch.cuda.max_memory_allocated() - held <= 2 * 4 * 1024 * 1024
    assert all(torch.equal(one.cpu(), before[name]) for name, one in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch's, once
def test_a_batch_is_sent_without_waiting_and_its_memory_may_be_written_to_at_once() -> None:
    given, expected = torch.zeros(1 << 22), []
    busy = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    moved(given, "cuda")  # the first time, pinned memory has to be made
    try:
        torch.cuda.set_sync_debug_mode("error")
        for number in range(8):
            busy = (busy @ busy).clamp(-1, 1)
            given.fill_(number)
            expected.append(moved({"one": given}, "cuda")["one"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [one.unique().tolist() for one in expected] == [[float(n)] for n in range(8)]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("question", ["self_influence", "explain", "index"])
def test_a_pass_waits_for_the_device_once_a_batch(
    question: str, place: str, tmp_path: Path
) -> None:
    model = convnet().cuda()
    train = torch.randn(4096, 3, 16, 16, device=place), torch.zeros(4096, device=place).long()
    run = traced(model)

    def ask(rows: int, folder: str) -> None:
        some = train[0][:rows], train[1][:rows]
        if question == "self_influence":
            run.self_influence(some, batch_size=64)
        elif question == "explain":
            run.explain(some, (train[0][:3], train[1][:3]), k=2, batch_size=64)
        else:
            sketch = tracin.Projection(dim=64)
            run.index(some, tmp_path / folder, sketch, batch_size=64, recall_queries=0)

    ask(4096, "first")  # CUDA's own first steps wait
    waits: list[Counter[str]] = []
    for rows in (2048, 4096):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                torch.cuda.set_sync_debug_mode("warn")
                ask(rows, str(rows))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = [each for each in caught if "called a synchroniz" in str(each.message)]
        waits.append(Counter(f"{each.filename}:{each.lineno}" for each in found))
    more = waits[1] - waits[0]
    # All that a batch gave is fetched at once; and now and then there is an audit.
    assert more.total() / 32 <= 1.5, more


class UnderAutocast:
    """Next tokens' losses, with products in bfloat16 on a GPU if asked for."""

    def __init__(self, is_on: bool) -> None:
        self.inner, self.is_on = CausalLM(), is_on

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, self.is_on):
            return self.inner(model, batch)

    def tokens(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, self.is_on):
            return self.inner.tokens(model, batch)


@pytest.mark.parametrize(
    ("is_autocast", "tolerance"),
    [(False, FLOAT32.tolerance), (True, BFLOAT16.tolerance)],
    ids=["float32", "autocast"],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_shares_of_tokens_are_those_of_a_cpu(
    attention: str, is_autocast: bool, tolerance: float
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = zoo.shaken(GPT2LMHeadModel(config))
    model.set_attn_implementation(attention)
    texts = zoo.text(48, 31)
    train, query = ({name: each[rows] for name, each in texts.items()} for rows in ([0, 1, 2], [3]))
    exact = tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates=[1.0])
    wanted = exact.tokens(train, query)
    sizes = (exact.self_influence(train) * exact.self_influence(query)).sqrt().tolist()
    model.cuda()
    run = tracin.TracIn(
        model, UnderAutocast(is_autocast), [model.state_dict()], learning_rates=[1.0]
    )

    found, scores = run.tokens(train, query), run.influence(train, query)[:, 0].tolist()

    for pair, near, score, size in zip(found, wanted, scores, sizes, strict=True):
        assert abs(pair.score - score) <= tolerance * size
        for text, other in ((pair.query, near.query), (pair.train, near.train)):
            assert abs(float(text.shares.sum()) - score) <= tolerance * size
            assert float((text.shares - other.shares).abs().max()) <= tolerance * size
