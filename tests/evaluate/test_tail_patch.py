"""One step on the first proponents, against taking it."""

import copy

import pytest
import torch
from torch.nn import functional as F

import tracin
from tracin.errors import DataError, NonFiniteError, QueryError
from tracin.evaluate import tail_patch


@pytest.fixture
def task():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 2)
    ).double()
    states = [
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: value.clone() * 2 for name, value in model.state_dict().items()},
    ]
    checkpoints = [tracin.Checkpoint(each, 0.1, name=f"c{at}") for at, each in enumerate(states)]
    train = torch.randn(15, 3).double(), torch.arange(15) % 2
    queries = torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    return tracin.TracIn(model, "cross_entropy", checkpoints), train, queries, states


def by_hand(model, state, train, query, positions, rate, names=None):
    model = copy.deepcopy(model).eval()
    model.load_state_dict(state)
    inputs, labels = query

    def loss():
        return F.cross_entropy(model(inputs), labels).item()

    before = loss()
    chosen = [each for name, each in model.named_parameters() if names is None or name in names]
    F.cross_entropy(model(train[0][positions]), train[1][positions]).backward()
    with torch.no_grad():
        for each in chosen:
            each -= rate * each.grad
    return before - loss()


@pytest.mark.parametrize("parameters", [None, ["3.*"], "last"])
def test_the_drop_is_that_of_the_step_taken(task, parameters):
    whole, train, queries, states = task
    run = tracin.TracIn(whole.model, whole.loss, whole.checkpoints, parameters=parameters)
    scores = torch.randn(15, 4)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}

    found = tail_patch(run, train, queries, scores, k=3)

    names = None if parameters is None else ["3.weight", "3.bias"]
    for query in range(4):
        one = tuple(each[query : query + 1] for each in queries)
        best = scores[:, query].topk(3).indices
        wanted = by_hand(run.model, states[1], train, one, best, 0.1, names)
        assert float(found.drop.by_query[query]) == pytest.approx(wanted, rel=1e-9)
    assert all(torch.equal(before[name], each) for name, each in run.model.state_dict().items())
    assert all(each.grad is None for each in run.model.parameters())
    assert run.model.training


def test_another_checkpoint_and_step(task):
    run, train, queries, states = task
    scores = torch.randn(15, 4)

    found = tail_patch(run, train, queries, scores, k=2, checkpoint=0, learning_rate=0.5)

    one = tuple(each[:1] for each in queries)
    wanted = by_hand(run.model, states[0], train, one, scores[:, 0].topk(2).indices, 0.5)
    assert float(found.drop.by_query[0]) == pytest.approx(wanted, rel=1e-9)
    assert (found.checkpoint, found.learning_rate) == ("c0", 0.5)
    assert "one step of size 0.5 from c0" in str(found)


def test_tracins_proponents_lower_the_loss_more_than_random_ones(task):
    run, train, queries, _ = task
    last = tracin.TracIn(run.model, run.loss, run.checkpoints[-1:])

    found = tail_patch(run, train, queries, last.influence(train, queries), k=3, learning_rate=1e-4)

    assert (found.gain.by_query > 0).all()
    assert found.gain.value == pytest.approx(found.drop.value - found.random.value)


def test_what_cannot_be_a_step_is_refused(task):
    run, train, queries, states = task
    scores = torch.randn(15, 4)

    with pytest.raises(DataError, match=r"here \[15, 4\]; \[14, 4\] came"):
        tail_patch(run, train, queries, scores[1:])
    with pytest.raises(QueryError, match="k=16 proponents"):
        tail_patch(run, train, queries, scores, 16)
    with pytest.raises(QueryError, match="checkpoint is a place in the run's list, from 0 to 1"):
        tail_patch(run, train, queries, scores, checkpoint=2)
    with pytest.raises(QueryError, match=r"it is -1.0. Pass learning_rate="):
        tail_patch(run, train, queries, scores, learning_rate=-1.0)
    bare = tracin.TracIn(run.model, run.loss, states, learning_rates="equal")
    with pytest.raises(QueryError, match="it has none"):
        tail_patch(bare, train, queries, scores)
    with pytest.raises(NonFiniteError, match="The loss of query 0 is NaN or infinite after a step"):
        tail_patch(run, train, queries, scores, learning_rate=1e308)
    with pytest.raises(QueryError, match="tail_patch takes a run"):
        tail_patch("run", train, queries, scores)  # type: ignore[arg-type]
