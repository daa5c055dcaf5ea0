"""Every kind of column and batch that people own is walked as it is, or refused by name."""

import random
import tracemalloc
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, Subset

import tracin
from tracin.data import copied, length, move, open_examples, part, warn_if_changing
from tracin.data.batches import Entries, Single
from tracin.errors import DataError, DataWarning

X = torch.arange(14.0).reshape(7, 2)
Y = torch.arange(7)
WORKERS = [0, pytest.param(1, marks=pytest.mark.slow)]


def batches(data, size=3, **options):
    return [batch for _, batch in open_examples(data).batches(size, **options)]


# --- arrays that torch cannot share memory with ------------------------------------------------

ARRAYS = {
    "reversed": X.numpy()[::-1],
    "reversed columns": X.numpy()[:, ::-1],
    "big-endian": X.numpy().astype(">f4"),
    "big-endian and reversed": X.numpy().astype(">f4")[::-1],
    "little-endian": X.numpy().astype("<f4"),
    "every other row": np.repeat(X.numpy(), 2, axis=0)[::2],
    "transposed": X.numpy().T.copy().T,
    "broadcast": np.broadcast_to(np.float32([1, 2]), (7, 2)),
    "float16": X.numpy().astype("float16"),
    "big-endian integers": Y.numpy().astype(">i2"),
    "uint16": Y.numpy().astype("uint16"),
    "int8": Y.numpy().astype("int8"),
    "booleans": Y.numpy() > 3,
    "complex": X.numpy().astype("complex64"),
    "field of a structured array": np.array(
        [(i, i + 0.5) for i in range(7)], dtype=[("a", "i4"), ("b", "f8")]
    )["b"],
    "packed field": np.array([(i, i + 0.5) for i in range(7)], dtype=[("a", "i1"), ("b", "f8")])[
        "b"
    ],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("as_views", [True, False])
@pytest.mark.parametrize("form", ["lone", "in a dict", "in a subset"])
def test_arrays_of_any_strides_and_byte_order_are_walked(array, as_views, form):
    data = array if form == "lone" else {"x": array}
    if form == "in a subset":
        data = tracin.WithIds(data, range(10, 17))

    found = batches(data, as_views=as_views)

    found = torch.cat([batch if form == "lone" else batch["x"] for batch in found])
    native = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
    assert torch.equal(found, torch.from_numpy(native))
    taken = open_examples(data).take([6, 0])
    assert torch.equal(taken if form == "lone" else taken["x"], torch.from_numpy(native[[6, 0]]))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_read_only_memory_map_is_not_copied_whole(tmp_path, order):
    path = tmp_path / "tokens.bin"
    np.arange(4_000_000).astype(f"{order}u2").tofile(path)
    tokens = np.memmap(path, dtype=f"{order}u2", mode="r").reshape(-1, 4000)

    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = open_examples(tokens)
        first = next(iter(examples.batches(4, as_views=True)))[1]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert first.tolist() == np.arange(16_000, dtype="u2").reshape(4, 4000).tolist()
    assert held < 200_000  # of 8 MB
    first.zero_()  # a copy of its own
    assert tokens[0, 1] == 1


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()] * 3),
        np.array(["a", "b"]),
        np.zeros(3, [("a", "f4")]),
        np.zeros(3, "M8[s]"),
        np.zeros(3, np.longdouble),
        np.array(["a", None], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_no_tensor_can_hold_are_refused_by_name(array):
    with pytest.raises(DataError, match=r"train\['x'\], is an array of .* no tensor can hold"):
        open_examples({"x": array}, name="train")


@pytest.mark.parametrize("as_views", [True, False])
def test_inference_tensors_become_ordinary_ones(as_views):
    with torch.inference_mode():
        features = X + 0

    for batch in batches((features, Y), as_views=as_views):
        assert not batch[0].is_inference()
        assert not batch[1].is_inference()


def test_features_made_under_inference_mode_are_scored():
    torch.manual_seed(0)
    head = torch.nn.Linear(2, 3)
    with torch.inference_mode():
        features = torch.randn(7, 2)
    run = tracin.TracIn(head, "cross_entropy", [head.state_dict()], learning_rates=[1.0])

    ways = [
        (features, Y % 3),
        list(zip(features, Y % 3, strict=True)),
        Subset(torch.utils.data.TensorDataset(features, Y % 3), range(7)),
        (features.clone(), Y % 3),
    ]

    found = [run.self_influence(data) for data in ways]
    for scores in found[1:]:
        torch.testing.assert_close(scores, found[0])


UNSLICED = {
    "sparse_coo": X.to_sparse,
    "sparse_csc": torch.eye(7).to_sparse_csc,
    "nested": lambda: torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged),
    "nested of no layout": lambda: torch.nested.nested_tensor([X[:2], X[:3]]),
}


