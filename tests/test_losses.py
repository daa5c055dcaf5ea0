"""Named losses return one value per example, that of the example alone, or say why they cannot."""

import math
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tracin import losses
from tracin.errors import DataWarning, LabelError, LossError
from tracin.losses import CausalLM, CrossEntropy, MeanSquaredError, Outcome, open_loss

CLASSES, WORDS = 3, 11


class Fixed(nn.Module):
    """Gives the same output whatever comes, and remembers how it was called."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *inputs, **named):
        self.inputs, self.named = inputs, named
        return self.output


class Words(nn.Module):
    """A tiny language model, called as transformers call theirs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)
        self.head = nn.Linear(4, WORDS)

    def forward(self, input_ids, attention_mask=None, **named):
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return SimpleNamespace(logits=self.head(hidden.cumsum(1)))


class PerPosition(nn.Module):
    """Scores for classes at every position, classes second."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(2, CLASSES, 1)

    def forward(self, inputs):
        return self.layer(inputs)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tokens(*rows):
    return torch.tensor(rows)


def cases():
    """A model and a batch of 5, in float64, for every named loss and form of batch."""
    torch.manual_seed(1)
    ids = torch.randint(WORDS, (5, 6))
    mask = (torch.arange(6) < torch.tensor([6, 4, 2, 5, 6])[:, None]).long()
    tags = torch.randint(CLASSES, (5, 6))
    tags[1, 2:] = -100
    inputs = torch.randn(5, 4).double()
    return {
        "cross_entropy": (
            "cross_entropy",
            nn.Linear(4, CLASSES).double(),
            (inputs, torch.tensor([0, 1, 2, 0, 1])),
        ),
        "cross_entropy at positions": (
            "cross_entropy",
            PerPosition().double(),
            (torch.randn(5, 2, 6).double(), tags),
        ),
        "mse": ("mse", nn.Linear(4, 2).double(), (inputs, torch.randn(5, 2).double())),
        "mse of one output": ("mse", nn.Linear(4, 1).double(), (inputs, torch.randn(5).double())),
        "causal_lm of tokens": ("causal_lm", Words().double(), ids),
        "causal_lm with a mask": (
            "causal_lm",
            Words().double(),
            {"input_ids": ids, "attention_mask": mask},
        ),
        "causal_lm with labels": (
            "causal_lm",
            Words().double(),
            {"input_ids": ids, "labels": torch.where(mask == 1, ids, -100)},
        ),
    }


CASES = cases()


def one(batch, position):
    """A batch of the single example at `position`."""
    if isinstance(batch, dict):
        return {key: value[position : position + 1] for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(value[position : position + 1] for value in batch)
    return batch[position : position + 1]


def unsqueezed(batch):
    if isinstance(batch, dict):
        return {key: value.unsqueeze(0) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(value.unsqueeze(0) for value in batch)
    return batch.unsqueeze(0)


class Bound(nn.Module):
    """The model with other parameters, for a loss that calls it."""

    def __init__(self, model, parameters):
        super().__init__()
        self.call = lambda *inputs, **named: functional_call(model, parameters, inputs, named)

    def forward(self, *inputs, **named):
        return self.call(*inputs, **named)


# --- every named loss -------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_example_alone_has_the_loss_it_has_in_company(name):
    loss_name, model, batch = CASES[name]
    loss = open_loss(loss_name)

    together = loss(model, batch)
    alone = torch.cat([loss(model, one(batch, position)) for position in range(5)])

    assert together.shape == (5,)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_gradients_by_vmap_are_those_of_the_loop(name):
    loss_name, model, batch = CASES[name]
    loss = open_loss(loss_name)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def of_one(parameters, example):
        return loss(Bound(model, parameters), unsqueezed(example)).squeeze(0)

    gradients = vmap(grad(of_one), in_dims=(None, 0))(parameters, batch)

    for position in range(5):
        expected = torch.autograd.grad(
            loss(model, one(batch, position)).sum(), tuple(model.parameters())
        )
        for key, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(gradients[key][position], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_gives_the_directional_derivative(name):
    loss_name, model, batch = CASES[name]
    loss = open_loss(loss_name)
    parameters = {key: value.detach() for key, value in model.named_parameters()}
    direction = {key: torch.randn_like(value) for key, value in parameters.items()}

    _, slopes = jvp(lambda values: loss(Bound(model, values), batch), (parameters,), (direction,))

    for position in range(5):
        gradient = torch.autograd.grad(
            loss(model, one(batch, position)).sum(), tuple(model.parameters())
        )
        expected = sum((g * direction[k]).sum() for g, k in zip(gradient, direction, strict=True))
        torch.testing.assert_close(slopes[position], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_runs_while_functions_are_watched(name):
    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    loss_name, model, batch = CASES[name]

    with Watch():
        watched = open_loss(loss_name)(model, batch)

    assert torch.equal(watched, open_loss(loss_name)(model, batch))


# --- names ------------------------------------------------------------------------------------


def test_every_name_opens_its_loss():
    assert open_loss("cross_entropy") == CrossEntropy()
    assert open_loss("mse") == MeanSquaredError()
    assert open_loss("causal_lm") == open_loss("causal_lm_mean") == CausalLM()
    assert open_loss("causal_lm_sum") == CausalLM(tokens=1.0)


def test_a_callable_is_returned_unchanged():
    def mine(model, batch):
        return model(batch)

    assert open_loss(mine) is mine


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
    monkeypatch.setitem(losses._NAMED, "added", CrossEntropy)

    with pytest.raises(
        LossError, match="'causal_lm_mean', 'causal_lm_sum', 'added', but 'huber' was given"
    ):
        open_loss("huber")


@pytest.mark.parametrize(
    ("loss", "came"),
    [
        (None, "NoneType was given"),
        (CrossEntropy, "the class CrossEntropy was given"),
        (nn.CrossEntropyLoss(), r"CrossEntropyLoss was given, which takes \(output, labels\)"),
        (F.mse_loss, r"mse_loss was given, which takes \(output, labels\)"),
    ],
    ids=["nothing", "class", "module", "function"],
)
def test_what_is_no_loss_is_refused(loss, came):
    with pytest.raises(LossError, match=rf"loss\(model, batch\) .* {came}\. Pass 'cross_ent"):
        open_loss(loss)


# --- cross_entropy ----------------------------------------------------------------------------

LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
GOLD = torch.tensor([2, 1])
EXPECTED = -LOGITS.log_softmax(1)[[0, 1], [2, 1]]


@pytest.mark.parametrize(
    ("inputs", "positional", "named"),
    [
        (LOGITS, 1, []),
        ((LOGITS, LOGITS), 2, []),
        ([LOGITS], 1, []),
        ({"x": LOGITS, "mask": None}, 0, ["x", "mask"]),
        (UserDict(x=LOGITS), 0, ["x"]),
    ],
    ids=["tensor", "tuple", "list", "dict", "user dict"],
)
def test_the_model_is_called_as_the_inputs_say(inputs, positional, named):
    model = Fixed(LOGITS)

    torch.testing.assert_close(CrossEntropy()(model, (inputs, GOLD)), EXPECTED)

    assert len(model.inputs) == positional
    assert list(model.named) == named


def test_a_mapping_gives_the_model_all_but_the_labels():
    model = Fixed(SimpleNamespace(logits=LOGITS))
    batch = UserDict(input_ids=GOLD, attention_mask=GOLD, labels=GOLD)

    torch.testing.assert_close(CrossEntropy()(model, batch), EXPECTED)

    assert list(model.named) == ["input_ids", "attention_mask"]
    assert list(batch) == ["input_ids", "attention_mask", "labels"]


@pytest.mark.parametrize(
    "output", [LOGITS, SimpleNamespace(logits=LOGITS), {"logits": LOGITS}, UserDict(logits=LOGITS)]
)
def test_logits_are_found_in_any_output(output):
    torch.testing.assert_close(CrossEntropy()(Fixed(output), (LOGITS, GOLD)), EXPECTED)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_any_integer_type_makes_labels(dtype):
    torch.testing.assert_close(CrossEntropy()(Fixed(LOGITS), (LOGITS, GOLD.to(dtype))), EXPECTED)


def test_half_precision_is_widened_for_the_loss():
    found = CrossEntropy()(Fixed(LOGITS.bfloat16()), (LOGITS, GOLD))

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, EXPECTED)


def test_positions_are_averaged_within_the_example():
    logits = torch.randn(2, CLASSES, 4)
    labels = torch.tensor([[0, 1, 2, 0], [1, -100, 2, -100]])

    found = CrossEntropy()(Fixed(logits), (logits, labels))

    log = logits.log_softmax(1)
    first = -(log[0, 0, 0] + log[0, 1, 1] + log[0, 2, 2] + log[0, 0, 3]) / 4
    second = -(log[1, 1, 0] + log[1, 2, 2]) / 2
    torch.testing.assert_close(found, torch.stack([first, second]))


def test_positions_may_have_several_dimensions():
    logits, labels = torch.randn(2, CLASSES, 4, 5), torch.randint(CLASSES, (2, 4, 5))

    found = CrossEntropy()(Fixed(logits), (logits, labels))

    torch.testing.assert_close(
        found, F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
    )


def test_an_outcome_comes_from_one_forward_pass():
    calls = []

    class Counted(Fixed):
        def forward(self, *inputs, **named):
            calls.append(inputs)
            return super().forward(*inputs, **named)

    outcome = CrossEntropy().outcome(Counted(LOGITS), (LOGITS, GOLD.int()))

    assert isinstance(outcome, Outcome)
    assert len(calls) == 1
    torch.testing.assert_close(outcome.losses, EXPECTED)
    assert torch.equal(outcome.logits, LOGITS)
    assert torch.equal(outcome.labels, GOLD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_labels_that_are_no_integers_are_refused(dtype):
    with pytest.raises(LabelError, match=rf"integers.* but they are {dtype}\. Pass labels\.long"):
        CrossEntropy()(Fixed(LOGITS), (LOGITS, GOLD.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_one_hot_labels_are_refused_with_the_way_out(dtype):
    batch = torch.zeros(4, 2), torch.eye(3)[[0, 1, 2, 0]].to(dtype)
    with pytest.raises(LabelError, match=r"one integer class per example.*labels\.argmax\(1\)"):
        CrossEntropy()(torch.nn.Linear(2, 3), batch)


def test_labels_that_are_no_tensor_are_refused():
    with pytest.raises(LabelError, match=r"labels that are a tensor; got a list.*with_format"):
        CrossEntropy()(Fixed(LOGITS), (LOGITS, [2, 1]))


@pytest.mark.parametrize("label", [3, -1, -100])
def test_a_label_outside_the_classes_is_named(label):
    message = rf"from 0 to 2, since the model scores 3, but the example at position 1 .* {label}\."

    with pytest.raises(LabelError, match=message):
        CrossEntropy()(Fixed(LOGITS), (LOGITS, torch.tensor([0, label])))


def test_a_label_outside_the_classes_is_named_with_its_position():
    labels = torch.tensor([[0, -100], [1, 7]])

    with pytest.raises(
        LabelError, match=r"example at position 1 of the batch has 7, at its pos.*1"
    ):
        CrossEntropy()(Fixed(torch.zeros(2, 3, 2)), (LOGITS, labels))


def test_an_example_without_a_label_at_any_position_has_loss_zero_and_is_named():
    labels = torch.tensor([[0, 1], [-100, -100]])

    with pytest.warns(DataWarning, match=r"the example at position 1 of the batch: each of its"):
        losses = CrossEntropy()(Fixed(torch.zeros(2, 3, 2)), (LOGITS, labels))

    assert losses.tolist() == [pytest.approx(math.log(3)), 0.0]


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        (torch.zeros(2), GOLD, r"\[examples, classes\], but the model gave \(2,\)"),
        (torch.zeros(2, 1), GOLD, r"one class only, \(2, 1\)"),
        (LOGITS, GOLD.unsqueeze(1), r"gave \(2, 3\) for labels \(2, 1\)\. .*squeeze\(1\)"),
        (LOGITS[:1], GOLD, r"gave \(1, 3\) for labels \(2,\)"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5).long(), r"\(2, 5, 3\) for .*transpose\(1, 2\)"),
        ((LOGITS,), GOLD, r"output is a tensor, or has one as \.logits, but a tuple was returned"),
        (SimpleNamespace(logits=None), GOLD, "but a SimpleNamespace was returned"),
    ],
)
def test_an_output_that_does_not_fit_the_labels_is_refused(output, labels, message):
    with pytest.raises(LossError, match=message):
        CrossEntropy()(Fixed(output), (LOGITS, labels))


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        (LOGITS, "a Tensor was given"),
        ((LOGITS,), "a tuple of 1 was given"),
        ((LOGITS, LOGITS, GOLD), r"a tuple of 3 was given.*\(\(first, second\), labels\)"),
        ({"x": LOGITS, "label": GOLD}, "a mapping with 'x', 'label' was given"),
    ],
)
@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError()])
def test_a_batch_of_another_form_is_refused(loss, batch, came):
    with pytest.raises(LossError, match=rf"needs a batch that is \(inputs, labels\).* but {came}"):
        loss(Fixed(LOGITS), batch)


# --- mse --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_shape", [(2,), (2, 1)])
@pytest.mark.parametrize("target_shape", [(2,), (2, 1)])
def test_one_output_is_aligned_and_never_broadcast(output_shape, target_shape):
    outputs = torch.tensor([1.0, 2.0]).reshape(output_shape)
    targets = torch.tensor([3.0, 7.0]).reshape(target_shape)

    found = MeanSquaredError()(Fixed(outputs), (LOGITS, targets))

    assert found.tolist() == [4.0, 25.0]


def test_several_outputs_are_averaged():
    outputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])

    found = MeanSquaredError()(Fixed(outputs), {"x": LOGITS, "labels": targets})

    assert found.tolist() == [20.0]


def test_targets_take_the_type_of_the_outputs():
    outputs = torch.ones(2, requires_grad=True)

    found = MeanSquaredError()(Fixed(outputs), (LOGITS, torch.zeros(2, dtype=torch.float64)))
    found.sum().backward()

    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("output_shape", "target_shape"),
    [((2, 3), (2,)), ((2, 3), (2, 1)), ((2,), (1,)), ((), (2,)), ((2, 1), (1, 2)), ((3,), (2,))],
)
def test_outputs_unlike_the_targets_are_refused_with_both_shapes(output_shape, target_shape):
    with pytest.raises(LossError) as error:
        MeanSquaredError()(Fixed(torch.zeros(output_shape)), (LOGITS, torch.zeros(target_shape)))

    assert f"gave {output_shape} for targets {target_shape}. Reshape" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_targets_that_are_no_floating_point_numbers_are_refused(dtype):
    with pytest.raises(LabelError, match=rf"floating point numbers, but they are {dtype}\. Pass"):
        MeanSquaredError()(Fixed(torch.zeros(2)), (LOGITS, GOLD.to(dtype)))


# --- causal_lm --------------------------------------------------------------------------------


def by_hand(model, row):
    """The mean over the row's tokens but the first, each predicted from those before it."""
    log = model(torch.tensor([row])).logits[0].log_softmax(1)
    return -sum(log[at, row[at + 1]] for at in range(len(row) - 1)) / (len(row) - 1)


