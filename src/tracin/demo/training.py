"""An ordinary training loop, with the one line that TracIn needs of it: a Recorder."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracin.checkpoints import Recorder

EPOCHS = 60
BATCH = 64
# A rate that falls to nothing: at a constant one, single runs end high or low by luck.
FIRST_RATE = 0.2
CHECKPOINTS = 12


def small_net(seed: int) -> nn.Sequential:
    """A net that is large enough to learn wrong labels by heart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


def trained(images: Tensor, labels: Tensor, seed: int, record: Path | None = None) -> nn.Sequential:
    """Train a small net; with `record`, checkpoints and their learning rates go to that folder."""
    model = small_net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=FIRST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / EPOCHS)
    order = torch.Generator().manual_seed(seed)
    steps = EPOCHS * -(-len(labels) // BATCH)
    recorder = (
        nullcontext()
        if record is None
        else Recorder(model, optimizer, record, every=steps // CHECKPOINTS)
    )
    with recorder:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(labels), generator=order).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
            schedule.step()
    return model


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose label scores highest."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def emptied(checkpoints: Path) -> Path:
    """Remove only an earlier run's checkpoints, which a Recorder would resume from."""
    for path in (*checkpoints.glob("step-*.safetensors"), checkpoints / "recorder.json"):
        path.unlink(missing_ok=True)
    return checkpoints
