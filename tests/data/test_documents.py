"""Packed rows: each document is scored as it was trained, apart from its neighbours."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, default_collate
from transformers import LlamaConfig, LlamaForCausalLM

import tracin
from tracin.errors import DataError

LENGTHS = [[3, 4], [2, 3, 2]]
ROW = {"input_ids": list(range(1, 8)), "seq_lengths": [3, 4]}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).double().eval()


class Running(torch.nn.Module):
    """Each position sees all before it in its row, whatever the positions are said to be."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(17, 8)
        self.head = torch.nn.Linear(8, 17)
        self.double()

    def forward(self, input_ids):
        return self.head(torch.tanh(self.table(input_ids).cumsum(1)))


def packed():
    drawn = torch.randint(0, 17, (2, 7), generator=torch.Generator().manual_seed(0))
    return [
        {"input_ids": ids, "position_ids": torch.cat([torch.arange(one) for one in lengths])}
        for ids, lengths in zip(drawn, LENGTHS, strict=True)
    ]


def losses_in_place(model, row, lengths):
    """The mean loss of each document within its packed row."""
    logits = model(row["input_ids"][None], position_ids=row["position_ids"][None], use_cache=False)
    ids, losses, start = row["input_ids"], [], 0
    for length in lengths:
        within = slice(start, start + length - 1)
        losses.append(F.cross_entropy(logits.logits[0, within], ids[start + 1 : start + length]))
        start += length
    return losses


def test_documents_score_as_they_do_within_their_rows():
    model, rows = llama(), packed()
    parameters = list(model.parameters())
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters, retain_graph=True)])
        for row, lengths in zip(rows, LENGTHS, strict=True)
        for one in losses_in_place(model, row, lengths)
    ]
    data = tracin.documents(rows)

    run = tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates=[1.0])
    scores = run.influence(data, data)

    assert list(data.ids) == ["0:0", "0:1", "1:0", "1:1", "1:2"]
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12)
    assert {str(one.method) for one in run.coverage(data).entries.values()} == {"fast"}


def test_packed_rows_score_as_they_were_trained():
    """With a cache, which the model's configuration asks for, attention would cross documents."""
    model, rows = llama(), packed()
    run = tracin.TracIn(model, "causal_lm_sum", [model.state_dict()], learning_rates=[1.0])
    gradients = []
    for row, lengths in zip(rows, LENGTHS, strict=True):
        each = losses_in_place(model, row, lengths)
        loss = sum(one * (length - 1) for one, length in zip(each, lengths, strict=True))
        found = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([one.flatten() for one in found]))

    scores = run.influence(rows, rows)

    expected = torch.stack(gradients) @ torch.stack(gradients).T
    assert model.config.use_cache
    torch.testing.assert_close(scores.to(expected), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "bounds",
    [
        {"position_ids": [0, 1, 2, 0, 1, 2, 3]},
        {"position_ids": torch.tensor([[2, 3, 4, 2, 3, 4, 5]])},
        {"seq_lengths": [3, 4]},
        {"cu_seq_lens_q": torch.tensor([0, 3, 7])},
    ],
    ids=["restarts", "restarts at two", "lengths", "sums of lengths"],
)
def test_rows_are_divided_where_they_say(bounds):
    row = {"input_ids": torch.arange(1, 8)[None], "labels": [-100, 2, 3, -100, 5, 6, 7]} | bounds

    found = tracin.documents(tracin.WithIds([row], ["a"]))

    assert list(found.ids) == ["a:0", "a:1"]
    assert found[0]["input_ids"].tolist() == [1, 2, 3, 0]
    assert found[0]["labels"].tolist() == [-100, 2, 3, -100]
    assert found[0]["attention_mask"].tolist() == [1, 1, 1, 0]
    assert found[1]["labels"].tolist() == [-100, 5, 6, 7]