def test_each_token_is_predicted_from_those_before_it():
    model = Words()

    found = CausalLM()(model, tokens([1, 2, 3], [4, 5, 6]))

    expected = torch.stack([by_hand(model, [1, 2, 3]), by_hand(model, [4, 5, 6])])
    torch.testing.assert_close(found, expected)


def test_the_sum_is_over_an_examples_own_tokens():
    labels = tokens([1, 2, 3], [4, -100, 6])
    model, batch = Words(), {"input_ids": tokens([1, 2, 3], [4, 5, 6]), "labels": labels}

    found = CausalLM(tokens=1.0)(model, batch)

    torch.testing.assert_close(found, CausalLM()(model, batch) * torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(CausalLM(tokens=4.0)(model, batch), found / 4)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([[1, 2, 3, 0, 0]], [[1, 1, 1, 0, 0]]),
        ([[0, 0, 1, 2, 3]], [[0, 0, 1, 1, 1]]),
    ],
    ids=["right", "left"],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_on_either_side_changes_nothing(ids, mask, dtype):
    model = Words()
    batch = {"input_ids": tokens(*ids), "attention_mask": tokens(*mask).to(dtype)}

    torch.testing.assert_close(CausalLM()(model, batch), by_hand(model, [1, 2, 3])[None])


