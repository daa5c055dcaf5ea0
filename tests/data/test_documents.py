"""Packed rows: each document is scored as it was trained, apart from its neighbours."""

import pytest
import torch
from torch.nn import functional as F
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
        (ROW | {"attention_mask": [[1] * 7] * 7}, r"documents of 7 together and a mask of 49"),
        (ROW | {"attention_mask": [0] * 7}, r"hold no documents"),
    ],
    ids=["no mapping", "not divided", "too short", "a mask of pairs", "all masked"],
)
def test_rows_without_documents_are_refused_in_words(row, words):
    with pytest.raises(DataError, match=words):
        tracin.documents([row])
