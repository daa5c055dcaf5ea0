"""The task that run.toml names: pictures with a label each. Lines to replace are marked "Yours"."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import tracin

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EPOCHS = 4
LABELS = ["stripes down", "stripes across", "neither"]  # Yours: the names of the classes.


def pictures(split: str) -> Dataset[tuple[Tensor, ...]]:
    """Each example is (picture [channels, height, width], label).

    Yours: torchvision.datasets.ImageFolder(f"pictures/{split}", transform), or any other Dataset
    that gives the same picture each time. Augmentation belongs into the training alone.
    """
    is_train = split == "train"
    generator = torch.Generator().manual_seed(1 if is_train else 2)
    labels = torch.randint(3, (240 if is_train else 20,), generator=generator)
    drawn = 0.3 * torch.randn(len(labels), 1, 8, 8, generator=generator)
    drawn[labels == 0, :, :, ::2] += 1
    drawn[labels == 1, :, ::2, :] += 1
    if is_train:
        labels[:12] = (labels[:12] + 1) % 3  # some labels are wrong, as in life
    return TensorDataset(drawn, labels)


def network() -> nn.Module:
    """Yours: the network that you train, such as torchvision.models.resnet18(num_classes=3)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, len(LABELS)),
    )


def task() -> dict[str, object]:
    """What tracin needs to know."""
    torch.manual_seed(0)
    model, train = network(), pictures("train")
    if len(list(CHECKPOINTS.glob("*.safetensors"))) < EPOCHS:  # delete them to train again
        fit(model, train)
    return {
        "model": model,
        "loss": "cross_entropy",  # or loss(model, batch) -> [examples]
        "train": train,
        "queries": pictures("test"),
        "checkpoints": CHECKPOINTS,  # Yours, of a past training: "run/epoch*.pt", for instance.
        "labels": LABELS,
    }


def fit(model: nn.Module, train: Dataset[tuple[Tensor, ...]]) -> None:
    """Yours: your own training loop. The three lines with `recorder` are what it needs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with tracin.Recorder(model, optimizer, CHECKPOINTS, every="epoch") as recorder:
        for _ in range(EPOCHS):
            model.train()
            for inputs, labels in DataLoader(train, batch_size=32, shuffle=True):
                loss = F.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            recorder.epoch()
