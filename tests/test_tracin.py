"""The front door keeps its promises: the method's invariants, and clear words for bad input."""

import gzip
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

import slow_twin
import tracin
from tracin import errors
from tracin import tracin as front_door
from tracin.gradients.functional import refuse_sharded
from tracin.results.suspects import OF_CLASSES, OF_TARGETS
from tracin.scoring import mislabelled
from tracin.scoring.mislabelled import Judgement

CLASSES = 3


def data(examples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def state(seed: int) -> dict[str, Tensor]:
    return net(seed).state_dict()


def run(**options: object) -> tracin.TracIn:
    options.setdefault("learning_rates", [0.1, 0.3])
    return tracin.TracIn(net(), "cross_entropy", [state(1), state(2)], **options)  # pyright: ignore


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    gap = (found.double() - expected.double()).abs().max()
    return bool(gap <= tolerance * expected.double().abs().max())


# The method ---------------------------------------------------------------------------------------


def test_scores_are_equation_one_with_each_checkpoints_learning_rate():
    train, test = data(7), data(3, seed=1)
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for rate, seed in ((0.1, 1), (0.3, 2)):
        model = net(seed)
        expected += rate * slow_twin.influence(model, "cross_entropy", train, test)

    assert close(run().influence(train, test), expected)


def test_scores_add_up_over_checkpoints_whatever_their_order():
    train, test = data(7), data(3, seed=1)
    model = net()
    one = tracin.TracIn(model, "cross_entropy", [state(1)], learning_rates=[0.1])
    other = tracin.TracIn(model, "cross_entropy", [state(2)], learning_rates=[0.3])
    turned = tracin.TracIn(model, "cross_entropy", [state(2), state(1)], learning_rates=[0.3, 0.1])
    together = run().influence(train, test)

    assert close(together, one.influence(train, test) + other.influence(train, test))
    assert close(together, turned.influence(train, test))


def test_scores_add_up_over_disjoint_parameters():
    train, test = data(7), data(3, seed=1)
    first, last = run(parameters=["0.*"]), run(parameters="last")

    assert set(last.parameters) == {"2.weight", "2.bias"}
    assert close(
        run().influence(train, test), first.influence(train, test) + last.influence(train, test)
    )


def test_a_loss_times_s_gives_scores_times_s_squared():
    def tripled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 3 * F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    train = data(6)
    plain = run().self_influence(train)
    scaled = tracin.TracIn(net(), tripled, [state(1), state(2)], learning_rates=[0.1, 0.3])

    assert close(scaled.self_influence(train), 9 * plain)


def test_the_gram_matrix_is_positive_semidefinite():
    train = data(9)
    gram = run().influence(train, train)

    assert torch.linalg.eigvalsh(gram).min() > -1e-12 * gram.abs().max()


def test_the_last_layers_self_influence_is_el2n_squared_times_features_and_one():
    model, (inputs, labels) = net(1), data(8)
    features = torch.tanh(model[0](inputs))
    errors_ = model(inputs).softmax(1) - F.one_hot(labels, CLASSES)
    expected = errors_.square().sum(1) * (features.square().sum(1) + 1)
    last = tracin.TracIn(
        net(), "cross_entropy", [state(1)], learning_rates="equal", parameters="last"
    )

    assert close(last.self_influence((inputs, labels)), expected.detach())


def test_each_parameters_gradient_is_weighted_by_its_own_groups_rate():
    rates = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.5, "2.bias": 0.5}
    checkpoint = tracin.Checkpoint(state(1), rates)
    model = net()
    both = tracin.TracIn(model, "cross_entropy", [checkpoint])
    first = tracin.TracIn(
        model, "cross_entropy", [state(1)], parameters=["0.*"], learning_rates=[0.1]
    )
    last = tracin.TracIn(
        model, "cross_entropy", [state(1)], parameters=["2.*"], learning_rates=[0.5]
    )
    train = data(5)

    assert close(
        both.self_influence(train), first.self_influence(train) + last.self_influence(train)
    )


def test_equal_examples_stay_apart_and_score_alike():
    inputs, labels = data(4)
    twice = torch.cat([inputs, inputs[:1]]), torch.cat([labels, labels[:1]])

    scores = run().self_influence(twice)

    assert len(scores) == 5
    assert close(scores[4:], scores[:1])


