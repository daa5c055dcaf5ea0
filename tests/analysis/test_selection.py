"""A few checkpoints stand for a training; which, how heavily, and what each of them says."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tracin
from tracin import (
    Selection,
    compare_selections,
    contributions,
    correlations,
    select_checkpoints,
    training_losses,
)
from tracin.analysis.selection import HOW_TO_GET_LOSSES, WAYS
from tracin.checkpoints.step_log import Segment, StepLog
from tracin.errors import LearningRateError, QueryError

CURVE = [5.0, 3.0, 2.5, 1.0, 0.9, 0.8, 0.1, 0.1]


def state(value=0.0):
    return {"weight": torch.tensor([[float(value)]])}


def run_of(*steps, rate=0.5, after=0, folder="run"):
    """Checkpoints of one recorded training of one weight."""
    count = max(steps) + after
    log = StepLog(Path(folder), (Segment((("weight",),), ((count, (rate,)),)),))
    return [
        tracin.Checkpoint(state(step), rate, name=f"step {step}", step=step, log=log)
        for step in steps
    ]


def chosen_steps(checkpoints, budget, **options):
    return list(select_checkpoints(checkpoints, budget, **options).steps)


@pytest.fixture
def recorded(tmp_path):
    """A net trained for 8 epochs of 2 steps, the rate falling, with data."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    inputs, labels = torch.randn(20, 3), torch.arange(20) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with tracin.Recorder(model, optimizer, tmp_path / "run") as recorder:
        for epoch in range(8):
            optimizer.param_groups[0]["lr"] = 0.5 / (1 + epoch)
            for rows in torch.arange(20).split(10):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
                loss.backward()
                optimizer.step()
            recorder.epoch()
    return model, tmp_path / "run", (inputs, labels), (torch.randn(4, 3), labels[:4])


# Where


@pytest.mark.parametrize(
    ("by", "budget", "steps"),
    [
        ("even", 1, [16]),
        ("even", 2, [8, 16]),
        ("even", 4, [4, 8, 12, 16]),
        ("middle", 1, [8]),
        ("middle", 2, [4, 12]),
        ("middle", 4, [2, 6, 10, 14]),
        ("log", 1, [4]),
        ("log", 3, [1, 4, 16]),
        ("log", 5, [1, 2, 4, 8, 16]),
        ("quadratic", 1, [4]),
        ("quadratic", 2, [1, 9]),
        ("quadratic", 4, [1, 2, 6, 12]),
    ],
)
def test_spacings_pick_what_they_say(by, budget, steps):
    assert chosen_steps(run_of(*range(1, 17)), budget, by=by) == steps


def test_spacing_is_counted_in_steps_and_not_in_checkpoints():
    uneven = run_of(1, 2, 3, 4, 5, 50, 100)

    assert chosen_steps(uneven, 2, by="even") == [50, 100]
    assert chosen_steps(uneven, 1, by="middle") == [50]


def test_without_steps_the_order_counts_as_even_spacing():
    names = [
        one.name
        for one in select_checkpoints(
            [state(at) for at in range(6)], 3, by="even", weights="equal"
        ).checkpoints
    ]

    assert names == ["checkpoint 1", "checkpoint 3", "checkpoint 5"]


@pytest.mark.parametrize(
    ("by", "budget", "picked"),
    [
        ("loss_drop", 1, [1]),
        ("loss_drop", 2, [1, 3]),
        ("loss_drop", 3, [1, 3, 6]),
        ("loss_drop", 4, [1, 2, 3, 6]),
        ("equal_drop", 1, [2]),
        ("equal_drop", 2, [1, 3]),
        ("equal_drop", 3, [1, 2, 4]),
    ],
)
def test_choices_by_the_loss_pick_what_they_say(by, budget, picked):
    selection = select_checkpoints(run_of(*range(1, 9)), budget, by=by, losses=CURVE)

    assert list(selection.positions) == picked
    assert selection.losses == tuple(CURVE)


