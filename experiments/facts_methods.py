"""The methods that the experiment on facts compares: each gives [queries, texts]."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tracin
from experiments.facts_model import BATCH, Query, fitted, summed_losses
from tracin.baselines import BM25, EmbeddingCosine

Rows = dict[str, Tensor]
Made = Callable[[], dict[str, Tensor]]

TOGETHER = 64  # texts of about 60 tokens in a batch
DAMPINGS = 0.003, 0.1
EMBEDDED = "mean of the last hidden states, cosine"


def methods(
    model: Any,
    checkpoint: tracin.Checkpoint,
    texts: Sequence[str],
    queries: Sequence[Query],
    rows: tuple[Rows, Rows],
    widths: Sequence[int],
    folder: Path,
) -> Iterator[tuple[str, Made]]:
    """(name, what computes its scores, and those by the cosine where both are at hand)."""
    train, asked = rows
    words = [query.words for query in queries]
    lengths = (train["labels"][:, 1:] >= 0).sum(1)

    def run(preconditioner: Any) -> tracin.TracIn:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Trained with Adam")  # to compare with
            return tracin.TracIn(
                model,
                summed_losses,
                [checkpoint],
                learning_rates="equal",
                preconditioner=preconditioner,
            )

    def traced(name: str, preconditioner: Any) -> dict[str, Tensor]:
        of = run(preconditioner)
        scores = of.influence(train, asked, batch_size=TOGETHER).T.cpu()
        own = of.self_influence(train, batch_size=TOGETHER).sqrt().cpu()
        found = {name: scores, f"{name}, cosine": scores / own}
        is_gradient = preconditioner is None or isinstance(preconditioner, tracin.Adam)
        return found | ({f"{name}, mean over tokens": scores / lengths} if is_gradient else {})

    def kernel(damping: float) -> dict[str, Tensor]:
        of = run(tracin.Kernel(damping, under=tracin.Adam()))
        scores = of.influence(train, asked, batch_size=TOGETHER).T.cpu()
        return {f"Kernel({damping:g}, under=Adam())": scores}

    def indexed(width: int) -> dict[str, Tensor]:
        index = run(tracin.Adam()).index(
            train,
            folder / f"{width}",
            tracin.Projection(width),
            recall_queries=0,
            batch_size=TOGETHER,
        )
        scores, own = index.influence(asked).T.cpu(), index.self_influence().sqrt().cpu()
        return {
            f"index of {width:,} numbers, Adam()": scores,
            f"index of {width:,} numbers, Adam(), cosine": scores / own,
        }

    yield "BM25", lambda: {"BM25": BM25().influence(list(texts), words).T}
    yield "embeddings", lambda: {EMBEDDED: _embedded(model, checkpoint, train, asked)}
    for name, preconditioner in (
        ("TracIn", None),
        ("Adam()", tracin.Adam()),
        ("KFAC()", tracin.KFAC()),
    ):
        yield name, partial(traced, name, preconditioner)
    for damping in DAMPINGS:
        yield f"Kernel {damping:g}", partial(kernel, damping)
    for width in widths:
        yield f"index {width}", partial(indexed, width)


@torch.no_grad()
def _embedded(model: Any, checkpoint: tracin.Checkpoint, train: Rows, asked: Rows) -> Tensor:
    """Cosine of mean last hidden states, the mean over training texts taken off."""
    device = next(model.parameters()).device

    def states(batch: Rows) -> Tensor:
        batch = {name: each.to(device) for name, each in batch.items()}
        mask = batch["attention_mask"]
        found = model(
            input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True
        ).hidden_states[-1]
        return (found * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    def all_states(rows: Rows) -> Tensor:
        parts = [
            states({name: each[at : at + BATCH] for name, each in rows.items()})
            for at in range(0, len(rows["input_ids"]), BATCH)
        ]
        return torch.cat(parts).cpu()

    with fitted(model, checkpoint):
        of_train, of_asked = all_states(train), all_states(asked)
    centre = of_train.mean(0)
    method = EmbeddingCosine(lambda batch: batch[0] - centre)
    return method.influence((of_train,), (of_asked,)).T
