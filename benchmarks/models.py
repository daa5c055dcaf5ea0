"""The models that are timed, written as a user would write them: nothing here knows of tracin."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp() -> nn.Sequential:
    """784-256-128-64-10 with ReLU: 242,762 parameters, as in the paper's MNIST experiment."""
    return nn.Sequential(
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@final
class ResNet(nn.Module):
    """The residual nets for 32 x 32 images of He et al. (2016), section 4.2: 6n + 2 layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = [16] * blocks + [32] * blocks + [64] * blocks
        self.blocks = nn.Sequential(
            *[_Block(before, width) for before, width in zip([16, *widths], widths, strict=False)]
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:  # [examples, 3, 32, 32] -> [examples, 10]
        """Class scores."""
        hidden = self.blocks(F.relu(self.norm(self.stem(images))))
        return self.head(hidden.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = width // before
        self.widened = width - before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        changed = F.relu(self.norm1(self.conv1(hidden)))
        changed = self.norm2(self.conv2(changed))
        if self.widened:
            # Their option A: a shortcut without parameters, zeros in the new channels.
            hidden = hidden[:, :, :: self.stride, :: self.stride]
            hidden = F.pad(hidden, (0, 0, 0, 0, 0, self.widened))
        return F.relu(hidden + changed)


def settle_norms(model: nn.Module, images: Tensor) -> None:
    """Give fresh BatchNorms the statistics of `images`, or deep nets would explode in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()


@final
class LanguageModel(nn.Module):
    """A causal transformer: learned positions, LayerNorm first, GELU, a head that may be tied."""

    def __init__(
        self,
        words: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        *,
        is_tied: bool = False,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*[_Layer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        if is_tied:
            self.head.weight = self.words.weight
            nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:  # [examples, length] -> [examples, length, words]
        """Scores of the next word at every position."""
        hidden = self.words(words) + self.positions[: words.shape[1]]
        return self.head(self.norm(self.layers(hidden)))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:  # [examples, positions, width]
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))

    def attention(self, hidden: Tensor) -> Tensor:
        mixed = self.mixed(hidden).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = mixed.unbind(0)  # [examples, heads, positions, width / heads]
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(seen.transpose(1, 2).flatten(2))


@final
class ResNet50(nn.Module):
    """The residual net for images of 224 x 224 of He et al. (2016), table 1: 25.6 M parameters."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, before = [], width
        for stage, count in enumerate((3, 4, 6, 3)):
            within = width << stage
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(_Bottleneck(before, within, stride))
                before = 4 * within
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:  # [examples, 3, 224, 224] -> [examples, classes]
        """Class scores."""
        hidden = F.max_pool2d(F.relu(self.norm(self.stem(images))), 3, 2, padding=1)
        return self.head(self.blocks(hidden).mean((2, 3)))


class _Bottleneck(nn.Module):
    def __init__(self, before: int, within: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(before, within, 1, bias=False),
            nn.BatchNorm2d(within),
            nn.ReLU(),
            nn.Conv2d(within, within, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(within),
            nn.ReLU(),
            nn.Conv2d(within, 4 * within, 1, bias=False),
            nn.BatchNorm2d(4 * within),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or before != 4 * within:
            self.shortcut.append(nn.Conv2d(before, 4 * within, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(4 * within))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.relu(self.layers(hidden) + self.shortcut(hidden))