def test_labels_decide_which_tokens_are_scored():
    model = Words()
    batch = {"input_ids": tokens([1, 2, 3, 4]), "labels": tokens([-100, -100, 3, -100])}

    found = CausalLM()(model, batch)

    expected = -model(tokens([1, 2])).logits[0, 1].log_softmax(0)[3]
    torch.testing.assert_close(found, expected[None])


def test_the_language_model_gets_all_but_the_labels_by_name():
    model = Fixed(torch.zeros(1, 3, WORDS))
    ids = tokens([1, 2, 3])

    CausalLM()(model, UserDict(input_ids=ids, position_ids=ids, labels=ids))

    assert model.inputs == ()
    assert list(model.named) == ["input_ids", "position_ids"]


@pytest.mark.parametrize("form", [lambda ids: ids, lambda ids: (ids,), lambda ids: [ids]])
def test_a_tensor_of_tokens_is_passed_on_as_it_is(form):
    model, ids = Fixed(torch.zeros(1, 3, WORDS)), tokens([1, 2, 3])

    CausalLM()(model, form(ids))

    assert model.inputs == (ids,)
    assert model.named == {}


def test_the_loss_is_that_of_transformers_for_a_single_example():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = tokens([1, 2, 3, 4])

    found = CausalLM()(model, {"input_ids": ids})

    torch.testing.assert_close(found, model(input_ids=ids, labels=ids).loss[None])


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": tokens([1, 2, 3], [1, 2, 3]), "labels": tokens([1, 2, 3], [1, -100, -100])},
        {"input_ids": tokens([1, 2, 3], [1, 0, 0]), "attention_mask": tokens([1, 1, 1], [1, 0, 0])},
    ],
    ids=["labels", "mask"],
)
def test_a_text_without_a_token_to_predict_has_loss_zero_and_is_named(batch):
    with pytest.warns(
        DataWarning, match=r"No label to score in the example at position 1 .*Leave such examples"
    ):
        losses = CausalLM()(Words(), batch)

    assert losses[1] == 0
    assert losses[0] > 0