@pytest.mark.slow  # torch takes seconds to import what nested tensors need
@pytest.mark.parametrize("kind", UNSLICED)
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested")
def test_columns_that_cannot_be_sliced_are_refused_by_name(kind):
    column = UNSLICED[kind]()

    with pytest.raises(DataError, match=rf"train\['x'\] is a {kind.split()[0]} .*to_dense"):
        open_examples({"x": column}, name="train")


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"a": [1, 2]}),
        pd.Series([1, 2]),
        pl.DataFrame({"a": [1, 2]}),
        pa.table({"a": [1, 2]}),
        {"x": X[:2], "y": pd.Series([1, 2])},
        {"x": X[:2], "y": pl.Series([1, 2])},
        (X[:2], pa.chunked_array([[1, 2]])),
        (pd.DataFrame({"a": [1.0, 2.0]}), pd.Series([1, 2])),
    ],
    ids=[
        *("pandas", "series", "polars", "arrow"),
        *("pandas column", "polars column", "arrow column", "pandas pair"),
    ],
)
def test_tables_are_refused_with_the_way_out(data):
    with pytest.raises(
        DataError, match=r"train.* is a (pandas|polars|pyarrow) \w+, .*torch\.tensor\(.*to_numpy"
    ):
        open_examples(data, name="train")


class Frame(Dataset):
    """Rows of a pandas table, as it gives them."""

    def __init__(self, row_of):
        self.table, self.row_of = pd.DataFrame(X[:4].numpy()), row_of

    def __len__(self):
        return len(self.table)

    def __getitem__(self, position):
        return self.row_of(self.table.iloc[position])


@pytest.mark.parametrize(
    "row_of", [lambda row: row, lambda row: (row, 1), lambda row: {"inputs": row, "labels": 1}]
)
def test_rows_of_a_table_are_refused_with_the_way_out(row_of):
    with pytest.raises(DataError, match=r"pandas objects \(Series\).*torch\.tensor\(row\.to_numpy"):
        open_examples(Frame(row_of)).take([0, 1])


def test_tables_become_data_by_their_columns():
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0], "label": [0, 1, 0]})
    arrays = table[["a", "b"]].to_numpy(dtype="float32"), table["label"].to_numpy()

    inputs, labels = open_examples(arrays).take([2, 0])

    assert inputs.tolist() == [[3.0, 6.0], [1.0, 4.0]]
    assert labels.tolist() == [0, 0]


# --- lists ------------------------------------------------------------------------------------

LISTS = {
    "numbers": [9, 2, 5, 3, 7, 1, 4],
    "floats": [0.5] * 7,
    "texts": list("abcdefg"),
    "bytes": [b"a"] * 7,
    "nothing": [None] * 7,
    "objects": [object() for _ in range(7)],
    "token lists": [[1] * size for size in range(1, 8)],
    "ragged tensors": [X[:size] for size in range(1, 8)],
    "arrays": [np.arange(size) for size in range(1, 8)],
    "records": [{"id": at, "boxes": X[:at]} for at in range(7)],
}


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("values", LISTS.values(), ids=LISTS)
def test_a_list_with_one_entry_per_example_is_split(values, kind):
    found = batches({"x": X, "deep": {"list": kind(values)}})

    expected = [repr(list(values[start : start + 3])) for start in (0, 3, 6)]
    assert [repr(batch["deep"]["list"]) for batch in found] == expected
    assert [length(batch) for batch in found] == [3, 3, 1]
    assert repr(part(found[0], [2, 0])["deep"]["list"]) == repr([values[2], values[0]])


def test_a_list_of_another_length_is_refused_by_name():
    with pytest.raises(
        DataError, match=r"train\['sizes'\] has 2 for 7 examples\. Make it as long;"
    ):
        open_examples({"x": X, "sizes": [224, 224]}, name="train")


def test_a_list_that_may_be_examples_or_columns_is_refused():
    data = {"x": X[:2], "boxes": [X[:2], X[2:4]]}

    with pytest.raises(DataError, match=r"data\['boxes'\] is a list of 2 tensors .* Pass a tuple"):
        open_examples(data)

    assert batches({"x": X[:2], "boxes": (X[:2], X[2:4])}, 1)[1]["boxes"][0].shape == (1, 2)


def with_lists(items):
    return {
        "x": torch.stack([x for x, _ in items]),
        "y": torch.tensor([y for _, y in items]),
        "length": [int(x.sum()) for x, _ in items],
        "boxes": [x[:1].repeat(y % 3 + 1, 1) for x, y in items],
        "names": [f"n{y}" for _, y in items],
        "classes": ["cat", "dog", "cow"],
        "scale": 2,
    }


