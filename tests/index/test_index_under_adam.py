"""An index whose rows are under the root of Adam's factors."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slow_twin
import tracin
from preconditioners.test_adam import RATES, at, factors_of, run, state_of, trainable, twin
from test_tracin import close, data, net
from tracin import errors
from tracin.data import open_examples
from tracin.gradients.forms import Dense, OuterProduct, SparseRows, SumOf
from tracin.index.build import begun
from tracin.index.rows import RowMaker, plan_of
from tracin.preconditioners import Scaling
from tracin.results.recall import share_found
from tracin.run import rows_pass
from tracin.sketches import standard_error
from tracin.sketches.kinds import Hashed
from zoo import ZOO, relative_error

TRAIN, QUERIES = data(20), data(5, 1)
OPTIONS: dict[str, Any] = {"number_format": "float32", "recall_queries": 0, "progress": False}


def index_of(folder: Path, runner: tracin.TracIn | None = None, dim: int = 4096, **options: Any):
    runner = run(folder) if runner is None else runner
    projection = tracin.Projection(dim)
    return runner.index(TRAIN, folder / "index", projection, **{**OPTIONS, **options})


def plain(runner: tracin.TracIn) -> tracin.TracIn:
    return tracin.TracIn(net(), "cross_entropy", runner.checkpoints)


def files(folder: Path | str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def with_moments(runner: tracin.TracIn, folder: Path, seed: int) -> tracin.TracIn:
    """The same weights with other moments."""
    weights = runner.checkpoints[0].weights()
    other = at(folder, weights, 0.1, state_of(trainable(net()), seed))
    checkpoints = [replace(other, name="other moments"), runner.checkpoints[1]]
    return tracin.TracIn(net(), "cross_entropy", checkpoints, preconditioner=tracin.Adam())


# Scores -------------------------------------------------------------------------------------------


def test_rows_that_keep_all_numbers_give_the_scores_of_the_twin(tmp_path: Path):
    index = index_of(tmp_path)

    assert close(index.influence(QUERIES), twin(TRAIN, QUERIES), 1e-5)
    assert close(index.influence(QUERIES, group="sum"), twin(TRAIN, QUERIES).sum(1), 1e-5)
    assert "under tracin.Adam()" in str(index)


def test_self_influence_and_the_table_are_exact_at_any_dim(tmp_path: Path):
    runner = run(tmp_path)
    index = index_of(tmp_path, runner, dim=8)

    expected = twin(TRAIN, TRAIN).diagonal()
    assert close(index.self_influence(), expected, 1e-5)
    assert close(torch.from_numpy(index.table()["self_influence"]), expected, 1e-5)
    opened = tracin.Index.open(tmp_path / "index")
    assert close(opened.self_influence(), expected, 1e-5)


def test_estimates_have_no_bias_and_their_errors_are_as_large_as_they_say(tmp_path: Path):
    runner, expected = run(tmp_path), twin(TRAIN, QUERIES, only=0)
    train, queries = open_examples(TRAIN, name="train"), open_examples(QUERIES, name="queries")
    groups, apart, said = dict.fromkeys(runner.parameters, 0), [], []
    plan = plan_of(rows_pass(runner), train, tracin.Projection(16), groups, is_scaled=True)

    for draw in range(30):
        maker = RowMaker(rows_pass(runner), plan, [draw] * 2, ["a", "b"], None, is_scaled=True)
        with maker:
            rows = maker.sketched(0, train, range(20)).rows
            asked = maker.sketched_queries(0, queries).rows
        apart.append(plan.columns.scores(rows, asked, [RATES[0]]) - expected)
        said.append(standard_error(plan.columns, rows, asked, [RATES[0]]))

    spread, mean = torch.stack(apart).square().mean().sqrt(), torch.stack(apart).mean()
    assert abs(float(mean)) < 0.2 * float(spread)
    assert 0.7 < float(torch.stack(said).square().mean().sqrt() / spread) < 1.4


@pytest.mark.parametrize(
    "name", ["linear_on_sequences", "tied_embedding_and_head", "separable_conv_net"]
)
def test_every_form_of_gradient_is_hashed_under_the_factors(name: str, tmp_path: Path):
    case = ZOO[name].build().to(torch.float64)
    state = state_of(trainable(case.model), spread=1.0)
    factors = factors_of(state)
    rows = slow_twin.gradients(case.model, case.loss, case.data)
    own = slow_twin.sum_of((factors[k] * rows[k] ** 2).flatten(1).sum(1) for k in rows)
    runner = tracin.TracIn(
        case.model,
        case.loss,
        [at(tmp_path, case.model.state_dict(), 0.5, state)],
        preconditioner=tracin.Adam(),
    )

    index = runner.index(case.data, tmp_path / "index", tracin.Projection(64), **OPTIONS)

    assert {type(kind) for kind in index.plan.kinds.values()} == {Hashed}
    assert relative_error(index.self_influence().double(), 0.5 * own) < 1e-5
    # A row's product with itself, as far as collisions leave it.
    sketched = torch.from_numpy(index.table()["self_influence_sketched"]).double()
    assert relative_error(sketched, 0.5 * own) < 0.8


FORMS = {
    "dense": lambda: Dense(torch.randn(5, 12)),
    "outer": lambda: OuterProduct(torch.randn(5, 2, 3), torch.randn(5, 2, 4)),
    "rows": lambda: SparseRows(torch.tensor([[0, 2]] * 5), torch.randn(5, 2, 4), 3),
    "sum": lambda: SumOf((FORMS["outer"](), FORMS["rows"]())),
}


@pytest.mark.parametrize("name", FORMS)
def test_two_gradients_under_the_root_have_the_product_under_the_factors(name: str):
    torch.manual_seed(0)
    form, factors = FORMS[name](), torch.rand(12)
    root = Scaling({"w": factors}).root()

    scaled = root.scaled_in_parts("w", form)

    rows = form.dense()
    torch.testing.assert_close(scaled.dense() @ scaled.dense().T, (rows * factors) @ rows.T)
    torch.testing.assert_close(scaled.squared_norm(), form.squared_norm_under(factors))
    torch.testing.assert_close(scaled.part(1, 4).dense(), scaled.dense()[1:4])


def test_exact_lists_are_those_of_the_run_and_estimates_have_the_stored_recall(tmp_path: Path):
    runner = run(tmp_path)
    index = index_of(tmp_path, runner, dim=70, recall_queries=4)

    found = index.explain(QUERIES, k=3, exact=True).proponents

    expected = runner.explain(TRAIN, QUERIES, k=3).proponents
    assert share_found(found.positions, expected.positions) == 1.0
    assert close(found.scores, expected.scores, 1e-5)
    assert "recall@10" in str(index.explain(QUERIES, k=1))
    assert (tmp_path / "index" / "recall.json").exists()


def test_bounds_hold_under_the_factors(tmp_path: Path):
    runner = run(tmp_path)
    index = index_of(tmp_path, runner, dim=70)

    found = index.explain(QUERIES, k=3, candidates=2, exact=True)

    scores = runner.influence(TRAIN, QUERIES)
    assert found.proponents.is_certain is not None
    for query, is_certain in enumerate(found.proponents.is_certain):
        best = set(scores[:, query].topk(3).indices.tolist())
        assert not is_certain or set(found.proponents.positions[query].tolist()) == best


# The folder ---------------------------------------------------------------------------------------


def test_a_build_that_was_broken_off_ends_in_the_same_bytes(tmp_path: Path):
    runner = run(tmp_path)
    whole = files(index_of(tmp_path, runner, dim=16, shard_size=8).store.place.url)
    lost = sorted(name for name in whole if name.startswith("rows/"))[1::2]
    for name in [*lost, "table.parquet"]:
        (tmp_path / "index" / name).unlink()

    index_of(tmp_path, runner, dim=16, shard_size=8)

    assert len(lost) > 2
    assert files(tmp_path / "index") == whole


def test_more_rows_come_under_the_same_factors(tmp_path: Path):
    runner = run(tmp_path)
    few = tuple(part[:12] for part in TRAIN)
    runner.index(few, tmp_path / "index", tracin.Projection(4096), **OPTIONS)

    index = index_of(tmp_path, runner)

    assert close(index.influence(QUERIES), twin(TRAIN, QUERIES), 1e-5)


def test_a_worker_of_another_process_makes_the_same_rows(tmp_path: Path):
    runner = run(tmp_path)
    alone = files(index_of(tmp_path, runner, dim=16).store.place.url)
    job = begun(runner, TRAIN, tmp_path / "two", tracin.Projection(16), "float32", 8192, "auto")

    with pickle.loads(pickle.dumps(job)).open() as build:
        for unit in job.manifest.units():
            build(unit)

    made = files(tmp_path / "two")
    assert made == {name: alone[name] for name in made}
    assert sum(name.startswith("rows/") for name in made) == 2


def test_other_moments_are_another_checkpoint(tmp_path: Path):
    runner = run(tmp_path)
    index = index_of(tmp_path, runner)
    other = with_moments(runner, tmp_path, seed=7)

    with pytest.raises(
        errors.IndexingError, match=r"no rows at other moments.*weights and Adam's second moments"
    ):
        index.with_run(other).influence(QUERIES)

    longer = index_of(tmp_path, other)
    assert len(longer.store.manifest.keys) == 3
    assert close(longer.influence(QUERIES), other.influence(TRAIN, QUERIES), 1e-5)
    assert close(index.influence(QUERIES), twin(TRAIN, QUERIES), 1e-5)


@pytest.mark.parametrize("word", ["no preconditioner", "KFAC", "EKFAC"])
def test_other_runs_are_refused_in_words(word: str, tmp_path: Path):
    runner = run(tmp_path)
    index = index_of(tmp_path, runner)
    curvature = None if word == "no preconditioner" else getattr(tracin, word)()
    other = tracin.TracIn(
        net(), "cross_entropy", runner.checkpoints, preconditioner=curvature, learning_rates="equal"
    )

    asked = index.with_run(other)
    message = rf"under Adam's.*tracin\.Adam\(\) alone, and this run has {word}.*another folder"
    for ask in (
        lambda: asked.influence(QUERIES),
        lambda: asked.explain(QUERIES, k=2),
        lambda: asked.self_influence(),
        lambda: index_of(tmp_path, other),
    ):
        with pytest.raises(errors.PreconditionerError, match=message):
            ask()


def test_an_index_of_plain_gradients_stays_one_and_answers_adam(tmp_path: Path):
    runner = run(tmp_path)
    before = files(index_of(tmp_path, plain(runner)).store.place.url)

    index = index_of(tmp_path, runner)

    assert files(tmp_path / "index") == before
    assert b"under" not in before["manifest.json"]
    assert close(index.influence(QUERIES), twin(TRAIN, QUERIES), 1e-5)
    with pytest.raises(errors.QueryError, match="norms of plain gradients"):
        index.self_influence()


def test_factors_of_plain_gradients_have_no_product_with_a_query_under_adam(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))
    train: tuple[Tensor, Tensor] = torch.randn(20, 30), torch.arange(20) % 3
    checkpoint = at(tmp_path, model.state_dict(), 0.1, state_of(trainable(model)))
    runner, adam = (
        tracin.TracIn(model, "cross_entropy", [checkpoint], preconditioner=one)
        for one in (None, tracin.Adam())
    )
    index = runner.index(train, tmp_path / "index", tracin.Projection(64), **OPTIONS)

    with pytest.raises(
        errors.PreconditionerError, match=r"by their factors.*another folder.*tracin\.Adam\(\)"
    ):
        index.with_run(adam).influence(train)

    under = adam.index(train, tmp_path / "under", tracin.Projection(64), **OPTIONS)
    assert close(under.self_influence(), adam.self_influence(train), 1e-5)


def test_a_changed_word_for_the_scaling_is_refused(tmp_path: Path):
    from tracin.index.contents import plan_in
    from tracin.index.store import Store

    store = index_of(tmp_path).store
    about = {**store.manifest.about, "under": "sgd"}

    with pytest.raises(errors.IndexingError, match=r"about\.under is 'sgd'"):
        plan_in(Store(store.place, replace(store.manifest, about=about)))
