"""Data is walked in one fixed order, with ids, and nothing of the user's is changed."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
)

import tracin
from tracin.data import Examples, WithIds, length, move, open_examples, part
from tracin.errors import DataError

INPUTS = torch.arange(14.0).reshape(7, 2)
LABELS = torch.arange(7)
Pair = namedtuple("Pair", ["inputs", "labels"])


class Squares(Dataset):
    """A map-style dataset that is no tensor: (position, position squared)."""

    def __len__(self):
        return 7

    def __getitem__(self, position):
        if not 0 <= position < 7:
            raise IndexError(position)
        return INPUTS[position], int(LABELS[position])


class Bulk(Squares):
    """One that fetches many at once, as Hugging Face datasets do."""

    def __init__(self):
        self.asked = []

    def __getitems__(self, positions):
        self.asked.append(positions)
        return [self[position] for position in positions]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Picky(UserDict):
    """A mapping that cannot be made from a dict."""

    def __init__(self, one, two):
        super().__init__({one: two})


def as_dicts(items):
    return {
        "x": torch.stack([inputs for inputs, _ in items]),
        "y": torch.tensor([label for _, label in items]),
    }


def transposed(items):
    return torch.stack([inputs for inputs, _ in items], dim=1)


def walked(examples, size=3, **bounds):
    """(positions, labels) of every batch, whatever the form of the batch."""
    found = []
    for positions, batch in examples.batches(size, **bounds):
        labels = batch["y"] if isinstance(batch, dict) else batch[1]
        found.append((list(positions), labels.tolist()))
    return found


WAYS = {
    "tuple": (INPUTS, LABELS),
    "list": [INPUTS, LABELS],
    "dict": {"x": INPUTS, "y": LABELS},
    "arrays": (INPUTS.numpy(), LABELS.numpy()),
    "tensor dataset": TensorDataset(INPUTS, LABELS),
    "dataset": Squares(),
    "bulk dataset": Bulk(),
    "list of pairs": list(Squares()),
    "subset of tensors": Subset(TensorDataset(INPUTS, LABELS), range(7)),
    "subset of items": Subset(Squares(), range(7)),
    "concatenated": ConcatDataset([Subset(Squares(), [0, 1]), Subset(Squares(), range(2, 7))]),
    "loader": DataLoader(Squares(), batch_size=2),
    "loader of tensors": DataLoader(TensorDataset(INPUTS, LABELS), batch_size=2),
    "loader that drops": DataLoader(Squares(), batch_size=2, drop_last=True),
    "loader with a collate": DataLoader(Squares(), batch_size=2, collate_fn=as_dicts),
    "loader of ids": DataLoader(WithIds((INPUTS, LABELS), range(7)), batch_size=2),
    "ids of a loader": WithIds(DataLoader(Squares(), batch_size=2), range(7)),
}


# --- the ways in ----------------------------------------------------------------------------


@pytest.mark.parametrize("data", WAYS.values(), ids=WAYS)
def test_every_way_in_gives_the_same_batches(data):
    examples = open_examples(data)

    assert len(examples) == 7
    assert examples.ids.tolist() == list(range(7))
    assert walked(examples) == [([0, 1, 2], [0, 1, 2]), ([3, 4, 5], [3, 4, 5]), ([6], [6])]


@pytest.mark.parametrize("data", WAYS.values(), ids=WAYS)
def test_examples_are_taken_in_the_order_asked_for(data):
    batch = open_examples(data).take(torch.tensor([5, 0, 5]))

    inputs = batch["x"] if isinstance(batch, dict) else batch[0]

    assert torch.equal(inputs, INPUTS[[5, 0, 5]])


def test_a_lone_tensor_is_its_own_batch():
    [(positions, batch)] = open_examples(INPUTS).batches(10)

    assert positions == range(7)
    assert torch.equal(batch, INPUTS)


def test_a_piece_of_the_data_is_walked_between_start_and_stop():
    examples = open_examples(Squares())

    assert walked(examples, size=2, start=2, stop=5) == [([2, 3], [2, 3]), ([4], [4])]
    assert walked(examples, size=2, start=6, stop=99) == [([6], [6])]
    assert walked(examples, size=2, start=3, stop=3) == []


def test_examples_are_opened_once():
    examples = open_examples(INPUTS)

    assert open_examples(examples) is examples
    assert isinstance(examples, Examples)


def test_many_items_are_fetched_at_once_where_the_dataset_can():
    data = Bulk()

    open_examples(data).take([4, 2])

    assert data.asked == [[4, 2]]


def test_a_subset_of_tensors_is_sliced_by_its_indices():
    examples = open_examples(Subset(TensorDataset(INPUTS, LABELS), [6, 1, 1, 0]))

    assert walked(examples) == [([0, 1, 2], [6, 1, 1]), ([3], [0])]
    assert examples.ids.tolist() == [0, 1, 2, 3]


def test_a_subclass_of_tensor_dataset_keeps_its_own_examples():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(tensor * 2 for tensor in super().__getitem__(index))

    _, labels = open_examples(Doubled(INPUTS, LABELS)).take([3])

    assert labels.tolist() == [6]


def test_nested_columns_keep_their_form():
    data = ({"a": INPUTS, "scale": torch.tensor(2.0)}, Pair(INPUTS, None), LABELS)

    batch = open_examples(data).take([1])

    assert torch.equal(batch[0]["a"], INPUTS[1:2])
    assert batch[0]["scale"] == 2.0
    assert isinstance(batch[1], Pair)
    assert batch[1].labels is None


def test_a_column_of_texts_goes_with_its_tensors():
    data = {"text": [f"text {i}" for i in range(7)], "y": LABELS}

    assert open_examples(data).take([4, 1])["text"] == ["text 4", "text 1"]
    assert [batch["text"] for _, batch in open_examples(data).batches(4)][1] == [
        "text 4",
        "text 5",
        "text 6",
    ]


def test_a_tokenizers_encoding_is_columns_and_keeps_its_kind():
    transformers = pytest.importorskip("transformers")
    data = transformers.BatchEncoding({"input_ids": LABELS.reshape(7, 1)})

    batch = open_examples(data).take([2])

    assert isinstance(batch, transformers.BatchEncoding)
    assert batch["input_ids"].tolist() == [[2]]


def test_arrays_that_may_not_be_written_are_copied_without_a_warning():
    array = np.arange(3.0)
    array.setflags(write=False)

    assert open_examples(array).take([2]).tolist() == [2.0]


# --- the user's world stays as it was ---------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_walking_draws_nothing_from_the_global_generator(workers):
    examples = open_examples(DataLoader(Squares(), batch_size=2, num_workers=workers))
    before = torch.get_rng_state()

    found = walked(examples)

    assert torch.equal(torch.get_rng_state(), before)
    assert found == [([0, 1, 2], [0, 1, 2]), ([3, 4, 5], [3, 4, 5]), ([6], [6])]


def test_workers_are_used_where_the_loader_has_some():
    class Worker(Squares):
        def __getitem__(self, position):
            info = torch.utils.data.get_worker_info()
            return INPUTS[position], -1 if info is None else info.num_workers

    examples = open_examples(DataLoader(Worker(), batch_size=2, num_workers=2))

    assert walked(examples, size=7) == [(list(range(7)), [2] * 7)]
    assert examples.take([0])[1].tolist() == [-1]


def test_stopping_early_is_possible_with_workers():
    examples = open_examples(DataLoader(Squares(), batch_size=2, num_workers=1))

    positions, _ = next(examples.batches(2))

    assert positions == range(0, 2)


@pytest.mark.parametrize("positions", [range(0, 3), [0, 1, 2]], ids=["slice", "list"])
def test_writing_into_a_batch_leaves_the_data_alone(positions):
    inputs = INPUTS.clone().requires_grad_()

    batch = open_examples(inputs).take(positions)
    batch.mul_(0)

    assert torch.equal(inputs, INPUTS)
    assert not batch.requires_grad


def test_the_loader_is_not_changed():
    loader = DataLoader(Squares(), batch_size=2)
    before = dict(vars(loader))

    walked(open_examples(loader))

    assert vars(loader) == before


# --- ids ------------------------------------------------------------------------------------


def test_ids_are_texts_or_integers():
    texts = open_examples(WithIds(Squares(), list("abcdefg")))
    numbers = open_examples(WithIds(INPUTS, torch.arange(7) * 10))

    assert texts.ids.tolist() == list("abcdefg")
    assert numbers.ids.dtype == np.int64
    assert numbers.ids.tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_ids_inside_a_loader_or_a_subset_are_honoured():
    named = WithIds((INPUTS, LABELS), list("abcdefg"))

    assert open_examples(DataLoader(named, batch_size=3)).ids.tolist() == list("abcdefg")
    assert open_examples(Subset(named, [6, 2])).ids.tolist() == ["g", "c"]
    assert open_examples(DataLoader(Subset(named, [6, 2]))).take([0])[1].tolist() == [6]


def test_data_with_ids_is_a_dataset_itself():
    named = WithIds({"x": INPUTS, "text": list("tuvwxyz")}, list("abcdefg"))

    assert len(named) == 7
    assert named[2]["x"].tolist() == [4.0, 5.0]
    assert named[2]["text"] == "v"


def test_changing_the_ids_of_examples_leaves_the_users_alone():
    named = WithIds(INPUTS, range(7))

    open_examples(named).ids[0] = 99

    assert named.ids[0] == 0


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (range(6), r"one id per example, in the order of the data; got 6 for 7 examples"),
        ([0, 1, 2, 3, 4, 5, 1], r"1 is given twice, at positions 1 and 6\. Make them unique"),
        (list("abcdefa"), r"'a' is given twice, at positions 0 and 6"),
        ([0.0, 1, 2, 3, 4, 5, 6], r"all of one kind, but these are float, int\. Pass \[str"),
        (["0", 1, 2, 3, 4, 5, 6], r"all of one kind, but these are int, str"),
        ([False, 1, 2, 3, 4, 5, 6], r"these are bool, int"),
        ([2**63, 1, 2, 3, 4, 5, 6], r"64 bits with a sign, but got a larger one"),
    ],
)
def test_bad_ids_are_refused(ids, message):
    with pytest.raises(DataError, match=message):
        WithIds(INPUTS, ids)


def test_a_subset_that_repeats_an_id_is_refused():
    named = WithIds(INPUTS, list("abcdefg"))

    with pytest.raises(DataError, match=r"'b' is given twice"):
        open_examples(Subset(named, [1, 1]))


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(0, 3),
        [],
        (torch.zeros(0), torch.zeros(0)),
        TensorDataset(torch.zeros(0)),
        Subset(Squares(), []),
        DataLoader(Subset(Squares(), [])),
    ],
    ids=["tensor", "list", "tuple", "dataset", "subset", "loader"],
)
def test_empty_data_is_refused(data):
    with pytest.raises(DataError, match="train holds no examples, but at least one is needed"):
        open_examples(data, name="train")


def test_ids_of_no_examples_are_refused():
    with pytest.raises(DataError, match="holds no examples, but at least one is needed"):
        WithIds([], [])


def test_ragged_columns_are_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"train\[0\] has 7 and train\[1\] has 6\. Make them equal"):
        open_examples((INPUTS, LABELS[:6]), name="train")
    with pytest.raises(DataError, match=r"data\['x'\] has 7 and data\['y'\] has 6"):
        open_examples({"x": INPUTS, "y": LABELS[:6]})


@pytest.mark.parametrize(
    ("loader", "kind"),
    [
        (DataLoader(Squares(), shuffle=True), "RandomSampler"),
        (DataLoader(Squares(), sampler=RandomSampler(Squares())), "RandomSampler"),
        (DataLoader(Squares(), sampler=range(3)), "range"),
        (DataLoader(Squares(), batch_sampler=[[1, 0], [2]]), "list"),
    ],
)
def test_a_loader_that_shuffles_or_samples_is_refused(loader, kind):
    message = rf"train has to be read in order, .* shuffles or samples its examples \({kind}\)"

    with pytest.raises(DataError, match=message + r"\. Pass the dataset itself .* shuffle=False"):
        open_examples(loader, name="train")


def test_a_loader_that_makes_no_batches_is_refused():
    with pytest.raises(DataError, match=r"batch_size=None.*Pass a DataLoader with a batch_size"):
        open_examples(DataLoader(Squares(), batch_size=None))


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream())], ids=["dataset", "loader"])
def test_a_stream_is_refused_with_the_way_out(data):
    message = r"IterableDataset \(Stream\): it has no length and no fixed order.*Pass a map-style"

    with pytest.raises(DataError, match=message):
        open_examples(data)


NO_DATA = {"none": None, "path": "train.csv", "number": 7, "iterator": iter([1]), "set": {1, 2}}


@pytest.mark.parametrize("data", NO_DATA.values(), ids=NO_DATA)
def test_what_is_no_data_is_refused(data):
    with pytest.raises(DataError, match=r"train has to be a map-style Dataset .* but got an? "):
        open_examples(data, name="train")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor(3.0), "a tensor without dimensions has no examples"),
        ({}, "this dict holds none"),
        (
            {"x": INPUTS, "y": [0, 1]},
            r"one entry per example, but data\['y'\] has 2 for 7 examples",
        ),
        ({"x": INPUTS, "y": 0}, r"data\['y'\] is the number 0\. Make a tensor of it"),
        ({"x": INPUTS, "y": Squares()}, r"data\['y'\] is a Squares"),
        (np.array(["a", "b"]), "which no tensor can hold"),
    ],
)
def test_columns_that_are_no_tensors_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        open_examples(data)


def test_a_long_list_of_equal_tensors_is_not_guessed_at():
    images = [torch.zeros(3, 4, 4)] * 10

    with pytest.raises(DataError, match=r"as many examples or as many columns\. Pass torch\.stack"):
        open_examples(images)

    assert len(open_examples(torch.stack(images))) == 10
    assert len(open_examples(tuple(images))) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_that_puts_examples_second_is_refused(workers):
    loader = DataLoader(Squares(), batch_size=2, collate_fn=transposed, num_workers=workers)
    message = r"after collating 3 examples of train, batch has shape \(2, 3\)\. Let the collate_fn"

    with pytest.raises(DataError, match=message):
        list(open_examples(loader, name="train").batches(3))


def test_a_leaf_with_another_first_size_is_named():
    loader = DataLoader(Squares(), collate_fn=lambda items: {"x": [INPUTS[: len(items)], INPUTS]})

    with pytest.raises(DataError, match=r"batch\['x'\]\[1\] has shape \(7, 2\)"):
        open_examples(loader).take([0, 1])


def test_a_collate_without_tensors_is_refused():
    loader = DataLoader(Squares(), collate_fn=lambda items: ["text"] * len(items))

    with pytest.raises(DataError, match="gave a list without any"):
        open_examples(loader).take([0, 1])


@pytest.mark.parametrize(
    ("bare", "full"),
    [
        ({"x": 1.0}, {"x": 1.0, "w": 2.0}),
        (({"x": 1.0}, 0), ({"w": 1.0}, 0)),
        ({"x": 1.0, "y": {"z": 2.0}}, {"x": 1.0, "y": {"z": 2.0, "w": 1.0}}),
        ({"x": {"z": 1.0}}, {"x": 1.0}),
    ],
    ids=["one more", "another in a tuple", "one more within", "no mapping"],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_examples_with_other_keys_are_refused(bare, full, is_first):
    """Torch's collate takes the keys of the first: a weight of the others would be lost."""
    data = [bare, full] if is_first else [full, bare]
    match = r"^Examples of asked .*(all of them the same keys|one shape per example)"
    with pytest.raises(DataError, match=match):
        open_examples(data, name="asked").take([0, 1])
    assert open_examples(data).take([1]) is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_examples_that_do_not_stack_are_refused_with_the_way_out(workers):
    data = [(torch.zeros(size), 0) for size in (2, 3)]
    loader = DataLoader(data, num_workers=workers)  # pyright: ignore[reportArgumentType]

    with pytest.raises(DataError, match=r"of one shape per example(.|\n)*collate_fn that pads"):
        list(open_examples(loader).batches(2))


