"""Routed experts, relative attention and rows that the data moves go the fast way."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slow_twin
import tracin
from slow_twin import part
from tracin.gradients import engine
from zoo import ZOO

EXAMPLES, TOKENS, WORDS = 6, 5, 30
SIDES = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def language_model(name: str, way: str, **more: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIDES, **more})
    config._experts_implementation = way
    return getattr(transformers, f"{name}ForCausalLM")(config).double().eval()


EXPERTS = {
    "Mixtral": {"num_local_experts": 4},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 1, "pad_token_id": 0},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                 "head_dim": 8},
    "Qwen2Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                 "shared_expert_intermediate_size": 8},
}  # fmt: skip


def tokens(examples: int = EXAMPLES) -> dict[str, Tensor]:
    torch.manual_seed(1)
    words = torch.randint(2, WORDS, (examples, TOKENS))
    return {"input_ids": words, "labels": words, "attention_mask": torch.ones_like(words)}


def check(
    model: nn.Module, loss: Any, data: Any, *, is_fast: bool = True, gap: float = 1e-9
) -> None:
    """All scores of both kinds, in batches of several sizes, against the slow twin."""
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
    queries = part(data, slice(0, 3))
    rows = slow_twin.gradients(model, loss, data)
    scores = slow_twin.dots(rows, {name: row[:3] for name, row in rows.items()})
    own = slow_twin.dots(rows, rows).diagonal()
    alone = run.self_influence(queries, batch_size=1).double()
    torch.testing.assert_close(alone, own[:3], rtol=gap, atol=0)
    whole = run.self_influence(data, batch_size=slow_twin.length(data)).double()
    torch.testing.assert_close(whole, own, rtol=gap, atol=0)
    # Batches of 4, of which the last is not full.
    torch.testing.assert_close(
        run.influence(data, queries, batch_size=4).double(),
        scores,
        rtol=100 * gap,
        atol=gap * float(scores.abs().max()),
    )
    if is_fast:
        slow = {
            name: str(covered)
            for name, covered in run.coverage(data).entries.items()
            if str(covered.method) not in ("fast", "excluded")
        }
        assert slow == {}


# The models differ in their routers; how experts are multiplied, they have in common. One of them
# has two layers, whose gradients go through each other.
@pytest.mark.parametrize(
    ("way", "name"),
    [*(("eager", name) for name in EXPERTS), ("batched_mm", "Mixtral"), ("batched_mm", "Qwen2Moe")],
)
def test_routed_experts_go_the_fast_way(way: str, name: str):
    layers = 2 if (way, name) == ("eager", "Qwen2Moe") else 1

    model = language_model(name, way, **EXPERTS[name], num_hidden_layers=layers)

    check(model, "causal_lm", tokens())


@pytest.mark.parametrize("name", ["Olmoe", "Qwen3Moe"])
def test_grouped_experts_go_the_fast_way(name: str):
    # torch has no grouped product of float64.
    model = language_model(name, "grouped_mm", **EXPERTS[name]).float()

    check(model, "causal_lm", tokens(), gap=1e-4)


def test_experts_that_see_every_row_go_the_fast_way():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        **SIDES, num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=12,
        head_dim=8, attention_chunk_size=8, pad_token_id=0,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config).double().eval()

    check(model, "causal_lm", tokens())


def test_grouped_experts_in_float64_are_refused_with_the_way_out():
    model: Any = language_model("Olmoe", "grouped_mm", **EXPERTS["Olmoe"])
    run = tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates=[1.0])

    with pytest.raises(
        tracin.UnsupportedModelError,
        match=r"float32 and half precision alone.*set_experts_implementation\(\"eager\"\)",
    ):
        run.self_influence(tokens())

    single = model.float()
    run = tracin.TracIn(single, "causal_lm", [single.state_dict()], learning_rates=[1.0])
    assert "in float64: The model multiplies its experts in groups" in str(run.verify(tokens(2)))
    model.set_experts_implementation("eager")
    double = model.double()
    run = tracin.TracIn(double, "causal_lm", [double.state_dict()], learning_rates=[1.0])
    assert run.verify(tokens(2)).is_exact


@pytest.mark.parametrize(
    ("kinds", "shared"),
    [(["c2p", "p2c"], False), (["c2p", "p2c"], True), (["p2c"], False)],
    ids=["both", "both of shared keys", "one"],
)
def test_relative_attention_goes_the_fast_way(kinds: list[str], shared: bool):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layers = 1 if shared or len(kinds) == 1 else 2  # their gradients go through each other
    config = transformers.DebertaV2Config(
        vocab_size=WORDS, hidden_size=16, intermediate_size=12, num_hidden_layers=layers,
        num_attention_heads=2, relative_attention=True, position_buckets=4,
        max_position_embeddings=16, pos_att_type=kinds, share_att_key=shared,
        norm_rel_ebd="layer_norm", num_labels=3, pooler_hidden_size=16,
    )  # fmt: skip
    model = transformers.DebertaV2ForSequenceClassification(config).double().eval()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        words, labels = batch
        return F.cross_entropy(model(words).logits, labels, reduction="none")

    check(model, loss, (tokens()["input_ids"], torch.arange(EXAMPLES) % 3))


class Sorted(nn.Module):
    """Sorts all rows by what they hold, and sorts back after two layers and a norm."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.stem, self.one = nn.Linear(4, 6), nn.Linear(6, 6)
        self.norm, self.two = nn.LayerNorm(6), nn.Linear(6, 3)
        self.act = nn.ReLU(inplace=in_place)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(self.stem(x)).flatten(0, 1)
        order = rows[:, 0].argsort()
        moved = self.act(self.norm(self.one(rows[order])))
        back = self.two(moved)[order.argsort()]
        return back.view(*x.shape[:2], 3).mean(1)


