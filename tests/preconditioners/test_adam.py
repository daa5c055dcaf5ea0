"""Influence under Adam's factors: what a step really moved, entry by entry."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import slow_twin
import tracin
from slow_twin import part
from test_tracin import close, data, net
from tracin import errors
from tracin.checkpoints.optimizer_state import OptimizerState
from tracin.cli.settings import read_settings
from tracin.scoring import query_pass
from zoo import ZOO, relative_error

BETAS, EPSILON, STEP = (0.8, 0.95), 1e-3, 7
RATES = 0.1, 0.3

# A model of every kind whose gradients are held in another way.
MODELS = [
    "mlp",
    "linear_on_sequences",
    "separable_conv_net",
    "conv_transpose2d",
    "embedding",
    "embedding_with_the_same_word_throughout",
    "tied_embedding_and_head",
    "layer_norm_on_sequences",
    "self_attention_with_padding",
    "lstm",
    "encoder_of_two_layers",
    "lora",
    "gpt2",
    "shared_bias",
]


def state_of(
    parameters: Mapping[str, Tensor], seed: int = 0, spread: float = 3.0, **options: Any
) -> OptimizerState:
    """Second moments of many sizes for each parameter, and different options in two groups."""
    generator = torch.Generator().manual_seed(seed)
    moments = {
        name: {
            "step": torch.tensor(float(STEP)),
            "exp_avg_sq": torch.exp(
                spread * torch.randn(values.shape, generator=generator, dtype=torch.float64) - 4
            ),
        }
        for name, values in parameters.items()
    }
    names = list(parameters)
    groups = (
        {"lr": 0.1, "betas": BETAS, "eps": EPSILON, "parameters": names[::2]},
        {"lr": 0.1, "betas": (0.7, 0.9), "eps": 0.1, "parameters": names[1::2]},
    )
    return OptimizerState(
        options.pop("kind", "Adam"), tuple({**group, **options} for group in groups), moments
    )


def factors_of(state: OptimizerState) -> dict[str, Tensor]:
    """The factors by the book, with plain numbers."""
    found = {}
    for group in state.groups:
        for name in group["parameters"]:
            kept = state.moments[name]
            corrected = kept["exp_avg_sq"] / (1 - group["betas"][1] ** float(kept["step"]))
            found[name] = 1 / (corrected.sqrt() + group["eps"])
    return found


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def at(
    folder: Path, weights: Mapping[str, Tensor], rate: float, state: OptimizerState
) -> tracin.Checkpoint:
    """A checkpoint with moments in a file."""
    path = folder / f"{len(list(folder.glob('*.safetensors')))}.safetensors"
    state.write(path)
    return tracin.Checkpoint(weights, rate, optimizer_path=path, name=path.stem)


def run(folder: Path, **options: Any) -> tracin.TracIn:
    """Two checkpoints of the small net, each with moments of its own."""
    options = {"preconditioner": tracin.Adam(), **options}
    checkpoints = [
        at(folder, net(seed).state_dict(), rate, state_of(trainable(net()), seed))
        for seed, rate in zip((1, 2), RATES, strict=True)
    ]
    return tracin.TracIn(net(), "cross_entropy", checkpoints, **options)


def twin(
    train: Any, test: Any, names: list[str] | None = None, only: int | None = None
) -> Tensor:  # [train, test]
    """The scores of `run`, from one backward pass an example and written-out factors."""
    terms = []
    for seed, rate in zip((1, 2), RATES, strict=True):
        factors = factors_of(state_of(trainable(net()), seed))
        here = slow_twin.gradients(net(seed), "cross_entropy", train, names)
        there = slow_twin.gradients(net(seed), "cross_entropy", test, names)
        scaled = {name: factors[name] * rows for name, rows in there.items()}
        terms.append(rate * slow_twin.dots(here, scaled))
    return sum(terms) if only is None else terms[only]  # pyright: ignore


# Against one backward pass an example -------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_sums_over_entries_of_gradient_times_factor_times_gradient(
    name: str, tmp_path: Path
):
    entry = ZOO[name]
    case = entry.build().to(torch.float64)
    state = state_of(trainable(case.model))
    factors = factors_of(state)
    train = slow_twin.gradients(case.model, case.loss, case.data)
    test = slow_twin.gradients(case.model, case.loss, case.queries)
    scaled = {key: factors[key] * rows for key, rows in test.items()}
    expected = slow_twin.dots(train, scaled)
    own = slow_twin.sum_of((factors[k] * train[k] ** 2).flatten(1).sum(1) for k in train)
    checkpoint = at(tmp_path, case.model.state_dict(), 0.5, state)
    runner = tracin.TracIn(case.model, case.loss, [checkpoint], preconditioner=tracin.Adam())

    # Both kinds of scores read the same gradients: each takes other sizes of batches.
    scores = runner.influence(case.data, case.queries, batch_size=3)
    assert relative_error(scores, 0.5 * expected) < 1e-10
    lengths = runner.self_influence(case.data, batch_size=(1, 5)[MODELS.index(name) % 2])
    assert relative_error(lengths, 0.5 * own) < 1e-10
    one = runner.influence(case.data, part(case.queries, slice(0, 1)))
    assert relative_error(one, 0.5 * expected[:, :1]) < 1e-10


def test_scores_add_up_over_checkpoints_with_their_own_moments(tmp_path: Path):
    train, test = data(7), data(3, seed=1)

    assert close(run(tmp_path).influence(train, test), twin(train, test))


def test_single_precision_loses_no_more_than_its_digits(tmp_path: Path):
    model = net().float()
    (inputs, labels), state = data(7), state_of(trainable(net()))
    checkpoint = at(tmp_path, model.state_dict(), 0.1, state)
    double = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
    single = tracin.TracIn(model, "cross_entropy", [checkpoint], preconditioner=tracin.Adam())

    expected = double.influence((inputs, labels), (inputs, labels))
    found = single.influence((inputs.float(), labels), (inputs.float(), labels))

    assert relative_error(found, expected) < 1e-5


# The method ---------------------------------------------------------------------------------------


def test_equal_factors_give_the_plain_scores_times_the_factor(tmp_path: Path):
    groups = ({"betas": (0.9, 0.5), "eps": 0.05, "parameters": list(trainable(net()))},)
    second = {n: torch.full_like(p, 0.25 * (1 - 0.5**STEP)) for n, p in trainable(net()).items()}
    moments = {n: {"step": torch.tensor(STEP), "exp_avg_sq": v} for n, v in second.items()}
    checkpoint = at(tmp_path, net(1).state_dict(), 0.1, OptimizerState("AdamW", groups, moments))
    adam = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
    plain = tracin.TracIn(net(), "cross_entropy", [checkpoint])
    train, test, factor = data(7), data(3, seed=1), 1 / 0.55

    assert close(adam.influence(train, test), factor * plain.influence(train, test))
    assert close(adam.self_influence(train), factor * plain.self_influence(train))
    cosine = {"normalise": "cosine", "k": 7}
    assert close(
        adam.explain(train, test, **cosine).proponents.scores,
        plain.explain(train, test, **cosine).proponents.scores,
    )


def test_influence_is_symmetric_positive_and_has_self_influence_on_its_diagonal(tmp_path: Path):
    train, runner = data(9), run(tmp_path)

    gram = runner.influence(train, train)

    assert close(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() > -1e-12 * gram.abs().max()
    assert close(runner.self_influence(train), gram.diagonal())


def test_neither_batch_size_nor_order_nor_blocks_of_queries_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train, test, runner = data(11), data(5, seed=1), run(tmp_path)
    expected = runner.influence(train, test)
    order, turned = torch.randperm(11), torch.randperm(5)

    assert close(runner.influence(train, test, batch_size=3), expected)
    assert close(
        runner.influence(part(train, order), part(test, turned)), expected[order][:, turned]
    )
    for memory in (1, 200):  # a batch at a time, and some whose factors are scaled in each product
        monkeypatch.setattr(query_pass, "room", lambda device, memory=memory: memory)
        assert close(runner.influence(train, test, batch_size=2), expected)


def test_scores_add_up_over_disjoint_parameters(tmp_path: Path):
    train, test = data(7), data(3, seed=1)
    first, last = run(tmp_path, parameters=["0.*"]), run(tmp_path, parameters="last")

    assert close(first.influence(train, test), twin(train, test, ["0.weight", "0.bias"]))
    assert close(
        run(tmp_path).influence(train, test),
        first.influence(train, test) + last.influence(train, test),
    )


def test_a_loss_times_s_gives_scores_times_s_squared_where_moments_stay(tmp_path: Path):
    def tripled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 3 * F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    runner = run(tmp_path)
    tripling = tracin.TracIn(net(), tripled, runner.checkpoints, preconditioner=tracin.Adam())

    assert close(tripling.self_influence(data(6)), 9 * runner.self_influence(data(6)))


def test_an_entry_that_no_gradient_has_reached_has_no_influence(tmp_path: Path):
    state = state_of(trainable(net()))
    untouched = state.moments["0.weight"]["exp_avg_sq"]
    untouched[:, 2] = 0.0
    checkpoint = at(tmp_path, net(1).state_dict(), 1.0, state)
    runner = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
    inputs, labels = data(6)
    changed = replace(state, moments={**state.moments})
    factors = factors_of(changed)
    factors["0.weight"][:, 2] = 0.0
    rows = slow_twin.gradients(net(1), "cross_entropy", (inputs, labels))
    expected = slow_twin.sum_of((factors[k] * rows[k] ** 2).flatten(1).sum(1) for k in rows)

    assert close(runner.self_influence((inputs, labels)), expected)


def test_amsgrad_takes_the_largest_second_moments(tmp_path: Path):
    state = state_of(trainable(net()), amsgrad=True)
    most = state_of(trainable(net()), seed=5)
    for name, kept in state.moments.items():
        kept["max_exp_avg_sq"] = most.moments[name]["exp_avg_sq"]  # pyright: ignore
    with_max = at(tmp_path, net(1).state_dict(), 1.0, state)
    plainly = at(tmp_path, net(1).state_dict(), 1.0, most)

    def scores(checkpoint: tracin.Checkpoint) -> Tensor:
        runner = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
        return runner.influence(data(5), data(3, seed=1))

    assert torch.equal(scores(with_max), scores(plainly))


# What the optimizer really did --------------------------------------------------------------------


KINDS = {
    "Adam": lambda p, betas: torch.optim.Adam(p, lr=0.01, betas=betas),
    "AdamW": lambda p, betas: torch.optim.AdamW(p, lr=0.01, betas=betas, weight_decay=0.0),
    "AMSGrad": lambda p, betas: torch.optim.Adam(p, lr=0.01, betas=betas, amsgrad=True),
    "groups": lambda p, betas: torch.optim.Adam(
        [{"params": p[:2], "eps": 1e-3}, {"params": p[2:], "lr": 0.002}], lr=0.01, betas=betas
    ),
}
of_each_adam = pytest.mark.parametrize("kind", KINDS)


def steps(
    kind: str, betas: tuple[float, float], train: tuple[Tensor, Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], OptimizerState]]:
    """Train on one example a step: the weights before and after, the moments after."""
    model = net(1)
    optimizer = KINDS[kind](list(model.parameters()), betas)
    for row in range(len(train[0])):
        before = {name: values.clone() for name, values in model.state_dict().items()}
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][row : row + 1]), train[1][row : row + 1]).backward()
        optimizer.step()
        yield before, model.state_dict(), OptimizerState.of(model, optimizer)


def moved(before: dict[str, Tensor], after: dict[str, Tensor], test: Any) -> Tensor:
    """By how much a step lowers each query's loss to first order, gradients taken before it."""
    model = net()
    model.load_state_dict(before)
    rows = slow_twin.gradients(model, "cross_entropy", test)
    return slow_twin.sum_of(
        (rows[name] * (before[name] - after[name])).flatten(1).sum(1) for name in rows
    )


