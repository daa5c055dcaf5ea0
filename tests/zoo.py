"""The zoo: every kind of small model the engine must get right, in one table.

An entry says how to build a model, its per-example loss and its data, and whether fast rules
alone must cover it. Sizes collide on purpose (5 examples, 5 positions, 5 features; 3 too), for
an engine that tells examples from positions by their number alone is wrong. Run as a program it
prints each entry's largest errors and the ways taken.
"""

from __future__ import annotations

import functools
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

from slow_twin import Loss, dots, gradients, part
from tracin import errors

EXAMPLES = 5
QUERIES = 3
ALL = EXAMPLES + QUERIES
CLASSES = 3

DOUBLE = 1e-10
SINGLE = 1e-5


@dataclass(frozen=True)
class Case:
    model: nn.Module
    loss: Loss
    data: Any  # 5 examples
    queries: Any  # 3 others

    def to(self, dtype: torch.dtype) -> Case:
        """The same case with weights and floating data in `dtype`."""
        return Case(
            self.model.to(dtype), self.loss, cast(self.data, dtype), cast(self.queries, dtype)
        )


@dataclass(frozen=True)
class Entry:
    build: Callable[[], Case]
    way: Literal["fast", "exact"]
    double: float | None = DOUBLE  # largest relative error in float64; None: no float64 form
    single: float = SINGLE  # the same in float32
    idle: tuple[str, ...] = ()  # globs of parameters whose gradient is zero by nature


@dataclass(frozen=True)
class Refusal:
    build: Callable[[], Case]
    error: type[errors.TracInError]
    words: str  # a regular expression that the message matches


@dataclass(frozen=True)
class Truth:
    """What the slow twin says of a case, in the finest precision that the case has."""

    self_influence: Tensor  # [data]
    influence: Tensor  # [data, queries]
    among: Tensor  # [data, data]
    sizes: dict[str, float]  # the largest entry of any example's gradient, by parameter


ZOO: dict[str, Entry] = {}
REFUSED: dict[str, Refusal] = {}


def seeded(name: str, build: Callable[[], Case]) -> Callable[[], Case]:
    """`build` with a seed of its own, so that no entry depends on another or on the order."""

    @functools.wraps(build)
    def seeded_build() -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(name.encode()))
            return build()

    return seeded_build


def add(
    name: str, way: Literal["fast", "exact"], build: Callable[[], Case], **options: Any
) -> None:
    if name in ZOO:
        raise ValueError(f"{name} is in the zoo already")
    ZOO[name] = Entry(seeded(name, build), way, **options)


def fast(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register `build` under its own name: fast rules alone must cover it."""
    add(build.__name__, "fast", build)
    return build


def exact(build: Callable[[], Case]) -> Callable[[], Case]:
    """Register `build` under its own name: any exact way will do."""
    add(build.__name__, "exact", build)
    return build


def specially(way: Literal["fast", "exact"], **options: Any) -> Callable[..., Callable[[], Case]]:
    """The same for an entry that needs tolerances of its own or has idle parameters."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        add(build.__name__, way, build, **options)
        return build

    return register


def refused(
    error: type[errors.TracInError], words: str
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register `build` as something that must be refused with `error`, in these `words`."""

    def register(build: Callable[[], Case]) -> Callable[[], Case]:
        REFUSED[build.__name__] = Refusal(seeded(build.__name__, build), error, words)
        return build

    return register


@functools.cache
def truth(name: str) -> Truth:
    """The slow twin's scores of an entry, computed once and kept."""
    entry = ZOO[name]
    made = entry.build()
    if entry.double is not None:
        made = made.to(torch.float64)
    rows = gradients(made.model, made.loss, made.data)
    others = gradients(made.model, made.loss, made.queries)
    among = dots(rows, rows)
    sizes = {key: float(row.abs().max()) for key, row in rows.items()}
    return Truth(among.diagonal().clone(), dots(rows, others), among, sizes)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest score; NaN where anything is NaN."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).abs().max() / expected.abs().max())


# Data -------------------------------------------------------------------------------------------


def cast(batch: Any, dtype: torch.dtype) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: cast(value, dtype) for key, value in batch.items()}
    return type(batch)(cast(value, dtype) for value in batch)


def case(model: nn.Module, loss: Loss, batch: Any) -> Case:
    """A case from one batch of all examples: the first 5 are the data, the other 3 the queries."""
    data = part(batch, slice(0, EXAMPLES))
    return Case(model, loss, data, part(batch, slice(EXAMPLES, ALL)))


def rand(*shape: int) -> Tensor:
    return torch.randn(ALL, *shape)


def labels(classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, (ALL,))


def tokens(positions: int, words: int) -> Tensor:
    return torch.randint(words, (ALL, positions))


def lengths(positions: int) -> Tensor:
    """Different lengths from 1 to `positions`, the longest among them."""
    return torch.arange(ALL).remainder(positions) + 1


def padding(positions: int) -> Tensor:  # [examples, positions], True where a position is padding
    return torch.arange(positions) >= lengths(positions)[:, None]


# Losses -----------------------------------------------------------------------------------------


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """For batches of any number of inputs and the labels last."""
    *inputs, y = batch
    return F.cross_entropy(model(*inputs), y, reduction="none")


def word_loss(model: nn.Module, batch: Any) -> Tensor:
    """Next-word cross-entropy, summed over each example's own words."""
    ids = batch[0]
    logits = model(ids)[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def hugging_face_words(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Next-word cross-entropy of a Hugging Face model, averaged over each example's own words."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
    y = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), y, reduction="none")
    return losses.sum(1) / (y != -100).sum(1)


def hugging_face_class(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


# Pieces -----------------------------------------------------------------------------------------


class Lambda(nn.Module):
    """A function as a module, for steps without parameters."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class Functional(nn.Module):
    """A function of the module's own parameters and the inputs."""

    def __init__(self, function: Callable[..., Tensor], **parts: Tensor | nn.Module):
        super().__init__()
        self.function = function
        for name, value in parts.items():
            setattr(self, name, value if isinstance(value, nn.Module) else nn.Parameter(value))

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(self, *inputs)


def headed(layer: nn.Module, x: Tensor, stem: nn.Module | None = None) -> Case:
    """`layer`, behind `stem` so that its input needs a gradient, and a linear head on it all."""
    body = nn.Sequential(*([] if stem is None else [stem]), layer, nn.Tanh(), nn.Flatten())
    size = body.eval()(x.clone()).shape[1]
    return case(nn.Sequential(body, nn.Linear(size, CLASSES)), cross_entropy, (x, labels()))


def parts_used(function: Callable[..., Tensor], x: Tensor, **parts: Tensor) -> Case:
    """Raw parameters meet the output of a linear layer, [examples, ..., features]."""
    stem = nn.Linear(x.shape[-1], x.shape[-1])
    return headed(Functional(function, **parts), x, stem)


def weights(*shape: int) -> Tensor:
    return torch.randn(shape) / math.sqrt(shape[-1] if shape else 1)


def with_statistics(norm: nn.Module) -> nn.Module:
    """A norm as it looks after training: statistics, scales and shifts away from 0 and 1."""
    for module in norm.modules():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
                nn.init.uniform_(value, 0.5, 2.0)
            elif name.endswith("running_mean") or name.endswith("bias"):
                nn.init.normal_(value)
    return norm


# Linear layers ----------------------------------------------------------------------------------


@fast
def mlp() -> Case:
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3, bias=False)
    )
    return case(model, "cross_entropy", (rand(5), labels()))


@fast
def mlp_as_wide_as_the_batch() -> Case:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    return case(model, cross_entropy, (rand(5), labels(5)))


@fast
def mlp_by_mse() -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.SiLU(), nn.Linear(6, 1), nn.Flatten(0))
    return case(model, "mse", (rand(5), rand()))


@fast
def linear_on_sequences() -> Case:
    return headed(nn.Linear(6, 5), rand(5, 5), nn.Linear(5, 6))


@fast
def linear_on_long_sequences() -> Case:
    return headed(nn.Linear(2, 2), rand(9, 2), nn.Linear(2, 2, bias=False))


@fast
def linear_on_grids() -> Case:
    return headed(nn.Linear(6, 5, bias=False), rand(3, 5, 2), nn.Linear(2, 6))