@pytest.mark.parametrize("in_place", [False, True])
def test_rows_sorted_over_all_examples_go_the_fast_way(in_place: bool):
    torch.manual_seed(0)
    model = Sorted(in_place=in_place).double().eval()

    check(model, "cross_entropy", (torch.randn(7, 3, 4).double(), torch.arange(7) % 3))


def test_more_examples_than_factors_of_one_pass_are_told_apart():
    torch.manual_seed(0)
    model = Sorted().double().eval()
    data = torch.randn(150, 3, 4).double(), torch.arange(150) % 3

    check(model, "cross_entropy", data)


def test_rows_sorted_in_single_and_half_precision_find_their_owners():
    torch.manual_seed(0)
    data = torch.randn(80, 3, 4), torch.arange(80) % 3
    for dtype, gap in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        model = Sorted().to(dtype).eval()
        batch = data[0].to(dtype), data[1]
        run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

        scores = run.self_influence(batch, batch_size=80).double()

        wanted = slow_twin.self_influence(model, "cross_entropy", batch)
        assert float(((scores - wanted) / wanted).abs().max()) < gap


def test_rows_sorted_within_no_grad_are_followed():
    torch.manual_seed(0)
    model = Sorted().double().eval()
    data = torch.randn(7, 3, 4).double(), torch.arange(7) % 3
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    with torch.no_grad():
        scores = run.self_influence(data)

    wanted = slow_twin.self_influence(model, "cross_entropy", data)
    torch.testing.assert_close(scores.double(), wanted)


class Slots(nn.Module):
    """Rows are put into slots of experts by index, up to a capacity, and taken out again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(self.stem(x))
        share, expert = self.router(rows).softmax(-1).max(-1)
        picked = F.one_hot(expert, 3)
        place = (picked.cumsum(0) * picked).sum(1) - 1
        slots = rows.new_zeros(3, len(x), 6)
        slots[expert, place] = rows
        out = torch.stack([layer(slots[at]) for at, layer in enumerate(self.experts)])
        return self.head(rows + share[:, None] * out.tanh()[expert, place])


def test_experts_with_slots_equal_the_slow_twin():
    for seed in range(3):
        torch.manual_seed(seed)
        model = Slots().double().eval()
        data = torch.randn(8, 4).double(), torch.arange(8) % 3

        check(model, "cross_entropy", data, is_fast=False)


class Graph(nn.Module):
    """Two rounds of messages over one graph, whose nodes are the examples."""

    def __init__(self, nodes: int, *, is_sparse: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
        self.x = torch.randn(nodes, 4).double()
        edges = (torch.rand(nodes, nodes) < 0.3).double() + torch.eye(nodes).double()
        edges = edges / edges.sum(1, keepdim=True)
        self.edges = edges.to_sparse() if is_sparse else edges

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = torch.relu(self.edges @ self.one(self.x))
        return (self.edges @ self.two(hidden))[nodes]


@pytest.mark.parametrize("is_sparse", [False, True])
def test_nodes_of_one_graph_share_its_forward_pass(is_sparse: bool):
    torch.manual_seed(0)
    model = Graph(9, is_sparse=is_sparse).double().eval()

    check(model, "cross_entropy", (torch.arange(9), torch.arange(9) % 3), is_fast=not is_sparse)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], "all-linear"], ids=str)
def test_dora_goes_the_fast_way(targets: Any):
    """Its magnitudes are divided by norms that are made of parameters and then detached."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=targets, lora_dropout=0.0)
    llama = language_model("Llama", "eager", num_hidden_layers=2)
    model = peft.get_peft_model(llama, config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))

    check(model, "causal_lm", tokens())


@pytest.mark.parametrize("seed", [0, 4])
def test_what_a_batch_misses_and_no_pair_of_it_is_settled_as_well(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "_SEED", seed)  # 4 draws such pairs
    case = ZOO["branch_taken_by_each_example"].build()
    train = part(case.data, torch.tensor([3, 0, 4, 2, 1]))
    run = tracin.TracIn(case.model, case.loss, [case.model.state_dict()], learning_rates=[1.0])

    run.self_influence(train, batch_size=3)
    found = run.influence(train, case.queries, batch_size=3)

    expected = slow_twin.influence(case.model, case.loss, train, case.queries)
    assert torch.allclose(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
