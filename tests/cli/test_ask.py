"""`tracin ask`: a question becomes tokens, an answer, and the training texts behind it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import tracin
from tracin.cli.answer_end import is_taught
from tracin.cli.conversation import (
    check_tokenizer,
    prompt_of,
    text_of_tokens,
    with_answer,
    with_generated,
)
from tracin.cli.main import main
from tracin.errors import QueryError, RunFileError
from tracin.losses import IGNORED
from tracin.results.near_copies import near_copies, words_in_all

PERU = "What is the capital of Peru ?"


class Letters:
    """A tokenizer with a chat template, as Hugging Face's have one: a token per letter."""

    chat_template = "given"
    eos_token, eos_token_id = "|", ord("|")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [*([1] if add_special_tokens else []), *map(ord, text)]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(each) for each in ids if each != 1 and chr(each) != "|")

    def apply_chat_template(self, said, *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize
        turns = "".join(f"{each['role'][0]}:{each['content']}|" for each in said)
        return turns + ("a:" if add_generation_prompt else "")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("asked")
    with pytest.raises(SystemExit) as stop:
        main(["init", str(folder), "--template", "questions"])
    assert stop.value.code == 0
    return folder / "run.toml"


def test_a_question_is_answered_and_its_texts_are_shown_with_near_copies_folded(
    run, capsys, tmp_path
):
    code, out, err = call(capsys, "ask", run, PERU, "-k", 2, "--out", tmp_path)

    assert code == 0, err
    assert "answer    it is lima ." in out
    assert "(generated, loss " in out
    assert "1.  id 0" in out
    assert "(and 1 near-copy: 8)" in out
    table = pq.read_table(tmp_path / "ask.parquet").to_pydict()
    assert table["text"][0] == "what is the capital of peru ? it is lima ."
    assert table["near_copy_ids"][0] == "8"
    settings = json.loads((tmp_path / "ask.settings.json").read_text())
    assert settings["question"] == PERU
    assert settings["is_generated"]
    given = call(capsys, "ask", run, PERU, "--answer", "it is lima .", "-k", 2, "--format", "json")
    assert [row["score"] for row in json.loads(given[1])] == pytest.approx(table["score"])


def test_a_given_answer_has_the_scores_of_its_tokens_alone(run, capsys):
    import importlib.util

    options = "--answer", "it is cusco .", "--checkpoint", 0
    code, out, err = call(capsys, "ask", run, PERU, *options, "--format", "json")
    assert code == 0, err
    assert not (run.parent / "results").exists()  # a file only where one is named
    rows = json.loads(out)

    spec = importlib.util.spec_from_file_location("asked_task", run.parent / "task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = module.task()
    conversation = with_answer(task["tokenizer"], PERU, "it is cusco .", task["train"])
    query = conversation.as_query()
    assert (query["labels"] != IGNORED).sum() == 5  # with the end, which the template trains on
    traced = tracin.TracIn(
        task["model"], "causal_lm", task["checkpoints"], preconditioner=tracin.Adam()
    )
    scores = traced.influence(task["train"], query)[:, 0]
    assert rows[0]["kind"] == "proponent"
    for row in rows:
        assert row["score"] == pytest.approx(float(scores[row["position"]]), rel=1e-4)


def test_an_unknown_checkpoint_is_refused_with_those_there_are(run, capsys):
    code, _, err = call(capsys, "ask", run, PERU, "--checkpoint", 9)

    assert code == 2
    assert "--checkpoint 9: there is no such one; there are 0 (step-" in err


def texts_with(*labels: int) -> list[dict[str, torch.Tensor]]:
    """Training data of two texts with these labels."""
    made = torch.tensor(labels)
    return [{"input_ids": torch.arange(len(labels)), "labels": made} for _ in range(2)]


TAUGHT, UNTAUGHT = texts_with(5, 6, ord("|")), texts_with(5, 6, IGNORED)


def test_a_chat_template_is_filled_in_and_ends_the_answer():
    tokenizer = Letters()

    conversation = with_answer(tokenizer, "hi", "yes", TAUGHT)

    assert text_of_tokens(tokenizer, prompt_of(tokenizer, "hi")) == "u:hia:"
    assert "".join(map(chr, conversation.prompt)) == "u:hi|a:"
    assert "".join(map(chr, conversation.answer)) == "yes|"
    assert conversation.as_query()["labels"].tolist()[0] == [IGNORED] * 7 + list(map(ord, "yes|"))
    untaught = with_answer(tokenizer, "hi", "yes", UNTAUGHT)
    assert "".join(map(chr, untaught.answer)) == "yes"


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [("", "|\n", "yes|"), (" ", "|\n", " yes|"), ("<no thought>", "|\n", "<no thought>yes|")],
    ids=["a line break", "a space before", "a thought before"],
)
def test_what_a_chat_template_writes_after_its_end_of_turn_is_no_part_of_the_answer(
    before, after, answer
):
    class Chat(Letters):
        def apply_chat_template(self, said, *, tokenize: bool, add_generation_prompt: bool) -> str:
            turns = "u:hi|a:"
            return turns if len(said) == 1 else f"{turns}{before}{said[1]['content']}{after}"

    made = with_answer(Chat(), "hi", "yes", TAUGHT)

    assert "".join(map(chr, made.answer)) == answer


def test_without_a_template_the_question_begins_as_a_text_and_is_not_ended():
    class Plain(Letters):
        chat_template = None

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            found = super().encode(text, add_special_tokens)
            return [*found, self.eos_token_id] if add_special_tokens else found

    conversation = with_answer(Plain(), "hi", "yes", UNTAUGHT)

    assert conversation.prompt == (1, *map(ord, "hi"))
    assert conversation.answer == tuple(map(ord, "yes"))
    assert with_answer(Plain(), "hi", "yes", TAUGHT).answer == tuple(map(ord, "yes|"))
    with pytest.raises(QueryError, match="makes no token of the answer ''"):
        with_answer(Plain(), "hi", "", TAUGHT)


@pytest.mark.parametrize("train", [TAUGHT, UNTAUGHT])
def test_a_tokenizer_that_ends_every_text_ends_an_answer_once_and_only_where_that_is_taught(train):
    class Ending:
        eos_token_id = ord("|")

        def encode(self, text: str) -> list[int]:
            return [*map(ord, text), self.eos_token_id]

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    conversation = with_answer(Ending(), "hi", "yes", train)

    assert conversation.prompt == tuple(map(ord, "hi"))
    assert conversation.answer == tuple(map(ord, "yes|" if train is TAUGHT else "yes"))
    assert with_answer(Ending(), "hi", "", TAUGHT).answer == (Ending.eos_token_id,)


def test_an_end_is_taught_where_the_labels_of_training_hold_it():
    assert is_taught(9, texts_with(5, 6, 9))
    assert not is_taught(9, texts_with(9, 6, IGNORED))  # the first token is not predicted
    masked = {"input_ids": torch.tensor([[5, 9, 9]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert is_taught(9, masked)
    assert is_taught(9, [(torch.zeros(2), 1)])  # a form that only the task's own loss reads


@pytest.mark.parametrize("ends", [True, False], ids=["taught", "not taught"])
def test_an_answer_that_is_generated_has_the_tokens_of_the_same_one_given(ends):
    class Told(torch.nn.Module):
        generation_config = None

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            assert options["eos_token_id"] == [ord("|")]
            most = options["max_new_tokens"]
            return torch.cat([input_ids, torch.tensor([list(map(ord, "yes|"))[:most]])], 1)

    model, train = Told(), TAUGHT if ends else UNTAUGHT
    loss = tracin.losses.open_loss("causal_lm")
    run = tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")

    generated = with_generated(run, 0, Letters(), "hi", 64, train=train)

    cut = with_generated(run, 0, Letters(), "hi", 3, train=train)

    assert (cut.is_cut, "".join(map(chr, cut.answer))) == (True, "yes")
    assert generated == with_answer(Letters(), "hi", "yes", train)
    assert "".join(map(chr, generated.answer)) == ("yes|" if ends else "yes")


def test_what_makes_no_tokens_is_refused():
    needed = "^tracin tokens makes tokens of a question, so .* return its 'tokenizer' too"
    with pytest.raises(RunFileError, match=needed):
        check_tokenizer(None, "tokens")
    with pytest.raises(RunFileError, match="'tokenizer', str, has no decode"):
        check_tokenizer("gpt2", "ask")


def test_texts_that_differ_only_within_a_template_are_no_near_copies():
    shared = "system: you are a helpful assistant and always answer in one short sentence. user: "
    texts = [f"{shared}{each}" for each in ("name a fruit", "a fruit, name!", "count to ten")]

    common = words_in_all(texts)

    assert near_copies(texts, 0.8, common) == [[0, 1], [2]]
    assert near_copies(["so", "So."], 0.8, words_in_all(["so", "So."])) == [[0, 1]]


def test_tokens_of_an_answer_have_shares_that_a_report_draws(run, capsys, tmp_path):
    options = "--question", PERU, "--answer", "it is lima .", "-k", 1, "--out", tmp_path
    in_tokens = "--set", "tracin.batch_size={ tokens = 64 }"

    code, out, err = call(capsys, "tokens", run, *options, *in_tokens)

    assert code == 0, err
    assert "'lima'" in out
    table = pq.read_table(tmp_path / "tokens.parquet").to_pandas()
    for (score, *_), shares in table.groupby(["score", "id", "text"])["share"]:
        assert shares.sum() == pytest.approx(score, rel=1e-4)
    named = table[(table["text"] == "query") & (table["share"] != 0)]["token"].tolist()
    assert named == ["it", "is", "lima", ".", ""] * 2
    settings = json.loads((tmp_path / "tokens.settings.json").read_text())
    assert (settings["question"], settings["tokens"]["k"]) == (PERU, 1)
    assert call(capsys, "report", tmp_path)[0] == 0
    assert "Which tokens carry the scores?" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Give either --query 3,17 or --question"),
        (["--query", 0, "--question", PERU], "Give either --query 3,17 or --question"),
        (["--query", 0, "--answer", "no"], "--answer is for --question"),
    ],
    ids=["neither", "both", "an answer without a question"],
)
def test_tokens_of_nothing_are_refused(run, capsys, options, words):
    code, _, err = call(capsys, "tokens", run, *options)

    assert code == 2
    assert words in err