def seq_first(positions: int) -> Case:
    turn = Lambda(lambda x: x.transpose(0, 1))
    return headed(nn.Sequential(turn, nn.Linear(5, 6), turn), rand(positions, 5), nn.Linear(5, 5))


add("linear_seq_first", "fast", lambda: seq_first(4))
add("linear_seq_first_as_long_as_the_batch", "fast", lambda: seq_first(5))
add("linear_seq_first_of_one", "fast", lambda: seq_first(1))


@fast
def linear_on_positions_flattened_into_the_batch() -> Case:
    layers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
    return headed(
        Functional(lambda m, x: m.layers(x.reshape(-1, 5)).reshape(x.shape), layers=layers),
        rand(3, 5),
    )


@fast
def flattening_head() -> Case:
    conv = nn.Conv2d(1, 2, 3)
    model = Functional(
        lambda m, x: m.head(torch.relu(m.conv(x)).view(x.size(0), -1)),
        conv=conv,
        head=nn.Linear(2 * 2 * 3, CLASSES),
    )
    return case(model, "cross_entropy", (rand(1, 4, 5), labels()))


@fast
def bilinear() -> Case:
    model = Functional(
        lambda m, a, b: m.both(m.left(a), b),
        left=nn.Linear(5, 4),
        both=nn.Bilinear(4, 6, CLASSES),
    )
    return case(model, cross_entropy, (rand(5), rand(6), labels()))


@fast
def bilinear_on_sequences() -> Case:
    layer = Functional(lambda m, x: m.both(x, x), both=nn.Bilinear(5, 5, 3, bias=False))
    return headed(layer, rand(5, 5), nn.Linear(5, 5))


@fast
def inputs_by_keyword_in_a_dict() -> Case:
    model = Functional(lambda m, x: m.layer(input=x), layer=nn.Linear(5, CLASSES))

    def loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return F.cross_entropy(model(batch["in"]["x"]), batch["y"], reduction="none")

    return case(model, loss, {"in": {"x": rand(5)}, "y": labels()})


# Convolutions -----------------------------------------------------------------------------------

CONV1D: dict[str, Callable[[], nn.Module]] = {
    "stride_and_padding": lambda: nn.Conv1d(4, 5, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv1d(4, 5, 3, dilation=2, bias=False),
    "groups": lambda: nn.Conv1d(4, 6, 2, groups=2),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4, padding=2),
    "same": lambda: nn.Conv1d(4, 5, 3, padding="same"),
    "same_even": lambda: nn.Conv1d(4, 5, 4, padding="same"),
    "reflect": lambda: nn.Conv1d(4, 5, 3, padding=2, padding_mode="reflect"),
    "one_by_one": lambda: nn.Conv1d(4, 5, 1),
    "leftover": lambda: nn.Conv1d(4, 5, 2, stride=3),
}
CONV2D: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(4, 5, 3),
    "stride": lambda: nn.Conv2d(4, 5, 3, stride=(2, 1), padding=(1, 2)),
    "leftover": lambda: nn.Conv2d(4, 5, 2, stride=3, padding=1, bias=False),
    "dilation": lambda: nn.Conv2d(4, 3, (2, 3), dilation=(1, 2), padding=1),
    "groups": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1),
    "depthwise_doubled": lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2),
    "same": lambda: nn.Conv2d(4, 5, 3, padding="same", dilation=2),
    "same_even": lambda: nn.Conv2d(4, 5, (2, 4), padding="same"),
    "same_even_reflect": lambda: nn.Conv2d(4, 5, (4, 3), padding="same", padding_mode="reflect"),
    "valid": lambda: nn.Conv2d(4, 5, 2, padding="valid"),
    "reflect": lambda: nn.Conv2d(4, 5, 3, padding=(1, 2), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="replicate", stride=2),
    "circular": lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"),
    "one_by_one": lambda: nn.Conv2d(4, 5, 1, stride=2),
    "as_big_as_the_image": lambda: nn.Conv2d(4, 5, (6, 5)),
}
CONV3D: dict[str, Callable[[], nn.Module]] = {
    "stride_and_padding": lambda: nn.Conv3d(2, 3, 3, stride=(1, 2, 2), padding=1),
    "dilation": lambda: nn.Conv3d(2, 3, 2, dilation=(2, 1, 2), bias=False),
    "groups": lambda: nn.Conv3d(2, 4, 2, groups=2),
    "depthwise": lambda: nn.Conv3d(2, 2, (1, 3, 3), groups=2, padding=(0, 1, 1)),
    "same_even": lambda: nn.Conv3d(2, 3, 2, padding="same"),
    "reflect": lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="reflect"),
}
CONV_TRANSPOSE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.ConvTranspose1d(4, 5, 3, stride=2, output_padding=1), (4, 5)),
    "1d_groups": (lambda: nn.ConvTranspose1d(4, 6, 2, groups=2, padding=1, bias=False), (4, 5)),
    "2d": (lambda: nn.ConvTranspose2d(5, 5, 3), (5, 3, 5)),
    "2d_stride": (
        lambda: nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=(1, 0)),
        (3, 3, 5),
    ),
    "2d_groups": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, bias=False), (4, 3, 3)),
    "2d_dilation": (lambda: nn.ConvTranspose2d(4, 3, 2, dilation=2), (4, 3, 3)),
    "3d": (lambda: nn.ConvTranspose3d(4, 2, 2, stride=2, output_padding=1), (4, 2, 1, 2)),
}

for _name, _make in CONV1D.items():
    add(f"conv1d_{_name}", "fast", lambda m=_make: headed(m(), rand(3, 5), nn.Conv1d(3, 4, 1)))
for _name, _make in CONV2D.items():
    add(f"conv2d_{_name}", "fast", lambda m=_make: headed(m(), rand(3, 6, 5), nn.Conv2d(3, 4, 1)))
for _name, _make in CONV3D.items():
    add(
        f"conv3d_{_name}", "fast", lambda m=_make: headed(m(), rand(1, 3, 4, 5), nn.Conv3d(1, 2, 1))
    )
for _name, (_make, _size) in CONV_TRANSPOSE.items():
    add(
        f"conv_transpose{_name}",
        "fast",
        lambda m=_make, s=_size: headed(m(), rand(*s), nn.Linear(s[-1], s[-1])),
    )


@fast
def conv_as_the_first_layer() -> Case:
    return headed(nn.Conv2d(5, 5, 3, padding=1), rand(5, 5, 5))


@fast
def separable_conv_net() -> Case:
    def block(channels: int, out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            with_statistics(nn.BatchNorm2d(channels)),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, out, 1, bias=False),
            with_statistics(nn.BatchNorm2d(out)),
            nn.Hardswish(inplace=True),
        )

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        block(4, 5),
        block(5, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6, CLASSES),
    )
    return case(model, "cross_entropy", (rand(3, 8, 8), labels()))


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = with_statistics(nn.BatchNorm2d(out))
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = with_statistics(nn.BatchNorm2d(out))
        self.short = nn.Sequential()
        if stride != 1 or channels != out:
            self.short = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False),
                with_statistics(nn.BatchNorm2d(out)),
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.short(x)
        return self.relu(out)


@fast
def residual_network() -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        with_statistics(nn.BatchNorm2d(4)),
        nn.ReLU(inplace=True),
        ResidualBlock(4, 4, 1),
        ResidualBlock(4, 5, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, CLASSES),
    )
    return case(model, "cross_entropy", (rand(3, 6, 6), labels()))


@fast
def video_frame_by_frame() -> Case:
    def frames(m: Any, x: Tensor) -> Tensor:
        examples, count = x.shape[:2]
        seen = torch.relu(m.conv(x.flatten(0, 1))).mean((2, 3))
        return m.head(seen.view(examples, count, -1).mean(1))

    model = Functional(frames, conv=nn.Conv2d(2, 5, 3), head=nn.Linear(5, CLASSES))
    return case(model, cross_entropy, (rand(3, 2, 4, 5), labels()))


