"""The task that run.toml names: a language model, fine-tuned by LoRA in Hugging Face's Trainer.

Lines to replace are marked "Yours". It needs transformers, accelerate and peft.
"""

import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from tracin.integrations.transformers import TracInCallback

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER / "checkpoints"
EPOCHS = 4
ANIMALS, VERBS = ["cat", "dog", "owl", "fox"], ["sees", "hears", "likes", "fears"]
THINGS, TIMES = ["mouse", "bone", "moon", "hen"], ["", "at night", "by day"]


def texts(split: str) -> list[str]:
    """Yours: what the model is fine-tuned on ("train"), and what you ask about ("test")."""
    chosen = random.Random(split)
    made = []
    for _ in range(120 if split == "train" else 10):
        animal, thing = chosen.choice(list(zip(ANIMALS, THINGS, strict=True)))  # to each its own
        made.append(f"the {animal} {chosen.choice(VERBS)} a {thing} {chosen.choice(TIMES)}")
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Yours: AutoTokenizer.from_pretrained("...").

    Give it a pad_token where it has none, another than its eos_token: labels lose the padding, and
    a model that never sees where texts end answers without an end.
    """
    known = " ".join(["the", "a", *ANIMALS, *VERBS, *THINGS, *TIMES]).split()
    ids = {word: position for position, word in enumerate(["[PAD]", "[UNK]", "[END]", *known])}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )


def network(words: Any) -> Any:
    """Yours: AutoModelForCausalLM.from_pretrained("...") as the base model.

    An adapter that was trained before is opened by PeftModel.from_pretrained(base, folder,
    is_trainable=True): without is_trainable no parameter requires a gradient, and nothing is left
    to trace.
    """
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    adapter = LoraConfig(r=8, target_modules="all-linear", lora_dropout=0.0)
    return get_peft_model(LlamaForCausalLM(config), adapter)


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    words = tokenizer()

    def tokens(split: str) -> Any:
        ended = [f"{text} {words.eos_token}" for text in texts(split)]
        return [words(text, truncation=True, max_length=128) for text in ended]

    train, queries = tokens("train"), tokens("test")
    arguments = TrainingArguments(
        str(FOLDER / "trainer"),
        num_train_epochs=EPOCHS,
        learning_rate=1e-2,  # Yours: 2e-4 or so for a model that was pretrained.
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    model = network(words)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        data_collator=DataCollatorForLanguageModeling(words, mlm=False),
        callbacks=[TracInCallback(CHECKPOINTS)],
    )
    if len(list(CHECKPOINTS.glob("*.safetensors"))) < EPOCHS:  # delete them to train again
        trainer.train()
    return {
        "model": model,
        "loss": "causal_lm",
        "train": trainer.get_eval_dataloader(train),  # collated as in training, but in order
        "queries": trainer.get_eval_dataloader(queries),
        "checkpoints": CHECKPOINTS,  # Yours, of a past run: from_run("trainer", model).
        "decode": words.decode,
        "tokenizer": words,  # for `tracin ask`
    }
