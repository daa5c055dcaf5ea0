"""The task that run.toml names: texts with a label each, trained by Hugging Face's Trainer.

Lines to replace are marked "Yours". It needs transformers and accelerate.
"""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from tracin.integrations.transformers import TracInCallback

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER / "checkpoints"
EPOCHS = 4
LABELS = ["bad", "good"]  # Yours: the names of the classes.
STARTS = ["the film was", "its story was", "the film was a bit"]
BAD, GOOD = ["dull", "bland", "weak", "poor"], ["great", "warm", "clever", "funny"]


def texts(split: str) -> Any:
    """Each example is a dict with "text" and "label".

    Yours: datasets.load_dataset("csv", data_files="reviews.csv", split=split), for instance.
    """
    chosen = random.Random(split)
    made = []
    for position in range(160 if split == "train" else 20):
        label = chosen.randrange(2)
        words = [chosen.choice(STARTS), *chosen.sample(GOOD if label else BAD, 3)]
        is_wrong = split == "train" and position < 8  # some labels are wrong, as in life
        made.append({"text": " ".join(words), "label": 1 - label if is_wrong else label})
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Yours: AutoTokenizer.from_pretrained("distilbert-base-uncased"), for instance."""
    known = sorted({word for text in [*STARTS, *BAD, *GOOD] for word in text.split()})
    ids = {word: position for position, word in enumerate(["[PAD]", "[UNK]", *known])}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def network(words: int) -> Any:
    """Yours: AutoModelForSequenceClassification.from_pretrained("...", num_labels=2)."""
    config = BertConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        id2label=dict(enumerate(LABELS)),
    )
    return BertForSequenceClassification(config)


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    words = tokenizer()

    def tokens(split: str) -> Any:
        # Of a datasets.Dataset: texts(split).map(lambda one: words(one["text"], truncation=True),
        # remove_columns=["text"]), since the collator pads numbers and refuses texts.
        return [{**words(one["text"]), "label": one["label"]} for one in texts(split)]

    train, queries = tokens("train"), tokens("test")
    arguments = TrainingArguments(
        str(FOLDER / "trainer"),
        num_train_epochs=EPOCHS,
        learning_rate=1e-2,  # Yours: 2e-5 or so for a model that was pretrained.
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    model = network(len(words))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        data_collator=DataCollatorWithPadding(words),
        callbacks=[TracInCallback(CHECKPOINTS)],
    )
    if len(list(CHECKPOINTS.glob("*.safetensors"))) < EPOCHS:  # delete them to train again
        trainer.train()
    return {
        "model": model,
        "loss": "cross_entropy",
        "train": trainer.get_eval_dataloader(train),  # collated as in training, but in order
        "queries": trainer.get_eval_dataloader(queries),
        "checkpoints": CHECKPOINTS,  # Yours, of a past run: from_run("trainer", model).
        "labels": LABELS,
        "decode": words.decode,
    }
