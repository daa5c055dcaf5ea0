"""Sketched rows: their scores are right on average, and as far off as their error bars say."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tracin.errors import IndexingError
from tracin.gradients import Gradients
from tracin.gradients.forms import (
    Dense,
    OuterProduct,
    PerExampleGradient,
    SparseRows,
    as_query,
    pairs,
    total,
)
from tracin.sketches import (
    Columns,
    Dot,
    Plan,
    Product,
    Projection,
    Side,
    Sketcher,
    planned,
    planning,
    random_numbers,
    standard_error,
)
from tracin.sketches.budget import Layer, Need, divided
from tracin.sketches.error_bars import fill
from tracin.sketches.hashing import CountSketch, FoldedCountSketch, folded
from tracin.sketches.kinds import BiasOf, Convolved, Factored, Hashed, TwoSided, Written
from tracin.sketches.pilot import Matrix, cost

EXAMPLES = 12
Forms = dict[str, PerExampleGradient]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Words(nn.Module):
    """A small transformer's parts: an embedding, a LayerNorm, layers over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 12)
        self.norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 40)
        self.head = nn.Linear(40, 30)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.wide(self.norm(self.words(words))).relu()
        mixed = hidden + hidden.mean(1, keepdim=True)
        return self.head(mixed).flatten(1)


def layers() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 5)), rand(EXAMPLES, 30)


def images() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    return net.eval(), rand(EXAMPLES, 2, 6, 6)


def words() -> tuple[nn.Module, Tensor]:
    some = torch.Generator().manual_seed(0)
    return Words(), torch.randint(30, (EXAMPLES, 7), generator=some)


MODELS = {"layers": layers, "images": images, "words": words}
of_each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


class Subject:
    """A model's gradients on a batch, and their exact products."""

    def __init__(self, build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = build()
        labels = torch.arange(EXAMPLES) % 5

        def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

        parameters = dict(model.named_parameters())
        self.batch = inputs, labels
        self.gradients = Gradients(model, losses, parameters)
        with self.gradients.tracing():
            self.gradients.check(self.batch)
        self.numbers = {name: value.numel() for name, value in parameters.items()}
        self.forms: Forms = {}
        self.visit(lambda name, form, row: self.forms.update({name: form}))
        dense = torch.cat([form.dense() for form in self.forms.values()], 1).detach().double()
        self.exact = dense @ dense.mT

    def visit(
        self, keep: Callable[[str, PerExampleGradient, int], None], rows: slice = slice(None)
    ) -> None:
        with self.gradients.tracing():
            self.gradients.visit(tuple(each[rows] for each in self.batch), keep)

    def planned(self, dim: int, **options) -> Plan:
        return planned(Projection(dim, **options), self.forms, self.numbers)

    def rows(self, plan: Plan, draw: int = 0) -> Tensor:
        return sketched(plan, self.forms, draw)[0]


def sketched(plan: Plan, forms: Forms, draw: int = 0) -> tuple[Tensor, Tensor]:
    sketcher = Sketcher(plan, draw=draw)
    sketcher.begin(next(iter(forms.values())).examples)
    for name, form in forms.items():
        sketcher.add(name, form, 0)
    return sketcher.rows(), sketcher.squared_norms()


def errors_of(plan: Plan, forms: Forms, exact: Tensor, draws: int) -> Tensor:
    """[draws, rows, rows]."""
    out = []
    for draw in range(draws):
        rows, _ = sketched(plan, forms, draw)
        out.append(plan.columns.scores(rows, rows).double() - exact)
    return torch.stack(out)


def errors_and_bars_of(
    plan: Plan, forms: Forms, exact: Tensor, draws: int
) -> tuple[Tensor, Tensor]:
    """Of the same draws: [draws, rows, rows] each."""
    rows = [sketched(plan, forms, draw)[0] for draw in range(draws)]
    errors = [plan.columns.scores(each, each).double() - exact for each in rows]
    bars = [standard_error(plan.columns, each, each).double() for each in rows]
    return torch.stack(errors), torch.stack(bars)


def spread(errors: Tensor) -> float:
    """The mean square off the diagonal."""
    squares = errors.square().mean(0)
    count = len(squares) * (len(squares) - 1)
    return float((squares.sum() - squares.trace()) / count)


# Random numbers ---------------------------------------------------------------------------------


def test_random_numbers_are_the_same_on_every_machine():
    stream = random_numbers.key(7, 0, "layer.weight", "folds")

    assert stream == 0xFD7477506C3CE34AA4FA3F5A3C18A6BF
    assert random_numbers.signs(stream, 12).tolist() == [1, -1, -1, 1, 1, 1, 1, 1, 1, -1, 1, 1]
    assert random_numbers.integers(stream, 6, 1000).tolist() == [313, 2, 528, 302, 352, 517]
    assert random_numbers.order(stream, 8).tolist() == [2, 4, 1, 7, 6, 3, 5, 0]


def test_streams_differ_by_seed_draw_and_name():
    paths = [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "a", "folds")]

    assert len({random_numbers.key(*path) for path in paths}) == len(paths)


