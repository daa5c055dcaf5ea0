"""Which passages taught a fine-tuned language model to say what it says.

    TRACIN_DATA=<folder with tinyshakespeare/input.txt.gz> python examples/lora_shakespeare.py

Under three minutes on one CPU thread, without any download: a small Llama learns to spell from the
first plays of Tiny Shakespeare, a LoRA adapter is fine-tuned on passages of the last plays by
Hugging Face's Trainer with `TracInCallback`, and passages that were held out are explained by
those that were trained on. Needs pip install '.[transformers]'.
"""

import argparse
import gzip
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import Module
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import tracin
from tracin.integrations.transformers import TracInCallback

LENGTH = 160  # bytes of a passage, and so tokens: the tokenizer is ASCII
WORDS = 128
TRAINED, HELD_OUT = 480, 3
PLAYS = 0.85  # the part of the text from which the base model learns
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)


def main() -> None:
    """Train, fine-tune, explain."""
    parser = argparse.ArgumentParser(
        description="Which passages taught a fine-tuned language model to say what it says."
    )
    parser.add_argument("--steps", type=int, default=300, help="of the base model's training")
    parser.add_argument("--epochs", type=int, default=4, help="of the fine-tuning")
    chosen = parser.parse_args()
    steps, epochs = chosen.steps, chosen.epochs
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = perf_counter()

    text = shakespeare()
    cut = int(PLAYS * len(text))
    model = base_model()
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokens(passages(text[:cut])), Path(folder), 3e-3, max_steps=steps)
        print(f"base model: {sum(one.numel() for one in model.parameters()):,} parameters, "
              f"{steps} steps, {perf_counter() - start:.0f} s")  # fmt: skip

        spoken = passages(text[cut:])
        order = torch.randperm(len(spoken)).tolist()
        trained = [spoken[at] for at in order[:TRAINED]]
        held_out = [spoken[at] for at in order[TRAINED : TRAINED + HELD_OUT]]
        data, queries = tokens(trained), tokens(held_out)
        model = get_peft_model(model, LORA)
        before = loss(model, queries)
        recorded = Path(folder) / "recorded"
        train(model, data, Path(folder), 2e-3, TracInCallback(recorded), num_train_epochs=epochs)
        adapter = sum(one.numel() for one in model.parameters() if one.requires_grad)
        print(f"adapter: {adapter:,} parameters, {len(trained)} passages, {epochs} epochs; held "
              f"out loss {before:.3f} -> {loss(model, queries):.3f}, "
              f"{perf_counter() - start:.0f} s")  # fmt: skip

        for checkpoint in tracin.open_checkpoints(recorded):
            print(f"  {checkpoint.name}: learning rate {checkpoint.learning_rate:.2e}")
        run = tracin.TracIn(model, "causal_lm", recorded, preconditioner=tracin.Adam())
        found = run.explain(data, queries, k=2, normalise="cosine", progress=False)
        for passage, explanation in zip(held_out, found, strict=True):
            print(f"\n{'=' * 72}\nHeld out:\n{indented(passage)}")
            for title, hits in (
                ("Proponents, which lowered its loss", explanation.proponents),
                ("Opponents, which raised it", explanation.opponents),
            ):
                print(f"\n{title}:")
                for hit in hits:
                    print(f"{hit.score:+.4f}\n{indented(trained[hit.position])}")
    print(f"\n{perf_counter() - start:.0f} s in all")


def shakespeare() -> str:
    """The text, as ASCII."""
    folder = os.environ.get("TRACIN_DATA")
    if not folder:
        sys.exit("TRACIN_DATA is not set: it names the folder with tinyshakespeare/input.txt.gz.")
    with gzip.open(
        Path(folder) / "tinyshakespeare" / "input.txt.gz", "rt", encoding="ascii"
    ) as file:
        return file.read()


def passages(text: str) -> list[str]:
    """Pieces of equal length, each beginning with a speaker's name, without overlap."""
    found, end = [], 0
    for speech in re.finditer(r"(?<=\n\n)[A-Z][\w ]+:\n", text):
        start = speech.start()
        if start >= end and start + LENGTH <= len(text):
            end = start + LENGTH
            found.append(text[start:end])
    return found


def tokens(texts: Sequence[str]) -> list[dict[str, Tensor]]:
    """One example a passage, in the form of both the Trainer and tracin's "causal_lm"."""
    ids = [torch.tensor(list(text.encode("ascii"))) for text in texts]
    return [{"input_ids": one, "labels": one} for one in ids]


def base_model() -> LlamaForCausalLM:
    """A small Llama that knows nothing."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def train(
    model: Module,
    data: list[dict[str, Tensor]],
    folder: Path,
    rate: float,
    *callbacks: TrainerCallback,
    max_steps: int = -1,
    num_train_epochs: int = 3,
) -> None:
    """Train by Hugging Face's Trainer, with warm-up and a cosine to zero."""
    arguments = TrainingArguments(
        str(folder / "trainer"),
        learning_rate=rate,
        warmup_steps=20,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        per_device_train_batch_size=16,
        max_steps=max_steps,
        num_train_epochs=num_train_epochs,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    # The list has a length and items, which is all that the Trainer asks of a dataset.
    dataset: Any = data
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=list(callbacks))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def loss(model: Module, data: list[dict[str, Tensor]]) -> float:
    """The mean loss, in nats a character."""
    batch = {key: torch.stack([one[key] for one in data]) for key in data[0]}
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


def indented(passage: str) -> str:
    """A passage as it stands on the page."""
    return "\n".join(f"    {line}" for line in passage.splitlines())


if __name__ == "__main__":
    main()