class WindowAttention(nn.Module):
    """Attention within 2 x 2 windows of a shifted 4 x 4 grid, with relative position biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(9, heads))
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij"))
        apart = place.flatten(1)[:, :, None] - place.flatten(1)[:, None, :] + 1
        self.between: Tensor
        self.register_buffer("between", apart[0] * 3 + apart[1])

    def forward(self, x: Tensor) -> Tensor:  # [examples, 4, 4, width]
        n, side, _, width = x.shape
        x = torch.roll(x, (-1, -1), (1, 2))
        x = x.view(n, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, 4, width)
        qkv = self.qkv(x).view(-1, 4, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.between.flatten()].view(4, 4, self.heads).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) + bias.unsqueeze(0)
        x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, width)
        x = self.proj(x).view(n, side // 2, side // 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(x.reshape(n, side, side, width), (1, 1), (1, 2))


@fast
def shifted_windows() -> Case:
    return headed(WindowAttention(6, 2), rand(4, 4, 6), nn.Linear(6, 6))


# Norms ------------------------------------------------------------------------------------------

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch_norm1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "batch_norm1d_on_sequences": (lambda: nn.BatchNorm1d(5), (5, 5)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(3), (3, 4, 5)),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2), (2, 2, 1, 3)),
    "layer_norm": (lambda: nn.LayerNorm(5), (5,)),
    "layer_norm_on_sequences": (lambda: nn.LayerNorm(5), (5, 5)),
    "layer_norm_over_two": (lambda: nn.LayerNorm([3, 5]), (2, 3, 5)),
    "layer_norm_without_bias": (lambda: nn.LayerNorm(5, bias=False), (3, 5)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 5)),
    "group_norm_on_vectors": (lambda: nn.GroupNorm(2, 10), (10,)),
    "rms_norm": (lambda: nn.RMSNorm(5), (5,)),
    "rms_norm_on_sequences": (lambda: nn.RMSNorm(5), (5, 5)),
    "instance_norm1d": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 5)),
    "instance_norm2d": (lambda: nn.InstanceNorm2d(5, affine=True), (5, 3, 3)),
    "instance_norm2d_with_statistics": (
        lambda: nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
        (5, 3, 3),
    ),
}
for _name, (_make, _size) in NORMS.items():
    add(
        _name,
        "fast",
        lambda m=_make, s=_size: headed(with_statistics(m()), rand(*s), nn.Linear(s[-1], s[-1])),
    )


@fast
def batch_norm_as_the_first_layer() -> Case:
    return headed(with_statistics(nn.BatchNorm1d(5)), rand(5))


@fast
def norms_without_parameters() -> Case:
    norms = nn.Sequential(
        with_statistics(nn.BatchNorm1d(5, affine=False)), nn.LayerNorm(5, bias=False)
    )
    return headed(norms, rand(5), nn.Linear(5, 5))


# Embeddings -------------------------------------------------------------------------------------


def words_case(layer: nn.Module, ids: Tensor, *more: Tensor) -> Case:
    """An embedding, what it gives flattened, and a head."""
    with torch.no_grad():
        size = layer(ids, *more).flatten(1).shape[1]
    model = Functional(
        lambda m, *inputs: m.head(torch.tanh(m.layer(*inputs)).flatten(1)),
        layer=layer,
        head=nn.Linear(size, CLASSES),
    )
    return case(model, cross_entropy, (ids, *more, labels()))


@fast
def embedding() -> Case:
    return words_case(nn.Embedding(7, 5), tokens(5, 7))


@fast
def embedding_of_one_word() -> Case:
    return words_case(nn.Embedding(5, 5), tokens(1, 5)[:, 0])


@fast
def embedding_with_padding() -> Case:
    ids = tokens(5, 7).masked_fill(padding(5), 3)
    return words_case(nn.Embedding(7, 4, padding_idx=3), ids)


@fast
def embedding_with_the_same_word_throughout() -> Case:
    return words_case(nn.Embedding(7, 5), tokens(1, 7).expand(-1, 5).contiguous())


@fast
def embedding_of_a_grid() -> Case:
    return words_case(nn.Embedding(7, 5), torch.randint(7, (ALL, 3, 5)))


BAGS: dict[str, Callable[[], nn.Module]] = {
    "sum": lambda: nn.EmbeddingBag(7, 5, mode="sum"),
    "mean": lambda: nn.EmbeddingBag(7, 5, mode="mean"),
    "mean_with_padding": lambda: nn.EmbeddingBag(7, 5, mode="mean", padding_idx=2),
}
for _name, _make in BAGS.items():
    add(f"embedding_bag_{_name}", "fast", lambda m=_make: words_case(m(), tokens(5, 7)))


@fast
def embedding_bag_weighted() -> Case:
    model = Functional(
        lambda m, ids, shares: m.bag(ids, per_sample_weights=shares),
        bag=nn.EmbeddingBag(7, 5, mode="sum"),
    )
    return words_case(model, tokens(5, 7), rand(5))


@exact
def embedding_bag_max() -> Case:
    return words_case(nn.EmbeddingBag(7, 5, mode="max"), tokens(5, 7))


@exact
def embedding_sparse() -> Case:
    return words_case(nn.Embedding(7, 5, sparse=True), tokens(5, 7))


# One module or weight in several places ---------------------------------------------------------


@fast
def linear_used_twice() -> Case:
    layer = nn.Linear(5, 5)
    return headed(nn.Sequential(layer, nn.Tanh(), layer), rand(5))


@fast
def linear_used_on_sequence_and_vector() -> Case:
    model = Functional(lambda m, x: m.layer(torch.tanh(m.layer(x)).mean(1)), layer=nn.Linear(5, 5))
    return headed(model, rand(5, 5))


@fast
def conv_used_twice() -> Case:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    return headed(nn.Sequential(layer, nn.ReLU(), layer), rand(3, 3, 5))


@fast
def conv_used_on_two_sizes() -> Case:
    model = Functional(
        lambda m, x: torch.tanh(m.layer(x)).mean((2, 3)) + m.layer(x[..., ::2]).mean((2, 3)),
        layer=nn.Conv2d(3, 5, 3, padding=1),
    )
    return headed(model, rand(3, 3, 5))


@fast
def norm_used_twice() -> Case:
    layer = with_statistics(nn.LayerNorm(5))
    return headed(nn.Sequential(layer, nn.Linear(5, 5), nn.Tanh(), layer), rand(3, 5))


@fast
def embedding_used_twice() -> Case:
    model = Functional(
        lambda m, a, b: m.layer(a).sum(1) * m.layer(b).mean(1), layer=nn.Embedding(7, 5)
    )
    return words_case(model, tokens(5, 7), tokens(3, 7))


@fast
def tied_embedding_and_head() -> Case:
    layer, head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
    head.weight = layer.weight
    return case(nn.Sequential(layer, nn.Linear(5, 5), nn.Tanh(), head), word_loss, [tokens(5, 7)])


@fast
def tied_by_a_transpose() -> Case:
    model = Functional(
        lambda m, ids: torch.tanh(m.mix(m.layer(ids))) @ m.layer.weight.T,
        layer=nn.Embedding(7, 5),
        mix=nn.Linear(5, 5),
    )
    return case(model, word_loss, [tokens(5, 7)])


@fast
def linear_and_its_transpose() -> Case:
    def there_and_back(m: Any, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(m.layer(x)), m.layer.weight.t(), m.back)

    return headed(Functional(there_and_back, layer=nn.Linear(5, 6), back=weights(5)), rand(5))


@fast
def shared_bias() -> Case:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.bias = first.bias
    return headed(nn.Sequential(first, nn.Tanh(), second), rand(3, 5))


# Raw parameters ---------------------------------------------------------------------------------

RAW: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "x_matmul_w": (lambda m, x: x @ m.w, (5,), {"w": (5, 4)}),
    "x_matmul_w_on_sequences": (lambda m, x: torch.matmul(x, m.w), (5, 5), {"w": (5, 4)}),
    "x_matmul_vector": (lambda m, x: x @ m.w, (3, 5), {"w": (5,)}),
    "w_matmul_x": (lambda m, x: m.w @ x, (5, 5), {"w": (4, 5)}),
    "w_matmul_x_column": (lambda m, x: m.w @ x.unsqueeze(-1), (5,), {"w": (4, 5)}),
    "w_matmul_transposed": (lambda m, x: (m.w @ x.T).T, (5,), {"w": (4, 5)}),
    "mm": (lambda m, x: torch.mm(x, m.w), (5,), {"w": (5, 4)}),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), (5,), {"w": (5, 4), "b": (4,)}),
    "addmm_on_flattened_positions": (
        lambda m, x: torch.addmm(m.b, x.view(-1, 5), m.w).view(*x.shape[:2], 4),
        (3, 5),
        {"w": (5, 4), "b": (4,)},
    ),
    "einsum": (lambda m, x: torch.einsum("ntd,dhk->nthk", x, m.w), (5, 5), {"w": (5, 2, 3)}),
    "einsum_parameter_first": (
        lambda m, x: torch.einsum("od,ntd->nto", m.w, x),
        (5, 5),
        {"w": (4, 5)},
    ),
    "matmul_by_head": (lambda m, x: x.unsqueeze(1) @ m.w, (3, 5), {"w": (2, 5, 4)}),
    "add": (lambda m, x: x + m.b, (5,), {"b": (5,)}),
    "add_parameter_first": (lambda m, x: m.b + x, (3, 5), {"b": (5,)}),
    "add_alpha": (lambda m, x: torch.add(x, m.b, alpha=2), (5,), {"b": (5,)}),
    "add_position": (lambda m, x: x + m.b, (5, 5), {"b": (5, 5)}),
    "add_position_with_a_one": (lambda m, x: x + m.b, (5, 5), {"b": (1, 5, 5)}),
    "add_column": (lambda m, x: x + m.b, (5, 5), {"b": (5, 1)}),
    "add_widening": (lambda m, x: x.unsqueeze(1) + m.b, (5,), {"b": (3, 5)}),
    "mul": (lambda m, x: x * m.s, (3, 5), {"s": (5,)}),
    "mul_parameter_first": (lambda m, x: m.s * x, (5, 5), {"s": (5, 1)}),
    "mul_scalar": (lambda m, x: m.s * x, (5,), {"s": ()}),
    "sub": (lambda m, x: x - m.b, (5,), {"b": (5,)}),
    "sub_parameter_first": (lambda m, x: m.b - x, (3, 5), {"b": (5,)}),
    "div": (lambda m, x: x / (m.s + 4), (3, 5), {"s": (5,)}),
    "div_bare": (lambda m, x: x / m.s, (3, 5), {"s": (5,)}),
    "div_parameter_first": (lambda m, x: m.s / (2 + x.tanh()), (3, 5), {"s": (5,)}),
    "in_place_add": (lambda m, x: x.mul(1).add_(m.b), (3, 5), {"b": (5,)}),
    "in_place_mul": (lambda m, x: x.mul(1).mul_(m.s), (3, 5), {"s": (5,)}),
    "scale_and_shift": (lambda m, x: torch.addcmul(m.b, x, m.s), (5,), {"b": (5,), "s": (5,)}),
}
for _name, (_function, _size, _parts) in RAW.items():
    add(
        f"raw_{_name}",
        "fast",
        lambda f=_function, s=_size, p=_parts: parts_used(
            f, rand(*s), **{name: weights(*shape) for name, shape in p.items()}
        ),
    )


def in_place_operators(m: Any, x: Tensor) -> Tensor:
    x = x * 1.5
    x += m.shift
    x *= m.scale
    x -= m.back
    return x


@fast
def raw_in_place_operators() -> Case:
    parts = {name: weights(5) for name in ("shift", "scale", "back")}
    return parts_used(in_place_operators, rand(3, 5), **parts)


@fast
def raw_first_on_the_data() -> Case:
    model = Functional(lambda m, x: torch.tanh(x * m.s + m.b), s=weights(5), b=weights(5))
    return headed(model, rand(3, 5))


@exact
def raw_uncommon_functions() -> Case:
    def uncommon(m: Any, x: Tensor) -> Tensor:
        x = torch.maximum(x, m.floor) + torch.lerp(x, m.goal, 0.3)
        return torch.where(x > 0, m.left, x) + x.abs().add(1) ** m.power

    parts = {name: weights(5) for name in ("floor", "goal", "left", "power")}
    return parts_used(uncommon, rand(3, 5), **parts)


@exact
def temperature() -> Case:
    model = Functional(
        lambda m, x: m.head(x) * m.scale.exp() / m.sharp,
        head=nn.Linear(5, CLASSES),
        scale=torch.tensor(0.3),
        sharp=torch.tensor(1.7),
    )
    return case(model, "cross_entropy", (rand(5), labels()))


# Tokens and positions ---------------------------------------------------------------------------


@fast
def class_token_expanded() -> Case:
    def first(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), m.stem(x)], dim=1)
        x = x + m.positions
        return (x @ x.transpose(1, 2)).softmax(-1) @ x

    model = Functional(
        first, token=weights(1, 1, 5), positions=weights(1, 6, 5), stem=nn.Linear(5, 5)
    )
    return headed(model, rand(5, 5))


@fast
def class_token_repeated() -> Case:
    def first(m: Any, x: Tensor) -> Tensor:
        x = torch.cat((m.stem(x), m.token.repeat(len(x), 1, 1)), 1)
        return (x @ x.mT).softmax(-1) @ x

    return headed(Functional(first, token=weights(1, 2, 5), stem=nn.Linear(5, 5)), rand(3, 5))


@fast
def learned_initial_state() -> Case:
    def steps(m: Any, x: Tensor) -> Tensor:
        state = m.start.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            state = torch.tanh(m.take(x[:, t]) + m.keep(state))
        return state

    model = Functional(
        steps, start=weights(1, 6), take=nn.Linear(5, 6), keep=nn.Linear(6, 6, bias=False)
    )
    return headed(model, rand(5, 5))


@fast
def learned_positions() -> Case:
    model = Functional(
        lambda m, x: m.stem(x) + m.positions[: x.shape[1]],
        positions=weights(7, 5),
        stem=nn.Linear(5, 5),
    )
    return headed(model, rand(5, 5))


@fast
def positions_looked_up() -> Case:
    model = Functional(
        lambda m, ids: m.words(ids) * m.places(torch.arange(ids.shape[1])),
        words=nn.Embedding(7, 5),
        places=nn.Embedding(6, 5),
    )
    return words_case(model, tokens(5, 7))


@fast
def positions_looked_up_with_a_one() -> Case:
    model = Functional(
        lambda m, ids: m.words(ids) + m.places(torch.arange(ids.shape[1])[None]),
        words=nn.Embedding(7, 5),
        places=nn.Embedding(5, 5),
    )
    return words_case(model, tokens(5, 7))


@fast
def positions_looked_up_for_each_example() -> Case:
    model = Functional(
        lambda m, ids: (
            m.words(ids) + m.places(torch.arange(ids.shape[1]).unsqueeze(0).expand_as(ids))
        ),
        words=nn.Embedding(7, 5),
        places=nn.Embedding(5, 5),
    )
    return words_case(model, tokens(5, 7))


# Derived parameters -----------------------------------------------------------------------------


@fast
def weight_norm() -> Case:
    layers = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(5, 6)),
        nn.Tanh(),
        parametrizations.weight_norm(nn.Linear(6, 5), dim=1),
    )
    return headed(layers, rand(3, 5))


@fast
def weight_norm_on_conv() -> Case:
    return headed(parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), rand(3, 4, 5))


@fast
def weight_norm_of_old() -> Case:
    return headed(nn.utils.weight_norm(nn.Linear(5, 6)), rand(3, 5), nn.Linear(5, 5))


@fast
def weight_standardised_conv() -> Case:
    def standard(m: Any, x: Tensor) -> Tensor:
        mean, std = m.conv.weight.mean((1, 2, 3), keepdim=True), m.conv.weight.std((1, 2, 3))
        return F.conv2d(x, (m.conv.weight - mean) / std.view(-1, 1, 1, 1), m.conv.bias)

    return headed(Functional(standard, conv=nn.Conv2d(3, 5, 3)), rand(3, 4, 5))


@fast
def weight_transposed() -> Case:
    return headed(
        Functional(lambda m, x: F.linear(x, m.w.t(), m.b), w=weights(5, 6), b=weights(6)),
        rand(5, 5),
    )


@fast
def weight_in_chunks() -> Case:
    def attend(m: Any, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, w, b) for w, b in zip(m.w.chunk(3), m.b.chunk(3), strict=True))
        return F.scaled_dot_product_attention(q, k, v)

    return headed(Functional(attend, w=weights(15, 5), b=weights(15)), rand(5, 5), nn.Linear(5, 5))


@fast
def weights_stacked() -> Case:
    model = Functional(
        lambda m, x: F.linear(x, torch.cat([m.a, m.b]), torch.stack([m.c, m.d]).sum(0)),
        a=weights(3, 5),
        b=weights(2, 5),
        c=weights(5),
        d=weights(5),
    )
    return headed(model, rand(3, 5), nn.Linear(5, 5))


@fast
def weight_masked_and_sliced() -> Case:
    mask = torch.arange(20).view(4, 5) % 3 != 0
    model = Functional(
        lambda m, x: F.linear(x, m.w * mask, m.b[:4]) + (x @ m.w[0])[:, None],
        w=weights(4, 5),
        b=weights(5),
    )
    return headed(model, rand(5), nn.Linear(5, 5))


@fast
def mixing_weights_from_a_softmax() -> Case:
    def mix(m: Any, x: Tensor) -> Tensor:
        share = m.scores.softmax(0)
        return share[0] * m.left(x) + share[1] * m.right(x)

    model = Functional(mix, scores=weights(2), left=nn.Linear(5, 5), right=nn.Linear(5, 5))
    return headed(model, rand(3, 5))


@fast
def cosine_classifier() -> Case:
    model = Functional(
        lambda m, x: 4 * F.linear(F.normalize(m.stem(x), dim=-1), F.normalize(m.w, dim=1)),
        stem=nn.Linear(5, 5),
        w=weights(CLASSES, 5),
    )
    return case(model, cross_entropy, (rand(5), labels()))


@fast
def weight_partly_detached() -> Case:
    def both(m: Any, x: Tensor) -> Tensor:
        return torch.tanh(m.layer(x)) + F.linear(x, m.layer.weight.detach())

    return headed(Functional(both, layer=nn.Linear(5, 5)), rand(3, 5))


# Attention --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory` (or itself) with a head on the mean of its output."""

    def __init__(self, width: int, **options: Any):
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, 2, **options)
        for name, parameter in self.attention.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
        self.head = nn.Linear(width, CLASSES)
        self.is_padded = False

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = self.stem(x)
        mask = more[-1] if self.is_padded else None
        more = more[:-1] if self.is_padded else more
        q, k, v = (x, *more) if len(more) == 2 else (x, *more, *more) if more else (x, x, x)
        if not self.attention.batch_first:
            q, k, v = (z.transpose(0, 1) for z in (q, k, v))
        out, _ = self.attention(q, k, v, key_padding_mask=mask)
        return self.head(torch.tanh(out).mean(1 if self.attention.batch_first else 0))