def test_dropout_is_off_and_batch_norm_uses_the_checkpoints_statistics():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model = model.double().train()
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved["1.running_mean"] += 0.7
    train = data(6)
    runner = tracin.TracIn(model, "cross_entropy", [saved], learning_rates=[1.0])
    twin = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    twin.double().load_state_dict(saved)

    scores = runner.self_influence(train)

    assert close(scores, slow_twin.self_influence(twin, "cross_entropy", train))
    assert torch.equal(scores, runner.self_influence(train))
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(6))


# explain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [1 << 26, 12])
def test_explain_finds_what_sorting_the_whole_matrix_finds(
    monkeypatch: pytest.MonkeyPatch, held: int
):
    monkeypatch.setattr(front_door, "HELD", held)
    train, test = data(11), data(3, seed=1)
    matrix = run().influence(train, test)

    found = run().explain(train, test, k=4)

    order = matrix.argsort(dim=0, descending=True).T
    assert np.array_equal(found.proponents.positions, order[:, :4])
    assert np.array_equal(found.opponents.positions, order.flip(1)[:, :4])
    assert close(found.proponents.scores, matrix.sort(dim=0, descending=True).values.T[:, :4])
    assert close(found.proponents.by_checkpoint.sum(2), found.proponents.scores)


def test_a_group_of_queries_is_their_sum_or_mean():
    train, test = data(8), data(4, seed=1)
    matrix = run().influence(train, test)

    summed = run().explain(train, test, k=8, group="sum", batch_size=3)
    mean = run().explain(train, test, k=8, group="mean")

    order = torch.from_numpy(summed.proponents.positions[0])
    assert close(summed.proponents.scores[0], matrix.sum(1)[order])
    assert close(mean.proponents.scores[0], matrix.mean(1)[order])


def test_normalised_scores_are_divided_by_gradient_lengths():
    train, test = data(8), data(3, seed=1)
    matrix = run().influence(train, test)
    own, query = run().self_influence(train), run().self_influence(test)

    cosine = run().explain(train, test, k=8, normalise="cosine").proponents
    by_query = run().explain(train, test, k=8, normalise="query").proponents

    at = torch.from_numpy(cosine.positions)
    expected = (matrix / own.sqrt()[:, None] / query.sqrt()).T.gather(1, at)
    assert close(cosine.scores, expected)
    assert cosine.scores.abs().max() <= 1 + 1e-12
    at = torch.from_numpy(by_query.positions)
    assert close(by_query.scores, (matrix / query.sqrt()).T.gather(1, at))


def test_misclassified_examples_can_be_left_out():
    train, test = data(20), data(2, seed=1)
    wrong = net(2)(train[0]).argmax(1) != train[1]

    found = run().explain(train, test, k=3, drop_misclassified=True)

    assert not wrong[torch.from_numpy(found.proponents.positions)].any()
    with pytest.raises(errors.QueryError, match=r"only .* left after drop_misclassified"):
        run().explain(train, test, k=20, drop_misclassified=True)


def test_hits_carry_the_users_ids():
    inputs, labels = data(4)
    named = tracin.WithIds((inputs, labels), ["a", "b", "c", "d"])

    found = run().explain(named, data(1), k=4)

    assert set(found.proponents.ids[0]) == {"a", "b", "c", "d"}


def test_an_example_outside_the_training_set_may_be_scored():
    assert run().influence(data(3, seed=8), data(2, seed=9)).shape == (3, 2)


@pytest.mark.parametrize("group", ["sum", "mean"])
@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_the_influence_on_a_group_is_that_on_each_query_summed_or_averaged(group, batch_size):
    train, queries = data(7), data(5, seed=1)
    each = run().influence(train, queries)

    found = run().influence(train, queries, group=group, batch_size=batch_size)

    assert found.shape == (7,)
    assert close(found, each.sum(1) if group == "sum" else each.mean(1))


@pytest.mark.parametrize("preconditioner", [tracin.KFAC()])
def test_the_influence_on_a_group_under_a_preconditioner_is_that_on_each_summed(preconditioner):
    train, queries = data(12), data(5, seed=1)
    runner = run(preconditioner=preconditioner, learning_rates="equal")

    found = runner.influence(train, queries, group="sum")

    assert close(found, runner.influence(train, queries).sum(1), 1e-8)


