"""The task that run.toml names: put your own model, loss, data and checkpoints here."""

from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.evaluate import StackedFit

FOLDER = Path(__file__).parent / "checkpoints"
EPOCHS = 5


def data(examples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in the plane, labelled by the ring that they are in: inputs first, then labels."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(examples, 2, generator=generator)
    labels = (points.norm(dim=1) > 1.2).long()
    wrong = torch.rand(examples, generator=generator) < 0.05  # some labels are wrong, as in life
    return points, torch.where(wrong, 1 - labels, labels)


def network() -> nn.Module:
    """A new model."""
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    model = network()
    train = data(300, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sgd = partial(torch.optim.SGD, lr=0.5)
    refit = StackedFit(network, "cross_entropy", sgd, epochs=EPOCHS, batch_size=30)
    if len(list(FOLDER.glob("*.safetensors"))) <= EPOCHS:
        fit(model, optimizer, train)
    return {
        "model": model,
        "loss": "cross_entropy",  # or "mse", "causal_lm", or loss(model, batch) -> [examples]
        "train": train,  # tensors, a Dataset, or an unshuffled DataLoader
        "queries": data(20, seed=2),
        "checkpoints": FOLDER,  # a Recorder's folder, a glob, or a list of files
        "optimizer": optimizer,  # for tracin replay alone
        "fit": refit,  # for tracin evaluate alone: fit(data) -> a model trained on it
    }


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """An ordinary training loop; the Recorder saves weights with the learning rates really used."""
    with tracin.Recorder(model, optimizer, FOLDER, every="epoch") as recorder:
        recorder.save()  # where training begins
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train[0])).split(30):
                recorder.batch(rows)  # for tracin replay alone
                loss = F.cross_entropy(model(train[0][rows]), train[1][rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.epoch()