# In softmax attention a bias of the keys moves all scores of a query alike: no gradient.
SELF_ATTENTION: dict[str, dict[str, Any]] = {
    "batch_first": {"batch_first": True},
    "seq_first": {},
    "without_bias": {"batch_first": True, "bias": False},
    "with_bias_tokens": {"add_bias_kv": True},
    "with_a_zero_token": {"batch_first": True, "add_zero_attn": True},
}
for _name, _options in SELF_ATTENTION.items():
    add(
        f"self_attention_{_name}",
        "fast",
        lambda o=_options: case(Attention(6, **o), cross_entropy, (rand(5, 6), labels())),
    )


@fast
def self_attention_with_padding() -> Case:
    model = Attention(6, batch_first=True)
    model.is_padded = True
    return case(model, cross_entropy, (rand(5, 6), padding(5), labels()))


@fast
def self_attention_seq_first_with_padding() -> Case:
    model = Attention(6)
    model.is_padded = True
    return case(model, cross_entropy, (rand(3, 6), padding(3), labels()))


@fast
def cross_attention() -> Case:
    model = Attention(6, batch_first=True)
    return case(model, cross_entropy, (rand(5, 6), rand(3, 6), labels()))


@fast
def cross_attention_seq_first() -> Case:
    return case(Attention(6), cross_entropy, (rand(3, 6), rand(5, 6), labels()))


