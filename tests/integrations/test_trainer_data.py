"""Hugging Face datasets, with a Trainer's collator or without, are taken as they are."""

from typing import Any

import pytest
import torch
from torch import nn

import tracin

ROWS = [[1, 2, 3], [3, 4, 5], [5, 6, 7]]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 10)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        return self.table(input_ids)


class StandIn:
    """What a `datasets.Dataset` gives: lists, or tensors once it is asked for them."""

    def __init__(self, rows: list[dict[str, Any]], kind: str | None = None) -> None:
        self.rows, self.format = rows, {"type": kind, "format_kwargs": {}}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        if self.format["type"] is None:
            return self.rows[at]
        return {k: v if isinstance(v, str) else torch.tensor(v) for k, v in self.rows[at].items()}

    def with_format(self, kind: str) -> "StandIn":
        return StandIn(self.rows, kind)


def stand_in(rows: list[dict[str, Any]]) -> StandIn:
    return StandIn(rows)


def real(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


MAKERS = pytest.mark.parametrize("made", [stand_in, real], ids=["stand-in", "datasets"])


@pytest.fixture
def run() -> tracin.TracIn:
    torch.manual_seed(0)
    model = Language().double()
    return tracin.TracIn(model, "causal_lm", [model.state_dict()], learning_rates="equal")


@MAKERS
def test_a_dataset_of_lists_is_read_as_tensors(run: tracin.TracIn, made):
    data = made([{"text": "so so", "input_ids": row} for row in ROWS])

    assert run.self_influence(data).equal(run.self_influence({"input_ids": torch.tensor(ROWS)}))
    assert data[0]["input_ids"] == ROWS[0]  # left as it was


@MAKERS
def test_a_collator_gets_the_columns_that_the_trainer_would_give_it(run: tracin.TracIn, made):
    pytest.importorskip("transformers")
    from tracin.integrations.transformers import trainer_data

    rows = [[1, 2, 3], [3, 4], [5, 6, 7, 8]]
    data = made([{"text": "so so", "input_ids": row, "labels": row} for row in rows])
    seen: set[str] = set()

    def padded(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.update(*examples)
        ids = [torch.as_tensor(each["input_ids"]) for each in examples]
        pad = nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True),
            "labels": pad(ids, batch_first=True, padding_value=-100),
        }

    found = run.self_influence(trainer_data(data, padded, run.model))

    alone = [run.self_influence({"input_ids": torch.tensor([row])}) for row in rows]
    assert torch.allclose(found, torch.cat(alone))
    assert seen == {"input_ids", "labels"}
