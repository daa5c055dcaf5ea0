"""Two other tools on the work of `experiments.index_mnist`: Captum's random projection, and TRAK.

Both are used as their documentation has it, in float32, with the largest batches that make sense.
"""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tracin

Pair = tuple[Tensor, Tensor]  # images and labels
BATCH = 1000


@dataclass(frozen=True, eq=False)
class Told:
    """What a tool said, and what it took.

    Attributes:
        name: Of the tool.
        build: Seconds until the first question may be asked.
        explain: Seconds for the strongest of all queries.
        bytes: What is kept of the training examples.
        scores: [train, queries].
        hits: Positions of proponents and opponents: [queries, k] each.
    """

    name: str
    build: float
    explain: float
    bytes: int
    scores: Tensor
    hits: tuple[Tensor, Tensor]


def captum(
    model: nn.Sequential,
    checkpoints: Sequence[tracin.Checkpoint],
    rate: float,
    train: Pair,
    test: Pair,
    k: int,
) -> Told:
    """`TracInCPFastRandProj`: the last layer's weight, neighbours by Annoy (its default).

    Raises:
        ImportError: captum or annoy is not installed.
    """
    from captum.influence import TracInCPFastRandProj  # pyright: ignore[reportMissingImports]

    def load(into: nn.Module, state: dict[str, Tensor]) -> float:
        into.load_state_dict(state)
        return rate

    began = perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival: Any = TracInCPFastRandProj(
            model,
            model[-1],
            TensorDataset(*train),
            states(checkpoints),  # pyright: ignore[reportArgumentType]  # passed to our loader
            checkpoints_load_func=load,  # pyright: ignore[reportArgumentType]  # the same
            loss_fn=nn.CrossEntropyLoss(reduction="sum"),
            batch_size=BATCH,
            projection_dim=1024,
        )
        built = perf_counter()
        hits = [rival.influence(test, k=k, proponents=side).indices for side in (True, False)]
        explained = perf_counter()
        scores = rival.influence(test, k=None)
    kept: Any = rival.src_intermediate_quantities
    return Told(
        "Captum `TracInCPFastRandProj`",
        built - began,
        explained - built,
        kept.numel() * kept.element_size(),
        scores.T,
        (hits[0], hits[1]),
    )


def trak(
    model: nn.Sequential,
    checkpoints: Sequence[tracin.Checkpoint],
    train: Pair,
    test: Pair,
    k: int,
    dim: int,
) -> Told:
    """`TRAKer` with its projector for CPUs.

    Raises:
        ImportError: traker is not installed.
    """
    from trak import TRAKer  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        rival: Any = TRAKer(
            model=model,
            task="image_classification",
            train_set_size=len(train[0]),
            save_dir=folder,
            device="cpu",
            proj_dim=dim,
            use_half_precision=False,
            logging_level=logging.ERROR,
        )
        weights = states(checkpoints)
        for number, state in enumerate(weights):
            rival.load_checkpoint(state, model_id=number)
            for batch in parts(train):
                rival.featurize(batch, num_samples=len(batch[0]))
        rival.finalize_features()
        built = perf_counter()
        for number, state in enumerate(weights):
            rival.start_scoring_checkpoint("test", state, number, num_targets=len(test[0]))
            for batch in parts(test):
                rival.score(batch, num_samples=len(batch[0]))
        scores = torch.from_numpy(rival.finalize_scores("test").copy())
        hits = scores.topk(k, 0).indices.T, scores.topk(k, 0, largest=False).indices.T
        explained = perf_counter()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Told(f"TRAK, dim {dim}", built - began, explained - built, size, scores, hits)


def states(checkpoints: Sequence[tracin.Checkpoint]) -> list[dict[str, Tensor]]:
    """The weights of all checkpoints, in memory."""
    return [checkpoint.weights() for checkpoint in checkpoints]


def parts(data: Pair) -> list[Pair]:
    """Batches."""
    return list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))