ITEMS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", WORKERS)
def test_lists_that_a_collate_makes_are_split_whatever_the_size(size, workers):
    if workers and size != 3:
        pytest.skip("one size is enough to see workers")
    loader = DataLoader(ITEMS, batch_size=2, collate_fn=with_lists, num_workers=workers)

    for batch in batches(loader, size):
        for at in range(length(batch)):
            one = part(batch, [at])
            assert one["length"] == [int(one["x"].sum())]
            assert one["names"] == [f"n{int(one['y'])}"]
            assert len(one["boxes"]) == 1
            assert len(one["boxes"][0]) == int(one["y"]) % 3 + 1
            assert one["classes"] == ["cat", "dog", "cow"]  # also in a batch of three


def test_a_list_of_numbers_that_all_examples_share_is_refused_by_name():
    loader = DataLoader(ITEMS, collate_fn=lambda items: {**with_lists(items), "shape": [1, 2]})

    with pytest.raises(DataError, match=r"batch\['shape'\] has 2 for 3 examples"):
        open_examples(loader).take([0, 1])


def test_texts_are_split_by_torchs_own_collate_alone_where_there_is_one_per_example():
    data = [{"x": x, "name": f"n{y}", "two": ("a", f"b{y}")} for x, y in ITEMS]

    [first, *_] = batches(data, 2)

    assert part(first, [1])["name"] == ["n1"]
    assert [list(texts) for texts in part(first, [1])["two"]] == [["a"], ["b1"]]


def test_arrays_in_a_batch_are_cut_like_tensors():
    loader = DataLoader(
        ITEMS, collate_fn=lambda items: (with_lists(items)["x"], np.array([y for _, y in items]))
    )

    [batch, *_] = batches(loader, 4)

    assert part(batch, slice(1, 3))[1].tolist() == [1, 2]
    assert part(batch, torch.tensor([3, 0]))[1].tolist() == [3, 0]


def test_a_copy_of_a_batch_shares_nothing():
    batch = {"x": X.clone(), "list": Entries([X.clone()] * 7), "array": np.arange(7)}

    own = copied(batch)
    own["x"].zero_()
    own["list"][0].zero_()
    own["array"][:] = 0

    assert torch.equal(batch["x"], X)
    assert torch.equal(batch["list"][0], X)
    assert batch["array"].tolist() == list(range(7))


# --- batches without an example dimension --------------------------------------------------------


class Graph:
    """Stands in for the graph batches of PyG and DGL: attributes, and `.to(device)`."""

    def __init__(self, x, edges, y):
        self.x, self.edges, self.y = x, edges, y

    def to(self, device):
        return Graph(self.x.to(device), self.edges.to(device), self.y.to(device))

    @staticmethod
    def merged(graphs):
        return Graph(
            torch.cat([graph.x for graph in graphs]),
            torch.cat([graph.edges for graph in graphs], 1),
            torch.stack([graph.y for graph in graphs]),
        )


GRAPHS = [
    Graph(X[: 2 + at], torch.zeros(2, 3, dtype=torch.long), torch.tensor(at)) for at in range(5)
]


def flat_tokens(items):
    tokens = torch.cat([torch.arange(1 + y % 4) for _, y in items])
    sizes = torch.tensor([0] + [1 + y % 4 for _, y in items])
    return tokens, sizes.cumsum(0)[:-1], torch.tensor([y for _, y in items])


def detection(items):
    return tuple(
        zip(*[(torch.zeros(3, 4 + y, 5), {"boxes": X[: y % 3]}) for _, y in items], strict=True)
    )


@dataclass
class Held:
    x: torch.Tensor