def rates(state: OptimizerState) -> dict[str, float]:
    return {name: group["lr"] for group in state.groups for name in group["parameters"]}


@of_each_adam
def test_without_momentum_the_score_is_what_the_step_did_to_the_query(kind: str, tmp_path: Path):
    train, test = data(6), data(3, seed=1)
    for row, (before, after, state) in enumerate(steps(kind, (0.0, 0.9), train)):
        checkpoint = at(tmp_path, before, 1.0, state)
        checkpoint = replace(checkpoint, learning_rate=rates(state))
        runner = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())

        scores = runner.influence(part(train, slice(row, row + 1)), test)[0]

        assert relative_error(scores, moved(before, after, test)) < 1e-12


@of_each_adam
def test_with_momentum_the_examples_of_all_steps_share_what_a_step_did(kind: str, tmp_path: Path):
    """A visit at step s has (1 - b1) b1^(t-s) / (1 - b1^t) of step t, with the factors of t."""
    train, test, beta = data(6), data(3, seed=1), 0.9
    visited: list[Mapping[str, Tensor]] = []
    for row, (before, after, state) in enumerate(steps(kind, (beta, 0.95), train)):
        visited.append(before)
        model = net()
        model.load_state_dict(before)
        queries = slow_twin.gradients(model, "cross_entropy", test)
        factors = tracin.Adam().scaling(_Remembered(state), trainable(net())).factors
        shares = torch.zeros(len(test[0]), dtype=torch.float64)
        for s, weights in enumerate(visited):
            model.load_state_dict(weights)
            one = slow_twin.gradients(model, "cross_entropy", part(train, slice(s, s + 1)))
            share = (1 - beta) * beta ** (row - s) / (1 - beta ** (row + 1))
            for name, rate in rates(state).items():
                step = rate * share * factors[name] * one[name].flatten()
                shares += queries[name].flatten(1) @ step

        assert relative_error(shares, moved(before, after, test)) < 1e-12