def test_a_warm_up_is_left_aside():
    options = {"losses": CURVE, "warm_up": 3}

    assert chosen_steps(run_of(*range(1, 9)), 2, by="loss_drop", **options) == [4, 7]
    assert chosen_steps(run_of(*range(1, 9)), 1, by="equal_drop", **options) == [4]


def test_a_rise_of_the_loss_is_not_shared_out_as_a_drop():
    curve = [4.0, 2.0, 9.0, 2.0, 0.0]

    assert chosen_steps(run_of(1, 2, 3, 4, 5), 2, by="equal_drop", losses=curve) == [2, 5]


@pytest.mark.parametrize("by", WAYS)
def test_checkpoints_in_any_order_are_put_in_that_of_their_steps(by):
    steps = list(range(1, 9))
    expected = select_checkpoints(run_of(*steps), 3, by=by, losses=CURVE)
    mixed = [3, 1, 8, 2, 7, 5, 4, 6]

    found = select_checkpoints(run_of(*mixed), 3, by=by, losses=[CURVE[step - 1] for step in mixed])

    assert found.steps == expected.steps
    assert found.weights == expected.weights
    assert found.losses == expected.losses
    assert list(found.steps) == sorted(found.steps)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 500), min_size=2, max_size=25, unique=True),
    st.data(),
)
def test_any_choice_is_distinct_in_order_and_as_many_as_asked(steps, data):
    by = data.draw(st.sampled_from(WAYS))
    losses = data.draw(st.lists(st.floats(0, 10), min_size=len(steps), max_size=len(steps)))
    ordered = [loss for _, loss in sorted(zip(steps, losses, strict=True))]
    if by == "equal_drop" and min(ordered[1:]) >= ordered[0]:
        losses[steps.index(min(steps))] = 11.0
    budget = data.draw(st.integers(1, len(steps) - by.endswith("drop")))

    found = select_checkpoints(run_of(*steps), budget, by=by, losses=losses, weights="equal")

    assert len(found) == len(set(found.steps)) == len(set(found.positions)) == budget
    assert list(found.steps) == sorted(found.steps)
    assert set(found.steps) <= set(steps)


def test_a_checkpoint_before_the_first_step_takes_part_in_a_log_spacing_only_as_the_last():
    steps = run_of(0, 1, 2, 4)

    assert chosen_steps(steps, 3, by="log") == [1, 2, 4]
    assert chosen_steps(steps, 4, by="log", weights="equal") == [0, 1, 2, 4]


# How heavily


def test_spans_of_the_chosen_cover_the_whole_training():
    selection = select_checkpoints(run_of(*range(1, 17), after=3), 3)

    assert selection.weights == [1.0, 4.0, 4.5]
    assert sum(selection.weights) == 0.5 * 19


def test_recorded_rates_and_equal_weights():
    steps = run_of(1, 2, 3, rate=0.1)

    assert select_checkpoints(steps, 2, weights="lr").weights == [0.1, 0.1]
    assert select_checkpoints(steps, 2, weights="equal").weights == [1.0, 1.0]


def test_a_selection_is_given_to_tracin_as_it_is(recorded):
    model, folder, train, _ = recorded
    selection = select_checkpoints(folder, 3)

    run = tracin.TracIn(
        model, "cross_entropy", selection.checkpoints, learning_rates=selection.weights
    )
    same = tracin.TracIn(model, "cross_entropy", selection.checkpoints, learning_rates="span")

    assert run.weights == same.weights
    assert torch.equal(run.self_influence(train), same.self_influence(train))


def test_a_span_without_steps_is_refused_since_nothing_would_come_of_it():
    with pytest.raises(LearningRateError, match=r"step 0 stands for no step.*Choose fewer"):
        select_checkpoints(run_of(0, 1, 2), 3, by="even")


def test_spans_without_a_step_log_name_the_other_weights():
    with pytest.raises(LearningRateError, match=r"none for 'checkpoint 0'.*weights=.lr..*.equal."):
        select_checkpoints([state(0), state(1)], 1)