def test_texts_of_unlike_length_are_refused_with_what_pads_as_the_trainer_does():
    texts = [{"input_ids": [5] * length} for length in (2, 3)]

    words = r"^Examples of queries cannot .* of unlike length, tracin\..*trainer_data\(rows, coll"
    with pytest.raises(DataError, match=words):
        open_examples(texts, name="queries").take([0, 1])


@pytest.mark.parametrize("which", ["train", "queries"])
def test_examples_that_do_not_stack_are_named_by_every_call(which, tmp_path):
    model = torch.nn.Linear(2, 1)
    run = tracin.TracIn(model, "mse", [model.state_dict()], learning_rates="equal")
    good = torch.zeros(2, 2), torch.zeros(2)
    ragged: Any = [(torch.zeros(size), 0.0) for size in (2, 3)]
    two = (ragged, good) if which == "train" else (good, ragged)
    calls: list[Any] = [lambda: run.influence(*two), lambda: run.explain(*two, 1)]
    if which == "train":
        calls += [
            lambda: run.self_influence(ragged),
            lambda: run.find_mislabelled(ragged),
            lambda: run.index(ragged, tmp_path / "index"),
        ]
    else:
        steps = torch.optim.SGD(model.parameters())
        calls += [
            lambda: run.index(good, tmp_path / "index").influence(ragged),
            lambda: tracin.Tracer(model, steps, "mse", ragged, good, tmp_path / "trace"),
        ]

    for call in calls:
        with pytest.raises(DataError, match=f"^Examples of {which} cannot be stacked to a batch"):
            call()


