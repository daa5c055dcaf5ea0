"""What is wrong with an example is said with its id, not with its row in some batch."""

import copy
import tempfile
import warnings

import pytest
import torch
from torch import nn

import tracin
from tracin.data import open_examples, part
from tracin.losses import CausalLM
from tracin.scoring.named_examples import examples_named

WORDS = 7


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids):
        return self.words(input_ids)


def run(loss="cross_entropy", model=None):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 3)
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])


def labelled(bad=39, label=7, size=40):
    labels = torch.arange(size) % 3
    labels[bad] = label
    return tracin.WithIds((torch.randn(size, 4), labels), [f"e{at}" for at in range(size)])


QUESTIONS = {
    "self-influence": lambda one, data: one.self_influence(data, batch_size=16),
    "influence": lambda one, data: one.influence(data, labelled(label=0), batch_size=16),
    "queries": lambda one, data: one.influence(labelled(label=0), data, batch_size=16),
    "explain": lambda one, data: one.explain(data, labelled(label=0), k=2, batch_size=16),
    "mislabelled": lambda one, data: one.find_mislabelled(data, batch_size=16),
    "index": lambda one, data: one.index(data, tempfile.mkdtemp(), batch_size=16),
    "losses": lambda one, data: tracin.training_losses(one, data),
    "tail patch": lambda one, data: tracin.evaluate.tail_patch(
        one, labelled(label=0), data, torch.randn(40, 40), k=2, learning_rate=0.1
    ),
}


@pytest.mark.parametrize("bad", [0, 1, 17, 39])
@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_a_label_that_is_no_class_is_named_by_its_examples_id(ask, bad):
    # A unit of an index that cannot be built says why in an error of its own.
    errors = tracin.LabelError, tracin.IndexingError
    with pytest.raises(errors, match=rf"but example 'e{bad}' has 7\. Renumber"):
        ask(run(), labelled(bad))


def texts(empty=(2, 5)):
    tokens = torch.randint(0, WORDS, (8, 4), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[list(empty)] = -100
    data = {"input_ids": tokens, "labels": labels}
    return tracin.WithIds(data, [f"t{at}" for at in range(8)])


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_examples_without_labels_score_zero_and_are_named_once(batch_size):
    model = Language()
    states = [copy.deepcopy(model.state_dict()), Language().state_dict()]
    one = tracin.TracIn(model, "causal_lm", states, learning_rates=[1.0, 0.5])

    with pytest.warns(tracin.DataWarning, match="No label to score in") as caught:
        scores = one.self_influence(texts(), batch_size=batch_size)

    said = " ".join(str(each.message) for each in caught)
    assert said.count("'t2'") == 1
    assert said.count("'t5'") == 1
    assert (scores == 0).nonzero()[:, 0].tolist() == [2, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = one.self_influence(texts(empty=()), batch_size=batch_size)
    kept = [0, 1, 3, 4, 6, 7]
    torch.testing.assert_close(scores[kept], others[kept])


def test_many_examples_without_labels_are_counted():
    examples = open_examples(texts(empty=range(7)))
    batch = examples.take(range(8))

    with (
        pytest.warns(tracin.DataWarning, match=r"examples 't0', 't1', .*'t4' and 2 more: each"),
        examples_named(examples, range(8), batch),
    ):
        CausalLM()(Language(), part(batch, [3, 7]))


def test_coverage_names_the_example_without_a_class():
    with pytest.raises(tracin.LabelError, match="but example 'e2' has 7"):
        run().coverage(labelled(2))
