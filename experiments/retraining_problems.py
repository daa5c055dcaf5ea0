"""Three small trainings whose models are trained again many times: digits, photographs, text."""

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import tracin
from experiments.cifar10_images import open_cifar10
from experiments.mnist_images import open_mnist
from experiments.real_data import downloaded, held
from tracin.analysis.seeded import seeded

SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
CHECKSUM = "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CHARACTERS = 32

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, a net, and how it is trained.

    Attributes:
        name: What it is called.
        about: Data, net and training in words.
        train: Inputs and labels; labels are one per example, or one per position.
        queries: The same.
        model: Makes a new net.
        optimizer: Of some parameters.
        epochs: Passes over the data.
        batch: Examples per step.
        every: After how many epochs a checkpoint is kept.
        subsets: How many halves of the data are trained on.
        seeds: How many times each.
        runs: How many trainings are explained.
    """

    name: str
    about: str
    train: Data
    queries: Data
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    epochs: int
    batch: int
    every: int
    subsets: int
    seeds: int
    runs: int

    def shortened(self) -> "Problem":
        """A few seconds of it."""
        return replace(
            self,
            train=(self.train[0][:100], self.train[1][:100]),
            queries=(self.queries[0][:5], self.queries[1][:5]),
            epochs=2,
            every=1,
            subsets=6,
            seeds=2,
            runs=2,
        )


def losses(model: nn.Module, batch: Data) -> Tensor:
    """The cross-entropy of each example, the mean over its positions: [examples]."""
    inputs, labels = batch
    logits = model(inputs)
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(len(labels), -1).mean(1)


def trained(problem: Problem, seed: int, folder: Path) -> None:
    """Train on all data, and record the checkpoints that are kept.

    Args:
        problem: What to train.
        seed: Of the first weights and the order.
        folder: Where checkpoints go, with the optimizer's state.
    """
    with seeded(seed):
        model = problem.model().train()
        optimizer = problem.optimizer(model.parameters())
        with tracin.Recorder(
            model, optimizer, folder, every_n_epochs=problem.every, optimizer_state=True
        ) as recorder:
            for _ in range(problem.epochs):
                for rows in torch.randperm(len(problem.train[0])).split(problem.batch):
                    optimizer.zero_grad()
                    inputs, labels = problem.train
                    losses(model, (inputs[rows], labels[rows])).mean().backward()
                    optimizer.step()
                recorder.epoch()


def digits() -> Problem:
    """2,000 digits of MNIST and a net of two hidden layers."""
    images = open_mnist()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(images.train_labels), generator=generator)[:2000]
    asked = torch.randperm(len(images.test_labels), generator=generator)[:100]
    return Problem(
        "digits",
        "2,000 digits of MNIST, 100 test digits as queries; 784-128-64-10 with ReLU; SGD at rate "
        "0.1, 20 epochs of batches of 50",
        (images.train_images[rows].flatten(1), images.train_labels[rows]),
        (images.test_images[asked].flatten(1), images.test_labels[asked]),
        _mlp,
        partial(torch.optim.SGD, lr=0.1),
        epochs=20,
        batch=50,
        every=4,
        subsets=100,
        seeds=4,
        runs=4,
    )


def photographs() -> Problem:
    """2,000 photographs of CIFAR-10 and a small ResNet."""
    images = open_cifar10()
    return Problem(
        "photographs",
        "2,000 photographs of CIFAR-10 at 16 x 16 pixels, 100 test photographs as queries; a "
        "ResNet of 8 layers with group normalisation (77,850 weights); SGD at rate 0.05 with "
        "momentum 0.9, 15 epochs of batches of 50",
        (F.avg_pool2d(images.train[:2000], 2), images.labels[:2000]),
        (F.avg_pool2d(images.test[:100], 2), images.test_labels[:100]),
        _SmallResNet,
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        epochs=15,
        batch=50,
        every=3,
        subsets=40,
        seeds=2,
        runs=2,
    )


def characters() -> Problem:
    """2,000 lines of 33 characters of Shakespeare and a transformer of one block."""
    text = _shakespeare()
    alphabet = {each: at for at, each in enumerate(sorted(set(text)))}
    codes = torch.tensor([alphabet[each] for each in text])
    length = CHARACTERS + 1
    starts = torch.randperm(len(codes) // length, generator=torch.Generator().manual_seed(0))
    lines = codes[: len(codes) // length * length].view(-1, length)[starts]
    pairs = lines[:, :-1], lines[:, 1:]
    return Problem(
        "characters",
        "2,000 pieces of 33 characters of Shakespeare, 50 others as queries; a transformer of one "
        "block, width 32; Adam at rate 0.003, 10 epochs of batches of 50",
        (pairs[0][:2000], pairs[1][:2000]),
        (pairs[0][2000:2050], pairs[1][2000:2050]),
        partial(_Transformer, len(alphabet)),
        partial(torch.optim.Adam, lr=3e-3),
        epochs=10,
        batch=50,
        every=2,
        subsets=60,
        seeds=4,
        runs=3,
    )


PROBLEMS = {each.__name__: each for each in (digits, photographs, characters)}


def _mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for width, out in ((784, 128), (128, 64), (64, 10)):
        layer = nn.Linear(width, out)
        nn.init.normal_(layer.weight, std=(2 / width) ** 0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class _SmallResNet(nn.Module):
    """Three stages of one block each, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        found = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.head(found.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(4, out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(4, out)
        self.across = (
            nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(images)))
        return F.relu(self.second_norm(self.second(inner)) + self.across(images))


class _Transformer(nn.Module):
    def __init__(self, alphabet: int, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(alphabet, width)
        self.places = nn.Embedding(CHARACTERS, width)
        self.to_heads = nn.Linear(width, 3 * width, bias=False)
        self.from_heads = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        self.head = nn.Linear(width, alphabet, bias=False)
        for table in (self.letters, self.places):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, codes: Tensor) -> Tensor:
        positions = torch.arange(codes.shape[1], device=codes.device)
        stream = self.letters(codes) + self.places(positions)
        query, key, value = self.to_heads(_normed(stream)).unflatten(-1, (3, 2, -1)).unbind(-3)
        # Written out, since the fused kernel cannot be stacked.
        products = torch.einsum("...qhd,...khd->...hqk", query, key) * query.shape[-1] ** -0.5
        later = torch.ones_like(products).triu(1).bool()
        weights = products.masked_fill(later, -torch.inf).softmax(-1)
        mixed = torch.einsum("...hqk,...khd->...qhd", weights, value)
        stream = stream + self.from_heads(mixed.flatten(-2))
        stream = stream + self.down(F.relu(self.up(_normed(stream))))
        return self.head(_normed(stream))


def _normed(stream: Tensor) -> Tensor:
    return F.layer_norm(stream, stream.shape[-1:])


def _shakespeare() -> str:
    folder = held("tinyshakespeare")
    if folder is not None:
        return gzip.decompress((folder / "input.txt.gz").read_bytes()).decode()
    return Path(downloaded(SHAKESPEARE, CHECKSUM)).read_text()
