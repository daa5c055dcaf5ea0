"""The host waits for a device once per batch, and checks that wait find what others find."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tracin
from pretend_device import pretend_device
from tracin.errors import DataWarning, LabelError, NonFiniteError

SIZE = 8


class Texts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.words(input_ids))))


def run_of(kind: str) -> tracin.TracIn:
    torch.manual_seed(0)
    model = Texts() if kind == "texts" else nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    loss = "causal_lm" if kind == "texts" else "cross_entropy"
    return tracin.TracIn(model.eval(), loss, [model.state_dict()], learning_rates="equal")


def data_of(kind: str, examples: int) -> Tensor | tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    if kind == "texts":
        return torch.randint(11, (examples, 6), generator=made)
    return torch.randn(examples, 5, generator=made), torch.arange(examples) % 3


def there(run: tracin.TracIn) -> list[Tensor]:
    """The model's tensors and those of its checkpoint, which are the same memory."""
    return [*run.model.parameters(), *run.model.buffers()]


QUESTIONS: dict[str, Callable[[tracin.TracIn, str, int, Path], object]] = {
    "self_influence": lambda run, kind, rows, _: run.self_influence(
        data_of(kind, rows), batch_size=SIZE
    ),
    "influence": lambda run, kind, rows, _: run.influence(
        data_of(kind, rows), data_of(kind, 3), batch_size=SIZE
    ),
    "explain": lambda run, kind, rows, _: run.explain(
        data_of(kind, rows), data_of(kind, 3), k=2, normalise="cosine", batch_size=SIZE
    ),
    "index": lambda run, kind, rows, path: run.index(
        data_of(kind, rows),
        path / str(rows),
        tracin.Projection(dim=16),
        batch_size=SIZE,
        recall_queries=0,
    ),
}


@pytest.mark.parametrize("kind", ["classes", "texts"])
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_pass_waits_for_the_device_once_per_batch(
    question: Callable[[tracin.TracIn, str, int, Path], object],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # From batch 9 to batch 15 no batch is audited but the last.
    found: list[Counter[str]] = []
    for batches in (10, 13):
        run = run_of(kind)
        with monkeypatch.context() as patch, pretend_device(patch, *there(run)) as waits:
            question(run, kind, SIZE * batches + 3, tmp_path)
        found.append(waits)

    more = found[1] - found[0]
    more = Counter({where: n for where, n in more.items() if "sketches/" not in where})  # the plan
    assert more.total() == 3, more


@pytest.mark.parametrize("kind", ["classes", "texts"])
def test_scores_are_the_same_when_checks_wait(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, train, queries = run_of(kind), data_of(kind, 30), data_of(kind, 4)
    expected = run.self_influence(train), run.influence(train, queries)

    with monkeypatch.context() as patch, pretend_device(patch, *there(run)):
        found = run.self_influence(train), run.influence(train, queries)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_label_outside_the_classes_is_named_when_checks_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, (inputs, labels) = run_of("classes"), data_of("classes", 60)
    labels[37] = 9

    with (
        monkeypatch.context() as patch,
        pretend_device(patch, *there(run)),
        pytest.raises(LabelError, match=r"0 to 2, since the model scores 3, but example 37 has 9"),
    ):
        run.self_influence((inputs, labels), batch_size=SIZE)


def test_examples_without_a_label_are_named_when_checks_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, words = run_of("texts"), data_of("texts", 60)
    assert isinstance(words, Tensor)
    labels = words.clone()
    labels[41] = -100

    with (
        monkeypatch.context() as patch,
        pretend_device(patch, *there(run)),
        pytest.warns(DataWarning, match="No label to score in example 41"),
    ):
        found = run.self_influence({"input_ids": words, "labels": labels}, batch_size=SIZE)

    assert found[41] == 0 < found[40]


def test_a_loss_that_is_not_finite_is_named_when_checks_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, (inputs, labels) = run_of("classes"), data_of("classes", 60)
    inputs[45, 2] = torch.nan

    with (
        monkeypatch.context() as patch,
        pretend_device(patch, *there(run)),
        pytest.raises(NonFiniteError, match="The loss of example 45 is nan"),
    ):
        run.self_influence((inputs, labels), batch_size=SIZE)


@pytest.mark.parametrize("question", ["self_influence", "influence", "index"])
def test_terms_that_cancel_are_written_out_when_checks_wait(
    question: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two positions with nearly one input and opposite output gradients, as of pairs of texts."""
    torch.manual_seed(3)
    model = nn.Linear(16, 64, bias=False)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = model(batch[0])
        return ((out[:, 0] - out[:, 1]) * batch[1]).sum(1)

    once = torch.randn(20, 1, 16)
    inputs = torch.cat([once, once + 1e-6 * torch.randn(20, 1, 16)], 1)
    train = inputs, torch.randn(20, 64)
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")
    exact = (inputs[:, 0].double() - inputs[:, 1].double()).square().sum(1)
    exact *= train[1].double().square().sum(1)

    with monkeypatch.context() as patch, pretend_device(patch, *there(run)):
        if question == "self_influence":
            found = run.self_influence(train, batch_size=5)
        elif question == "influence":
            found = run.influence(train, train, batch_size=5).diag()
        else:
            run.index(train, tmp_path, tracin.Projection(dim=16), batch_size=5, recall_queries=0)
            index = tracin.Index.open(tmp_path, run=run, train=train)
            found = index.self_influence()

    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0)
