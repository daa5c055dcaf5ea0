"""Coverage says which rule reads a parameter's calls, and why another does not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin.gradients.rules import rule as rules

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


@pytest.fixture
def run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 3))
    return tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])


def reasons(run):
    return {name: str(covered) for name, covered in run.coverage((X, Y)).entries.items()}


def test_rules_are_named(run):
    assert reasons(run) == {
        "0.weight": "fast: rule linear",
        "0.bias": "fast: rule linear",
        "1.weight": "fast: rule local",
        "2.weight": "fast: rule linear",
        "2.bias": "fast: rule linear",
    }


def refuses(use, input, weight, bias=None):
    raise rules.NoRule("not today")


def forgets(use, input, weight, bias=None):
    return list(rule_of_linear(use, input, weight, bias))[:1]


def takes_less(use, input):
    return []


rule_of_linear = rules._RULES[F.linear]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (refuses, "refuses: not today"),
        (forgets, "forgets: it returns nothing for 0.bias"),
        (takes_less, "takes_less: its arguments are not those of the call"),
    ],
)
def test_a_rule_that_never_reads_a_call_says_why(run, monkeypatch, rule, said):
    monkeypatch.setitem(rules._RULES, F.linear, rule)
    assert reasons(run)["0.weight"].startswith(f"fast: rule local ({said}")


def test_a_bias_beside_a_weight_whose_rule_is_wrong_stays_fast(run, monkeypatch):
    def doubles(use, input, weight, bias=None):
        (leaf, form), *rest = rule_of_linear(use, input, weight, bias)
        return [(leaf, lambda delta: form(2 * delta)), *rest]

    monkeypatch.setitem(rules._RULES, F.linear, doubles)
    found = reasons(run)
    assert found["0.weight"] == "vmap: its rules and autograd differ by 1.0e+00"
    assert found["0.bias"] == "fast: rule doubles"


def test_a_call_without_a_rule_is_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return (self.linear(x).T @ torch.eye(len(x))).T.mul_(self.scale)

    model = Mixed()
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    assert reasons(run)["scale"].startswith("vmap: torch.Tensor.mul_(scale)#1 has no rule")