ALONE = {
    "graphs": (GRAPHS, Graph.merged),
    "graphs and labels": (
        GRAPHS,
        lambda graphs: (Graph.merged(graphs), torch.stack([graph.y for graph in graphs])),
    ),
    "flat tokens": (ITEMS, flat_tokens),
    "flat tokens alone": (ITEMS, lambda items: flat_tokens(items)[0]),
    "images of three sizes": (ITEMS, lambda items: [torch.zeros(3, 4 + y, 5) for _, y in items]),
    "detection": (ITEMS, detection),
    "detection, three equal images": (
        ITEMS,
        lambda items: ([torch.zeros(3, 4, 4)] * len(items), [{"b": X[:3]} for _ in items]),
    ),
    "nested": (
        ITEMS,
        lambda items: torch.nested.nested_tensor(
            [X[: 1 + y] for _, y in items], layout=torch.jagged
        ),
    ),
    "sparse": (ITEMS, lambda items: torch.stack([x for x, _ in items]).to_sparse()),
    "packed": (ITEMS, lambda items: pack_sequence([X[: 8 - y] for _, y in items], False)),
    "object": (ITEMS, lambda items: Held(torch.stack([x for x, _ in items]))),
    "keys by example": (ITEMS, lambda items: {f"image {y}": x for x, y in items}),
    "graph in a dict": (
        ITEMS,
        lambda items: {
            "x": torch.cat([X[: 2 + y % 3] for _, y in items]),
            "edges": torch.zeros(2, 3 * len(items)),
            "y": torch.tensor([y for _, y in items]),
        },
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own, of its workers
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(("items", "collate"), ALONE.values(), ids=ALONE)
def test_batches_without_an_example_dimension_come_one_at_a_time(items, collate, workers, caplog):
    caplog.set_level("INFO", logger="tracin")
    loader = DataLoader(items, batch_size=2, collate_fn=collate, num_workers=workers)
    examples = open_examples(loader, name="train")

    found = list(examples.batches(3))

    assert [list(positions) for positions, _ in found] == [[at] for at in range(len(items))]
    assert all(isinstance(batch, Single) and length(batch) == 1 for _, batch in found)
    assert examples.alone
    assert f"train come one at a time, each by a backward pass of its own: {examples.alone}" in (
        caplog.text
    )
    assert part(found[0][1], slice(0, 1)) is found[0][1]
    assert isinstance(examples.few([0, 1, 2]), Single)
    with pytest.raises(DataError, match="2 examples of train do not make a batch"):
        examples.take([0, 1])
    assert len(list(examples.subset([2, 0]).batches(2))) == 2


def test_what_is_alone_moves_and_is_copied_with_all_that_is_in_it():
    single = Single((GRAPHS[0], {"boxes": [X]}))

    moved = move(single, "meta")
    own = copied(single)
    own.content[0].x.zero_()

    assert moved.content[0].x.is_meta
    assert moved.content[1]["boxes"][0].is_meta
    assert not GRAPHS[0].x.is_meta
    assert torch.equal(GRAPHS[0].x, X[:2])


def test_padded_batches_keep_their_example_dimension():
    pad = torch.nn.utils.rnn.pad_sequence
    loader = DataLoader(
        ITEMS,
        collate_fn=lambda items: (
            pad([X[: 1 + y] for _, y in items], batch_first=True),
            torch.tensor([y for _, y in items]),
        ),
    )

    assert open_examples(loader).alone is None
    assert [length(batch) for batch in batches(loader)] == [3, 3, 1]


def test_looking_at_a_collate_leaves_the_random_states_alone():
    def noisy(items):
        return {
            "x": torch.stack([x for x, _ in items]) + torch.rand(1),
            "f": torch.rand(1).expand(len(items)) + float(np.random.rand() + random.random()),
        }

    examples = open_examples(DataLoader(ITEMS, collate_fn=noisy))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    assert examples.alone is None

    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


# --- data that changes --------------------------------------------------------------------------


class Augmented(Dataset):
    def __init__(self, chance=0.5, draw=torch.rand):
        self.chance, self.draw = chance, draw

    def __len__(self):
        return 20

    def __getitem__(self, position):
        x = X[position % 7]
        return x.flip(0) if float(self.draw(1)) < self.chance else x


CHANGING = {
    "torch": Augmented(),
    "numpy": Augmented(draw=lambda _: np.random.rand()),
    "python": Augmented(draw=lambda _: random.random()),
    "ids": tracin.WithIds(Augmented(), range(20)),
    "subset": Subset(Augmented(), range(20)),
    "collate": DataLoader(
        [x for x, _ in ITEMS],
        collate_fn=lambda xs: {"x": torch.stack(xs), "mask": torch.rand(len(xs)) < 0.5},
    ),
    "alone": DataLoader(ITEMS, collate_fn=lambda items: [x + torch.rand(1) for x, _ in items]),
}


@pytest.mark.parametrize("data", CHANGING.values(), ids=CHANGING)
def test_data_that_changes_from_fetch_to_fetch_is_warned_of_once(data):
    # One draw in 256 would flip the same examples twice.
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    examples = open_examples(data, name="train")
    state = torch.get_rng_state()

    with pytest.warns(DataWarning, match="changes from one fetch to the next.*of train.*seeded"):
        warn_if_changing(examples, range(7))

    warn_if_changing(examples, range(7))
    assert torch.equal(torch.get_rng_state(), state)


SAME = {
    "columns": (X, Y),
    "items": ITEMS,
    "nan": [(torch.tensor([torch.nan, 1.0]), 1)] * 9,
    "lists": DataLoader(ITEMS, collate_fn=with_lists),
    "graphs": DataLoader(GRAPHS, collate_fn=Graph.merged),
    "never drawn": Augmented(chance=0.0),
    "texts": [{"x": x, "name": f"n{y}"} for x, y in ITEMS],
}


@pytest.mark.parametrize("data", SAME.values(), ids=SAME)
def test_data_that_stays_the_same_is_not_warned_of(data):
    warn_if_changing(open_examples(data), range(5))