class _Remembered:
    """A state that was never written."""

    name = "here"

    def __init__(self, state: OptimizerState) -> None:
        self._state = state

    def optimizer_state(self) -> OptimizerState:
        return self._state


def test_a_recorder_writes_what_is_needed(tmp_path: Path):
    model, train = net(1), data(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with tracin.Recorder(model, optimizer, tmp_path, optimizer_state=True) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0]), train[1]).backward()
            optimizer.step()
            recorder.epoch()
    kept = OptimizerState.of(model, optimizer)
    runner = tracin.TracIn(model, "cross_entropy", tmp_path, preconditioner=tracin.Adam())
    last = tracin.TracIn(
        model, "cross_entropy", runner.checkpoints[-1:], preconditioner=tracin.Adam()
    )
    rows = slow_twin.gradients(model, "cross_entropy", train)

    factors = factors_of(kept)
    expected = slow_twin.sum_of((factors[k] * rows[k] ** 2).flatten(1).sum(1) for k in rows)
    assert close(last.self_influence(train), 0.01 * expected)
    assert (runner.self_influence(train) > last.self_influence(train)).all()


# explain and find_mislabelled ---------------------------------------------------------------------


def test_explain_finds_what_sorting_the_whole_matrix_finds(tmp_path: Path):
    train, test = data(11), data(3, seed=1)
    matrix = twin(train, test)

    found = run(tmp_path).explain(train, test, k=4)

    order = matrix.argsort(dim=0, descending=True).T
    assert np.array_equal(found.proponents.positions, order[:, :4])
    assert np.array_equal(found.opponents.positions, order.flip(1)[:, :4])
    at_ = torch.from_numpy(found.proponents.positions)
    for number in range(2):
        shares = twin(train, test, only=number).T.gather(1, at_)
        assert close(found.proponents.by_checkpoint[:, :, number], shares)


