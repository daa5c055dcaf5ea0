"""The task that run.toml names: a table, and a number to predict. Replace what "Yours" marks."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EPOCHS, EVERY = 20, 4  # a checkpoint after every fourth epoch
COLUMNS = ["rooms", "age", "distance"]  # Yours: the names of the inputs.


def table(split: str) -> tuple[Tensor, Tensor]:
    """Inputs [examples, columns] and targets [examples], both float32.

    Yours: pandas.read_csv("table.csv"), its inputs scaled to mean 0 and deviation 1, and both
    turned into tensors by torch.tensor(frame[COLUMNS].to_numpy("float32")).
    """
    is_train = split == "train"
    generator = torch.Generator().manual_seed(1 if is_train else 2)
    inputs = torch.randn(200 if is_train else 20, len(COLUMNS), generator=generator)
    targets = 2 * inputs[:, 0] - inputs[:, 1] * inputs[:, 2]
    if is_train:
        targets[:8] += 6  # some targets are wrong, as in life
    return inputs, targets


def network() -> nn.Module:
    """Yours: the network that you train."""
    return nn.Sequential(nn.Linear(len(COLUMNS), 32), nn.ReLU(), nn.Linear(32, 1))


def show(example: tuple[Tensor, Tensor]) -> tracin.Shown:
    """How a report shows a row."""
    inputs, target = example
    columns = dict(zip(COLUMNS, inputs.tolist(), strict=True))
    return tracin.Shown(columns=columns, label=f"{target:.2f}")


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    model, train = network(), table("train")
    if len(list(CHECKPOINTS.glob("*.safetensors"))) < EPOCHS // EVERY:  # delete them to train again
        fit(model, train)
    return {
        "model": model,
        "loss": "mse",  # or loss(model, batch) -> [examples]
        "train": train,
        "queries": table("test"),
        "checkpoints": CHECKPOINTS,  # Yours, of a past training: "run/epoch*.pt", for instance.
        "show": show,
    }


def fit(model: nn.Module, train: tuple[Tensor, Tensor]) -> None:
    """Yours: your own training loop. The three lines with `recorder` are what it needs."""
    inputs, targets = train
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with tracin.Recorder(model, optimizer, CHECKPOINTS, every_n_epochs=EVERY) as recorder:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(targets)).split(20):
                loss = F.mse_loss(model(inputs[rows]).squeeze(1), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.epoch()