def test_a_label_that_is_no_word_is_named():
    batch = {"input_ids": tokens([1, 2, 3]), "labels": tokens([1, 2, WORDS])}

    with pytest.raises(
        LabelError, match=r"from 0 to 10, or -100 .* position 0 of the batch has 11"
    ):
        CausalLM()(Words(), batch)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"ids": tokens([1, 2])}, LossError, "a mapping with 'ids' was given"),
        ((tokens([1, 2]), tokens([1, 1])), LossError, "a tuple of 2 was given"),
        ("text", LossError, "a str was given"),
        (tokens([1, 2]).float(), LabelError, r"tensor of tokens\) needs labels.*torch\.float32"),
        (torch.tensor([1, 2]), LossError, r"\[examples, positions\] .* but \(2,\) was given"),
        (tokens([1]), LossError, r"two positions or more.* but \(1, 1\) was given"),
        ({"input_ids": [tokens([1, 2])]}, LabelError, "tensor; got a list.*with_format"),
        (
            {"input_ids": tokens([1, 2]), "attention_mask": torch.ones(1, 1, 2, 2)},
            LossError,
            r"attention_mask of the shape of input_ids, \(1, 2\), but \(1, 1, 2, 2\) was given",
        ),
        (
            {"input_ids": tokens([1, 2]), "labels": tokens([1, 2, 3])},
            LossError,
            r"labels of the shape of input_ids, \(1, 2\), but \(1, 3\) was given",
        ),
        (
            {"input_ids": tokens([1, 2]), "labels": torch.zeros(1, 2)},
            LabelError,
            r"labels\) needs labels that are integers.*torch\.float32",
        ),
    ],
)
def test_a_batch_that_holds_no_texts_is_refused(batch, error, message):
    with pytest.raises(error, match=message):
        CausalLM()(Words(), batch)