@pytest.mark.parametrize("size", [3, 8])
def test_a_group_of_queries_is_their_sum_or_mean(size: int, tmp_path: Path):
    train, test, runner = data(8), data(4, seed=1), run(tmp_path)
    matrix = twin(train, test)

    summed = runner.explain(train, test, k=8, group="sum", batch_size=size).proponents
    mean = runner.explain(train, test, k=8, group="mean", batch_size=size).proponents
    cosine = runner.explain(
        train, test, k=8, group="mean", normalise="cosine", batch_size=size
    ).proponents

    assert close(summed.scores[0], matrix.sum(1)[summed.positions[0]])
    assert close(mean.scores[0], matrix.mean(1)[mean.positions[0]])
    lengths = twin(train, train).diagonal().sqrt() * twin(test, test).sum().sqrt()
    assert close(cosine.scores[0], (matrix.sum(1) / lengths)[cosine.positions[0]])


def test_normalised_scores_are_divided_by_lengths_under_the_factors(tmp_path: Path):
    train, test, runner = data(8), data(3, seed=1), run(tmp_path)
    matrix, own, query = twin(train, test), twin(train, train), twin(test, test)
    lengths = own.diagonal().sqrt()[:, None], query.diagonal().sqrt()

    cosine = runner.explain(train, test, k=8, normalise="cosine").proponents
    by_query = runner.explain(train, test, k=8, normalise="query").proponents

    places = torch.from_numpy(cosine.positions)
    assert close(cosine.scores, (matrix / lengths[0] / lengths[1]).T.gather(1, places))
    assert cosine.scores.abs().max() <= 1 + 1e-12
    places = torch.from_numpy(by_query.positions)
    assert close(by_query.scores, (matrix / lengths[1]).T.gather(1, places))
    itself = runner.explain(train, train, k=1, normalise="cosine").proponents
    assert close(itself.scores[:, 0], torch.ones(8))