@fast
def cross_attention_of_other_widths() -> Case:
    model = Attention(6, kdim=5, vdim=3, batch_first=True)
    return case(model, cross_entropy, (rand(3, 6), rand(5, 5), rand(5, 3), labels()))


@fast
def attention_without_its_weights() -> Case:
    model = Functional(
        lambda m, x: m.attention(x, x, x, need_weights=False)[0],
        attention=nn.MultiheadAttention(6, 3, batch_first=True),
    )
    return headed(model, rand(5, 6), nn.Linear(6, 6))


def transformer_layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(6, 2, dim_feedforward=5, **options)


ENCODERS: dict[str, dict[str, Any]] = {
    "batch_first": {"batch_first": True},
    "norm_first": {"batch_first": True, "norm_first": True, "activation": "gelu"},
    "seq_first": {},
    "without_bias": {"batch_first": True, "bias": False},
}


def encoder_case(options: dict[str, Any], positions: int = 5) -> Case:
    def encode(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        x = m.stem(x)
        if options.get("batch_first"):
            return m.head(m.layer(x, src_key_padding_mask=mask)[:, 0])
        return m.head(m.layer(x.transpose(0, 1), src_key_padding_mask=mask)[0])

    model = Functional(
        encode,
        stem=nn.Linear(6, 6),
        layer=transformer_layer(**options),
        head=nn.Linear(6, CLASSES),
    )
    return case(model, cross_entropy, (rand(positions, 6), padding(positions), labels()))


for _name, _options in ENCODERS.items():
    add(f"encoder_layer_{_name}", "fast", lambda o=_options: encoder_case(o))


@fast
def encoder_of_two_layers() -> Case:
    encoder = nn.TransformerEncoder(
        transformer_layer(batch_first=True), 2, enable_nested_tensor=False
    )
    return headed(encoder, rand(5, 6), nn.Linear(6, 6))


DECODERS: dict[str, dict[str, Any]] = {
    "batch_first": {"batch_first": True},
    "norm_first": {"batch_first": True, "norm_first": True},
    "seq_first": {"norm_first": True},
}


def decoder_case(options: dict[str, Any]) -> Case:
    def decode(m: Any, ids: Tensor, memory: Tensor, hidden: Tensor) -> Tensor:
        x = m.words(ids)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        memory = m.stem(memory)
        if not options.get("batch_first"):
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        x = m.layer(x, memory, tgt_mask=causal, memory_key_padding_mask=hidden)
        return m.head(x if options.get("batch_first") else x.transpose(0, 1))

    model = Functional(
        decode,
        words=nn.Embedding(7, 6),
        stem=nn.Linear(5, 6),
        layer=nn.TransformerDecoderLayer(6, 2, dim_feedforward=5, **options),
        head=nn.Linear(6, 7),
    )

    def loss(model: nn.Module, batch: Any) -> Tensor:
        ids, memory, hidden = batch
        logits = model(ids, memory, hidden)[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    return case(model, loss, (tokens(5, 7), rand(3, 5), padding(3)))


for _name, _options in DECODERS.items():
    add(f"decoder_layer_{_name}", "fast", lambda o=_options: decoder_case(o))


# Activations with parameters, and changes in place ----------------------------------------------


@fast
def prelu_of_one() -> Case:
    return headed(nn.PReLU(), rand(3, 5), nn.Linear(5, 5))


@fast
def prelu_of_many() -> Case:
    return headed(nn.PReLU(5, init=0.1), rand(5, 3), nn.Linear(3, 3))


@fast
def relu_in_place_after_conv() -> Case:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 2), nn.ReLU(inplace=True)
    )
    return headed(layers, rand(3, 5, 5))


@fast
def relu_in_place_after_linear() -> Case:
    layers = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.LeakyReLU(inplace=True)
    )
    return headed(layers, rand(3, 5))


@fast
def relu_in_place_by_function() -> Case:
    model = Functional(
        lambda m, x: F.relu_(m.second(torch.relu_(m.first(x)))),
        first=nn.Linear(5, 6),
        second=nn.Linear(6, 5),
    )
    return headed(model, rand(5))


@fast
def relu_in_place_after_norm() -> Case:
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 3), with_statistics(nn.BatchNorm2d(5)), nn.ReLU(inplace=True)
    )
    return headed(layers, rand(3, 4, 5))


