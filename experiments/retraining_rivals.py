"""What other libraries make of the same nets: Kronfluence's EK-FAC, dattri's TRAK.

They are no dependencies of ours (type checkers do not see them), and come without their own, of
which torchvision would replace this torch: `pip install --no-deps -r experiments/rivals.txt`.
"""

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BATCH = 100


def is_here(name: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(name) is not None


def kronfluence(
    model: nn.Module,
    state: Mapping[str, Tensor],
    train: Sequence[Tensor],
    queries: Sequence[Tensor],
    seed: int,
    damping: float | None,
) -> Tensor:
    """EK-FAC at one checkpoint, as Kronfluence recommends: [train, queries].

    The loss is the cross-entropy of logits, summed over positions as it asks; labels are drawn
    from the model.

    Args:
        model: Of `state`; it is wrapped, and of no use afterwards.
        state: The checkpoint.
        train: Inputs and labels.
        queries: Inputs and labels.
        seed: Of the labels that are drawn.
        damping: Its `damping_factor`; None for a tenth of the mean eigenvalue.
    """
    from kronfluence.analyzer import Analyzer, prepare_model  # pyright: ignore[reportMissingImports]
    from kronfluence.arguments import ScoreArguments  # pyright: ignore[reportMissingImports]
    from kronfluence.task import Task  # pyright: ignore[reportMissingImports]

    class CrossEntropy(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            inputs, labels = batch
            logits = model(inputs).flatten(0, -2)
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.detach().softmax(-1), 1)
            return F.cross_entropy(logits, labels.flatten(), reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    torch.manual_seed(seed)
    task = CrossEntropy()
    model.load_state_dict(state)
    prepared = prepare_model(model, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "rival", prepared, task, cpu=True, output_dir=folder, disable_tqdm=True, log_level=40
        )
        data, asked = TensorDataset(*train), TensorDataset(*queries)
        analyzer.fit_all_factors("ekfac", data, per_device_batch_size=BATCH)
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            asked,
            data,
            per_device_query_batch_size=BATCH,
            per_device_train_batch_size=BATCH,
            score_args=ScoreArguments(damping_factor=damping),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"].T.double()


def trak(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    train: Sequence[Tensor],
    queries: Sequence[Tensor],
    seed: int,
    numbers: int = 1024,
) -> Tensor:
    """TRAK, by dattri, over checkpoints, with so many numbers per gradient: [train, queries]."""
    from dattri.algorithm import TRAKAttributor  # pyright: ignore[reportMissingImports]
    from dattri.task import AttributionTask  # pyright: ignore[reportMissingImports]

    def logit_loss(params: Any, data: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = data
        logits = torch.func.functional_call(model, params, inputs[None]).flatten(0, -2)
        likelihood = -F.cross_entropy(logits, labels.flatten())
        return likelihood - torch.log(-torch.expm1(likelihood.clamp(max=-1e-6)))

    def probability(params: Any, data: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = data
        logits = torch.func.functional_call(model, params, inputs[None]).flatten(0, -2)
        return torch.exp(-F.cross_entropy(logits, labels.flatten()))

    model.eval()
    task = AttributionTask(
        loss_func=logit_loss, model=model, checkpoints=[dict(state) for state in states]
    )
    attributor = TRAKAttributor(
        task=task,
        correct_probability_func=probability,
        projector_kwargs={"proj_dim": numbers, "proj_seed": seed, "device": "cpu"},
        device="cpu",
    )

    def batches(data: Sequence[Tensor]) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*data), batch_size=BATCH, shuffle=False)

    attributor.cache(batches(train))
    with torch.no_grad():
        return attributor.attribute(batches(queries)).double()


def captum_arnoldi(
    model: nn.Module,
    state: Mapping[str, Tensor],
    train: Sequence[Tensor],
    queries: Sequence[Tensor],
    seed: int,
) -> Tensor:
    """Captum's influence functions by Arnoldi iterations, its own settings: [train, queries].

    Its arguments take one label per example, so that texts are left out.
    """
    from captum.influence._core.arnoldi_influence_function import (  # pyright: ignore[reportMissingImports]
        ArnoldiInfluenceFunction,
    )

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/last.pt"
        torch.save(dict(state), path)
        found = ArnoldiInfluenceFunction(
            model,
            TensorDataset(*train),
            path,
            lambda net, where: float(bool(net.load_state_dict(torch.load(where)))),
            loss_fn=nn.CrossEntropyLoss(reduction="none"),
            batch_size=BATCH,
            seed=seed,
        )
        scores = found.influence((queries[0], queries[1]))
        assert isinstance(scores, Tensor)  # k= would give another result
        return scores.T.double()