def test_masked_positions_are_no_document():
    row = {"input_ids": [1, 2, 3, 0, 0], "position_ids": [0, 1, 2, 0, 0]}

    found = tracin.documents([row | {"attention_mask": [1, 1, 1, 0, 0]}])

    assert list(found.ids) == ["0:0"]
    assert found[0]["input_ids"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 2], r"a mapping with 'input_ids' and 'position_ids'.*row 0 is"),
        ({"input_ids": [1, 2]}, r"does not say where its documents end.*has 'input_ids'"),
        (ROW | {"seq_lengths": [3, 3]}, r"Row 0 has 7 tokens, but documents of 6 together"),
        (ROW | {"attention_mask": [[1] * 7] * 7}, r"Row 0 has 7 tokens, but a mask of 49\. One"),
        (ROW | {"attention_mask": [0] * 7}, r"hold no documents"),
        ({"input_ids": [1, 2]}, r"or pass separator=tokenizer\.eos_token_id"),
        ({"input_ids": [1, 2], "position_ids": [0, 1, 0]}, r"3 together and 3 position_ids"),
        (ROW | {"labels": [1, 2]}, r"Row 0 has 7 tokens, but 2 labels"),
        (ROW | {"seq_lengths": [8, -1]}, r"Row 0 has a negative number"),
        (ROW | {"attention_mask": [-1] * 7}, r"Row 0 has a negative number"),
        ({"input_ids": [1.5], "seq_lengths": [1]}, r"fractions as 'input_ids'"),
        ({"input_ids": "a text", "seq_lengths": [6]}, r"no numbers as 'input_ids': it is a str"),
        ({"input_ids": None, "seq_lengths": [6]}, r"row 0 is a mapping with 'input_ids'"),
        ({"input_ids": [[1], [2]], "seq_lengths": [2]}, r"shape \[2, 1\], and \[positions\] is"),
        ({"input_ids": 3, "seq_lengths": [1]}, r"shape \[\], and \[positions\] is"),
    ],
)
def test_rows_without_documents_are_refused_in_words(row, words):
    with pytest.raises(DataError, match=words):
        tracin.documents([row])


END = 2  # a token that ends documents
CHUNKS = [[5, 6, END, 8, 9, 3, END], [4, 4, 7, END, END, 1, 1]]  # the last document goes on
PLACES = [[(0, 3), (3, 7)], [(0, 4), (4, 5), (5, 7)]]


def one_run(model, loss="causal_lm_sum"):
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates=[1.0])


@pytest.mark.parametrize("build", [llama, Running], ids=["attention", "running sums"])
def test_documents_in_context_score_as_their_part_of_the_rows_loss(build):
    model, rows = build(), [{"input_ids": torch.tensor(row)} for row in CHUNKS]
    gradients = []
    for row, places in zip(CHUNKS, PLACES, strict=True):
        tokens = torch.tensor(row)
        output = model(input_ids=tokens[None])
        logits = (output if isinstance(output, torch.Tensor) else output.logits)[0, :-1]
        each = F.cross_entropy(logits, tokens[1:], reduction="none")
        for start, stop in places:
            part = each[max(start - 1, 0) : stop - 1].sum()
            found = torch.autograd.grad(part, list(model.parameters()), retain_graph=True)
            gradients.append(torch.cat([one.flatten() for one in found]))
    data = tracin.documents(rows, in_context=True, separator=END)

    run = one_run(model)
    scores = run.influence(data, data)

    assert list(data.ids) == ["0:0", "0:1", "1:0", "1:1", "1:2"]
    expected = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(scores.to(expected), expected, rtol=1e-6, atol=1e-9)
    whole = run.influence(rows, data).to(expected)
    torch.testing.assert_close(torch.stack([expected[:2].sum(0), expected[2:].sum(0)]), whole)
    assert {str(one.method) for one in run.coverage(data).entries.values()} == {"fast"}


def test_a_collator_that_replaces_the_labels_of_documents_in_context_is_refused():
    def replaced(examples):
        batch = default_collate(examples)
        return batch | {"labels": batch["input_ids"].clone()}

    run = one_run(llama())
    data = tracin.documents([{"input_ids": row} for row in CHUNKS], in_context=True, separator=END)
    assert len(data) == len(run.influence(DataLoader(data, 2), data))
    for found in (data, Subset(data, [1, 2])):
        with pytest.raises(DataError, match="collate_fn of queries replaces the labels of docume"):
            run.influence(data, DataLoader(found, 2, collate_fn=replaced))