@fast
def residual_added_in_place() -> Case:
    def residual(m: Any, x: Tensor) -> Tensor:
        out = m.second(torch.tanh(m.first(x)))
        out += x
        return out

    model = Functional(residual, first=nn.Linear(5, 6), second=nn.Linear(6, 5))
    return headed(model, rand(3, 5), nn.Linear(5, 5))


@fast
def output_written_into() -> Case:
    def written(m: Any, x: Tensor) -> Tensor:
        out = m.layer(x)
        out[:, 0] = 0.0
        out[:, 1].mul_(2.0)
        return out

    return headed(Functional(written, layer=nn.Linear(5, 5)), rand(5))


@fast
def dropout_and_batch_norm_in_eval() -> Case:
    layers = nn.Sequential(
        nn.Conv1d(3, 5, 2), with_statistics(nn.BatchNorm1d(5)), nn.ReLU(), nn.Dropout(0.5)
    )
    return headed(layers, rand(3, 5))


# Libraries --------------------------------------------------------------------------------------


@specially("fast", idle=("*base_layer*",))
def lora() -> Case:
    from peft import LoraConfig, get_peft_model

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(5, 6)
            self.second = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))).mean(1)

    config = LoraConfig(r=2, lora_alpha=3, target_modules=["first", "second"], lora_dropout=0.1)
    model = get_peft_model(Tiny(), config)  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, and then A has no gradient
            nn.init.normal_(parameter)
    return case(model, cross_entropy, (rand(5, 5), labels()))


def text(positions: int, words: int, pads_left: bool = False) -> dict[str, Tensor]:
    """Texts of different lengths, padded: ids, mask, and labels that leave padding out."""
    mask = ~padding(positions).roll(1, 0)
    mask[:, :2] = True
    if pads_left:
        mask = mask.flip(1)
    ids = tokens(positions, words).masked_fill(~mask, 0)
    return {
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask, -100),
    }


def gpt2_model() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return shaken(GPT2LMHeadModel(config))


def shaken(model: nn.Module) -> nn.Module:
    """Random weights of a size at which every layer matters; libraries start near zero."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(noise / (math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 3))
    return model


@fast
def gpt2() -> Case:
    return case(gpt2_model(), hugging_face_words, text(5, 11))


@fast
def gpt2_by_name() -> Case:
    return case(gpt2_model(), "causal_lm", text(5, 11))


def llama_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
    )
    return shaken(LlamaForCausalLM(config))


# Llama's norm computes in float32 whatever the model's type is, so float64 holds no more than that.
@specially("fast", double=1e-6)
def llama() -> Case:
    return case(llama_model(), hugging_face_words, text(5, 11))


@fast
def llama_in_its_own_precision() -> Case:
    model = llama_model()
    for module in model.modules():
        for name, child in module.named_children():
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(8, eps=1e-6)
                norm.weight = child.get_parameter("weight")
                setattr(module, name, norm)
    return case(model, hugging_face_words, text(5, 11))


@fast
def llama_padded_on_the_left() -> Case:
    made = llama_in_its_own_precision()
    return case(made.model, hugging_face_words, text(5, 11, pads_left=True))


@specially("fast", idle=("*key.bias",))
def bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
        num_labels=CLASSES,  # pyright: ignore[reportCallIssue]
    )
    batch = text(5, 11)
    batch["token_type_ids"] = tokens(5, 2)
    batch["labels"] = labels()
    return case(shaken(BertForSequenceClassification(config)), hugging_face_class, batch)


@specially("fast", idle=("*key.bias", "*k_proj.bias"))
def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=6,
        patch_size=3,
        num_labels=CLASSES,  # pyright: ignore[reportCallIssue]
    )
    model = shaken(ViTForImageClassification(config))
    return case(model, hugging_face_class, {"pixel_values": rand(3, 6, 6), "labels": labels()})


# Exact by whichever way -------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [examples, positions, features]
        is_batch_first = self.layer.batch_first
        out, _ = self.layer(x if is_batch_first else x.transpose(0, 1))
        return self.head(out.mean(1 if is_batch_first else 0))


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(5, 6, num_layers=2, batch_first=True, dropout=0.3),
    "lstm_seq_first": lambda: nn.LSTM(5, 6),
    "lstm_both_ways": lambda: nn.LSTM(5, 3, bidirectional=True, batch_first=True),
    "lstm_projected": lambda: nn.LSTM(5, 6, proj_size=3, batch_first=True),
    "gru": lambda: nn.GRU(5, 6, batch_first=True),
    "gru_seq_first": lambda: nn.GRU(5, 6, num_layers=2),
    "rnn": lambda: nn.RNN(5, 6, batch_first=True),
    "rnn_relu_seq_first": lambda: nn.RNN(5, 6, nonlinearity="relu", bias=False),
}


def recurrent_case(layer: nn.Module) -> Case:
    model, x = Recurrent(layer), rand(5, 5)
    with torch.no_grad():
        model(x)
    return case(model, cross_entropy, (x, labels()))


for _name, _make in RECURRENT.items():
    add(_name, "exact", lambda m=_make: recurrent_case(m()))


@exact
def lstm_packed() -> Case:
    def packed(m: Any, x: Tensor, sizes: Tensor) -> Tensor:
        together = rnn.pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False)
        _, (state, _) = m.layer(together)
        return m.head(state[-1])

    model = Functional(packed, layer=nn.LSTM(5, 6, batch_first=True), head=nn.Linear(6, CLASSES))
    return case(model, cross_entropy, (rand(5, 5), lengths(5), labels()))


CELLS: dict[str, Callable[[], nn.Module]] = {
    "lstm_cell": lambda: nn.LSTMCell(5, 6),
    "gru_cell": lambda: nn.GRUCell(5, 6),
    "rnn_cell": lambda: nn.RNNCell(5, 6),
}


def cell_case(cell: nn.Module) -> Case:
    def steps(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    model = Functional(steps, cell=cell, head=nn.Linear(6, CLASSES))
    return case(model, cross_entropy, (rand(3, 5), labels()))


for _name, _make in CELLS.items():
    add(_name, "exact", lambda m=_make: cell_case(m()))


class Experts(nn.Module):
    """Each row goes to the one expert its router scores highest."""

    def __init__(self, width: int, count: int, is_masked: bool):
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, width)) for _ in range(count)
        )
        self.is_masked = is_masked

    def forward(self, x: Tensor) -> Tensor:  # [..., width]
        rows = x.reshape(-1, x.shape[-1])
        share, choice = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            if self.is_masked:
                mask = choice == number
                out[mask] = share[mask, None] * expert(rows[mask])
            else:
                (mine,) = torch.where(choice == number)
                if len(mine):
                    out = out.index_add(0, mine, share[mine, None] * expert(rows[mine]))
        return out.view(x.shape)


@exact
def experts_by_mask() -> Case:
    return headed(Experts(5, 2, is_masked=True), rand(5), nn.Linear(5, 5))


@exact
def experts_by_index_on_sequences() -> Case:
    return headed(Experts(5, 3, is_masked=False), rand(3, 5), nn.Linear(5, 5))


@exact
def expert_used_by_some_examples() -> Case:
    def choose(m: Any, x: Tensor, kind: Tensor) -> Tensor:
        out = m.common(x)
        if (kind == 1).any():
            out = out.index_add(0, torch.where(kind == 1)[0], m.rare(x[kind == 1]))
        return out

    model = Functional(choose, common=nn.Linear(5, CLASSES), rare=nn.Linear(5, CLASSES))
    kind = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0])
    return case(model, cross_entropy, (rand(5), kind, labels()))


@exact
def branch_taken_by_each_example() -> Case:
    def branch(m: Any, x: Tensor) -> Tensor:
        return torch.stack([m.up(row) if row.sum() > 0 else m.down(-row) for row in m.stem(x)])

    model = Functional(branch, stem=nn.Linear(5, 5), up=nn.Linear(5, 5), down=nn.Linear(5, 5))
    return headed(model, rand(5))


@exact
def steps_counted_by_each_example() -> Case:
    def repeat(m: Any, x: Tensor) -> Tensor:
        rows = []
        for row in x.unbind(0):
            while row.norm() > 1:
                row = torch.tanh(m.layer(row)) * row.norm() * 0.5
            rows.append(m.layer(row))
        return torch.stack(rows)

    return headed(Functional(repeat, layer=nn.Linear(5, 5)), rand(5))


def checkpointed(is_reentrant: bool) -> Case:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.tanh(m.stem(x))
        return checkpoint(m.block, x, use_reentrant=is_reentrant)  # pyright: ignore

    block = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.LayerNorm(5))
    return headed(Functional(forward, stem=nn.Linear(5, 5), block=block), rand(3, 5))


add("activation_checkpointing", "fast", lambda: checkpointed(False))
add("activation_checkpointing_reentrant", "fast", lambda: checkpointed(True))


class HandMade(torch.autograd.Function):
    """A linear layer that takes its weight directly and knows its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (g,) = grads
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


