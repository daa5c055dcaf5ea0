"""Shares of tokens: against masked copies of the texts, one per token, and against the score."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
import zoo
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.gradients.token_products import TokenProducts
from tracin.losses import CausalLM
from tracin.precision import BFLOAT16

Texts = dict[str, Tensor]


def part(texts: Texts, rows: slice) -> Texts:
    return {name: column[rows].clone() for name, column in texts.items()}


def moments(model: nn.Module, seed: int) -> OptimizerState:
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    kept = {
        name: {
            "step": torch.tensor(3.0),
            "exp_avg_sq": torch.rand(model.get_parameter(name).shape, generator=generator).double(),
        }
        for name in names
    }
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-2, "parameters": names}
    return OptimizerState("Adam", (group,), kept)


def run_of(
    model: nn.Module, loss: Any = "causal_lm", folder: Path | None = None, **options: Any
) -> tracin.TracIn:
    """Two checkpoints of a model in float64, with different weights; in a folder Adam's moments."""
    model = model.double()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(0.8)
    checkpoints = []
    for seed, (each, rate) in enumerate([(other, 0.3), (model, 0.1)]):
        path = None if folder is None else folder / f"{seed}.safetensors"
        if path is not None:
            moments(each, seed).write(path)
        state = {name: values.clone() for name, values in each.state_dict().items()}
        checkpoints.append(tracin.Checkpoint(state, rate, optimizer_path=path))
    return tracin.TracIn(model, loss, checkpoints, **options)


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return zoo.shaken(get_peft_model(zoo.llama_model(), config))  # pyright: ignore[reportArgumentType]


def in_own_precision() -> nn.Module:
    return zoo.llama_in_its_own_precision().model


RUNS: dict[str, tuple[Callable[[], nn.Module], bool, dict[str, Any]]] = {
    "GPT-2": (zoo.gpt2_model, False, {}),
    "GPT-2 under Adam": (zoo.gpt2_model, False, {"preconditioner": tracin.Adam()}),
    "GPT-2 under KFAC": (zoo.gpt2_model, False, {"preconditioner": tracin.KFAC()}),
    "Llama, padded on the left": (in_own_precision, True, {}),
    "LoRA under Adam": (lora, False, {"preconditioner": tracin.Adam()}),
}


def masked_copies(text: Texts) -> tuple[Texts, list[int]]:
    """The text once per label, the labels but one left out; and where that one is."""
    places = (text["labels"][0, 1:] != -100).nonzero()[:, 0].add(1).tolist()
    labels = torch.full_like(text["labels"], -100).repeat(len(places), 1)
    for row, place in enumerate(places):
        labels[row, place] = text["labels"][0, place]
    copies = {name: column.repeat(len(places), 1) for name, column in text.items()}
    return {**copies, "labels": labels}, places


@pytest.mark.parametrize("name", RUNS)
def test_shares_are_the_influence_of_masked_copies_and_sum_to_the_score(name: str, tmp_path: Path):
    build, pads_left, options = RUNS[name]
    torch.manual_seed(0)
    run = run_of(build(), folder=tmp_path, **options)
    texts = zoo.text(5, 11, pads_left)
    train, queries = part(texts, slice(1, 3)), part(texts, slice(2, 4))
    exact = 1e-6 if name == "LoRA under Adam" else 1e-10  # Llama's norm computes in float32

    shares = run.tokens(train, queries)

    scores = run.influence(train, queries)
    scale = float(scores.abs().max())
    assert len(shares) == 4
    places = [(query, example) for query in (0, 1) for example in (0, 1)]
    for pair, (row, position) in zip(shares, places, strict=True):
        assert (pair.query_id, pair.id, pair.position) == (row, position, position)
        for value in (pair.score, float(pair.query.shares.sum()), float(pair.train.shares.sum())):
            assert abs(value - float(scores[position, row])) <= exact * scale
    kept = run.preconditioner
    if isinstance(kept, tracin.KFAC):
        return  # masked copies as training data would change the curvature
    query, example = part(queries, slice(1, 2)), part(train, slice(1, 2))
    pair = shares[3]
    for text, found, slow in (
        (query, pair.query.shares, lambda copies: run.influence(example, copies)[0]),
        (example, pair.train.shares, lambda copies: run.influence(copies, query)[:, 0]),
    ):
        copies, places = masked_copies(text)
        wanted = torch.zeros_like(found)
        wanted[places] = slow(copies) / len(places)
        assert float((found - wanted).abs().max()) <= exact * scale