# What cannot be


@pytest.mark.parametrize("budget", [0, -1, 9, 2.0, True, "3", None])
def test_a_budget_that_cannot_be_is_refused(budget):
    with pytest.raises(QueryError, match=r"whole number from 1 to 8: there are 8\. .* was given"):
        select_checkpoints(run_of(*range(1, 9)), budget)


def test_a_budget_does_not_count_the_warm_up():
    with pytest.raises(QueryError, match=r"from 1 to 6: there are 8, of which warm_up leaves 2"):
        select_checkpoints(run_of(*range(1, 9)), 7, by="loss_drop", losses=CURVE, warm_up=2)


@pytest.mark.parametrize("warm_up", [0, -1, 8, 1.0, True])
def test_a_warm_up_that_cannot_be_is_refused(warm_up):
    with pytest.raises(QueryError, match=r"at least 1, since the first has no loss before it"):
        select_checkpoints(run_of(*range(1, 9)), 1, by="equal_drop", losses=CURVE, warm_up=warm_up)


def test_unknown_words_are_refused_with_those_that_are_known():
    with pytest.raises(QueryError, match=r'by is one of "even", .*; .best. was given'):
        select_checkpoints(run_of(1, 2), 1, by="best")
    with pytest.raises(QueryError, match=r'weights is one of "span", "lr", "equal"'):
        select_checkpoints(run_of(1, 2), 1, weights="none")


@pytest.mark.parametrize("by", ["loss_drop", "equal_drop"])
def test_without_losses_the_message_says_how_to_get_them(by):
    with pytest.raises(QueryError, match=r"none is recorded with 2 of 2") as caught:
        select_checkpoints([state(0), state(1)], 1, by=by, weights="equal")

    assert HOW_TO_GET_LOSSES in str(caught.value)
    assert "recorder.epoch(loss=...)" in str(caught.value)
    assert "tracin.training_losses(run, train)" in str(caught.value)


def test_losses_that_do_not_fit_are_refused():
    with pytest.raises(QueryError, match=r"one for each of the 8 checkpoints; 7 were given"):
        select_checkpoints(run_of(*range(1, 9)), 1, losses=CURVE[:7])
    with pytest.raises(QueryError, match=r"The loss at step 2 is nan.*Leave that checkpoint out"):
        select_checkpoints(run_of(1, 2, 3), 1, losses=[1.0, math.nan, 0.0])


def test_a_loss_that_never_falls_has_no_drop_to_share():
    with pytest.raises(QueryError, match=r"never falls below the 1 .*warm-up of 1"):
        select_checkpoints(run_of(1, 2, 3), 1, by="equal_drop", losses=[1.0, 1.0, 2.0])


def test_checkpoints_of_two_trainings_are_refused():
    with pytest.raises(QueryError, match=r"those of one training, but these are of 2: 'a', 'b'"):
        select_checkpoints([*run_of(1, 2, folder="a"), *run_of(1, 2, folder="b")], 2)


# What it shows


def test_losses_noted_with_the_checkpoints_are_used(monkeypatch):
    checkpoints = run_of(*range(1, 9))
    for checkpoint, loss in zip(checkpoints, CURVE, strict=True):
        object.__setattr__(checkpoint, "loss", loss)

    selection = select_checkpoints(checkpoints, 2, by="loss_drop")

    assert selection.steps == (2, 4)
    assert selection.losses == tuple(CURVE)


def test_a_selection_prints_as_a_table():
    selection = select_checkpoints(run_of(*range(1, 9)), 2, by="loss_drop", losses=CURVE)

    assert str(selection).splitlines() == [
        "2 of 8 checkpoints by loss_drop, span weights",
        "checkpoint  step  loss  drop  weight",
        "step 2         2     3     2     1.5",
        "step 4         4     1   1.5     2.5",
    ]


def test_large_steps_print_to_the_last_digit():
    selection = select_checkpoints(run_of(1_234_567), 1)

    assert str(selection).splitlines()[2].split()[2] == "1234567"