@exact
def custom_autograd_function() -> Case:
    model = Functional(lambda m, x: HandMade.apply(x, m.w), w=weights(6, 5))
    return headed(model, rand(5), nn.Linear(5, 5))


@specially("exact", idle=("spare.*",))
def parameter_never_used() -> Case:
    model = Functional(
        lambda m, x: m.head(x), head=nn.Linear(5, CLASSES), spare=nn.Linear(5, CLASSES)
    )
    return case(model, "cross_entropy", (rand(5), labels()))


@exact
def scripted_module() -> Case:
    layers = torch.jit.script(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)))
    return headed(layers, rand(5))


@exact
def frozen_among_trainable() -> Case:
    layers = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), with_statistics(nn.LayerNorm(6)), nn.Linear(6, 5)
    )
    made = headed(layers, rand(3, 5))
    layers[0].bias.requires_grad_(False)
    layers[2].weight.requires_grad_(False)
    layers[3].weight.requires_grad_(False)
    return made


@exact
def loss_of_two_passes() -> Case:
    def consistent(model: nn.Module, batch: Any) -> Tensor:
        x, noise, y = batch
        one, two = model(x), model(x + 0.1 * noise)
        return F.cross_entropy(one, y, reduction="none") + (one - two).square().sum(1)

    made = mlp()
    return case(made.model, consistent, (rand(5), rand(5), labels()))


@exact
def loss_that_distils_itself() -> Case:
    def distilled(model: nn.Module, batch: Any) -> Tensor:
        x, noise = batch
        with torch.no_grad():
            goal = model(x).softmax(-1)
        return -(goal * model(x + 2 * noise).log_softmax(-1)).sum(-1)

    return case(mlp().model, distilled, (rand(5), rand(5)))


@exact
def loss_of_two_passes_joined() -> Case:
    def joined(model: nn.Module, batch: Any) -> Tensor:
        x, noise = batch
        one, two = model(torch.cat([x, x + noise])).chunk(2)
        return (one - two).square().sum(1) + one.logsumexp(1)

    return case(mlp().model, joined, (rand(5), rand(5)))


@exact
def loss_over_own_words() -> Case:
    def own_words(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        losses = F.cross_entropy(
            model(batch["ids"]).flatten(0, 1), batch["goal"].flatten(), reduction="none"
        )
        return (losses.view_as(batch["ids"]) * batch["mask"]).sum(1)

    layers = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5))
    mask = (~padding(5)).float()
    return case(layers, own_words, {"ids": tokens(5, 7), "goal": tokens(5, 5), "mask": mask})


@exact
def regression() -> Case:
    model = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 3))
    return case(model, "mse", (rand(5), rand(3)))


@exact
def loss_with_a_norm_penalty() -> Case:
    def penalised(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        return cross_entropy(model, batch) + 0.1 * penalty

    return case(mlp().model, penalised, (rand(5), labels()))


@exact
def loss_with_a_penalty_alone_on_one() -> Case:
    def penalised(model: Any, batch: Any) -> Tensor:
        return cross_entropy(model, batch) * (1 + model.extra.pow(2).sum())

    model = Functional(lambda m, x: m.head(x), head=nn.Linear(5, CLASSES), extra=weights(3))
    return case(model, penalised, (rand(5), labels()))


@exact
def loss_with_an_input_gradient() -> Case:
    def smooth(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        x = x.detach().requires_grad_()
        losses = F.cross_entropy(model(x), y, reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        return losses + slope.square().sum(1)

    return case(mlp().model, smooth, (rand(5), labels()))


# Eight bits of mantissa: a bf16 product is off by up to 2^-8 and the kernel depends on the batch,
# so one per cent between two equally good answers is all that is asked.
@specially("exact", double=None, single=0.01)
def autocast_bf16() -> Case:
    def half(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y, reduction="none")

    layers = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, CLASSES))
    return case(layers, half, (rand(5), labels()))


# Traps: what the first three examples do not show. Whoever learns from them must notice later.


@exact
def expert_unused_by_the_first_examples() -> Case:
    def choose(m: Any, x: Tensor, kind: Tensor) -> Tensor:
        out = m.common(x)
        if (kind == 1).any():
            out = out.index_add(0, torch.where(kind == 1)[0], m.rare(x[kind == 1]))
        return out

    model = Functional(choose, common=nn.Linear(5, CLASSES), rare=nn.Linear(5, CLASSES))
    kind = torch.tensor([0, 0, 0, 1, 1, 0, 0, 1])
    return case(model, cross_entropy, (rand(5), kind, labels()))


@exact
def expert_that_takes_the_whole_batch_at_first() -> Case:
    def choose(m: Any, x: Tensor, kind: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for number, expert in enumerate(m.experts):
            rows = (kind == number).nonzero()[:, 0]
            out = out.index_copy(0, rows, expert(x.index_select(0, rows)))
        return m.head(torch.tanh(out))

    model = Functional(
        choose,
        experts=nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)]),
        head=nn.Linear(5, CLASSES),
    )
    kind = torch.tensor([0, 0, 0, 1, 0, 1, 0, 1])
    return case(model, cross_entropy, (rand(5), kind, labels()))


# Three full rows of 5 words, then 2 and 3: 20 words are still 4 for each of 5 examples.
KEPT = torch.tensor([5, 5, 5, 2, 3, 5, 1, 4])


def packed_words(pack: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """Words of all examples end to end without padding, then back to where they were."""

    def forward(m: Any, x: Tensor, kept: Tensor) -> Tensor:
        together = torch.tanh(m.layer(pack(x, kept)))
        owner = torch.arange(len(x)).repeat_interleave(kept)
        return m.head(together.new_zeros(len(x), 6).index_add(0, owner, together))

    model = Functional(forward, layer=nn.Linear(5, 6), head=nn.Linear(6, CLASSES))
    return case(model, cross_entropy, (rand(5, 5), KEPT, labels()))


PACKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by_slices": lambda x, kept: torch.cat(
        [row[:size] for row, size in zip(x, kept.tolist(), strict=True)]
    ),
    "by_mask": lambda x, kept: x[torch.arange(x.shape[1]) < kept[:, None]],
    "by_masked_select": lambda x, kept: x.masked_select(
        (torch.arange(x.shape[1]) < kept[:, None])[..., None]
    ).view(-1, x.shape[2]),
    "by_repeat_interleave": lambda x, kept: x[:, 0].repeat_interleave(kept, 0),
    "by_lookup": lambda x, kept: F.embedding(
        (torch.arange(x.shape[1]) < kept[:, None]).flatten().nonzero()[:, 0], x.flatten(0, 1)
    ),
}
for _name, _pack in PACKED.items():
    add(f"words_packed_{_name}", "exact", lambda p=_pack: packed_words(p))


def sorted_examples(pick: Callable[[Tensor, Tensor], Tensor]) -> Case:
    """Examples by size, an order that only later differs from the order they came in."""

    def forward(m: Any, x: Tensor, size: Tensor) -> Tensor:
        order = size.argsort()
        return m.head(pick(torch.tanh(m.layer(pick(x, order))), order.argsort()))

    model = Functional(forward, layer=nn.Linear(5, 5), head=nn.Linear(5, CLASSES))
    size = torch.tensor([1, 3, 4, 2, 0, 7, 6, 5])
    return case(model, cross_entropy, (rand(5), size, labels()))


PICKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "by_index": lambda x, order: x[order],
    "by_gather": lambda x, order: x.gather(0, order[:, None].expand_as(x)),
    "by_take_along_dim": lambda x, order: x.take_along_dim(order[:, None], 0),
    "by_lookup": lambda x, order: F.embedding(order, x),
    "by_matmul": lambda x, order: F.one_hot(order, len(order)).to(x) @ x,
    "by_stack": lambda x, order: torch.stack([x[i] for i in order.tolist()]),
}
for _name, _pick in PICKED.items():
    add(f"examples_sorted_{_name}", "exact", lambda p=_pick: sorted_examples(p))


@exact
def batch_in_chunks_of_four() -> Case:
    model = Functional(
        lambda m, x: torch.cat([torch.tanh(m.layer(own)) for own in x.split(4)]),
        layer=nn.Linear(5, 6),
    )
    return headed(model, rand(5))


@exact
def batch_in_halves_when_it_is_large() -> Case:
    def halves(m: Any, x: Tensor) -> Tensor:
        if len(x) < 4:
            return m.layer(x)
        return torch.cat([m.layer(x[::2]), m.layer(x[1::2])])[
            torch.arange(len(x))
            .view(-1)
            .remainder(2)
            .mul((len(x) + 1) // 2)
            .add(torch.arange(len(x)) // 2)
        ]

    return headed(Functional(halves, layer=nn.Linear(5, 5)), rand(5))


@exact
def batch_turned_round_when_it_is_large() -> Case:
    def turned(m: Any, x: Tensor) -> Tensor:
        return m.layer(x) if len(x) < 4 else m.layer(x.flip(0)).flip(0)

    return headed(Functional(turned, layer=nn.Linear(5, 5)), rand(5))


@exact
def positions_flattened_with_examples_last() -> Case:
    def flattened(m: Any, x: Tensor) -> Tensor:
        rows = torch.tanh(m.layer(x.transpose(0, 1).reshape(-1, 5)))
        return rows.view(x.shape[1], len(x), 6).transpose(0, 1)

    return headed(Functional(flattened, layer=nn.Linear(5, 6)), rand(5, 5))


@exact
def positions_flattened_in_both_orders() -> Case:
    def flattened(m: Any, x: Tensor) -> Tensor:
        one = torch.tanh(m.layer(x.reshape(-1, 5))).view(x.shape)
        other = torch.tanh(m.layer(one.transpose(0, 1).reshape(-1, 5)))
        return other.view(x.shape[1], len(x), 5).transpose(0, 1)

    return headed(Functional(flattened, layer=nn.Linear(5, 5)), rand(3, 5))


@exact
def example_twice_in_its_batch() -> Case:
    def twice(m: Any, x: Tensor) -> Tensor:
        rows = m.layer(torch.cat([x, -x]))
        return rows[: len(x)] * rows[len(x) :]

    return headed(Functional(twice, layer=nn.Linear(5, 5)), rand(5))


@exact
def words_all_padding_in_the_first_examples() -> Case:
    layer = nn.Embedding(7, 5, padding_idx=0)
    ids = tokens(5, 6) + 1
    ids[:3, 1:] = 0
    return words_case(layer, ids)


# Refused ----------------------------------------------------------------------------------------


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES))


@refused(errors.CoupledExamplesError, "other examples")
def contrastive_loss() -> Case:
    def info_nce(model: nn.Module, batch: Any) -> Tensor:
        one, two = (F.normalize(model(x), dim=1) for x in batch)
        return F.cross_entropy(one @ two.T / 0.5, torch.arange(len(one)), reduction="none")

    return case(nn.Linear(5, 6), info_nce, (rand(5), rand(5)))


@refused(errors.CoupledExamplesError, "BatchNorm")
def batch_norm_left_in_training() -> Case:
    def training(model: nn.Module, batch: Any) -> Tensor:
        model.train()
        return cross_entropy(model, batch)

    return case(classifier(), training, (rand(5), labels()))


@refused(errors.CoupledExamplesError, "BatchNorm")
def batch_norm_without_statistics() -> Case:
    layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False))
    layers.append(nn.Linear(6, CLASSES))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        # A batch of one has no spread to divide by, so no batch is ever that small here.
        x, y = (torch.cat([z, z]) for z in batch)
        return F.cross_entropy(model(x), y, reduction="none")[: len(batch[1])]

    return case(layers, loss, (rand(5), labels()))


@refused(errors.CoupledExamplesError, "other examples")
def mean_repeated_for_each_example() -> Case:
    def repeated(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model, batch).mean().expand(len(batch[1]))

    return case(mlp().model, repeated, (rand(5), labels()))


@refused(errors.CoupledExamplesError, "other examples")
def words_averaged_over_the_batch() -> Case:
    def averaged(model: nn.Module, batch: Any) -> Tensor:
        ids, mask = batch
        losses = F.cross_entropy(model(ids).transpose(1, 2), ids, reduction="none")
        return (losses * mask).sum(1) / mask.sum()

    layers = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    return case(layers, averaged, (tokens(5, 7), (~padding(5)).float()))


@refused(errors.CoupledExamplesError, "other examples")
def logits_centred_over_the_batch() -> Case:
    def centred(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        logits = model(x)
        return F.cross_entropy(logits - logits.mean(0), y, reduction="none")

    return case(mlp().model, centred, (rand(5), labels()))


@refused(errors.CoupledExamplesError, "other examples")
def embedding_scaled_by_frequency_in_the_batch() -> Case:
    words = torch.tensor([[0], [1], [0], [1], [0], [1], [2], [3]])
    return words_case(nn.Embedding(4, 5, scale_grad_by_freq=True), words)


@refused(errors.LossError, "reduction='none'")
def mean_over_the_batch() -> Case:
    def mean(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model, batch).mean()

    return case(mlp().model, mean, (rand(5), labels()))


@refused(errors.LossError, r"\[examples\]|\[5\]")
def one_loss_too_few() -> Case:
    def short(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model, batch)[:-1]

    return case(mlp().model, short, (rand(5), labels()))


@refused(errors.LossError, r"\[examples\]|\[5\]")
def a_loss_for_every_word() -> Case:
    def every_word(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[0], reduction="none")

    return case(nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7)), every_word, [tokens(5, 7)])


@refused(errors.LossError, "autograd")
def loss_without_a_graph() -> Case:
    def cut(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model, batch).detach()

    return case(mlp().model, cut, (rand(5), labels()))


# The report -------------------------------------------------------------------------------------


def measured(name: str, dtype: torch.dtype) -> float:
    """The largest relative error of an entry's scores over batch sizes 1, 3 and all."""
    import tracin

    made, expected = ZOO[name].build().to(dtype), truth(name)
    run = tracin.TracIn(made.model, made.loss, [made.model.state_dict()], learning_rates=[1.0])
    found = []
    for size in (1, 3, EXAMPLES):
        own = run.self_influence(made.data, batch_size=size)
        found.append(relative_error(own, expected.self_influence))
        scores = run.influence(made.data, made.queries, batch_size=size)
        found.append(relative_error(scores, expected.influence))
    return max(found, key=lambda error: math.inf if math.isnan(error) else error)


def ways(name: str) -> str:
    """How many parameters of an entry go each way, such as `fast 4, vmap 1`."""
    import tracin

    made = ZOO[name].build()
    run = tracin.TracIn(made.model, made.loss, [made.model.state_dict()], learning_rates=[1.0])
    taken = Counter(str(entry.method) for entry in run.coverage(made.data).entries.values())
    return ", ".join(f"{way} {count}" for way, count in taken.most_common())


def shown(function: Callable[..., Any], *arguments: Any) -> str:
    """What `function` gives, or the kind of error it raises: a report shows all entries."""
    try:
        given = function(*arguments)
    except Exception as error:
        return type(error).__name__
    return given if isinstance(given, str) else f"{given:.1e}"


def report(write: Callable[[str], object]) -> None:
    """One line an entry: what was asked of it, its largest relative errors, the ways taken."""
    write(f"{'entry':48} {'asked':6} {'float64':>10} {'float32':>10}  ways")
    for name, entry in ZOO.items():
        double = "-" if entry.double is None else shown(measured, name, torch.float64)
        single = shown(measured, name, torch.float32)
        write(f"{name:48} {entry.way:6} {double:>10} {single:>10}  {shown(ways, name)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's remarks on slow kernels asked for on purpose
    report(print)
