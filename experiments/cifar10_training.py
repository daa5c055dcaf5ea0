"""Training on CIFAR-10 as section 4.2 of the paper does, with all images on the device.

The schedule is that of footnote 7: pairs of a factor of the first rate and the epoch from which it
holds, as in the residual nets of TensorFlow's official models. The paper names neither optimizer
nor augmentation; SGD with momentum, weight decay, random crops and flips are those of He et al.
(2016), https://arxiv.org/abs/1512.03385, section 4.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.models import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from tracin import Recorder
from tracin.demo.training import emptied

PAPER_EPOCHS, PAPER_EVERY = 270, 30
WARM_UP = 15 / PAPER_EPOCHS
FALLS = ((240 / PAPER_EPOCHS, 0.001), (180 / PAPER_EPOCHS, 0.01), (90 / PAPER_EPOCHS, 0.1))
RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
PADDING = 4
TOGETHER = 1000  # images of a forward pass without gradients


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        depth: Of the residual net, 6n + 2; the paper has 56.
        epochs: Passes over the data; the paper has 270.
        batch: Images per step; the paper has 1,000.
        every: Epochs between checkpoints; the paper has 30.
        is_augmented: Whether images are cropped and flipped at random.
        seed: Of the first weights, the order of the images, the crops and the flips.
    """

    depth: int
    epochs: int
    batch: int
    every: int
    is_augmented: bool
    seed: int


def rate_at(progress: float) -> float:
    """The learning rate of the paper's schedule; `progress` runs from 0 to 1 over the training.

    >>> [round(rate_at(epoch / 270), 6) for epoch in (3, 15, 89, 90, 180, 240)]
    [0.02, 0.1, 0.1, 0.01, 0.001, 0.0001]
    """
    for start, factor in FALLS:
        if progress >= start:
            return RATE * factor
    return RATE * min(1.0, progress / WARM_UP)


def new_net(recipe: Recipe, device: str) -> nn.Module:
    """The net before training: the same weights on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = ResNet(recipe.depth)
    return model.to(device)


def trained(
    images: Tensor, labels: Tensor, recipe: Recipe, record: Path | None = None
) -> nn.Module:
    """Train a new net where the images are; with `record`, checkpoints go to that folder.

    Args:
        images: [train, 3, 32, 32].
        labels: [train].
        recipe: How.
        record: A folder that is emptied, for checkpoints with their learning rates.

    Returns:
        The net, in eval mode.
    """
    device = images.device
    model = new_net(recipe, str(device))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in stubs
    optimizer = torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=False
    )
    recorder = None
    if record is not None:
        recorder = Recorder(model, optimizer, emptied(record), every_n_epochs=recipe.every)
    # Colours last: a crop then copies whole runs of memory, and convolutions are faster.
    padded = F.pad(images, [PADDING] * 4).permute(0, 2, 3, 1).contiguous()
    labels = labels.to(device)
    random = torch.Generator().manual_seed(recipe.seed)
    steps = recipe.epochs * -(-len(labels) // recipe.batch)
    step = 0
    with fastest_kernels():
        for _ in range(recipe.epochs):
            total = torch.zeros((), device=device)
            for batch, wanted in one_epoch(padded, labels, recipe, random):
                for group in optimizer.param_groups:
                    group["lr"] = rate_at((step + 1) / steps)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batch), wanted)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(wanted)
                step += 1
            if recorder is not None:
                recorder.epoch(float(total) / len(labels))
    if recorder is not None:
        recorder.close()
    return model.eval()


def one_epoch(
    padded: Tensor, labels: Tensor, recipe: Recipe, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once, perhaps cropped and flipped: [batch, 3, 32, 32] and [batch].

    Random numbers are drawn on the CPU, so that all devices see the same crops, and moved once.
    """
    count, device = len(labels), labels.device
    order = torch.randperm(count, generator=random).to(device)
    corners = torch.randint(2 * PADDING + 1, (2, count), generator=random).to(device)
    is_flipped = torch.randint(2, (count,), generator=random).bool().to(device)
    if not recipe.is_augmented:
        corners, is_flipped = torch.full_like(corners, PADDING), torch.zeros_like(is_flipped)
    places = zip(*(each.split(recipe.batch) for each in (order, *corners, is_flipped)), strict=True)
    for rows, top, left, flip in places:
        yield cropped(padded[rows], top, left, flip), labels[rows]


def cropped(padded: Tensor, top: Tensor, left: Tensor, is_flipped: Tensor) -> Tensor:
    """Cut a window out of each padded image, and mirror some.

    Args:
        padded: [images, height + 8, width + 8, colours].
        top: [images]; the first row of each window.
        left: [images]; the first column.
        is_flipped: [images], bool.

    Returns:
        [images, colours, height, width], with the colours last in memory.
    """
    count, height, width = len(padded), padded.shape[1] - 8, padded.shape[2] - 8
    device = padded.device
    rows = top[:, None] + torch.arange(height, device=device)
    across = torch.arange(width, device=device).expand(count, width)
    columns = left[:, None] + torch.where(is_flipped[:, None], across.flip(1), across)
    each = torch.arange(count, device=device)[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Let cuDNN try its convolutions and keep the fastest: all batches have the same shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@torch.no_grad()
def class_scores(model: nn.Module, images: Tensor) -> Tensor:
    """The net's scores for each class: [images, classes]."""
    model.eval()
    return torch.cat([model(part) for part in images.split(TOGETHER)])


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose label scores highest."""
    right = class_scores(model, images).argmax(1) == labels.to(images.device)
    return float(right.double().mean())