def test_what_is_not_known_prints_as_a_dash():
    assert str(select_checkpoints([state()], 1, weights="equal")).splitlines()[2].split() == [
        "checkpoint",
        "0",
        "-",
        "-",
        "-",
        "1",
    ]


# The loss at each checkpoint


def test_training_losses_are_means_over_the_data_at_each_checkpoint(recorded):
    model, folder, train, _ = recorded
    before = copy.deepcopy(model.state_dict())
    run = tracin.TracIn(model, "cross_entropy", folder)

    losses = training_losses(run, train, batch_size=7)

    expected = []
    other = copy.deepcopy(model)
    for checkpoint in run.checkpoints:
        other.load_state_dict(checkpoint.weights())
        with torch.no_grad():
            expected.append(float(torch.nn.functional.cross_entropy(other(train[0]), train[1])))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert training_losses(run, train) == pytest.approx(losses, rel=1e-6)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert select_checkpoints(folder, 3, by="loss_drop", losses=losses).losses == tuple(losses)


# How much the choice matters


def test_pooled_and_per_query_are_told_apart():
    loud = torch.tensor([[-100.0], [0.0], [100.0]])
    quiet = torch.tensor([[1.0], [0.0], [-1.0]])
    reference = torch.cat([loud, -quiet], 1)

    told = correlations(torch.cat([loud, quiet], 1), reference)

    assert told.pooled > 0.999
    assert told.by_query.tolist() == pytest.approx([1, -1])
    assert told.per_query == pytest.approx(0)
    assert told.ranks_by_query.tolist() == pytest.approx([1, -1])


def test_correlations_are_those_of_numpy_and_of_mean_ranks():
    torch.manual_seed(0)
    ours, theirs = torch.randn(30, 3).round(decimals=1), torch.randn(30, 3)

    told = correlations(ours, theirs)

    pooled = np.corrcoef(ours.flatten(), theirs.flatten())[0, 1]
    assert told.pooled == pytest.approx(pooled, abs=1e-6)
    for query in range(3):
        expected = np.corrcoef(ours[:, query], theirs[:, query])[0, 1]
        assert float(told.by_query[query]) == pytest.approx(expected, abs=1e-6)
    below = (ours[:, None] > ours[None]).sum(1).double()
    ties = (ours[:, None] == ours[None]).sum(1).double()
    mean_ranks = below + (ties + 1) / 2
    of_theirs = theirs.argsort(0).argsort(0).double()
    for query in range(3):
        expected = np.corrcoef(mean_ranks[:, query], of_theirs[:, query])[0, 1]
        assert float(told.ranks_by_query[query]) == pytest.approx(expected, abs=1e-9)


def test_a_query_whose_scores_are_all_the_same_counts_in_no_mean():
    scores = torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])

    told = correlations(scores, scores)

    assert math.isnan(told.by_query[1])
    assert told.per_query == pytest.approx(1)


def test_selections_are_compared_as_if_each_were_run(recorded):
    model, folder, train, test = recorded
    selections = {
        "log": select_checkpoints(folder, 3),
        "last": select_checkpoints(folder, 1, by="even", weights="equal"),
        "all": select_checkpoints(folder, 8),
    }
    every = tracin.TracIn(model, "cross_entropy", folder, learning_rates="span")
    reference = every.influence(train, test)

    told = compare_selections(model, "cross_entropy", selections, train, test)

    for name, each in selections.items():
        run = tracin.TracIn(model, "cross_entropy", each.checkpoints, learning_rates=each.weights)
        expected = correlations(run.influence(train, test), reference)
        assert told[name].pooled == pytest.approx(expected.pooled, abs=1e-5)
        assert told[name].per_query == pytest.approx(expected.per_query, abs=1e-5)
        assert told[name].ranks_per_query == pytest.approx(expected.ranks_per_query, abs=1e-5)
    assert told["all"].pooled == pytest.approx(1)
    assert str(told).splitlines()[0].split()[:2] == ["selection", "checkpoints"]
    assert len(str(told).splitlines()) == 4


