"""The same question by Kronfluence: products of gradients, without curvature, of its layers alone.

It is no dependency of ours: `pip install --no-deps -r experiments/rivals.txt`. It traces linear
layers and convolutions; embeddings and the weights of normalisation layers have no score there.
"""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.subjects import Pair

NAME = "queries"


def kronfluence_pass(
    model: nn.Module, train: Pair, queries: Pair, batch_size: int
) -> Callable[[], Tensor]:
    """A call that scores every example for every query: [queries, examples].

    Args:
        model: A copy of it is wrapped.
        train: Words and those that follow.
        queries: As the training examples; all are held at once.
        batch_size: Of training examples.
    """
    from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
    from kronfluence.arguments import (  # pyright: ignore[reportMissingImports]
        FactorArguments,
        ScoreArguments,
    )
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    class NextWord(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            words, following = batch
            scores = model(words).flatten(0, 1).float()
            return F.cross_entropy(scores, following.flatten(), reduction="sum") / words.shape[1]

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task = NextWord()
    kind = next(model.parameters()).dtype
    prepared = prepare_model(copy.deepcopy(model), task)
    folder = tempfile.TemporaryDirectory()
    analyzer = Analyzer(
        "rival",
        prepared,
        task,
        cpu=not train[0].is_cuda,
        output_dir=folder.name,
        disable_tqdm=True,
        log_level=40,
    )
    data, asked = (TensorDataset(*(each.cpu() for each in pair)) for pair in (train, queries))
    analyzer.fit_all_factors(
        NAME, data, factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True
    )
    precise = ScoreArguments(
        per_sample_gradient_dtype=kind, precondition_dtype=kind, score_dtype=kind
    )

    def scores() -> Tensor:
        analyzer.compute_pairwise_scores(
            NAME,
            NAME,
            asked,
            data,
            per_device_query_batch_size=len(asked),
            per_device_train_batch_size=batch_size,
            score_args=precise,
            overwrite_output_dir=True,
        )
        assert folder.name  # it is removed with this call
        return analyzer.load_pairwise_scores(NAME)["all_modules"]

    torch.manual_seed(0)
    return scores
