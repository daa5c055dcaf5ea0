"""The experiment on facts runs, and places are counted against a method that cannot decide."""

import pytest
import torch

pytest.importorskip("peft")
from experiments.facts_model import Query

from experiments import facts, facts_model


@pytest.mark.slow
def test_a_quick_run_asks_every_method(data_folder, tmp_path):
    facts.main(["--quick", "--folder", str(tmp_path), "--threads", "1"])

    findings = (tmp_path / "quick" / "findings.md").read_text()
    lines = [line for line in findings.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows].count("Kernel(0.1, under=Adam())") == 1
    assert next(row for row in rows if row[0] == "BM25")[1] == "1.00"


def test_ties_count_against_a_method():
    scores = torch.tensor([[3.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert facts.places(scores, [0, 1]).tolist() == [1, 3]
    assert facts.places(scores, [2, 0]).tolist() == [3, 3]


def test_layers_alone_are_trained_and_their_answers_are_asked_about(tmp_path):
    tokenizer, model = facts_model.tiny()
    model = facts_model.prepared(model, "layers")
    texts = ["Ada is a ship.", "Bea (born 1980) is a poet.", "Cee was a town."]
    facts_model.fit(model, tokenizer, texts, 1e-3, 1, tmp_path)
    last = facts.tracin.open_checkpoints(tmp_path)[-1]

    starts = facts.questions(tokenizer, texts)
    said = facts.say(model, last, tokenizer, starts[:1])

    asked = [start.removeprefix("What do you know about ") for _, start in starts]
    assert asked == ["Ada?", "Bea?", "Cee?"]
    labels = facts_model.tokens(tokenizer, [Query(*one) for one in said])["labels"][0]
    assert (labels[: len(starts[0][1])] == -100).all()
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert {name.split(".")[2] for name in trained} == {"1", "2"}
    costs = facts.costs(model, last, facts_model.tokens_of_texts(tokenizer, texts))
    assert [row[0] for row in costs] == ["1", "16", "100"]