def test_each_checkpoint_is_computed_once_for_all_selections(recorded, monkeypatch):
    model, folder, train, test = recorded
    seen = []
    influence = tracin.TracIn.influence
    monkeypatch.setattr(
        tracin.TracIn,
        "influence",
        lambda run, *data, **options: (
            seen.extend(one.name for one in run.checkpoints) or influence(run, *data, **options)
        ),
    )
    selections = {by: select_checkpoints(folder, 3, by=by) for by in ("even", "log", "middle")}
    used = {one.name for each in selections.values() for one in each.checkpoints}

    compare_selections(
        model, "cross_entropy", selections, train, test, reference=torch.randn(20, 4)
    )

    assert sorted(seen) == sorted(used)


def test_weights_by_parameter_are_compared_by_parameter(recorded):
    model, folder, train, test = recorded
    whole = select_checkpoints(folder, 2, weights="equal")
    names = [name for name, _ in model.named_parameters()]
    first = dict.fromkeys(names, 3.0) | {"0.weight": 6.0}
    weights = [first, dict.fromkeys(names, 0.5)]
    uneven = replace(whole, weights=weights)
    run = tracin.TracIn(model, "cross_entropy", whole.checkpoints, learning_rates=weights)

    told = compare_selections(
        model, "cross_entropy", {"a": uneven}, train, test, run.influence(train, test)
    )

    assert told["a"].pooled == pytest.approx(1, abs=1e-6)


def test_a_span_split_between_two_equal_checkpoints_changes_nothing(recorded):
    model, folder, train, test = recorded
    whole = select_checkpoints(folder, 2)
    weights = copy.deepcopy(whole.checkpoints[0].weights())
    twin = replace(whole.checkpoints[0], source=weights, name="twin")
    halved = Selection(
        [whole.checkpoints[0], twin, whole.checkpoints[1]],
        [whole.weights[0] / 2, whole.weights[0] / 2, whole.weights[1]],
        whole.by,
        whole.weighting,
        whole.among,
        (0, 0, 1),
        None,
    )
    runs = [
        tracin.TracIn(model, "cross_entropy", each.checkpoints, learning_rates=each.weights)
        for each in (whole, halved)
    ]

    told = compare_selections(
        model,
        "cross_entropy",
        {"a": whole, "b": halved},
        train,
        test,
        runs[0].influence(train, test),
    )

    assert told["b"].pooled == pytest.approx(1)
    assert told["b"].by_query.tolist() == pytest.approx([1] * 4)
    both = [contributions(run, train).self_influence.sum(0) for run in runs]
    assert torch.allclose(*both, rtol=1e-5)


def test_comparing_nothing_or_with_another_shape_is_refused(recorded):
    model, folder, train, test = recorded
    one = {"one": select_checkpoints(folder, 1)}

    with pytest.raises(QueryError, match="At least one selection"):
        compare_selections(model, "cross_entropy", {}, train, test)
    with pytest.raises(
        QueryError, match=r"\[train, queries\], here \[20, 4\]; \[4, 20\] was given"
    ):
        compare_selections(model, "cross_entropy", one, train, test, torch.zeros(4, 20))
    with pytest.raises(QueryError, match=r"of one shape; came \[2, 2\] and \[2, 3\]"):
        correlations(torch.zeros(2, 2), torch.zeros(2, 3))


def test_without_a_step_log_a_reference_is_asked_for(recorded):
    model, folder, train, test = recorded
    states = [one.weights() for one in tracin.open_checkpoints(folder)]
    one = {"one": select_checkpoints(states, 2, weights="equal")}

    with pytest.raises(LearningRateError, match=r"Or give reference=\[train, queries\]"):
        compare_selections(model, "cross_entropy", one, train, test)


# What each checkpoint says