@pytest.mark.parametrize("traced", [None, ["0.*"]])
def test_both_self_influences_of_suspects_are_under_the_factors(traced: Any, tmp_path: Path):
    train = data(12)
    names = None if traced is None else ["0.weight", "0.bias"]

    table = run(tmp_path, parameters=traced).find_mislabelled(train)

    places = torch.from_numpy(table.positions)
    last = twin(train, train, ["2.weight", "2.bias"]).diagonal()
    assert close(table.self_influence, twin(train, train, names).diagonal()[places])
    assert close(table.self_influence_last, last[places])


def test_contributions_of_checkpoints_are_under_the_factors(tmp_path: Path):
    train = data(6)

    found = tracin.contributions(run(tmp_path), train)

    for number in range(2):
        expected = twin(train, train, only=number).diagonal()
        assert close(found.self_influence[number], expected)


def test_a_run_file_may_ask_for_it(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('[task]\nfunction = "task.py:task"\n[tracin]\npreconditioner = "adam"\n')

    assert read_settings(path, []).tracin.preconditioner == "adam"
    with pytest.raises(errors.RunFileError, match=r"'tracin\.preconditioner' = 'lion'"):
        read_settings(path, ["tracin.preconditioner=lion"])


# Names and refusals -------------------------------------------------------------------------------


def test_wrappers_around_names_do_not_matter(tmp_path: Path):
    wrapped = nn.Sequential()
    wrapped.add_module("module", net())
    state = state_of(trainable(net()))
    plain = at(tmp_path, net(1).state_dict(), 0.1, state)
    other = replace(plain, source={f"module.{n}": v for n, v in net(1).state_dict().items()})

    def scores(model: nn.Module, checkpoint: tracin.Checkpoint) -> Tensor:
        runner = tracin.TracIn(model, "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
        return runner.self_influence(data(4))

    assert close(scores(wrapped, other), scores(net(), plain))


def test_plain_scores_ask_for_no_moments(tmp_path: Path):
    runner = run(tmp_path, preconditioner=None)
    for path in tmp_path.glob("*"):
        path.unlink()

    assert len(runner.self_influence(data(4))) == 4


@pytest.mark.parametrize("given", ["adam", tracin.Adam, 3])
def test_what_is_no_preconditioner_is_refused(given: object):
    with pytest.raises(errors.QueryError, match=r"such as tracin\.Adam\(\); .* was given"):
        tracin.TracIn(
            net(),
            "cross_entropy",
            [net().state_dict()],
            learning_rates="equal",
            preconditioner=given,
        )  # type: ignore[arg-type]


def test_missing_moments_name_the_checkpoint_and_the_way_out_at_once():
    first = tracin.Checkpoint(net().state_dict(), 0.1, name="epoch 7")

    with pytest.raises(
        errors.CheckpointError, match=r"with 'epoch 7'\. tracin.Recorder writes them, unless"
    ):
        tracin.TracIn(net(), "cross_entropy", [first], preconditioner=tracin.Adam())
    with pytest.raises(
        errors.CheckpointError, match=r"none were written with checkpoint 'epoch 7'"
    ):
        tracin.Adam().scaling(first, trainable(net()))


def refused(folder: Path, state: OptimizerState, words: str) -> None:
    checkpoint = at(folder, net().state_dict(), 0.1, state)
    runner = tracin.TracIn(net(), "cross_entropy", [checkpoint], preconditioner=tracin.Adam())
    with pytest.raises(errors.CheckpointError, match=words):
        runner.self_influence(data(3))


def test_another_optimizers_state_is_refused(tmp_path: Path):
    refused(
        tmp_path, state_of(trainable(net()), kind="NAdam"), "checkpoint '0' has the state of NAdam"
    )


def test_a_traced_parameter_without_moments_is_named(tmp_path: Path):
    state = state_of(trainable(net()))
    rest = {name: kept for name, kept in state.moments.items() if name != "2.bias"}

    refused(tmp_path, replace(state, moments=rest), r"has none for '2\.bias'")
    left_out = tracin.TracIn(
        net(),
        "cross_entropy",
        [at(tmp_path, net().state_dict(), 0.1, replace(state, moments=rest))],
        parameters=["0.*"],
        preconditioner=tracin.Adam(),
    )
    assert len(left_out.self_influence(data(3))) == 3


def test_moments_before_the_first_step_are_refused(tmp_path: Path):
    refused(tmp_path, replace(state_of(trainable(net())), moments={}), "no gradient had reached")


@pytest.mark.parametrize("missing", ["eps", "betas"])
def test_a_group_without_an_option_is_refused(missing: str, tmp_path: Path):
    state = state_of(trainable(net()))
    groups = tuple({k: v for k, v in group.items() if k != missing} for group in state.groups)

    refused(tmp_path, replace(state, groups=groups), f"lacks its option '{missing}'")


def test_amsgrad_without_its_moments_is_refused(tmp_path: Path):
    refused(tmp_path, state_of(trainable(net()), amsgrad=True), "moment 'max_exp_avg_sq'")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_moments_without_a_root_are_refused(value: float, tmp_path: Path):
    state = state_of(trainable(net()))
    state.moments["0.bias"]["exp_avg_sq"][1] = value

    refused(tmp_path, state, r"exp_avg_sq of 0\.bias has entries that are negative or not finite")


@pytest.mark.parametrize("step", [torch.tensor(float("nan")), torch.tensor(0.0), torch.ones(2)])
def test_a_step_that_is_none_is_refused(step: torch.Tensor, tmp_path: Path):
    state = state_of(trainable(net()))
    moments = {**state.moments, "0.bias": {**state.moments["0.bias"], "step": step}}

    refused(tmp_path, replace(state, moments=moments), "and at least one step")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_moments_of_other_numbers_are_refused(dtype: torch.dtype, tmp_path: Path):
    state = state_of(trainable(net()))
    second = state.moments["0.bias"]["exp_avg_sq"].to(dtype)
    moments = {**state.moments, "0.bias": {**state.moments["0.bias"], "exp_avg_sq": second}}

    refused(tmp_path, replace(state, moments=moments), r"of 0\.bias is torch\..*other numbers")


@pytest.mark.parametrize(
    "options",
    [{"eps": None}, {"eps": -1e-8}, {"betas": [0.9]}, {"betas": None}, {"betas": [0.9, 1.0]}],
    ids=str,
)
def test_options_that_adam_does_not_take_are_refused(options: dict[str, Any], tmp_path: Path):
    """Betas of 1 would make all factors, and so all scores, zero."""
    state = state_of(trainable(net()))
    groups = tuple({**group, **options} for group in state.groups)

    refused(tmp_path, replace(state, groups=groups), "eps is a number of at least 0, and betas")


def test_the_path_of_moments_may_be_a_text(tmp_path: Path):
    path = tmp_path / "moments.safetensors"
    state_of(trainable(net())).write(path)
    one = tracin.Checkpoint(net().state_dict(), optimizer_path=str(path))  # type: ignore[arg-type]

    assert one.optimizer_path == path
    assert one.optimizer_state() is not None


def test_moments_of_another_shape_are_refused(tmp_path: Path):
    state = state_of({**trainable(net()), "0.bias": torch.zeros(2, 3)})

    refused(tmp_path, state, r"0\.bias has shape \[2, 3\] after 7 steps")


def test_an_index_of_plain_gradients_takes_the_preconditioner_on_its_queries(tmp_path: Path):
    runner = run(tmp_path)
    train, queries = data(20), data(5, 1)
    plain = tracin.TracIn(net(), "cross_entropy", runner.checkpoints)
    options: Any = {"number_format": "float32", "recall_queries": 0}
    index = plain.index(train, tmp_path / "index", tracin.Projection(4096), **options)
    index = index.with_run(runner)

    for one in (runner, plain):
        wanted = one.influence(train, queries).float()
        apart = (index.with_run(one).influence(queries) - wanted).abs().max()
        assert float(apart / wanted.abs().max()) < 1e-5
    index = tracin.Index.open(tmp_path / "index", run=runner, train=train)
    found = index.explain(queries, k=3, exact=True).proponents
    assert (found.positions == runner.explain(train, queries, k=3).proponents.positions).all()
    assert "unknown under a preconditioner" in str(index.explain(queries, k=1))
    with pytest.raises(errors.QueryError, match="keeps the norms of plain gradients"):
        index.self_influence()
