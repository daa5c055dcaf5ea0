"""Each checkpoint weighs what its learning rates say, and no rate is ever made up."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tracin.checkpoints import Checkpoint, by_parameter, checkpoint_weights
from tracin.checkpoints.step_log import Segment, StepLog
from tracin.errors import CheckpointError, CheckpointWarning, LearningRateError

STATE = {"weight": torch.ones(1)}


def checkpoint(rate=None, **options):
    return Checkpoint(STATE, rate, **options)


def log_of(*runs, groups=(("weight", "bias"),), folder="run"):
    runs = tuple(
        (count, tuple(rates) if isinstance(rates, tuple) else (rates,)) for count, rates in runs
    )
    return StepLog(Path(folder), (Segment(groups, runs),))


def at(log, *steps):
    return [checkpoint(step=step, log=log, name=f"step {step}") for step in steps]


# One rate


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, math.nan, math.inf, -math.inf, "0.1", True, [0.1]])
def test_a_rate_that_cannot_be_one_is_refused_when_the_checkpoint_is_made(rate):
    with pytest.raises(LearningRateError, match=r"epoch 3 gives .*Leave that checkpoint out, or"):
        checkpoint(rate, name="epoch 3")


def test_the_message_names_the_value_and_the_way_out():
    with pytest.raises(LearningRateError, match=r'gives 0\.0\..*learning_rates="equal"'):
        checkpoint(0.0)


@pytest.mark.parametrize(
    "rate", [0.5, Fraction(1, 2), np.float32(0.5), np.array(0.5), torch.tensor(0.5)]
)
def test_any_kind_of_number_is_a_rate(rate):
    found = checkpoint(rate).learning_rate

    assert type(found) is float
    assert found == 0.5


def test_a_rate_for_each_parameter_is_kept_by_name():
    assert checkpoint({"weight": 0.1, "bias": 0}).learning_rate == {"weight": 0.1, "bias": 0.0}


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"weight": 0.1, "bias": -1}, "gives -1 for 'bias'"),
        ({"weight": 0.1, "bias": math.nan}, "gives nan for 'bias'"),
        ({"weight": 0.0, "bias": 0.0}, "gives {'weight': 0.0, 'bias': 0.0}"),
        ({}, "gives {}"),
    ],
)
def test_rates_by_name_that_cannot_be_rates_are_refused(rates, words):
    with pytest.raises(LearningRateError, match=words):
        checkpoint(rates)


def test_a_learning_rate_error_is_a_checkpoint_error():
    with pytest.raises(CheckpointError):
        checkpoint(0)


def test_a_checkpoint_is_a_path_or_a_state_dict():
    with pytest.raises(CheckpointError, match=r"not a Linear. For a model, pass model.state_dict"):
        Checkpoint(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


# Recorded, equal, given


def test_recorded_rates_are_the_weights():
    assert checkpoint_weights([checkpoint(0.1), checkpoint({"weight": 0.2})]) == [
        0.1,
        {"weight": 0.2},
    ]


def test_a_missing_rate_is_an_error_that_says_three_ways_to_give_it():
    given = [checkpoint(0.1), checkpoint(name="epoch 2"), checkpoint(name="epoch 3")]

    with pytest.raises(LearningRateError) as caught:
        checkpoint_weights(given)

    message = str(caught.value)
    assert "2 of 3: epoch 2 (none was given); epoch 3 (none was given)" in message
    assert "learning_rates=[0.1, ...]" in message
    assert "tracin.Checkpoint(path, 0.1)" in message
    assert 'learning_rates="equal"' in message


def test_equal_weights_are_all_one():
    assert checkpoint_weights([checkpoint(0.1), checkpoint()], "equal") == [1.0, 1.0]


@pytest.mark.parametrize("rates", [[0.5, 2], (0.5, 2), np.array([0.5, 2]), torch.tensor([0.5, 2])])
def test_given_rates_are_the_weights(rates):
    assert checkpoint_weights([checkpoint(0.1), checkpoint()], rates) == [0.5, 2.0]


def test_given_rates_may_differ_by_parameter():
    assert checkpoint_weights([checkpoint()], [{"weight": 0.5}]) == [{"weight": 0.5}]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([0.1], "for each of the 2 checkpoints; 1 were given"),
        ([0.1, 0.2, 0.3], "for each of the 2 checkpoints; 3 were given"),
        ([0.1, 0.0], "epoch 2 gives 0.0"),
        ([0.1, None], "epoch 2 gives None"),
        (0.1, r"the number 0.1 was given. For the same rate everywhere: \[0.1\] \* 2"),
        (torch.tensor(0.5), "the number"),
        ("mean", '"equal", "span", a list .*; \'mean\' was given'),
        ({"weight": 0.1}, "a dict was given"),
        (object(), "an object was given"),
    ],
)
def test_what_cannot_be_learning_rates_is_refused(rates, words):
    with pytest.raises(LearningRateError, match=words):
        checkpoint_weights([checkpoint(), checkpoint(name="epoch 2")], rates)


# Spans


def test_a_span_is_the_sum_of_the_rates_of_the_nearest_steps():
    # Steps lie at 0.5, 1.5, ...: those before 3 are nearer to 2, those from 3 on to 4 or later.
    log = log_of((4, 0.1), (6, 0.01))

    weights = checkpoint_weights(at(log, 2, 4, 8), "span")

    assert weights == pytest.approx([3 * 0.1, 0.1 + 2 * 0.01, 4 * 0.01])


def test_a_step_halfway_goes_to_the_later_checkpoint():
    log = log_of((1, 1.0), (1, 10.0), (1, 100.0), (1, 1000.0))

    # Between 1 and 4, the middle is 2.5: where the third step (100) lies.
    assert checkpoint_weights(at(log, 1, 4), "span") == [11.0, 1100.0]


def test_a_checkpoint_after_every_step_has_the_rate_of_the_step_before_it():
    rates = [0.4, 0.3, 0.2, 0.1]
    log = log_of(*((1, rate) for rate in rates))

    assert checkpoint_weights(at(log, 1, 2, 3, 4), "span") == rates


@pytest.mark.parametrize("steps", [(0, 5, 10), (10,), (3,), (1, 2, 9), (9, 1, 2)])
def test_spans_cover_the_training_once_whichever_checkpoints_are_given(steps):
    rates = [0.1 * (step + 1) for step in range(10)]
    log = log_of(*((1, rate) for rate in rates))

    assert sum(checkpoint_weights(at(log, *steps), "span")) == pytest.approx(sum(rates))


def test_splitting_a_span_in_two_equal_checkpoints_changes_nothing_in_sum():
    log = log_of((10, 0.5))

    once = checkpoint_weights(at(log, 2, 6, 10), "span")
    twice = checkpoint_weights(at(log, 2, 6, 6, 10), "span")

    assert once == [2.0, 2.0, 1.0]
    assert twice == [2.0, 1.0, 1.0, 1.0]


def test_equal_spans_at_a_constant_rate_are_the_recorded_rates_up_to_a_factor():
    log = log_of((30, 0.5))

    assert checkpoint_weights(at(log, 5, 15, 25), "span") == [5.0, 5.0, 5.0]


def test_the_order_of_the_checkpoints_changes_nothing():
    log = log_of((10, 0.5), (5, 0.1))

    forward = checkpoint_weights(at(log, 2, 6, 10), "span")

    assert checkpoint_weights(at(log, 10, 2, 6), "span") == [forward[2], forward[0], forward[1]]


def test_spans_of_groups_that_differ_are_by_name():
    log = log_of((2, (0.1, 1.0)), (2, (0.1, 2.0)), groups=(("weight",), ("bias", "scale")))

    [first, second] = checkpoint_weights(at(log, 2, 4), "span")

    assert first == pytest.approx({"weight": 0.3, "bias": 4.0, "scale": 4.0})
    assert second == pytest.approx({"weight": 0.1, "bias": 2.0, "scale": 2.0})


def test_groups_that_share_their_rates_share_one_weight():
    log = log_of((4, (0.1, 0.1)), groups=(("weight",), ("bias",)))

    assert checkpoint_weights(at(log, 4), "span") == [pytest.approx(0.4)]


def test_a_parameter_that_joins_later_has_made_no_step_before():
    early = Segment((("weight",),), ((2, (0.1,)),))
    late = Segment((("weight",), ("bias",)), ((2, (0.1, 0.2)),))
    log = StepLog(Path("run"), (early, late))

    [first, second] = checkpoint_weights(at(log, 1, 3), "span")

    assert first == pytest.approx({"weight": 0.2, "bias": 0.0})
    assert second == pytest.approx({"weight": 0.2, "bias": 0.4})


def test_two_training_runs_have_spans_of_their_own():
    one, two = log_of((10, 0.1), folder="one"), log_of((10, 0.1), folder="two")

    assert checkpoint_weights([*at(one, 5), *at(two, 5)], "span") == [pytest.approx(1.0)] * 2


def test_one_run_opened_twice_is_one_run():
    early, late = log_of((4, 0.5)), log_of((8, 0.5))

    assert checkpoint_weights([*at(early, 4), *at(late, 8)], "span") == [3.0, 1.0]


def test_a_checkpoint_that_stands_for_no_step_weighs_nothing_and_is_warned_about():
    log = log_of((4, 0.5))

    with pytest.warns(CheckpointWarning, match=r"step 0 stands for no step .*leave it out"):
        weights = checkpoint_weights(at(log, 0, 1, 4), "span")

    assert weights == [0.0, 1.0, 1.0]


def test_spans_without_a_step_log_are_refused():
    with pytest.raises(LearningRateError, match=r"only the step log .*there is none for 'a file'"):
        checkpoint_weights([checkpoint(0.1, name="a file", step=3)], "span")


@pytest.mark.parametrize("rate", [-0.1, math.nan])
def test_a_log_with_a_broken_rate_is_refused(rate):
    with pytest.raises(LearningRateError, match="negative or not finite"):
        checkpoint_weights(at(log_of((2, 0.1), (2, rate)), 4), "span")


def test_a_log_cut_short_is_the_log_as_it_was():
    log = log_of((4, 0.1), (6, 0.01))

    cut = log.until(5)

    assert len(cut) == 5
    assert cut.segments[0].runs == ((4, (0.1,)), (1, (0.01,)))
    assert len(log.until(0)) == 0


# By parameter


def test_one_weight_is_the_weight_of_every_parameter():
    assert by_parameter(0.1, ["a", "b"]) == {"a": 0.1, "b": 0.1}


def test_weights_by_name_are_found_through_wrappers():
    found = by_parameter({"module.a": 0.1, "b": 0.2}, ["a", "_orig_mod.b"])

    assert found == {"a": 0.1, "_orig_mod.b": 0.2}


def test_a_parameter_without_a_weight_is_an_error():
    with pytest.raises(LearningRateError, match=r"none was given for 'b'. Leave these out by"):
        by_parameter({"a": 0.1}, ["a", "b"])