def test_a_group_is_a_sum_or_a_mean():
    with pytest.raises(errors.QueryError, match='group is None or one of "sum", "mean"; \'max\''):
        run().influence(data(3), data(2), group="max")


# find_mislabelled ---------------------------------------------------------------------------------


def test_the_table_of_suspects_holds_what_its_columns_promise():
    train = data(12)
    inputs, labels = train
    losses, distances, margins, leads = [], [], [], []
    mean = torch.zeros(12, CLASSES, dtype=torch.float64)
    for seed in (1, 2):
        logits = net(seed)(inputs).detach()
        p = logits.softmax(1)
        mean += p / 2
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
        distances.append((p - F.one_hot(labels, CLASSES)).norm(dim=1))
        own = p.gather(1, labels[:, None])[:, 0]
        margins.append(own - p.scatter(1, labels[:, None], -1).amax(1))
        others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        leads.append(logits.gather(1, labels[:, None])[:, 0] - others)
    loss, margin = torch.stack(losses).mean(0), torch.stack(margins).mean(0)
    both = (rankdata(loss) + rankdata(-margin) - 1) / (2 * 12)
    others = mean.scatter(1, labels[:, None], -1)

    table = run().find_mislabelled(train)

    at = torch.from_numpy(table.positions)
    assert close(table.self_influence, run().self_influence(train)[at])
    assert close(table.self_influence_last, run(parameters="last").self_influence(train)[at])
    assert close(table.loss, loss[at])
    assert close(table.el2n, torch.stack(distances).mean(0)[at])
    assert close(table.margin, margin[at])
    assert close(table.aum, torch.stack(leads).mean(0)[at])
    assert close(table.loss_and_margin, torch.from_numpy(both)[at])
    assert close(table.final_loss, losses[-1][at])
    assert close(table.final_margin, margins[-1][at])
    assert np.array_equal(table.given_labels, labels[at])
    assert np.array_equal(table.suggested_labels, others.argmax(1)[at])
    assert close(table.given_probability, mean.gather(1, labels[:, None])[at, 0])
    assert close(table.suggested_probability, others.amax(1)[at])
    assert table.ranked_by == "loss_and_margin"
    assert (table.loss_and_margin.diff() <= 0).all()
    assert (table.ranked("margin").margin.diff() >= 0).all()
    assert table.checkpoints == ("checkpoint 0", "checkpoint 1")
    assert table.held_out is None


def test_the_last_layer_is_judged_even_where_it_is_not_traced():
    train = data(6)
    table = run(parameters=["0.*"]).find_mislabelled(train)
    at = torch.from_numpy(table.positions)

    assert close(table.self_influence, run(parameters=["0.*"]).self_influence(train)[at])
    assert close(table.self_influence_last, run(parameters="last").self_influence(train)[at])


@pytest.mark.parametrize("held", [1, 2 * CLASSES, 5 * CLASSES + 1])
def test_suspects_are_judged_in_blocks_of_bounded_memory(monkeypatch, held):
    train = data(12)
    whole = run().find_mislabelled(train)
    blocks = []

    class Watched(Judgement):
        def open(self, block, classes):
            super().open(block, classes)
            blocks.append(self._probabilities.numel())

    monkeypatch.setattr(mislabelled, "HELD", held)
    monkeypatch.setattr(front_door, "Judgement", Watched)
    in_blocks = run().find_mislabelled(train)

    assert max(blocks) <= max(held, CLASSES)
    assert sum(blocks) == 12 * CLASSES
    assert np.array_equal(in_blocks.positions, whole.positions)
    assert np.array_equal(in_blocks.suggested_labels, whole.suggested_labels)
    for name in OF_CLASSES:
        assert close(getattr(in_blocks, name), getattr(whole, name))


def test_labels_cannot_be_judged_by_a_loss_without_classes():
    runner = tracin.TracIn(net(), lambda m, b: m(b[0]).sum(1), [state(1)], learning_rates=[1.0])

    with pytest.raises(errors.LossError, match='loss="cross_entropy"'):
        runner.find_mislabelled(data(3))


