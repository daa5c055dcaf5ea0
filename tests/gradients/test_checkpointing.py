"""Activation checkpointing: what is computed again is read exactly, and not held meanwhile."""

import gc
import logging
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import checkpoint as checkpoint_module
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import slow_twin
import tracin
from tracin import GradientMethod

again = partial(checkpoint, use_reentrant=False)
reentrant = partial(checkpoint, use_reentrant=True)


def again_from(forward: Any) -> Any:
    return partial(again, forward)


class Written(nn.Module):
    """Layers, and a forward pass written as a function of them and the inputs."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.written = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def layers() -> dict[str, nn.Module]:
    return {"stem": nn.Linear(4, 6), "inner": nn.Linear(6, 6), "head": nn.Linear(6, 3)}


def nested(outer: Any, inner: Any) -> nn.Module:
    def deep(m: Any, h: Tensor) -> Tensor:
        return torch.tanh(m.inner(inner(lambda h: torch.tanh(m.inner(torch.sin(m.inner(h)))), h)))

    return Written(lambda m, x: m.head(outer(partial(deep, m), m.stem(x))), **layers())


def shared(m: Any, x: Tensor) -> Tensor:
    h = m.stem(x)
    for _ in range(3):
        h = again(lambda h: torch.tanh(m.inner(torch.tanh(m.inner(h)))), h)
    return m.head(h + F.linear(h, m.inner.weight))


def as_arguments(m: Any, x: Tensor) -> Tensor:
    scaled = 2 * m.inner.weight

    def stretch(h: Tensor, weight: Tensor, double: Tensor, bias: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(h, weight, bias)), double.t())

    return m.head(again(stretch, m.stem(x), m.inner.weight, scaled, bias=m.inner.bias))


def sorted_within(m: Any, x: Tensor) -> Tensor:
    def stretch(h: Tensor) -> Tensor:
        order = h[:, 0].argsort()
        return m.inner(torch.tanh(m.inner(h[order])))[order.argsort()]

    return m.head(again(stretch, torch.tanh(m.stem(x))))


def positions_merged(m: Any, x: Tensor) -> Tensor:
    def stretch(h: Tensor) -> Tensor:
        return m.inner(torch.tanh(m.inner(h).flatten(0, 1)))

    h = again(stretch, torch.stack([m.stem(x), m.stem(x.sin())], 1))
    return m.head(h.view(len(x), 2, -1).sum(1))


def selective(m: Any, x: Tensor) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    stretch = nn.Sequential(m.inner, nn.Tanh(), m.inner)
    return m.head(again(stretch, m.stem(x), context_fn=contexts))


def in_place(m: Any, x: Tensor) -> Tensor:
    stretch = nn.Sequential(m.inner, nn.ReLU(inplace=True), m.inner, nn.Hardtanh(inplace=True))
    return m.head(again(stretch, m.stem(x), preserve_rng_state=False))


def to_the_end(m: Any, x: Tensor) -> Tensor:
    with set_checkpoint_early_stop(False):
        return m.head(again(nn.Sequential(m.inner, nn.Tanh(), m.inner), m.stem(x)))


def without_gradients(m: Any, x: Tensor) -> Tensor:
    """The reentrant way gives nothing to a stretch whose inputs require no grad."""
    return m.head(torch.tanh(m.inner(m.stem(x))) + reentrant(m.idle, x))


def normed(m: Any, x: Tensor) -> Tensor:
    def stretch(h: Tensor) -> Tensor:
        h = h.to(m.norm.weight.dtype)  # a question about a parameter that is no product with it
        return m.attention(h, h, m.norm(h))[0]

    return m.head(again(stretch, m.stem(x)[:, None]))[:, 0]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "one within another": lambda: nested(again, again),
    "reentrant within another": lambda: nested(again, reentrant),
    "one within a reentrant one": lambda: nested(reentrant, again),
    "reentrant within reentrant": lambda: nested(reentrant, reentrant),
    "one layer in many stretches": lambda: Written(shared, **layers()),
    "weights as arguments": lambda: Written(as_arguments, **layers()),
    "rows moved within": lambda: Written(sorted_within, **layers()),
    "positions merged": lambda: Written(positions_merged, **layers()),
    "selective": lambda: Written(selective, **layers()),
    "in place": lambda: Written(in_place, **layers()),
    "not stopped early": lambda: Written(to_the_end, **layers()),
    "sequential": lambda: Written(
        lambda m, x: checkpoint_sequential(m.all, 2, x, use_reentrant=False),
        all=nn.Sequential(*layers().values(), nn.Tanh(), nn.Linear(3, 3)),
    ),
    "weight norm and attention": lambda: Written(
        normed,
        norm=parametrizations.weight_norm(nn.Linear(6, 6)),
        attention=nn.MultiheadAttention(6, 2, batch_first=True),
        **layers(),
    ),
    "no gradients": lambda: Written(without_gradients, idle=nn.Linear(4, 6), **layers()),
}


def opened(model: nn.Module) -> "tracin.TracIn":
    return tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])


def examples(count: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 4, dtype=torch.float64), torch.arange(count) % 3


def torchs_own() -> list[Any]:
    return [value for name, value in vars(checkpoint_module).items() if "heckpoint" in name]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_checkpointed_stretches_go_the_fast_way(build: Callable[[], nn.Module]):
    torch.manual_seed(0)
    model, data = build().double(), examples()
    run = opened(model)
    names = torchs_own()

    own = run.self_influence(data, batch_size=4)
    scores = run.influence(data, data, batch_size=4)

    wanted = slow_twin.influence(model, "cross_entropy", data, data)
    torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(own, wanted.diagonal(), rtol=1e-9, atol=1e-12)
    slow = {
        name: str(each)
        for name, each in run.coverage(data).entries.items()
        if each.method != GradientMethod.FAST
    }
    assert slow == {}
    assert torchs_own() == names


@pytest.mark.parametrize("way", [again, reentrant], ids=["again", "reentrant"])
def test_what_a_stretch_computes_is_not_held_until_the_backward_pass(way: Any):
    made: list[Any] = []

    def stretch(m: Any, h: Tensor) -> Tensor:
        hidden = torch.tanh(m.inner(h))
        if len(h) == len(data[0]):  # passes before the first one look at few examples
            made.append(weakref.ref(hidden))
        return m.inner(hidden)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        held.extend(ref for ref in made if ref() is not None)
        return losses

    held: list[Any] = []
    torch.manual_seed(0)
    model = Written(lambda m, x: m.head(way(partial(stretch, m), m.stem(x))), **layers()).double()
    data = examples()
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])
    expected = slow_twin.self_influence(model, loss, data)
    run.coverage(data)
    made.clear()
    held.clear()

    gc.disable()
    try:
        found = run.self_influence(data)
        left = [ref for ref in made if ref() is not None]
    finally:
        gc.enable()

    torch.testing.assert_close(found, expected)
    assert len(made) >= 2
    assert held == []
    assert left == []


def test_stretches_under_autocast_are_computed_in_its_precision():
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            h = again(nn.Sequential(m.inner, nn.Tanh(), m.inner), m.stem(x.float()))
        return m.head(h.float())

    torch.manual_seed(0)
    model, data = Written(forward, **layers()), examples()

    found = opened(model).self_influence(data).double()

    wanted = slow_twin.self_influence(model, "cross_entropy", data)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=0)


def within_dicts(m: Any, x: Tensor) -> Tensor:
    """The reentrant way follows no tensor within a dict or a list."""

    def stretch(h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return m.inner(h), {"sine": torch.sin(m.inner(h))}

    out, more = reentrant(stretch, m.stem(x))
    return m.head(out + more["sine"])


REENTRANT = {
    "a layer without a rule": lambda m, x: m.head(
        reentrant(lambda h: m.inner(torch.vmap(m.inner)(h)), m.stem(x))
    ),
    "outputs within a dict": within_dicts,
    "no gradients": without_gradients,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("names", [None, ["inner.weight", "inner.bias"]], ids=["all", "inner"])
@pytest.mark.parametrize("forward", REENTRANT.values(), ids=REENTRANT)
def test_reentrant_stretches_have_the_gradients_of_training_whatever_is_asked_about(
    forward: Any, names: list[str] | None
):
    torch.manual_seed(0)
    model, data = Written(forward, idle=nn.Linear(4, 6), **layers()).double(), examples()
    given = [model.state_dict()]
    run = tracin.TracIn(model, "cross_entropy", given, learning_rates=[1.0], parameters=names)

    found = run.self_influence(data)

    wanted = slow_twin.gradients(model, "cross_entropy", data)
    squares = [wanted[name].flatten(1).square().sum(1) for name in names or wanted]
    torch.testing.assert_close(found, torch.stack(squares).sum(0), rtol=1e-9, atol=0)
    assert run.verify(data).is_exact
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


def changed(m: Any, x: Tensor) -> Tensor:
    def stretch(h: Tensor) -> Tensor:
        h = h * 1.0
        out = m.inner(h)
        return out + h.add_(1.0)

    return m.head(again(stretch, m.stem(x)))


SLOW = {
    "changed in place": (changed, {"inner.weight", "inner.bias"}, "changed in place"),
    "a layer without a rule": (
        lambda m, x: m.head(again(lambda h: m.inner(m.rnn(h[None])[0][0]), m.stem(x))),
        {f"rnn.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
        "no rule",
    ),
    "debug": (
        lambda m, x: m.head(again(m.inner, m.stem(x), debug=True)),
        {f"{at}.{name}" for at in layers() for name in ("weight", "bias")},
        "debug=True",
    ),
}


@pytest.mark.parametrize(("forward", "slow", "why"), SLOW.values(), ids=SLOW)
def test_stretches_that_cannot_be_watched_are_right_and_say_why(
    forward: Any, slow: set[str], why: str
):
    torch.manual_seed(0)
    more = {"rnn": nn.RNN(6, 6)} if "no rule" in why else {}
    model, data = Written(forward, **more, **layers()).double(), examples()
    run = opened(model)

    found = run.self_influence(data)

    wanted = slow_twin.self_influence(model, "cross_entropy", data)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    entries = run.coverage(data).entries
    assert {name for name, each in entries.items() if each.method != GradientMethod.FAST} == slow
    assert all(why in entries[name].reason for name in slow)


def traced(way: Any, folder: Path) -> Tensor:
    torch.manual_seed(0)
    model = Written(lambda m, x: m.head(way(m.inner, m.stem(x))), **layers()).double()
    optimizer, data = torch.optim.SGD(model.parameters(), lr=0.1), examples()
    with tracin.Tracer(model, optimizer, "cross_entropy", data, data, folder) as tracer:
        with tracer.batch(range(6)):
            F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return tracin.tracing.Trace.open(folder).influence()


def test_a_tracer_reads_stretches_and_refuses_reentrant_ones_with_the_way_out(tmp_path: Path):
    plain = traced(lambda stretch, h: stretch(h), tmp_path / "plain")

    found = traced(again, tmp_path / "again")

    torch.testing.assert_close(found, plain)
    with pytest.raises(tracin.TracingError, match=r"inner\.weight.*use_reentrant=False"):
        traced(reentrant, tmp_path / "reentrant")


def test_layers_of_hugging_face_can_be_wrapped_and_are_said_to_be_off(
    caplog: pytest.LogCaptureFixture,
):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    words = torch.randint(2, 20, (5, 6))
    data = {"input_ids": words, "labels": words, "attention_mask": torch.ones_like(words)}
    wanted = slow_twin.self_influence(model, "causal_lm", data)
    model.gradient_checkpointing_enable()
    checkpoints = [model.state_dict()]

    with caplog.at_level(logging.INFO, "tracin"):
        run = tracin.TracIn(model, "causal_lm", checkpoints, learning_rates=[1.0])
    plain = run.self_influence(data)
    model.gradient_checkpointing_disable()
    for layer in model.model.layers:
        layer.forward = again_from(layer.forward)
    model.config.use_cache = False
    wrapped = run.self_influence(data)

    assert caplog.text.count("gradient checkpointing is off in eval mode") == 1
    torch.testing.assert_close(plain, wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(wrapped, wanted, rtol=1e-9, atol=0)
    methods = {str(each.method) for each in run.coverage(data).entries.values()}
    assert methods == {"fast"}
