"""`parameters="last"` is the layer that data meets last, whatever the order of registration."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import tracin
from tracin.scoring.last_used import last_foreseen, last_used

X = torch.randn(5, 4)


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.body = nn.Linear(4, 6)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class UnusedHead(HeadFirst):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(6, 3)


class IgnoredHead(UnusedHead):
    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        found = self.head(hidden)
        self.auxiliary(hidden)
        return found


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.first(self.second(self.first(x)))


class ByFunctions(nn.Module):
    """Weights on one module, used by functions; the last layer's are registered first."""

    def __init__(self):
        super().__init__()
        self.w2, self.b2 = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3))
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return torch.tanh(F.linear(x, self.w1, self.b1)) @ self.w2 + self.b2


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(4, 6, bias=False)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4, bias=False)
        self.out.weight = nn.Parameter(self.embedding.weight.detach().T.clone())
        self.out.weight = self.out.weight

    def forward(self, x):
        return F.linear(self.middle(self.embedding(x)), self.embedding.weight.T)


class Scaled(HeadFirst):
    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return super().forward(x) * self.logit_scale.exp()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.norm(x)[:, None]
        return self.attention(x, x, x)[0][:, 0]


class EndsInNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.body = nn.LayerNorm(6), nn.Linear(4, 6)

    def forward(self, x):
        return self.norm(self.body(x))


class Lora(nn.Module):
    """A frozen head with an adapter on each layer, as PEFT makes them."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(6, 3), nn.Linear(4, 6)
        self.requires_grad_(False)
        self.head_a, self.head_b = nn.Linear(6, 2, bias=False), nn.Linear(2, 3, bias=False)
        self.body_a, self.body_b = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x):
        hidden = torch.tanh(self.body(x) + self.body_b(self.body_a(x)))
        return self.head(hidden) + self.head_b(self.head_a(hidden))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.body = nn.LSTM(6, 3, batch_first=True), nn.Linear(4, 6)

    def forward(self, x):
        return self.cell(self.body(x)[:, None])[0][:, 0]


def pruned():
    model = HeadFirst()
    prune.l1_unstructured(model.head, "weight", 0.5)
    return model


def normed():
    model = HeadFirst()
    weight_norm(model.head)
    return model


def in_branches():
    class Branches(HeadFirst):
        def forward(self, x):  # no code can be followed without numbers
            hidden = torch.tanh(self.body(x))
            return self.head(hidden) if float(hidden.detach().sum()) < 1e9 else hidden

    return Branches()


MODELS = {
    "head first": (HeadFirst, ["head.weight", "head.bias"]),
    "unused head": (UnusedHead, ["head.weight", "head.bias"]),
    "head whose output is dropped": (IgnoredHead, ["head.weight", "head.bias"]),
    "a layer twice": (Twice, ["first.weight", "first.bias"]),
    "by functions": (ByFunctions, ["w2", "b2"]),
    "tied": (Tied, ["embedding.weight"]),
    "temperature": (Scaled, ["head.weight", "head.bias"]),
    "attention": (Attention, ["attention.out_proj.weight", "attention.out_proj.bias"]),
    "norm": (EndsInNorm, ["norm.weight", "norm.bias"]),
    "adapter": (Lora, ["head_b.weight"]),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
        ["2.weight", "2.bias"],
    ),
    "recurrent": (
        Recurrent,
        ["cell.weight_ih_l0", "cell.weight_hh_l0", "cell.bias_ih_l0", "cell.bias_hh_l0"],
    ),
    "pruned": (pruned, ["head.bias", "head.weight_orig"]),
    "weight norm": (
        normed,
        [
            "head.bias",
            "head.parametrizations.weight.original0",
            "head.parametrizations.weight.original1",
        ],
    ),
    "branches": (in_branches, ["head.weight", "head.bias"]),
}


@pytest.mark.parametrize(("build", "names"), MODELS.values(), ids=MODELS)
def test_the_layer_used_last_is_found_by_a_forward_pass(build, names):
    torch.manual_seed(0)
    model = build().eval()

    found = last_used(model, lambda: model(X).square().sum(1))

    assert list(found) == names
    assert all(dict(model.named_parameters())[name] is found[name] for name in names)


FORESEEN = [name for name in MODELS if name not in ("branches", "weight norm", "pruned")]


@pytest.mark.parametrize("name", FORESEEN)
def test_the_layer_used_last_is_foreseen_from_code(name):
    build, names = MODELS[name]
    model = build()
    before = {key: list(module.__dict__) for key, module in model.named_modules()}

    assert list(last_foreseen(model)) == names
    assert {key: list(module.__dict__) for key, module in model.named_modules()} == before


def test_code_that_needs_numbers_is_answered_by_the_first_data():
    torch.manual_seed(0)
    model = in_branches()
    run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[1.0], parameters="last")
    with pytest.raises(tracin.ParametersError, match=r"first data shows.*coverage\(batch\)"):
        list(run.parameters)

    scores = run.self_influence((X, torch.zeros(5, 3)))

    named = tracin.TracIn(
        model, "mse", [model.state_dict()], learning_rates=[1.0], parameters=["head.*"]
    )
    assert list(run.parameters) == ["head.weight", "head.bias"]
    torch.testing.assert_close(scores, named.self_influence((X, torch.zeros(5, 3))))


def test_suspects_show_the_layer_used_last_beside_all():
    torch.manual_seed(0)
    model = UnusedHead()
    train = X, torch.arange(5) % 3
    options = {"learning_rates": [1.0]}
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], **options)
    head = tracin.TracIn(
        model, "cross_entropy", [model.state_dict()], parameters=["head.*"], **options
    )

    found = run.find_mislabelled(train)

    expected = head.self_influence(train)[torch.from_numpy(found.positions)]
    torch.testing.assert_close(found.self_influence_last.float(), expected)
    assert bool((found.self_influence_last > 0).all())
