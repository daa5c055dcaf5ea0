"""Models, optimizers and loops of the tests of tracing, with their slow twin."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tracin import Tracer
from tracin.tracing import Quadrature

TRAIN, QUERIES, CLASSES = 24, 5, 3

ALL = (Quadrature.TRAPEZOID, Quadrature.FIRST_ORDER, Quadrature.SIMPSON, Quadrature.MIDPOINT)


def seeded(build):
    torch.manual_seed(0)
    return build()


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.randn(6, CLASSES)), nn.Parameter(torch.ones(6))

    def forward(self, x):
        return (x * self.scale) @ self.w


class Words(nn.Module):
    """Attention over embedded words, a tied table, LayerNorm: what a language model is made of."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x):
        words = (x.abs() * 10).long() % 7
        hidden = self.table(words)
        hidden = self.norm(hidden + self.attention(hidden, hidden, hidden)[0])
        return self.head(F.linear(hidden, self.table.weight).mean(1))


class Pictures(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 2), norm, nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x.view(-1, 1, 2, 3)))).flatten(1))


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, CLASSES)))


MODELS = {
    "mlp": mlp,
    "linear": lambda: nn.Linear(6, CLASSES),
    "used twice": Twice,
    "raw parameters": Raw,
    "attention, tied table": Words,
    "convolution, GroupNorm": lambda: Pictures(nn.GroupNorm(1, 3)),
    "weight_norm": weight_norm,
    "in-place ReLU": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)
    ),
}

COUPLED = {
    "BatchNorm in train mode": lambda: Pictures(nn.BatchNorm2d(3)),
    "BatchNorm1d": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "dropout": lambda: nn.Sequential(
        nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, CLASSES)
    ),
}


def batches(steps, size=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(TRAIN, generator=generator)[:size] for _ in range(steps)]


def losses(model, data):
    return F.cross_entropy(model(data[0]), data[1], reduction="none")


def query_gradients(model, queries):
    """Each query's gradient in eval mode, flat: [queries, numbers]."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    each = losses(model, queries)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in each
    ]
    for module, mode in was:
        module.training = mode
    return torch.stack(rows)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def put(model, weights):
    start = 0
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(weights[start : start + p.numel()].view_as(p))
                start += p.numel()


def fit(tracer, model, optimizer, train, rows, after_backward=None, penalty=0.0):
    """A plain loop."""
    inputs, labels = train
    for ids in rows:
        optimizer.zero_grad()
        with tracer.batch(ids):
            loss = F.cross_entropy(model(inputs[ids]), labels[ids])
            if penalty:
                loss = loss + penalty * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        if after_backward:
            after_backward(model)
        optimizer.step()


def real_products(model, queries, move):
    """q(w_t) . (w_t - w_{t+1}) for each step of `move`, which is called with a callback."""
    found = []

    def around(step):
        before, gradients = flat(model), query_gradients(model, queries)
        step()
        found.append(gradients @ (before - flat(model)))

    move(around)
    return torch.stack(found)


class Listening:
    """Wraps optimizer.step, and notes q(w_t) . (w_t - w_{t+1}) of each."""

    def __init__(self, model, optimizer, queries):
        self.found = []
        plain = optimizer.step

        def step(*args, **kwargs):
            before, gradients = flat(model), query_gradients(model, queries)
            result = plain(*args, **kwargs)
            self.found.append(gradients @ (before - flat(model)))
            return result

        self.step = step


def gap(trace, listening, path=Quadrature.FIRST_ORDER):
    real = torch.stack(listening.found).numpy()
    parts = ("examples", "weight_decay", "momentum", "unattributed")
    predicted = np.sum([trace.steps.part(path, part) for part in parts], axis=0)
    return np.abs(predicted - real).max() / np.abs(real).max()


def traced(tmp_path, build, make, train, queries, rows, paths=ALL, **more):
    """Train with a Tracer; gives its trace, and what the steps really were."""
    options = {key: more.pop(key) for key in ("after_backward", "penalty") if key in more}
    model = seeded(build)
    optimizer = make(model.parameters())
    listening = Listening(model, optimizer, queries)
    stepping = copy.copy(optimizer)
    stepping.step = listening.step
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "trace", paths=paths, **more
    ) as tracer:
        fit(tracer, model, stepping, train, rows, **options)
        return tracer.trace(), listening


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def twin(model, train, queries, rows, rate, path):
    """(eta / b) g(z) . the query's gradient along the step, summed over an example's steps."""
    scores = torch.zeros(TRAIN, QUERIES)
    inputs, labels = train
    for ids in rows:
        own = []
        for i in ids.tolist():
            loss = F.cross_entropy(model(inputs[i : i + 1]), labels[i : i + 1])
            grads = torch.autograd.grad(loss, list(model.parameters()))
            own.append(torch.cat([g.flatten() for g in grads]))
        own = torch.stack(own)
        before = flat(model)
        after = before - rate * own.mean(0)
        for position, weight in path.points:
            put(model, torch.lerp(before, after, position))
            products = own @ query_gradients(model, queries).T
            scores.index_add_(0, ids, weight * rate / len(ids) * products)
        put(model, after)
    return scores


OPTIMIZERS = {
    "SGD, Nesterov, foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, foreach=True
    ),
    "SGD, maximize, foreach": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, maximize=True, foreach=True
    ),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True, amsgrad=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, weight_decay=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "Adagrad, fused": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True, maximize=True),
    "RMSprop, foreach": lambda p: torch.optim.RMSprop(
        p, lr=0.01, momentum=0.8, maximize=True, foreach=True
    ),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, weight decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD, dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3),
    "SGD, all": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05
    ),
    "SGD, not foreach": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.05, foreach=False
    ),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "SGD, maximize": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "Adam, L2": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "Adam, AMSGrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "Adam, no first moment": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.9)),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam, rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "Adam, maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1),
    "RMSprop, all": lambda p: torch.optim.RMSprop(
        p, lr=0.01, weight_decay=0.1, centered=True, momentum=0.8
    ),
}