# Hashing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("numbers", "width"), [(3000, 64), (700, 600), (50, 64)])
def test_folded_rows_vary_as_the_formula_of_count_sketches_says(numbers: int, width: int):
    rows = rand(40, numbers)
    exact = rows @ rows.mT
    errors = []
    for draw in range(40):
        sums = torch.zeros(40, 2 * width)
        FoldedCountSketch(random_numbers.key(draw), numbers, width, sums).add(rows, sums)
        sketch = folded(sums)
        errors.append((sketch @ sketch.mT - exact).double())

    lengths = exact.diagonal()
    formula = lengths.unsqueeze(1) * lengths + exact.square()
    # Minus the pairs of the same entry and those of the same piece, which never meet.
    full, last = divmod(numbers, width)
    apart = 1 - (full * width**2 + last**2) / numbers**2
    wanted = float((formula - torch.diag(formula.diagonal())).sum() / (40 * 39)) * apart / width
    assert spread(torch.stack(errors)) == pytest.approx(wanted, rel=0.1, abs=1e-6)


def slowly_folded(rows: Tensor, stream: int, width: int) -> Tensor:
    """The definition, number by number: its sign, and its piece's rotation."""
    out = torch.zeros(len(rows), width)
    signs = random_numbers.signs(stream + 1, rows.shape[1]).tolist()
    rotations = random_numbers.integers(stream, -(-rows.shape[1] // width), width).tolist()
    for at, sign in enumerate(signs):
        piece, place = divmod(at, width)
        out[:, (place + rotations[piece]) % width] += sign * rows[:, at]
    return out


@pytest.mark.parametrize("numbers", [600, 512, 50])
@pytest.mark.parametrize("width", [1, 7, 64, 127, 128, 300])
def test_folded_rows_are_those_of_the_definition(numbers: int, width: int):
    rows, sums = rand(5, numbers), torch.zeros(5, 2 * width)

    FoldedCountSketch(3, numbers, width, sums).add(rows, sums)

    assert torch.allclose(folded(sums), slowly_folded(rows, 3, width), atol=1e-4)


@pytest.mark.parametrize(("numbers", "width"), [(600, 1), (600, 7), (512, 64), (50, 49)])
def test_short_rows_are_added_up_as_the_definition_says(numbers: int, width: int):
    rows, out = rand(5, numbers), torch.zeros(5, width)
    order = random_numbers.order(3, numbers).tolist()
    signs = random_numbers.signs(4, numbers).tolist()
    for at, (number, sign) in enumerate(zip(order, signs, strict=True)):
        out[:, at % width] += sign * rows[:, number]

    assert torch.allclose(CountSketch(3, numbers, width, rows)(rows), out, atol=1e-4)


class Calls(TorchDispatchMode):
    """Counts the operations within its block."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [1, 8, 64])
def test_narrow_sketches_take_few_calls(width: int):
    rows, sums = rand(3, 4096), torch.zeros(3, 2 * width)
    fold, short = FoldedCountSketch(0, 4096, width, sums), CountSketch(0, 4096, width, sums)

    with Calls() as calls:
        fold.add(rows, sums)
        short.put(rows, sums[:, :width])

    assert calls.count < 60


@pytest.mark.parametrize("width", [5, 64, 256])
def test_a_table_is_hashed_from_its_rows_as_if_it_were_written_out(width: int):
    index = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))
    form = SparseRows(index, rand(4, 6, 7), 9)
    folds = FoldedCountSketch(1, form.numbers, width, torch.zeros(0))
    written, direct = torch.zeros(4, 2 * width), torch.zeros(4, 2 * width)

    folds.add(form.dense(), written)
    folds.add_rows(form, direct)

    assert torch.allclose(folded(written), folded(direct), atol=1e-5)


def test_a_factor_that_has_a_column_for_each_number_is_left_alone():
    factor = rand(3, 10)

    assert torch.equal(CountSketch(1, 10, 10, factor)(factor), factor)
    mixed = CountSketch(1, 10, 16, factor, is_mixed=True)(factor)
    assert torch.allclose(mixed @ mixed.mT, factor @ factor.mT, atol=1e-5)


# Rows -------------------------------------------------------------------------------------------


@of_each_model
def test_enough_numbers_keep_everything(build):
    subject = Subject(build)
    plan = subject.planned(100_000)

    rows, norms = sketched(plan, subject.forms)
    scores = plan.columns.scores(rows, rows)

    assert plan.width == sum(subject.numbers.values())
    assert all(isinstance(kind, Written) for kind in plan.kinds.values())
    assert torch.allclose(scores.double(), subject.exact, rtol=1e-6, atol=1e-6)
    assert torch.allclose(norms[:, 0].double(), subject.exact.diagonal(), rtol=1e-5)
    assert not standard_error(plan.columns, rows, rows).any()


def test_layers_with_one_position_are_exact_in_the_room_of_their_factors():
    subject = Subject(layers)
    plan = subject.planned(30 + 24 + 24 + 5)

    rows = subject.rows(plan)

    assert {type(block) for block in plan.columns.blocks} == {Product}
    assert isinstance(plan.kinds["0.bias"], BiasOf)
    scores = plan.columns.scores(rows, rows)
    assert torch.allclose(scores.double(), subject.exact, rtol=1e-5, atol=1e-5)
    lengths = plan.columns.squared_lengths(rows)
    assert torch.allclose(lengths, scores.diagonal())
    assert not standard_error(plan.columns, rows, rows).any()


@of_each_model
@pytest.mark.parametrize("dim", [20, 70])
def test_scores_are_right_on_average_and_error_bars_hold(build, dim: int):
    draws = 200
    subject = Subject(build)
    plan = subject.planned(dim)
    assert plan.width <= dim

    errors, bars = errors_and_bars_of(plan, subject.forms, subject.exact, draws)

    deviations = errors.std(0) / math.sqrt(draws)
    assert bool((errors.mean(0).abs() < 4.5 * deviations + 1e-6).all())
    off = ~torch.eye(EXAMPLES, dtype=torch.bool)
    within = (errors.abs() <= 2 * bars)[:, off].double().mean()
    assert 0.9 < within < 0.995
    assert 0.85 < spread(bars) / spread(errors) < 1.5  # bars are wide where sides are short


@of_each_model
def test_rows_do_not_depend_on_the_batch(build):
    subject = Subject(build)
    plan = subject.planned(64)
    whole = subject.rows(plan)

    sketcher = Sketcher(Plan.from_json(json.loads(json.dumps(plan.to_json()))))
    parts = []
    for start, stop in [(0, 1), (1, 8), (8, 12)]:
        sketcher.begin(stop - start)
        subject.visit(sketcher.add, slice(start, stop))
        parts.append(sketcher.rows())

    scale = whole.abs().max()
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-5 * float(scale))
    assert plan == subject.planned(64)
    assert not torch.allclose(subject.rows(plan, draw=1), whole)
    assert not torch.allclose(subject.rows(subject.planned(64, seed=1)), whole)


def test_gradients_may_come_a_few_examples_at_a_time():
    subject = Subject(images)
    plan = subject.planned(64)
    sketcher = Sketcher(plan)
    sketcher.begin(EXAMPLES)

    for name, form in reversed(subject.forms.items()):
        for start in range(0, EXAMPLES, 5):
            sketcher.add(name, form.part(start, start + 5), start)

    assert torch.allclose(sketcher.rows(), subject.rows(plan), atol=1e-5)


def wide(positions: int) -> Forms:
    left, right = rand(EXAMPLES, positions, 60), rand(EXAMPLES, positions, 50, seed=1)
    outer = OuterProduct(left + left[:1], right)
    index = torch.randint(60, (EXAMPLES, 9), generator=torch.Generator().manual_seed(0))
    return {
        "outer": outer,
        "tied": total([outer, SparseRows(index, rand(EXAMPLES, 9, 50, seed=2), 60)]),
    }


@pytest.mark.parametrize("name", ["outer", "tied"])
def test_wide_matrices_are_projected_on_both_sides_first(name: str, monkeypatch):
    monkeypatch.setattr(planning, "_WIDE", 1000)
    monkeypatch.setattr(planning, "_SIDE", 20)
    monkeypatch.setattr(Matrix, "is_convolved", lambda matrix, columns: False)
    forms = {name: wide(8)[name]}
    plan = planned(Projection(100), forms, {name: 3000})
    dense = forms[name].dense().double()

    errors, bars = errors_and_bars_of(plan, forms, dense @ dense.mT, 200)

    assert plan.kinds == {name: TwoSided(0, 20, 20, (60, 50))}
    assert bool((errors.mean(0).abs() < 4.5 * errors.std(0) / math.sqrt(200)).all())
    assert spread(bars) == pytest.approx(spread(errors), rel=0.2)


def test_written_out_gradients_meet_those_of_factors():
    forms = {"outer": wide(8)["outer"]}
    for way in (Hashed(0), TwoSided(0, 20, 20, (60, 50))):
        columns = Columns((Dot(Side(0, 64, 3000), spread=1 / 64),), 64)
        plan = Plan(0, columns, {"outer": way}, {"outer": 3000}, {"outer": 0})

        rows, norms = sketched(plan, forms)
        again, same = sketched(plan, {"outer": Dense(forms["outer"].dense().view(-1, 60, 50))})

        assert torch.allclose(rows, again, rtol=1e-4, atol=1e-3)
        assert torch.allclose(norms, same, rtol=1e-4)


# Layout -----------------------------------------------------------------------------------------


def test_groups_never_share_a_column_and_are_weighted_when_asked():
    subject = Subject(images)
    groups = {name: int(name.startswith("4")) for name in subject.numbers}
    plan = planned(Projection(400), subject.forms, subject.numbers, groups)
    rows = subject.rows(plan)

    weighted = plan.columns.scores(rows, rows, [2.0, 3.0])
    parts = plan.columns.parts(rows, rows)

    of = [block.group for block in plan.columns.blocks]
    assert set(of) == {0, 1}
    shares = sum(part * (2.0, 3.0)[group] for part, group in zip(parts, of, strict=True))
    assert torch.allclose(weighted, shares, rtol=1e-5, atol=1e-5)
    lengths = plan.columns.squared_lengths(rows, [2.0, 3.0])
    assert torch.allclose(lengths, weighted.diagonal(), rtol=1e-5)
    with pytest.raises(IndexingError, match=r"2 groups .* got 1 weights"):
        plan.columns.scores(rows, rows, [1.0])


def test_a_split_is_kept():
    subject = Subject(images)
    plan = subject.planned(200, split={"4.*": 150, "0.*": 30})

    widths = [
        block.side.width if isinstance(block, Dot) else block.left.width + block.right.width
        for block in plan.columns.blocks
    ]

    assert plan.width <= 200
    assert sum(widths[:2]) <= 150 + 30 + 16
    assert isinstance(plan.kinds["4.weight"], Factored)
    assert plan.columns.blocks[-1].side == Side(plan.width - 16, plan.width, 16)  # the BatchNorm


def test_rows_of_any_type_are_scored_in_float32():
    columns = Columns(
        (Dot(Side(0, 2, 2)), Dot(Side(2, 3, 3)), Product(Side(3, 4, 4), Side(4, 5, 5), True)), 5
    )
    rows = rand(3, 5)
    stored = torch.from_numpy(rows.half().numpy())

    scores = columns.scores(stored, rows)

    assert scores.dtype == torch.float32
    plain = rows[:, :3] @ rows[:, :3].mT + (rows[:, 4:] @ rows[:, 4:].mT + 1) * (
        rows[:, 3:4] @ rows[:, 3:4].mT
    )
    assert torch.allclose(scores, plain, atol=1e-2)
    assert torch.allclose(columns.parts(rows, rows).sum(0), columns.scores(rows, rows), atol=1e-5)
    assert Columns.from_json(json.loads(json.dumps(columns.to_json()))) == columns


def test_columns_go_where_they_lessen_the_variance_most():
    alone = [Need(1000, 4.0), Need(1000, 1.0), Need(3, 1.0)]
    shares = divided(303, alone, [])
    assert shares is not None
    assert shares.alone == (200, 100, 3)

    small = Layer(Need(10, 1.0), Need(20, 1.0), 1.0)
    both = divided(1000, [], [small])
    assert both is not None
    assert (both.layers, both.variance) == (((10, 20),), 0.0)
    assert divided(1, [], [small]) is None


def test_products_of_sketched_factors_vary_as_the_formula_says():
    left, right = Side(0, 40, 200), Side(40, 70, 150)
    columns = Columns((Product(left, right, has_bias=True),), 70)
    kinds = {"weight": Factored(0), "bias": BiasOf("weight")}
    numbers = {"weight": 200 * 150, "bias": 200}
    plan = Plan(0, columns, kinds, numbers, dict.fromkeys(kinds, 0))
    lefts = rand(EXAMPLES, 1, 200) + rand(200, seed=1)
    outer = OuterProduct(lefts, rand(EXAMPLES, 1, 150, seed=2) + rand(150, seed=3))
    forms: Forms = {"weight": outer, "bias": Dense(lefts[:, 0])}
    dense = torch.cat([form.dense() for form in forms.values()], 1).double()

    errors, bars = errors_and_bars_of(plan, forms, dense @ dense.mT, 400)

    assert bool((errors.mean(0).abs() < 4.5 * errors.std(0) / 20).all())
    assert spread(bars) == pytest.approx(spread(errors), rel=0.15)


def test_convolved_factors_are_right_on_average_and_vary_as_both_their_sketches_do():
    outer = OuterProduct(rand(EXAMPLES, 1, 300) + 0.5, rand(EXAMPLES, 1, 400, seed=1) + 0.5)
    forms: Forms = {"weight": outer}
    columns = Columns((Dot(Side(0, 64, 120_000), spread=1 / 64),), 64)
    plan = Plan(
        0, columns, {"weight": Convolved(0, (300, 400))}, {"weight": 120_000}, {"weight": 0}
    )
    dense = outer.dense().double()

    errors = errors_of(plan, forms, dense @ dense.mT, 400)

    assert bool((errors.mean(0).abs() < 4.5 * errors.std(0) / 20).all())
    layer = planning._layer(outer.left[:, 0], outer.right[:, 0], has_bias=False)
    sides = layer.left.cost * fill(64, 300) + layer.right.cost * fill(64, 400)
    formula = sides + cost(pairs(outer, as_query(outer)).double()) / 64
    assert spread(errors) == pytest.approx(formula, rel=0.15)


def test_few_positions_are_convolved_where_factors_have_no_room():
    forms: Forms = {"weight": OuterProduct(rand(EXAMPLES, 1, 300), rand(EXAMPLES, 1, 300, seed=1))}
    plan = planned(Projection(1), forms, {"weight": 90_000})

    assert plan.kinds == {"weight": Convolved(0, (300, 300))}


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, r"dim is .* at least 1; 0 was given"),
        ({"dim": 2.5}, r"2\.5 was given"),
        ({"dim": True}, "True was given"),
        ({"seed": "1"}, "seed must be an integer; got '1'"),
        ({"split": {"a": -1}}, r"split\['a'\] is .* -1 was given"),
        ({"dim": 8, "split": {"a": 5, "b": 5}}, "split has 10 numbers, but dim is 8"),
    ],
)
def test_projections_that_cannot_be_are_refused(options, words: str):
    with pytest.raises(IndexingError, match=words):
        Projection(**options)


def test_splits_that_do_not_fit_the_model_are_refused():
    subject = Subject(layers)

    with pytest.raises(IndexingError, match=r"'9\.\*' matches none .* 0\.weight"):
        subject.planned(64, split={"9.*": 8})
    with pytest.raises(IndexingError, match=r"leaves none for 2\.weight, 2\.bias"):
        subject.planned(64, split={"0.*": 64})
    groups = {name: int(name.startswith("2")) for name in subject.numbers}
    with pytest.raises(IndexingError, match=r"1 numbers are too few for 2 groups"):
        planned(Projection(1), subject.forms, subject.numbers, groups)


def test_gradients_unlike_those_of_the_plan_are_refused():
    subject = Subject(layers)
    plan = subject.planned(83)
    weight, bias = subject.forms["0.weight"], subject.forms["0.bias"]
    sketcher = Sketcher(plan)
    sketcher.begin(EXAMPLES)

    with pytest.raises(IndexingError, match=r"'0\.weight' had one position .* now has 2 positions"):
        sketcher.add("0.weight", total([weight, weight]), 0)
    with pytest.raises(IndexingError, match=r"'0\.weight' had .* now has Dense"):
        sketcher.add("0.weight", Dense(weight.dense()), 0)
    with pytest.raises(IndexingError, match=r"'other' has .* no such parameter"):
        sketcher.add("other", bias, 0)
    sketcher.add("0.weight", weight, 0)
    with pytest.raises(IndexingError, match=r"only that of '0\.weight' came"):
        sketcher.rows()
    with pytest.raises(IndexingError, match=r"'0\.bias' and '0\.weight' were those of one"):
        sketcher.add("0.bias", Dense(bias.dense() + 1), 0)


def test_rows_and_descriptions_that_do_not_fit_are_refused():
    columns = Columns((Dot(Side(0, 2, 2)),), 2)

    with pytest.raises(IndexingError, match=r"rows of 2 numbers.* got \[4, 3\]"):
        columns.scores(rand(4, 3), rand(4, 2))
    with pytest.raises(IndexingError, match=r"Cannot read .*columns\.blocks is missing"):
        Columns.from_json({"width": 2})
    with pytest.raises(IndexingError, match=r"Cannot read .*Build the index again"):
        Plan.from_json({"parameters": {"a": {"kind": "folded", "numbers": 1, "group": 0}}})


def test_without_squared_lengths_the_rows_are_the_same() -> None:
    forms: dict[str, PerExampleGradient] = {"wide": OuterProduct(rand(3, 2, 300), rand(3, 2, 200))}
    plan = planned(Projection(dim=64), forms, {"wide": 60_000})
    found = []
    for has_norms in (True, False):
        sketcher = Sketcher(plan, has_norms=has_norms)
        sketcher.begin(3)
        sketcher.add("wide", forms["wide"], 0)
        found.append(sketcher.rows())
    assert torch.equal(*found)
    with pytest.raises(IndexingError, match="computes no squared norms"):
        sketcher.squared_norms()


def test_scores_take_the_scales_of_rows_that_were_not_multiplied_yet() -> None:
    # Two dot products beside one another have scales of their own: they must not be run together.
    blocks = (
        Dot(Side(0, 3, 3)),
        Dot(Side(3, 5, 9)),
        Product(Side(5, 7, 7), Side(7, 11, 4), has_bias=True, group=1),
    )
    columns = Columns(blocks, 11)
    rows, queries = rand(6, 11), rand(4, 11, seed=1)
    scales = torch.exp2(torch.arange(24.0).view(6, 4) - 12)
    assert [(side.start, side.stop) for side in columns.sides] == [(0, 3), (3, 5), (5, 7), (7, 11)]
    whole = rows.clone()
    for at, side in enumerate(columns.sides):
        whole[:, side.start : side.stop] *= scales[:, at : at + 1]
    expected = columns.scores(whole, queries, [1.0, 0.5])
    assert torch.allclose(columns.scores(rows, queries, [1.0, 0.5], scales), expected, rtol=1e-6)
