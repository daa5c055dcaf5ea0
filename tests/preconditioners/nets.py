"""Small models of every kind whose curvature has factors, with their data and gradients."""

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

EXAMPLES, QUERIES, CLASSES = 30, 4, 3


def inputs_of(model, layer, x):
    """What a layer of the model is given: [examples, ...]."""
    found = []
    hook = layer.register_forward_pre_hook(lambda _, args: found.append(args[0].detach()))
    model(x)
    hook.remove()
    return found[0]


def gradients_of(model, x, y):
    """Per-example gradients, written out: name -> [examples, *shape]."""
    weights = {name: one.detach() for name, one in model.named_parameters()}

    def loss(weights, x, y):
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)


def deltas_of(model, layer, x, y):
    """The gradients of a layer's outputs: [examples, ...]."""
    found = []
    hook = layer.register_forward_hook(lambda _, args, out: found.append(out) or None)
    loss = F.cross_entropy(model(x), y, reduction="sum")
    hook.remove()
    return torch.autograd.grad(loss, found[0])[0]


def inverse(moments, damping):
    eye = torch.eye(len(moments))
    return torch.linalg.inv(moments + damping * moments.diagonal().mean() * eye)


class Words(nn.Module):
    """Several positions per example: a layer norm between two linear layers, and a mean."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x))).mean(1)


def nets():
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    plain = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, CLASSES, bias=False))
    image = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, CLASSES)
    )
    grouped = nn.Sequential(
        nn.Conv2d(2, 4, 2, groups=2, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    return {
        "one position": (flat, (4,)),
        "no bias": (plain, (4,)),
        "several positions": (Words(), (6, 4)),
        "convolution": (image, (2, 4, 4)),
        "grouped convolution": (grouped, (2, 4, 4)),
    }


def data_for(shape, examples=EXAMPLES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, *shape, generator=generator), torch.arange(examples) % CLASSES


def patches_of(layer, x):
    """[groups, positions, in] of a convolution's inputs."""
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
