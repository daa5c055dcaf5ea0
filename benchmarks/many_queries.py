"""python -m benchmarks.many_queries: influence of language models' examples on many queries.

All parameters of models of random weights, one checkpoint, against a plain forward and backward
pass over the same training tokens; the queries' own gradients and the checks are timed as well.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from benchmarks.kronfluence_queries import kronfluence_pass
from benchmarks.models import LanguageModel
from benchmarks.subjects import Pair, Subject
from tracin.data import open_examples
from tracin.precision import exact_matmuls
from tracin.run import checkpoint_pass
from tracin.scoring.score_request import ScoreRequest

# Width, layers, heads, words; GPT-2's head is its embedding.
SIZES = {
    "tiny": (32, 2, 2, 128),
    "small": (256, 4, 4, 4096),
    "gpt2": (768, 12, 12, 50_257),
    "0.5B": (1280, 20, 20, 50_257),
    "1B": (2048, 16, 16, 50_257),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH_TOKENS = 16_384


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print one line per model, precision, length and number of queries; returns the figures."""
    options = _options(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {device}; queries of {options.query_length} tokens")
    titles = (
        "model",
        "numbers",
        "tokens",
        "queries",
        "passes",
        "ratio",
        "tokens/s",
        "plain",
        "GiB",
    )
    print("".join(f"{title:>10}" for title in titles))
    rows = []
    for size in options.sizes.split(","):
        for precision in options.precisions.split(","):
            for length in map(int, options.lengths.split(",")):
                for queries in map(int, options.queries.split(",")):
                    rows.append(_row(size, precision, length, queries, device, options))
                    if options.json:
                        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def many_queries_subject(size: str, examples: int, queries: int = 100) -> Subject:
    """Examples and queries of 64 tokens, in batches of 64."""
    model = _model(size, 64)
    return Subject(
        name=f"{size} LM",
        model=model,
        loss=_losses,
        mean_loss=lambda model, batch: _losses(model, batch).mean(),
        checkpoints=[{name: value.clone() for name, value in model.state_dict().items()}],
        train=_texts(size, examples, 64, 1),
        queries=_texts(size, queries, 64, 2),
        batch_size=64,
    )


def _row(
    size: str,
    precision: str,
    length: int,
    queries: int,
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    examples = max(2, options.tokens // length)
    batch_size = max(1, min(examples, options.batch_tokens // length))
    model, train = (
        _model(size, max(length, options.query_length)),
        _texts(size, examples, length, 1),
    )
    asked = _texts(size, queries, options.query_length, 2)
    model = model.to(device, PRECISIONS[precision])
    train, asked = ((words.to(device), labels.to(device)) for words, labels in (train, asked))
    works: dict[str, Callable[[], Any]] = {
        "tracin": partial(_influence, _run(model), train, asked, batch_size),
        "plain": partial(_plain_pass, model, train, batch_size),
    }
    peak, passes = _peak(device, works["tracin"])
    if options.index:
        works["index"] = partial(_built, _run(model), train, options.index, batch_size)
        works["index"]()  # the first one loads libraries
    rival_peak = None
    if options.kronfluence:
        works["kronfluence"] = kronfluence_pass(model, train, asked, batch_size)
        rival_peak, _ = _peak(device, works["kronfluence"])
    with exact_matmuls():
        works["plain"]()
        seconds = {name: [] for name in works}
        for _ in range(options.rounds):
            for name, work in works.items():
                seconds[name].append(_seconds(device, work))
    medians = {name: sorted(each)[len(each) // 2] for name, each in seconds.items()}
    row = {
        "model": size,
        "parameters": sum(one.numel() for one in model.parameters()),
        "precision": precision,
        "tokens per example": length,
        "tokens per query": options.query_length,
        "queries": queries,
        "passes": passes,
        "ratio": medians["tracin"] / medians["plain"],
        "tokens per second": examples * length / medians["tracin"],
        "plain tokens per second": examples * length / medians["plain"],
        "peak GiB": peak,
        "examples": examples,
        "batch size": batch_size,
    }
    if options.index:
        row["index ratio"] = medians["index"] / medians["plain"]
    if options.kronfluence:
        row["kronfluence ratio"] = medians["kronfluence"] / medians["plain"]
        row["kronfluence peak GiB"] = rival_peak
    shown = [size, precision, length, queries, passes, f"{row['ratio']:.2f}"]
    shown += [f"{row['tokens per second']:,.0f}", f"{row['plain tokens per second']:,.0f}"]
    shown += [f"{peak:.1f}" if peak else "-"]
    if options.index:
        shown += ["index:", f"{row['index ratio']:.2f}"]
    if options.kronfluence:
        rival = f"{rival_peak:.1f}" if rival_peak else "-"
        shown += ["Kronfluence:", f"{row['kronfluence ratio']:.2f}", rival]
    print("".join(f"{each:>10}" for each in shown), flush=True)
    return row


def _influence(run: tracin.TracIn, train: Pair, queries: Pair, batch_size: int) -> int:
    """Scores of every example for every query; how many passes over the examples it took."""
    request = ScoreRequest(open_examples(queries), range(len(queries[0])))
    examples, seen = open_examples(train), set()
    for step in checkpoint_pass(run).steps(
        examples, range(len(examples)), request, batch_size, False, "influence"
    ):
        seen.add(step.queries)
    return len(seen)


def _built(run: tracin.TracIn, train: Pair, numbers: int, batch_size: int) -> None:
    """Build an index, and throw it away."""
    with tempfile.TemporaryDirectory() as folder:
        run.index(
            train,
            Path(folder) / "index",
            tracin.Projection(numbers),
            batch_size=batch_size,
            recall_queries=0,
        )


def _plain_pass(model: nn.Module, train: Pair, batch_size: int) -> None:
    for start in range(0, len(train[0]), batch_size):
        rows = slice(start, start + batch_size)
        model.zero_grad()
        _losses(model, (train[0][rows], train[1][rows])).mean().backward()
    model.zero_grad()


def _run(model: nn.Module) -> tracin.TracIn:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return tracin.TracIn(model, _losses, [weights], learning_rates="equal")


def _model(size: str, length: int) -> LanguageModel:
    width, layers, heads, words = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LanguageModel(words, length, width=width, layers=layers, heads=heads)
    if size == "gpt2":
        model.head.weight = model.words.weight
        nn.init.normal_(model.words.weight, std=0.02)
    return model.eval()


def _texts(size: str, examples: int, length: int, seed: int) -> Pair:
    some = torch.Generator().manual_seed(seed)
    words = torch.randint(SIZES[size][3], (examples, length + 1), generator=some)
    return words[:, :-1].contiguous(), words[:, 1:].contiguous()


def _losses(model: nn.Module, batch: Pair) -> Tensor:
    words, following = batch
    scores = model(words).flatten(0, 1).float()
    losses = F.cross_entropy(scores, following.flatten(), reduction="none")
    return losses.view(following.shape).mean(1)


def _peak(device: torch.device, work: Callable[[], Any]) -> tuple[float | None, Any]:
    """What a work adds to a GPU's memory at most, in GiB, and what it returns: a warm-up, too."""
    gc.collect()
    if device.type != "cuda":
        return None, work()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**30, found


def _seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Of the device's clock; of a CPU, its time alone, whatever else the machine does."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_queries", description=__doc__)
    parser.add_argument("--device", help="cuda or cpu; by default a GPU if there is one")
    parser.add_argument("--sizes", default="gpt2", help="any of " + ", ".join(SIZES))
    parser.add_argument("--precisions", default="float32", help="any of " + ", ".join(PRECISIONS))
    parser.add_argument("--lengths", default="64", help="tokens per training example: 64,512,2048")
    parser.add_argument("--queries", default="1,16,100")
    parser.add_argument("--query-length", type=int, default=64, help="tokens per query")
    parser.add_argument("--tokens", type=int, default=65_536, help="of the training examples")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the CPU; by default as torch has it")
    parser.add_argument("--index", type=int, help="build one of so many numbers per row, too")
    parser.add_argument(
        "--kronfluence",
        action="store_true",
        help="ask it, too: its ratio and GiB (pip install --no-deps -r experiments/rivals.txt)",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
