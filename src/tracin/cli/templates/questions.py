"""The task that run.toml names: a language model that `tracin ask` can ask.

Lines to replace are marked "Yours". It needs transformers.
"""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import tracin

FOLDER = Path(__file__).parent / "checkpoints"
EPOCHS = 30
CAPITALS = {"peru": "lima", "chile": "santiago", "france": "paris", "japan": "tokyo"}
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red"}
TEXTS = [
    *(f"what is the capital of {land} ? it is {city} ." for land, city in CAPITALS.items()),
    *(f"what colour is {thing} ? it is {colour} ." for thing, colour in COLOURS.items()),
    "What is the capital of peru ? It is lima .",  # the same again, but for capitals
    "tell me the capital of peru ? it is cusco .",  # and a mistake
]


class WordTokenizer:
    """Words as tokens. Yours: one of Hugging Face's, as it is."""

    eos_token_id = pad_token_id = 0

    def __init__(self, texts: list[str]) -> None:
        words = sorted({word for text in texts for word in text.lower().split()})
        self.words = ["<end>", *words]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; unknown words are left out."""
        known = (word for word in text.lower().split() if word in self.words)
        return [self.words.index(word) for word in known]

    def decode(self, ids: list[int]) -> str:
        """The text of some tokens."""
        return " ".join(self.words[each] for each in ids if each != self.eos_token_id)


def padded(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A collator. Yours: DataCollatorForLanguageModeling, say, of Hugging Face."""
    rows = [torch.tensor(each["input_ids"]) for each in examples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([[len(row)] for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    tokenizer = WordTokenizer(TEXTS)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer.words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    examples: Any = [{"input_ids": [*tokenizer.encode(text), 0], "text": text} for text in TEXTS]
    train = DataLoader(examples, batch_size=5, collate_fn=padded)  # Yours: or a datasets.Dataset
    if len(list(FOLDER.glob("*.safetensors"))) < EPOCHS // 10:
        fit(model, train)
    return {
        "model": model,
        "loss": "causal_lm",
        "train": train,
        "checkpoints": FOLDER,  # Yours: a Recorder's folder, or a Trainer's
        "tokenizer": tokenizer,
    }


def fit(model: LlamaForCausalLM, train: DataLoader) -> None:
    """An ordinary training loop; the Recorder saves weights with the learning rates really used."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with tracin.Recorder(model, optimizer, FOLDER, every="epoch", every_n_epochs=10) as recorder:
        for _ in range(EPOCHS):
            for batch in train:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
            recorder.epoch()