@pytest.mark.parametrize(
    ("build", "rows", "separator"),
    [
        (llama, [{"input_ids": CHUNKS[0]}], END),
        (Running, [row | {"labels": row["input_ids"]} for row in packed()], None),
        (Running, [ROW], None),
    ],
    ids=["cut from one text", "positions that the model does not take", "lengths"],
)
def test_documents_alone_are_refused_where_attention_crosses(build, rows, separator):
    data: Any = tracin.documents(rows, separator=separator)
    run = one_run(build())

    with pytest.raises(DataError, match=r"'0:1' of train is not what.*in_context=True.*=False"):
        run.self_influence(data)
    with pytest.raises(DataError, match=r"'0:1' of queries is not what it was in its row"):
        run.influence(torch.randint(0, 17, (3, 4)), Subset(data, [1]))
    with pytest.raises(DataError, match="is not what it was in its row"):
        run.tokens(data, data)

    sure = tracin.documents(rows, in_context=False, separator=separator)
    assert run.self_influence(sure).shape == (len(data),)


def test_rows_in_context_are_given_as_they_are_and_padded():
    rows = [
        {"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [5, 6], "position_ids": [0, 1], "attention_mask": [1, 1]},
    ]

    found = tracin.documents(rows, in_context=True)

    assert found[1]["labels"].tolist() == [-100, -100, -100, -100]  # one token, which is the first
    assert {name: each.tolist() for name, each in found[2].items()} == {
        "input_ids": [5, 6, 0, 0],
        "position_ids": [0, 1, 0, 1],
        "attention_mask": [1, 1, 0, 0],
        "labels": [-100, 6, -100, -100],
    }


def test_a_column_of_none_is_no_column():
    rows = packed()
    bare = [row | {"labels": None, "attention_mask": None, "seq_lengths": None} for row in rows]
    for in_context in (None, True):
        found = tracin.documents(bare, in_context=in_context)
        expected = tracin.documents(rows, in_context=in_context)
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_masked_within_a_document_stays_masked():
    row = {"input_ids": [5, 6, 7, 8], "seq_lengths": [4], "attention_mask": [0, 1, 0, 1]}
    found = tracin.documents([row])[0]
    assert found["input_ids"].tolist() == [6, 7, 8]
    assert found["attention_mask"].tolist() == [1, 0, 1]
    assert found["labels"].tolist() == [6, -100, 8]


class Placed(torch.nn.Module):
    """Knows absolute positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = torch.nn.Embedding(17, 8), torch.nn.Embedding(17, 8)
        self.head = torch.nn.Linear(8, 17)
        self.double()

    def forward(self, input_ids, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        return self.head(torch.tanh(self.table(input_ids) + self.places(position_ids)))


def test_a_document_that_goes_on_from_an_earlier_row_is_compared_as_well():
    rows = [
        {"input_ids": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]},
        {"input_ids": [1, 2, 3, 4], "position_ids": [0, 1, 0, 1]},
        {"input_ids": [1, 2, 3, 4], "position_ids": [5, 6, 0, 1]},
    ]
    run, places = one_run(Placed()), tracin.documents(rows, in_context=True)
    with pytest.raises(DataError, match=r"'2:0' of train is not what it was in its row"):
        run.self_influence(tracin.documents(rows))
    kept = tracin.documents(rows[:2])
    torch.testing.assert_close(run.self_influence(kept), run.self_influence(places)[:4])


@pytest.mark.parametrize("name", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("first", [0, 1])
def test_rows_in_context_have_the_same_columns(name, first):
    """A batch has the columns of its first example: a mask of another row would be lost."""
    bare = {"input_ids": [5, 6], "seq_lengths": [2]}
    rows = [bare, bare | {name: [0, 1]}]
    rows = rows[::-1] if first else rows
    with pytest.raises(DataError, match=f"Row {1 - first} has '{name}', and row {first} has none"):
        tracin.documents(rows, in_context=True)
    assert len(tracin.documents(rows)) == 2


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (ROW, {"separator": "</s>"}, r"separator is the number of a token, .*'</s>' was given"),
        (ROW, {"in_context": "no"}, r"in_context is True, False or None; 'no' was given"),
        (ROW, {"separator": 2}, r"has 'seq_lengths', which divides it, and separator=2"),
        (
            {"input_ids": [1, 2], "cu_seq_lens_q": [0, 2]},
            {"in_context": True},
            r"'cu_seq_lens_q', by which attention keeps documents apart",
        ),
    ],
    ids=["no token", "no answer", "divided twice", "kept apart by kernels"],
)
def test_contradictions_about_rows_are_refused_in_words(row, options, words):
    with pytest.raises(DataError, match=words):
        tracin.documents([row], **options)
