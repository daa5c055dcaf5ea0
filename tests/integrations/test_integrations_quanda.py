"""The explainer, by a stand-in of how quanda 0.5's metrics make and call theirs."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import tracin
from tracin.errors import QueryError
from tracin.integrations.quanda import TracInExplainer


class Metric:
    """Makes an explainer as `quanda.metrics.base.Metric` does, and asks it for explanations."""

    def __init__(self, model, train_dataset, explainer_cls, expl_kwargs, checkpoints=None):
        self.explainer = explainer_cls(
            model=model,
            checkpoints=checkpoints,
            train_dataset=train_dataset,
            checkpoints_load_func=None,
            **expl_kwargs,
        )

    def explanations(self, inputs, targets):
        return self.explainer.explain(test_data=inputs, targets=targets)


@pytest.fixture
def task():
    torch.manual_seed(0)
    train = torch.randn(12, 3), torch.arange(12) % 2
    return torch.nn.Linear(3, 2), train, (torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))


def test_explanations_are_tracins_the_other_way_round(task):
    model, train, queries = task
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")

    metric = Metric(model, TensorDataset(*train), TracInExplainer, {})

    wanted = run.influence(train, queries)
    for targets in (queries[1], queries[1].tolist()):
        torch.testing.assert_close(metric.explanations(queries[0], targets), wanted.mT)
    torch.testing.assert_close(metric.explainer.self_influence(), run.self_influence(train))


def test_checkpoints_and_a_preconditioner_are_passed_on(task, tmp_path: Path):
    model, train, queries = task
    paths = [str(tmp_path / f"{at}.pt") for at in range(2)]
    for at, path in enumerate(paths):
        torch.save({name: each * (at + 1) for name, each in model.state_dict().items()}, path)
    arguments = {"preconditioner": tracin.KFAC(), "learning_rates": "equal"}
    run = tracin.TracIn(model, "cross_entropy", paths, **arguments)

    several = Metric(model, TensorDataset(*train), TracInExplainer, arguments, paths)
    one = Metric(model, TensorDataset(*train), TracInExplainer, {}, paths[0])

    wanted = run.influence(train, queries)
    torch.testing.assert_close(several.explanations(*queries), wanted.mT)
    assert one.explanations(*queries).shape == (4, 12)


def test_what_it_cannot_explain_is_refused(task):
    model, train, _ = task

    with pytest.raises(QueryError, match="an input and a label per example; 'causal_lm' was given"):
        TracInExplainer(model, TensorDataset(*train), task="causal_lm")
    with pytest.raises(QueryError, match="checkpoints_load_func must be None"):
        TracInExplainer(model, TensorDataset(*train), checkpoints_load_func=print)