def regression(loss="mse", **options) -> tracin.TracIn:
    """A net of one output at two checkpoints, in float64."""
    torch.manual_seed(0)
    states = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double() for _ in "ab"]
    return tracin.TracIn(
        states[0],
        loss,
        [each.state_dict() for each in states],
        learning_rates=[0.1, 0.2],
        **options,
    )


def measured(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(examples, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("has_column", [False, True])
def test_the_table_of_a_regression_holds_what_its_columns_promise(has_column):
    inputs, targets = measured(12)
    train = (inputs, targets[:, None]) if has_column else (inputs, targets)
    own, predictions, losses = torch.zeros(12).double(), [], []
    model = regression().model
    for checkpoint, rate in zip(regression().checkpoints, (0.1, 0.2), strict=True):
        assert isinstance(checkpoint.source, Mapping)
        model.load_state_dict(checkpoint.source)
        for at in range(12):  # the slow way
            prediction = model(inputs[at])[0]
            loss = (prediction - targets[at]) ** 2
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            own[at] += rate * sum(each.square().sum() for each in gradients)
        predictions.append(model(inputs)[:, 0].detach())
        losses.append((predictions[-1] - targets) ** 2)

    table = regression().find_mislabelled(train)

    at = torch.from_numpy(table.positions)
    mean = torch.stack(predictions).mean(0)
    assert close(table.self_influence, own[at])
    last = regression(parameters="last").self_influence(train)
    assert close(table.self_influence_last, last[at])
    assert close(table.loss, torch.stack(losses).mean(0)[at])
    assert close(table.residual, (targets - mean)[at])
    assert np.allclose(table.prediction, mean[at])
    assert np.array_equal(table.given_labels, targets[at])
    assert close(table.final_loss, losses[-1][at])
    assert close(table.final_residual, (targets - predictions[-1])[at])
    assert table.ranked_by == "residual"
    assert (table.residual.abs().diff() <= 0).all()
    assert tuple(table.columns())[4:] == OF_TARGETS
    assert close(table.ranked("self_influence").self_influence, own.sort(descending=True).values)


def test_a_regression_has_neither_margins_nor_wrong_classes():
    train = measured(6)

    with pytest.raises(errors.QueryError, match=r"one of \"residual\", .*; 'margin' was given"):
        regression().find_mislabelled(train, rank_by="margin")
    with pytest.raises(errors.LossError, match=r"drop_misclassified .* knows no classes"):
        regression().explain(train, train, k=1, drop_misclassified=True)
    with pytest.raises(errors.QueryError, match="'residual' was given"):
        run().find_mislabelled(data(4), rank_by="residual")


def test_a_regression_of_several_numbers_is_not_judged():
    model = nn.Linear(4, 2).double()
    runner = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[1.0])

    with pytest.raises(errors.LossError, match=r"one target per example, .* predicts 2 numbers"):
        runner.find_mislabelled((measured(5)[0], torch.zeros(5, 2).double()))


# Ways and checks ----------------------------------------------------------------------------------


def test_coverage_names_every_parameter_and_why():
    model = net()
    model[0].bias.requires_grad_(False)
    runner = tracin.TracIn(
        model, "cross_entropy", [state(1)], learning_rates=[1.0], parameters=["2.*"]
    )

    coverage = runner.coverage(data(4))

    assert list(coverage.entries) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert coverage.by(tracin.GradientMethod.FAST) == ["2.weight", "2.bias"]
    assert "not chosen" in coverage.entries["0.weight"].reason
    assert "requires_grad is False" in str(coverage)


def test_verify_measures_rounding_errors_alone():
    found = run().verify(data(6))

    assert found.is_exact
    assert found.worst < 1e-12
    assert "exact" in str(found)


def test_a_few_queries_go_through_forward_mode_where_no_rule_holds():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.LSTM(4, 5, batch_first=True)
            self.head = nn.Linear(5, CLASSES)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.read(words)[0][:, -1])

    torch.manual_seed(0)
    model = Reader().double()
    train = torch.randn(6, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    test = train[0][:2] + 1, train[1][:2]
    runner = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    scores = runner.influence(train, test)

    assert close(scores, slow_twin.influence(model, "cross_entropy", train, test))


def test_running_out_of_memory_halves_the_batch_and_loses_nothing():
    seen = []

    def greedy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(len(batch[0]))
        if len(batch[0]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    train = data(20)
    runner = tracin.TracIn(net(), greedy, [state(1), state(2)], learning_rates=[0.1, 0.3])

    assert close(runner.self_influence(train, batch_size=16), run().self_influence(train))
    assert 16 in seen
    assert 4 in seen


def test_sharded_parameters_are_refused_by_torch_func(tmp_path):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(4, 3)
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))

        with pytest.raises(errors.UnsupportedModelError, match="silently wrong under DTensor"):
            refuse_sharded(dict(model.named_parameters()))
        runner = tracin.TracIn(
            model, "cross_entropy", [nn.Linear(4, 3).state_dict()], learning_rates=[1.0]
        )
        with pytest.raises(errors.UnsupportedModelError, match="weight is a DTensor"):
            runner.self_influence((torch.randn(3, 4), torch.tensor([0, 1, 2])))
    finally:
        destroy_process_group()