def words(model: nn.Module, batch: Texts) -> Tensor:
    return F.cross_entropy(model(batch["input_ids"]).mT, batch["labels"], reduction="none")


class Words:
    """The sum over the tokens of a text."""

    def __call__(self, model: nn.Module, batch: Texts) -> Tensor:
        return words(model, batch).sum(1)

    def tokens(self, model: nn.Module, batch: Texts) -> Tensor:
        return words(model, batch)


class Halved(Words):
    def tokens(self, model: nn.Module, batch: Texts) -> Tensor:
        return words(model, batch) / 2


class Flat(Words):
    def tokens(self, model: nn.Module, batch: Texts) -> Tensor:
        return words(model, batch).sum(1)


class Backward(torch.autograd.Function):
    """An operation without a rule for forward mode."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(values)
        return values.sin()

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> Tensor:  # pyright: ignore
        return delta * ctx.saved_tensors[0].cos()


class Tagger(nn.Module):
    def __init__(self, has_rule: bool = True) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 4)
        self.has_rule = has_rule

    def forward(self, input_ids: Tensor) -> Tensor:
        values = self.table(input_ids)
        values = values.sin() if self.has_rule else Backward.apply(values)
        return self.head(torch.cumsum(values, 1))


def tagged(rows: int, seed: int = 0) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = (torch.randint(n, (rows, 5), generator=generator) for n in (7, 4))
    return {"input_ids": ids, "labels": labels}


def tagging_run(loss: Any = None, *, has_rule: bool = True, **options: Any) -> tracin.TracIn:
    torch.manual_seed(0)
    return run_of(Tagger(has_rule), Words() if loss is None else loss, **options)


def test_an_operation_without_forward_mode_gives_the_same_by_backward_passes():
    fast = tagging_run().tokens(tagged(2), tagged(1, 1))

    slow = tagging_run(has_rule=False).tokens(tagged(2), tagged(1, 1))

    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.query.shares, other.query.shares, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(one.train.shares, other.train.shares, rtol=1e-10, atol=1e-12)


def test_wrong_derivatives_are_noticed_and_computed_the_slow_way(monkeypatch: pytest.MonkeyPatch):
    wanted = tagging_run().tokens(tagged(1), tagged(1, 1))[0]
    right = TokenProducts.products
    monkeypatch.setattr(TokenProducts, "products", lambda *given: 1.01 * right(*given))

    found = tagging_run().tokens(tagged(1), tagged(1, 1))[0]

    torch.testing.assert_close(found.query.shares, wanted.query.shares, rtol=1e-10, atol=1e-12)


def test_cross_entropy_knows_the_tokens_of_texts_with_a_label_per_position():
    class Tags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tagger = Tagger()

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.tagger(input_ids).mT

    torch.manual_seed(0)
    run = run_of(Tags(), "cross_entropy")
    train, query = tagged(2), tagged(1, 1)
    query["labels"][0, 1] = -100

    shares = run.tokens(train, query)

    torch.testing.assert_close(shares.scores, run.influence(train, query)[:, 0])
    assert shares[0].query.shares[1] == 0


def test_explanations_choose_the_pairs_by_their_ids():
    run = tagging_run()
    train = tracin.WithIds(tagged(6), [f"text {at}" for at in range(6)])
    queries = tracin.WithIds(tagged(3, 1), ["a", "b", "c"])
    found = run.explain(train, queries, k=1)[1:]

    shares = run.tokens(train, queries, found)

    wanted = [(each.id, one.id) for each in found for one in [*each.proponents, *each.opponents]]
    assert [(pair.query_id, pair.id) for pair in shares] == wanted
    scores = torch.stack([found.proponents.scores[:, 0], found.opponents.scores[:, 0]], 1).flatten()
    torch.testing.assert_close(shares.scores, scores)


def test_tokens_are_named_by_their_ids_or_by_decode_and_shown_as_text_alone():
    run = tagging_run()
    train, query = tagged(1), tagged(1, 1)

    shares = run.tokens(train, query, decode=lambda ids: f"<b>{ids[0]}\n")

    ids = query["input_ids"][0].tolist()
    assert run.tokens(train, query)[0].query.tokens == tuple(map(str, ids))
    assert shares[0].query.tokens == tuple(f"<b>{each}\n" for each in ids)
    assert f"'<b>{ids[0]}\\n'" in str(shares)
    drawn = shares._repr_html_()
    assert "<b>0" not in drawn
    assert f"&lt;b&gt;{ids[0]}\\n" in drawn
    columns = shares.columns()
    assert columns["text"].tolist() == ["query"] * 5 + ["train"] * 5
    assert columns["place"].tolist() == [*range(5), *range(5)]
    assert columns["share"].sum() == pytest.approx(2 * shares[0].score)


class UnderAutocast:
    """A loss whose products are in bfloat16."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, model: nn.Module, batch: Texts) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(model, batch)

    def tokens(self, model: nn.Module, batch: Texts) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner.tokens(model, batch)