def test_an_error_of_the_users_dataset_comes_through_as_it_is():
    class Broken(Squares):
        def __getitem__(self, position):
            raise FileNotFoundError("image 3 is gone")

    with pytest.raises(FileNotFoundError, match="image 3 is gone"):
        open_examples(Broken()).take([0])


def test_positions_and_sizes_that_make_no_batch_are_refused():
    examples = open_examples(INPUTS, name="train")

    with pytest.raises(DataError, match=r"at positions 0 to 6, but position 7 was asked for"):
        examples.take([0, 7])
    with pytest.raises(DataError, match=r"position -1 was asked for"):
        examples.take([-1])
    with pytest.raises(DataError, match="At least one position in train"):
        examples.take([])
    with pytest.raises(DataError, match="size 0 was asked for"):
        examples.batches(0)


# --- batches --------------------------------------------------------------------------------

BATCH = {
    "pair": Pair(INPUTS, [LABELS]),
    "texts": list("abcdefg"),
    "shared": torch.tensor(3.0),
    "names": ["one", "two"],
    "flag": True,
}


def test_the_length_of_a_batch_is_its_number_of_examples():
    assert length(BATCH) == 7


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True] + [False] * 4)],
    ids=["slice", "list", "tensor", "booleans"],
)
def test_a_part_is_cut_from_every_tensor(index):
    cut = part(BATCH, index)

    assert torch.equal(cut["pair"].inputs, INPUTS[1:3])
    assert cut["pair"].labels[0].tolist() == [1, 2]
    assert cut["texts"] == ["b", "c"]
    assert cut["shared"] == 3.0
    assert cut["names"] == ["one", "two"]
    assert cut["flag"] is True


def test_a_batch_moves_with_all_its_tensors():
    moved = move(BATCH, "meta")

    assert moved["pair"].inputs.is_meta
    assert moved["pair"].labels[0].is_meta
    assert moved["texts"] == list("abcdefg")
    assert not BATCH["pair"].inputs.is_meta


@pytest.mark.parametrize(
    ("mapping", "kind"),
    [
        (OrderedDict(x=INPUTS), OrderedDict),
        (UserDict({"x": INPUTS}), UserDict),
        (defaultdict(list, x=INPUTS), dict),
        (Picky("x", INPUTS), dict),
    ],
    ids=["ordered", "user", "default", "picky"],
)
def test_a_mapping_keeps_its_kind_where_it_can(mapping, kind):
    cut = part(mapping, [0])

    assert type(cut) is kind
    assert cut["x"].tolist() == [[0.0, 1.0]]


def test_a_batch_that_disagrees_has_no_length():
    with pytest.raises(DataError, match=r"batch\[0\] has 7 and batch\[1\] has 6"):
        length((INPUTS, LABELS[:6]))
    with pytest.raises(DataError, match="got a list without one"):
        length(["text"])