# Bad input ----------------------------------------------------------------------------------------


def test_a_nan_loss_names_the_example_and_the_checkpoint():
    inputs, labels = data(6)
    inputs[4] = float("nan")
    named = tracin.WithIds((inputs, labels), [f"image {i}" for i in range(6)])
    first = tracin.Checkpoint(state(1), 0.1, name="epoch 7")
    runner = tracin.TracIn(net(), "cross_entropy", [first])

    with pytest.raises(
        errors.NonFiniteError, match=r"loss of example 'image 4' is nan at checkpoint 'epoch 7'"
    ):
        runner.self_influence(named, batch_size=3)


@pytest.mark.parametrize("place", [0, 5])
def test_a_nan_at_the_ends_of_the_data_is_named_too(place: int):
    inputs, labels = data(6)
    inputs[place] = float("nan")

    with pytest.raises(errors.NonFiniteError, match=f"loss of example {place} is nan"):
        run().self_influence((inputs, labels))


def test_data_of_nothing_but_nan_is_refused_for_that_reason():
    inputs, labels = data(3)

    with pytest.raises(errors.NonFiniteError, match="loss of example 0 is nan"):
        run().self_influence((inputs * float("nan"), labels))


def test_an_infinite_gradient_names_the_example_and_the_checkpoint():
    def root(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).square().sum(1) * batch[1]).sqrt()

    inputs = data(5)[0]
    factors = torch.ones(5, dtype=torch.float64)
    factors[3] = 0
    runner = tracin.TracIn(net(), root, [state(1)], learning_rates=[1.0])

    with pytest.raises(errors.NonFiniteError, match="gradient of example 3 is nan at checkpoint"):
        runner.self_influence((inputs, factors), batch_size=2)


def test_a_query_that_is_not_finite_is_named():
    inputs, labels = data(3)
    inputs[1] = float("inf")

    with pytest.raises(errors.NonFiniteError, match="loss of query 1 is nan"):
        run().influence(data(4), (inputs, labels))


@pytest.mark.parametrize("k", [0, 9, -1, 2.0, True])
def test_k_is_between_one_and_the_number_of_examples(k: object):
    with pytest.raises(errors.QueryError, match=r"train holds 8 examples. Give a k from 1 to 8"):
        run().explain(data(8), data(2), k=k)  # pyright: ignore[reportArgumentType]


def test_words_that_do_not_exist_are_listed():
    with pytest.raises(errors.QueryError, match='one of "cosine", "query"; \'l2\' was given'):
        run().explain(data(4), data(1), k=1, normalise="l2")
    with pytest.raises(errors.QueryError, match='one of "sum", "mean"'):
        run().explain(data(4), data(1), k=1, group="max")
    with pytest.raises(errors.QueryError, match=r'"loss_and_margin".*"self_influence".*entropy'):
        run().find_mislabelled(data(4), rank_by="entropy")


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(errors.ParametersError, match="no trainable parameter"):
        tracin.TracIn(net().requires_grad_(False), "mse", [state(1)], learning_rates=[1.0])


def test_a_name_that_matches_nothing_is_refused_with_those_that_exist():
    with pytest.raises(errors.ParametersError, match=r"'fc\.\*', but no parameter.*'0.weight'"):
        run(parameters=["fc.*"])
    with pytest.raises(errors.ParametersError, match="chooses nothing"):
        run(parameters=[])