def test_under_autocast_shares_sum_to_the_score_within_its_tolerance():
    torch.manual_seed(0)
    model, texts = zoo.gpt2_model().float(), zoo.text(5, 11, False)
    train, query = part(texts, slice(0, 2)), part(texts, slice(2, 3))
    rough, exact = (
        tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
        for loss in (UnderAutocast(CausalLM()), "causal_lm")
    )

    shares, wanted = rough.tokens(train, query), exact.tokens(train, query)

    sizes = (exact.self_influence(train) * exact.self_influence(query)).sqrt()
    scores = rough.influence(train, query)[:, 0]
    assert not torch.equal(scores, exact.influence(train, query)[:, 0])
    for pair, near, score, size in zip(shares, wanted, scores, sizes, strict=True):
        assert abs(pair.score - float(score)) <= BFLOAT16.tolerance * size
        for text, other in ((pair.query, near.query), (pair.train, near.train)):
            assert abs(float(text.shares.sum()) - pair.score) <= BFLOAT16.tolerance * size
            assert float((text.shares - other.shares).abs().max()) <= BFLOAT16.tolerance * size


def test_half_of_the_loss_is_refused_as_tokens_under_autocast():
    torch.manual_seed(0)
    model = Tagger()
    run = tracin.TracIn(model, UnderAutocast(Halved()), [model.state_dict()], learning_rates=[1.0])
    one = tagged(1)

    with pytest.raises(tracin.LossError, match="The tokens of query 0 do not add up to its loss"):
        run.tokens(one, one)


def test_the_users_world_stays_as_it_was():
    run = tagging_run()
    model = run.model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.get_rng_state()

    run.tokens(tagged(2), tagged(1, 1))

    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None and each.requires_grad for each in model.parameters())
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())


def test_half_of_the_loss_is_refused_as_tokens():
    with pytest.raises(tracin.LossError, match="The tokens of query 0 do not add up to its loss"):
        tagging_run(Halved()).tokens(tagged(1), tagged(1, 1))


def test_values_per_example_are_refused_as_tokens():
    with pytest.raises(tracin.LossError, match=r"float64 of shape \(1,\), but each token's share"):
        tagging_run(Flat()).tokens(tagged(1), tagged(1, 1))


def test_a_loss_without_tokens_is_refused():
    def loss(model: nn.Module, batch: Texts) -> Tensor:
        return words(model, batch).sum(1)

    with pytest.raises(tracin.LossError, match=r"and loss does not say. Use loss=.causal_lm."):
        tagging_run(loss).tokens(tagged(1), tagged(1, 1))


def test_one_label_per_example_has_no_tokens():
    model = nn.Linear(2, 3)
    run = run_of(model, "cross_entropy")
    data = torch.ones(2, 2).double(), torch.tensor([0, 1])

    with pytest.raises(tracin.LossError, match=r"one per token, but they are \(1,\)"):
        run.tokens(data, data)


def test_other_questions_and_other_data_are_refused():
    run, train, queries = tagging_run(), tagged(4), tagged(2, 1)
    found = run.explain(train, queries, k=1)
    aimed = run.explain(train, queries, k=1, target=lambda m, b: -words(m, b).sum(1))

    with pytest.raises(tracin.QueryError, match=r"found explains target=.*without target="):
        run.tokens(train, queries, aimed)
    with pytest.raises(tracin.QueryError, match=r"found is what run.explain.* returned"):
        run.tokens(train, queries, "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(tracin.DataError, match="found explains query 1, but queries has no such"):
        run.tokens(train, part(queries, slice(1)), found)
    with pytest.raises(tracin.DataError, match="and train does not"):
        run.tokens(tracin.WithIds(train, list("abcd")), queries, found)
    with pytest.raises(tracin.QueryError, match="40 training examples and 40 queries are 1,600"):
        run.tokens(tagged(40), tagged(40))


def test_a_preconditioner_that_corrects_scores_is_refused():
    with pytest.raises(tracin.PreconditionerError, match="need a gradient times the precond"):
        tagging_run(preconditioner=tracin.Kernel()).tokens(tagged(4), tagged(1, 1))