def test_contributions_add_up_to_the_scores(recorded):
    model, folder, train, test = recorded
    run = tracin.TracIn(model, "cross_entropy", folder, learning_rates="span")

    told = contributions(run, train, test, batch_size=6)

    assert told.self_influence.shape == (8, 20)
    assert torch.allclose(told.self_influence.sum(0), run.self_influence(train), rtol=1e-5)
    influence = run.influence(train, test)
    assert torch.allclose(
        (told.positive + told.negative).sum(0), influence.sum(0), rtol=1e-4, atol=1e-5
    )
    alone = tracin.TracIn(
        model, "cross_entropy", run.checkpoints[2:3], learning_rates=run.weights[2:3]
    ).influence(train, test)
    assert torch.allclose(told.positive[2], alone.clamp(min=0).sum(0), rtol=1e-4)
    assert torch.allclose(told.negative[2], alone.clamp(max=0).sum(0), rtol=1e-4)
    assert told.classes == ()
    assert told.mix.shape == (8, 0)


def test_without_queries_the_sums_over_queries_are_none(recorded):
    model, folder, train, _ = recorded

    told = contributions(tracin.TracIn(model, "cross_entropy", folder), train)

    assert told.positive is None
    assert told.negative is None
    assert "positive" not in told.columns()


def test_queries_taken_in_parts_give_the_same(recorded, monkeypatch):
    model, folder, train, test = recorded
    run = tracin.TracIn(model, "cross_entropy", folder)
    whole = contributions(run, train, test)
    monkeypatch.setattr("tracin.run.HELD", 10)

    parts = contributions(run, train, test)

    assert torch.allclose(parts.self_influence, whole.self_influence)
    assert torch.allclose(parts.positive, whole.positive)
    assert torch.allclose(parts.negative, whole.negative)


def test_the_mix_counts_the_classes_that_each_checkpoint_ranks_first(recorded):
    model, folder, train, _ = recorded
    run = tracin.TracIn(model, "cross_entropy", folder)
    among = torch.arange(20) % 2 == 0

    told = contributions(run, train, labels=train[1], top=0.3)
    marked = contributions(run, train, labels=train[1].tolist(), top=0.3, among=among)

    assert told.classes == (0, 1, 2)
    assert told.first == 6
    for at in range(8):
        leaders = sorted(range(20), key=lambda one: -told.self_influence[at, one])[:6]
        for kind in range(3):
            of_kind = [one for one in leaders if train[1][one] == kind]
            assert told.mix[at, kind] == len(of_kind)
            assert marked.mix[at, kind] == len([one for one in of_kind if one % 2 == 0])
    assert (told.mix.sum(1) == 6).all()


def test_contributions_print_and_save_one_row_a_checkpoint(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pyarrow = pytest.importorskip("pyarrow")
    model, folder, train, test = recorded
    run = tracin.TracIn(model, "cross_entropy", folder)
    told = contributions(run, train, test, labels=train[1])

    table = pyarrow.table(told)
    told.save(tmp_path / "told.parquet")

    assert len(told) == table.num_rows == 8
    assert sum(table["share"].to_pylist()) == pytest.approx(1)
    assert str(told).startswith("classes among the first 2 of each checkpoint's ranking\n")
    assert str(told).splitlines()[1].split()[-6:] == ["class", "0", "class", "1", "class", "2"]
    assert (tmp_path / "told.parquet").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, r"above 0 and up to 1; 0 was given"),
        ({"top": 10}, r"Write 10 % as 0\.1"),
        ({"labels": [0, 1]}, r"labels has one value for each of the 20.*\[2\] was given"),
        ({"among": [True]}, r"among has one value"),
        ({"labels": range(20), "among": range(20)}, r"mask\[positions\] = True"),
        ({"among": [True] * 20}, r"give labels as well"),
    ],
)
def test_what_cannot_be_counted_is_refused(recorded, options, message):
    model, folder, train, _ = recorded

    with pytest.raises(QueryError, match=message):
        contributions(tracin.TracIn(model, "cross_entropy", folder), train, **options)