def test_a_frozen_parameter_cannot_be_traced():
    model = net()
    model[0].requires_grad_(False)

    with pytest.raises(errors.ParametersError, match="requires_grad=False, so it was not trained"):
        tracin.TracIn(model, "mse", [state(1)], learning_rates=[1.0], parameters=["0.*"])


def test_a_missing_learning_rate_is_never_guessed():
    with pytest.raises(errors.LearningRateError, match="learning_rates="):
        tracin.TracIn(net(), "cross_entropy", [state(1)])


def test_duplicate_checkpoints_are_warned_about():
    same = state(1)

    with pytest.warns(tracin.CheckpointWarning):
        tracin.TracIn(net(), "cross_entropy", [same, same], learning_rates=[1.0, 1.0])


def test_weights_of_another_model_are_refused_with_the_keys_that_differ():
    other = nn.Linear(4, 3).double().state_dict()
    runner = tracin.TracIn(net(), "cross_entropy", [other], learning_rates=[1.0])

    with pytest.raises(errors.CheckpointError, match=r"0\.weight"):
        runner.self_influence(data(3))


def test_a_run_shows_what_it_is_made_of():
    model = torch.nn.Linear(4, 3)
    states = [model.state_dict(), torch.nn.Linear(4, 3).state_dict()]
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")
    assert repr(run) == "TracIn(Linear, 2 checkpoints, 2 parameters (15 numbers), on cpu)"

    last = tracin.TracIn(
        model, "mse", states[:1], learning_rates="equal", parameters="last", device="cpu"
    )
    assert repr(last) == "TracIn(Linear, 1 checkpoint, the last layer, on cpu)"
    curved = tracin.TracIn(model, "mse", [model.state_dict()], preconditioner=tracin.KFAC(0.5))
    assert repr(curved).endswith(
        "on cpu, under KFAC(damping=0.5, examples=None, at='each', row_damping=1.0, folder=None))"
    )


def test_a_model_on_the_meta_device_is_refused():
    runner = tracin.TracIn(net().to("meta"), "cross_entropy", [state(1)], learning_rates=[1.0])

    with pytest.raises(errors.DeviceError, match='"meta"'):
        runner.self_influence(data(3))


def test_a_loss_without_a_graph_is_refused():
    @torch.no_grad()
    def cut(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    runner = tracin.TracIn(net(), cut, [state(1)], learning_rates=[1.0])

    with pytest.raises(errors.LossError, match=r"torch\.no_grad"):
        runner.self_influence(data(3))


def test_labels_outside_the_classes_are_refused():
    inputs, labels = data(5)
    labels[3] = CLASSES

    with pytest.raises(errors.LabelError, match=str(CLASSES)):
        run().self_influence((inputs, labels))


@pytest.mark.parametrize("size", [0, -3, "big", 2.5, True])
def test_a_batch_size_is_auto_or_a_positive_number(size: object):
    with pytest.raises(
        errors.DataError, match=r'batch_size is "auto", tracin.Tokens\(...\) or a whole'
    ):
        run().self_influence(data(3), batch_size=size)  # pyright: ignore[reportArgumentType]


def test_an_interrupted_pass_leaves_the_model_as_it_was():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def interrupted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    model.train()
    runner = tracin.TracIn(model, interrupted, [state(1)], learning_rates=[1.0])
    with pytest.raises(KeyboardInterrupt):
        runner.self_influence(data(30), batch_size=2)

    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


# A few kinds of model at the door -----------------------------------------------------------------


def test_a_compiled_model_is_traced_through_its_own_code():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(net())
    runner = tracin.TracIn(compiled, "cross_entropy", [state(1)], learning_rates=[1.0])  # pyright: ignore

    scores = runner.self_influence(data(4))

    assert close(scores, slow_twin.self_influence(net(1), "cross_entropy", data(4)))


def test_real_digits_give_the_slow_twins_scores(data_folder):
    with gzip.open(data_folder / "mnist" / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + 64 * 784)[16:], dtype=np.uint8).copy()
    with gzip.open(data_folder / "mnist" / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + 64)[8:], dtype=np.uint8).copy()
    train = torch.from_numpy(pixels).view(64, 784).double() / 255, torch.from_numpy(labels).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    runner = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    assert close(
        runner.self_influence(train), slow_twin.self_influence(model, "cross_entropy", train)
    )