@pytest.mark.parametrize("shape", [(1, 2, WORDS), (1, WORDS), (1, 3, WORDS, 1)])
def test_an_output_that_does_not_fit_the_tokens_is_refused(shape):
    with pytest.raises(LossError) as error:
        CausalLM()(Fixed(torch.zeros(shape)), tokens([1, 2, 3]))

    assert f"for input_ids (1, 3), but the model gave {shape}" in str(error.value)


# --- what a model is called with ------------------------------------------------------------

NARROW = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32]


class Language(nn.Module):
    """An embedding, which takes two types of integers alone; notes what it was called with."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WORDS)
        self.called = []

    def forward(self, input_ids, attention_mask=None):
        self.called.append(attention_mask)
        return self.words(input_ids)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
def test_tokens_of_any_integer_type_are_scored(dtype, form):
    torch.manual_seed(0)
    model, ids = Language(), tokens([1, 2, 3], [3, 2, 1])
    narrow = ids.to(dtype)
    batch = {"tensor": narrow, "tuple": (narrow,), "mapping": {"input_ids": narrow}}[form]

    assert torch.equal(CausalLM()(model, batch), CausalLM()(model, ids))


def test_columns_that_the_model_does_not_take_are_left_out():
    model, ids = Language(), tokens([1, 2, 3], [3, 2, 1])
    mask = torch.ones_like(ids)
    extra = {"length": torch.tensor([3, 3]), "text": ["a", "b"], "idx": torch.tensor([0, 1])}

    losses = CausalLM()(model, {"input_ids": ids, "attention_mask": mask, **extra})

    assert torch.equal(losses, CausalLM()(model, ids))
    assert model.called[0] is mask


def test_a_model_that_takes_any_name_gets_every_column():
    class Any(nn.Module):
        def forward(self, **columns):
            self.names = sorted(columns)
            return columns["x"]

    model = Any()
    CrossEntropy()(model, {"x": LOGITS, "extra": LOGITS, "labels": GOLD})

    assert model.names == ["extra", "x"]


def test_models_of_transformers_get_what_their_forward_names():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = tokens([1, 2, 3, 4])

    found = CausalLM()(model, {"input_ids": ids.to(torch.uint8), "special_tokens_mask": ids})

    torch.testing.assert_close(found, model(input_ids=ids, labels=ids).loss[None])
