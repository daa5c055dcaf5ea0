"""Finding wrong labels: which checkpoints count, what is known by heart, and the ranking."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracin
from tracin.results.suspects import OF_CLASSES, OF_TARGETS, mean_rank

CLASSES = 3
Data = tuple[Tensor, Tensor]


def data(examples: int, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


def net(seed: int = 0, outputs: int = CLASSES) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def run(states: int = 5, loss: str = "cross_entropy", outputs: int = CLASSES) -> tracin.TracIn:
    weights = [net(seed, outputs).state_dict() for seed in range(1, states + 1)]
    return tracin.TracIn(net(0, outputs), loss, weights, learning_rates="equal")


def in_data_order(table: tracin.Suspects, name: str) -> Tensor:
    return table.scores[name][torch.from_numpy(np.argsort(table.positions))]


# Checkpoints by held-out data ---------------------------------------------------------------------


def test_means_are_over_the_three_checkpoints_with_the_best_held_out_accuracy():
    train, validation = data(20), data(31, seed=1)
    accuracies, held_losses, losses = [], [], []
    for seed in range(1, 6):
        logits = net(seed)(validation[0]).detach()
        accuracies.append(float((logits.argmax(1) == validation[1]).double().mean()))
        held_losses.append(float(F.cross_entropy(logits, validation[1])))
        losses.append(F.cross_entropy(net(seed)(train[0]).detach(), train[1], reduction="none"))
    best = sorted(sorted(range(5), key=lambda at: (-accuracies[at], held_losses[at]))[:3])

    table = run().find_mislabelled(train, validation)

    assert table.held_out is not None
    assert table.held_out.best == tuple(best)
    assert table.checkpoints == tuple(f"checkpoint {at}" for at in best)
    assert np.allclose(table.held_out.losses, held_losses, rtol=1e-12)
    assert table.held_out.accuracies is not None
    assert np.allclose(table.held_out.accuracies, accuracies, rtol=1e-12)
    expected = torch.stack([losses[at] for at in best]).mean(0)
    assert torch.allclose(in_data_order(table, "loss"), expected, rtol=1e-12)
    assert "means over the best checkpoints: checkpoint" in str(table)
    of_all = str(table.ranked("self_influence"))
    assert of_all.startswith("ranked by self_influence over all checkpoints, means over the best")


def test_all_means_are_those_of_a_run_with_the_chosen_checkpoints_alone():
    train, validation = data(20), data(31, seed=1)
    chosen = run().find_mislabelled(train, validation)
    assert chosen.held_out is not None
    weights = [net(at + 1).state_dict() for at in chosen.held_out.best]
    alone = tracin.TracIn(net(), "cross_entropy", weights, learning_rates="equal")

    table = alone.find_mislabelled(train)

    assert np.array_equal(table.positions, chosen.positions)
    assert np.array_equal(table.suggested_labels, chosen.suggested_labels)
    for name in set(OF_CLASSES) - {
        "final_loss",
        "final_margin",
        "self_influence",
        "self_influence_last",
    }:
        assert torch.allclose(table.scores[name], chosen.scores[name], rtol=1e-12), name


def test_self_influence_and_the_last_checkpoints_columns_do_not_depend_on_validation():
    train = data(20)
    plain, chosen = run().find_mislabelled(train), run().find_mislabelled(train, data(31, seed=1))

    assert torch.allclose(in_data_order(plain, "self_influence"), run().self_influence(train))
    for name in ("self_influence", "self_influence_last", "final_loss", "final_margin"):
        assert torch.equal(in_data_order(plain, name), in_data_order(chosen, name)), name


def test_of_a_regression_the_checkpoints_with_the_lowest_held_out_loss_count():
    train, validation = data(20), data(31, seed=1)
    held = [
        float(F.mse_loss(net(seed, 1)(validation[0])[:, 0].detach(), validation[1].double()))
        for seed in range(1, 6)
    ]

    table = run(loss="mse", outputs=1).find_mislabelled(
        (train[0], train[1].double()), (validation[0], validation[1].double())
    )

    assert table.held_out is not None
    assert table.held_out.accuracies is None
    assert table.held_out.best == tuple(sorted(np.argsort(held)[:3].tolist()))
    assert str(table.held_out).splitlines()[0].split() == ["checkpoint", "loss"]


def test_equal_accuracies_are_told_apart_by_the_loss():
    losses, accuracies = np.array([4.0, 3.0, 2.0, 1.0]), np.array([0.5, 0.5, 0.5, 0.5])

    assert tracin.HeldOut(tuple("abcd"), losses, accuracies).best == (1, 2, 3)
    assert tracin.HeldOut(("a", "b"), losses[:2], accuracies[:2]).best == (0, 1)


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_batch_size_and_order_change_no_column(batch_size):
    train, validation = data(23), data(31, seed=1)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(4))
    expected = run().find_mislabelled(train, validation)

    found = run().find_mislabelled(
        (train[0][order], train[1][order]), validation, batch_size=batch_size
    )

    for name in OF_CLASSES:
        ours, theirs = in_data_order(found, name), in_data_order(expected, name)[order]
        assert torch.allclose(ours, theirs, rtol=1e-10), name
    suggested = expected.suggested_labels[np.argsort(expected.positions)]
    assert np.array_equal(found.suggested_labels, suggested[order][found.positions])


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_batch_size_changes_no_column_of_a_regression(batch_size):
    inputs, labels = data(23)
    train, runner = (inputs, labels.double()), run(loss="mse", outputs=1)
    expected = runner.find_mislabelled(train)

    found = runner.find_mislabelled(train, batch_size=batch_size)

    for name in OF_TARGETS:
        assert torch.allclose(found.scores[name], expected.scores[name], rtol=1e-10), name


def test_validation_data_of_another_kind_is_refused():
    with pytest.raises(tracin.DataError, match="validation"):
        run().find_mislabelled(data(9), 5)
    inputs, labels = data(9, seed=1)
    with pytest.raises(tracin.LabelError):
        run().find_mislabelled(data(9), (inputs, labels + CLASSES))


class OneClass:
    def __call__(self, model: nn.Module, batch: Data) -> Tensor:
        return self.outcome(model, batch).losses

    def outcome(self, model: nn.Module, batch: Data) -> tracin.Outcome:
        logits = model(batch[0])
        return tracin.Outcome(logits.square().sum(1), logits, batch[1])


def test_a_single_class_has_no_other_label_to_suggest():
    weights = [net(1, 1).state_dict()]
    runner = tracin.TracIn(net(0, 1), OneClass(), weights, learning_rates="equal")

    with pytest.raises(tracin.LossError, match=r"at least two classes, .* shape \(1, 1\)"):
        runner.find_mislabelled((data(4)[0], torch.zeros(4, dtype=torch.int64)))


# By heart -----------------------------------------------------------------------------------------


def learnt_by_heart(examples: int = 60) -> tuple[tracin.TracIn, Data]:
    """A net that agrees with random labels."""
    inputs, _ = data(examples)
    model = net()
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    return (
        tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal"),
        (inputs, labels),
    )


def test_a_net_that_agrees_with_all_labels_is_said_to():
    runner, train = learnt_by_heart()

    with pytest.warns(tracin.MemorisedWarning, match=r"agrees with 100.0% .* validation=") as seen:
        runner.find_mislabelled(train)

    assert len(seen) == 1


def test_a_net_that_does_as_well_on_held_out_data_has_learnt_nothing_by_heart():
    runner, (inputs, labels) = learnt_by_heart(120)
    train, validation = (inputs[:60], labels[:60]), (inputs[60:], labels[60:])
    noisy = validation[0], (validation[1] + (torch.arange(60) % 3 == 0)) % CLASSES

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.find_mislabelled(train, validation)
    with pytest.warns(tracin.MemorisedWarning, match=r"and with 66.7% of those of the validation"):
        runner.find_mislabelled(train, noisy)


def test_a_net_that_disagrees_with_one_label_in_twenty_is_not_warned_of():
    runner, (inputs, labels) = learnt_by_heart()
    labels[::20] = (labels[::20] + 1) % CLASSES

    found = runner.find_mislabelled((inputs, labels))

    assert set(found.top(3).positions.tolist()) == {0, 20, 40}


# Ranks --------------------------------------------------------------------------------------------


def test_the_rank_of_loss_and_margin_is_between_nought_and_one_and_shares_ties():
    both = mean_rank(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([5.0, 1.0, 1.0]))

    assert both.tolist() == pytest.approx([(0.5 + 2.5) / 6, (2 + 1) / 6, (2 + 1) / 6])
    assert mean_rank(torch.zeros(1)).tolist() == [0.5]


@pytest.mark.parametrize("column", OF_CLASSES)
def test_any_column_may_lead(column: str):
    table = run().find_mislabelled(data(12), rank_by=column)
    low_is_suspect = column in ("given_probability", "margin", "aum", "final_margin")

    steps = getattr(table, column).diff()

    assert table.ranked_by == column
    assert bool((steps >= 0).all() if low_is_suspect else (steps <= 0).all())
    assert column in str(table)
