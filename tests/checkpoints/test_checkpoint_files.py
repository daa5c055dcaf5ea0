"""Files that people have: odd keys and values, damage, malice; read right or refused in words."""

import argparse
import json
import os
import resource
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tracin
from tracin.checkpoints import Checkpoint, checkpoint_weights, loaded, open_checkpoints
from tracin.errors import CheckpointError, LearningRateError


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(3, 6, generator=generator),
        "bias": torch.randn(3, generator=generator),
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def zipped_again(path, kind):
    """The archive as unzipping it and zipping it again would leave it."""
    with zipfile.ZipFile(path) as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, content in records.items():
            new.writestr(name, content)
    return path


# Keys


@pytest.mark.parametrize(
    "key", ["model_state", "net", "params", "weights", "module", "state_dict", "model"]
)
def test_a_state_dict_under_a_usual_key_is_found(tmp_path, key):
    torch.save({key: weights(), "epoch": 3}, tmp_path / "a.pt")

    assert same(open_checkpoints(tmp_path / "a.pt")[0].weights(), weights())


def test_settings_under_a_usual_key_are_no_weights(tmp_path):
    torch.save({"params": {"lr": 0.1}, "net": weights()}, tmp_path / "a.pt")

    assert same(open_checkpoints(tmp_path / "a.pt")[0].weights(), weights())


def test_two_state_dicts_are_not_chosen_between(tmp_path):
    torch.save({"net": weights(), "model": weights(1)}, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"under each of 'model', 'net'. Give the one that"):
        open_checkpoints(tmp_path / "a.pt")


def test_state_dicts_under_other_keys_are_named(tmp_path):
    torch.save({"generator": weights(), "epoch": 3}, tmp_path / "a.pt")

    with pytest.raises(
        CheckpointError, match=r"under 'generator'.*weights_only=True\)\['generator'"
    ):
        open_checkpoints(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["best.pth.tar", "best.tar", "best.PT", "best.Safetensors"])
def test_files_of_other_names_are_read(tmp_path, name):
    save = save_file if name.endswith("Safetensors") else torch.save
    save(weights(), tmp_path / name)

    assert same(open_checkpoints(tmp_path / name)[0].weights(), weights())
    assert same(open_checkpoints(tmp_path)[0].weights(), weights())


def test_the_average_of_swa_is_read_into_the_bare_model_and_into_its_own_kind(tmp_path):
    bare = nn.Linear(6, 3)
    torch.save(AveragedModel(bare).state_dict(), tmp_path / "a.pt")
    [checkpoint] = open_checkpoints(tmp_path / "a.pt")

    for model in (nn.Linear(6, 3), AveragedModel(nn.Linear(6, 3))):
        with loaded(model, checkpoint):
            inner = getattr(model, "module", model)
            assert torch.equal(inner.weight, bare.weight)


def test_a_models_own_tensor_called_n_averaged_is_kept():
    own = weights() | {"n_averaged": torch.ones(1)}

    assert "n_averaged" in Checkpoint(own).weights()


def test_weight_averaging_of_lightning_gives_the_weights_that_were_trained(tmp_path):
    content = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": weights(1),
        "current_model_state": weights(0),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    torch.save(content, tmp_path / "a.ckpt")

    assert same(open_checkpoints(tmp_path / "a.ckpt")[0].weights(), weights(0))


class Scaled(nn.Linear):
    extra: object = torch.ones(2)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize("extra", [torch.ones(2), {"amax": 3.0}, None, b"scales"])
def test_an_extra_state_is_no_weight(tmp_path, extra):
    model = nn.Sequential(Scaled(6, 3))
    model[0].extra = extra
    torch.save(model.state_dict(), tmp_path / "a.pt")

    with loaded(model, open_checkpoints(tmp_path / "a.pt")[0]), loaded(model, model.state_dict()):
        pass


# Learning rates


def trained(options=None, **schedule):
    model = nn.Linear(6, 3)
    optimizer = torch.optim.Adam(options(model) if options else model.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if schedule else None
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    if scheduler:
        scheduler.step()
    return model, optimizer


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optim"])
def test_the_rate_in_an_optimizers_state_is_taken(tmp_path, key):
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), key: optimizer.state_dict()}, tmp_path / "a.pt")

    assert open_checkpoints(tmp_path / "a.pt")[0].learning_rate == 0.25


def test_a_rate_that_a_scheduler_has_moved_on_is_not_taken(tmp_path):
    model, optimizer = trained(scheduled=True)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")

    found = open_checkpoints(tmp_path / "a.pt")

    with pytest.raises(LearningRateError, match="holds the next step's rate, since a scheduler"):
        checkpoint_weights(found, None)


def test_groups_of_named_parameters_give_each_its_rate(tmp_path):
    def groups(model):
        return [
            {"params": [("weight", model.weight)], "lr": 0.5},
            {"params": [("bias", model.bias)], "lr": 0.0},
        ]

    model, optimizer = trained(groups)
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")

    assert open_checkpoints(tmp_path / "a.pt")[0].learning_rate == {"weight": 0.5, "bias": 0.0}


def test_a_rate_that_is_a_tensor_is_read(tmp_path):
    torch.save({"model": weights(), "lr": torch.tensor(0.5)}, tmp_path / "a.pt")

    assert open_checkpoints(tmp_path / "a.pt")[0].learning_rate == 0.5


# Names


def test_files_of_one_name_and_folder_name_are_told_apart(tmp_path):
    for run in ("a/run", "b/run", "c/other"):
        (tmp_path / run).mkdir(parents=True)
        torch.save(weights(), tmp_path / run / "best.pt")

    found = open_checkpoints(sorted(tmp_path.rglob("best.pt")))

    assert [one.name for one in found] == ["a/run/best.pt", "b/run/best.pt", "other/best.pt"]


def test_equal_weights_in_two_files_add_up(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save(weights(), tmp_path / name)
    model, data = nn.Linear(6, 3), (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]

    both = tracin.TracIn(model, "cross_entropy", files, learning_rates=[0.1, 0.3])
    one = tracin.TracIn(model, "cross_entropy", files[:1], learning_rates=[0.4])

    assert torch.allclose(both.self_influence(data), one.self_influence(data))


def calls(work):
    """How many calls `work` makes: time in proportion, on any machine."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("side", ["checkpoint", "model"])
def test_many_names_that_do_not_fit_take_time_in_proportion(side):
    def refused(count):
        names = [f"part{number}.weight" for number in range(count)]
        many = nn.ModuleDict({name.partition(".")[0]: nn.Flatten() for name in names})
        for part in many.values():
            part.weight = nn.Parameter(torch.zeros(1))
        held = dict.fromkeys(names, torch.zeros(1))

        def work():
            model, state = (nn.Linear(6, 3), held) if side == "checkpoint" else (many, weights())
            with pytest.raises(CheckpointError, match="does not fit"), loaded(model, state):
                pass

        return work

    assert calls(refused(800)) < 2.5 * calls(refused(400))


# Kinds of tensors


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
        (lambda: torch.empty(3, device="meta"), 'is on the device "meta"'),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8), "is quantised"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a nested tensor"),
    ],
    ids=["coo", "csr", "meta", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(tmp_path, value, words):
    held = weights() | {"odd": value()}
    torch.save(held, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=f"'odd', which {words}"):
        Checkpoint(tmp_path / "a.pt").weights()
    with pytest.raises(CheckpointError, match=f"'odd', which {words}"):
        open_checkpoints([held])


def test_the_state_of_a_lazy_module_is_refused_in_words():
    with pytest.raises(CheckpointError, match="has no shape yet"):
        open_checkpoints([nn.LazyLinear(3).state_dict()])


# Values besides weights


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=0.1), r"argparse\.Namespace"),
        (np.float64(0.1), r"numpy\.dtypes\.Float64DType"),
        (Path("x"), "PosixPath"),
    ],
    ids=["namespace", "numpy", "path"],
)
def test_values_that_run_nothing_are_named_with_the_way_to_allow_them(tmp_path, value, name):
    torch.save({"model": weights(), "settings": value}, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=rf"other than weights.*safe_globals\(\[.*{name}"):
        open_checkpoints(tmp_path / "a.pt")


def test_allowed_values_are_read(tmp_path):
    content = {"model": weights(), "args": argparse.Namespace(lr=0.1), "loss": np.float64(0.5)}
    torch.save(content, tmp_path / "a.pt")
    allowed = [argparse.Namespace, np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType]

    with torch.serialization.safe_globals(allowed):
        [checkpoint] = open_checkpoints(tmp_path / "a.pt")
        assert same(checkpoint.weights(), weights())


# Folders in parts


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (["zero_to_fp32.py"], "zero_to_fp32.py"),
        (["global_step10/zero_pp_rank_0_mp_rank_00_optim_states.pt"], "zero_to_fp32.py"),
        (["pytorch_model_fsdp_0/.metadata"], "accelerate merge-weights"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch_save"),
    ],
    ids=["zero", "zero steps", "fsdp", "dcp"],
)
@pytest.mark.parametrize("name", ["checkpoint-10", "last.ckpt"])
def test_a_folder_of_parts_names_the_tool_that_merges_them(tmp_path, made, words, name):
    for file in made:
        path = tmp_path / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    for given in (tmp_path / name, Checkpoint(tmp_path / name), str(tmp_path / "*.ckpt")):
        if isinstance(given, str) and name != "last.ckpt":
            continue
        with pytest.raises(CheckpointError, match=words):
            open_checkpoints(given)


def test_the_empty_tensors_of_zero_3_are_explained(tmp_path):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    save_file({key: torch.empty(0) for key in weights()}, folder / "model.safetensors")

    with (
        pytest.raises(CheckpointError, match=r"no numbers for 'bias', 'weight'.*zero_to_fp32"),
        loaded(nn.Linear(6, 3), open_checkpoints(folder)[0]),
    ):
        pass


def test_quantised_folders_are_refused(tmp_path):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    save_file(weights(), folder / "model.safetensors")
    settings = {"quantization_config": {"quant_method": "bitsandbytes"}}
    (folder / "config.json").write_text(json.dumps(settings))

    with pytest.raises(CheckpointError, match=r"quantised weights \(bitsandbytes\)"):
        open_checkpoints(folder)[0].weights()


# Damage


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    zipped_again(tmp_path / "a.pt", zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match=r"is compressed .*torch.save\(torch.load"):
        open_checkpoints(tmp_path / "a.pt")


def test_an_archive_zipped_again_without_compression_is_read(tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    zipped_again(tmp_path / "a.pt", zipfile.ZIP_STORED)

    assert same(open_checkpoints(tmp_path / "a.pt")[0].weights(), weights())


def test_a_storage_that_is_cut_short_is_refused(tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as new:
        for name, content in records.items():
            new.writestr(name, content[:-4] if name.endswith("data/0") else content)

    with pytest.raises(CheckpointError, match=r"storage 0 needs 72 bytes, and 68 are there"):
        open_checkpoints(tmp_path / "a.pt")


def test_archives_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)

    assert same(open_checkpoints(tmp_path / "a.pt")[0].weights(), weights())


def test_a_storage_larger_than_a_file_of_before_torch_1_6_takes_no_memory(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.zeros(7777)}, path, _use_new_zipfile_serialization=False)
    told, huge = struct.pack("<BH", ord("M"), 7777), struct.pack("<Bi", ord("J"), 2**31 - 1)
    content = path.read_bytes()
    assert told in content
    path.write_bytes(content.replace(told, huge))

    with pytest.raises(CheckpointError, match=r"its tensors need 8,589,934,588 bytes"):
        open_checkpoints(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_cut_while_in_use_is_an_error(tmp_path, suffix):
    path = tmp_path / f"last{suffix}"
    model = nn.Linear(200, 200)
    save = save_file if suffix == ".safetensors" else torch.save
    save(dict(model.state_dict()), path)
    [checkpoint] = open_checkpoints(path)

    held = checkpoint.weights()
    os.truncate(path, 4096)

    assert same(held, model.state_dict())
    with pytest.raises(CheckpointError, match="was rewritten after it was opened"):
        checkpoint.weights()


@pytest.mark.parametrize("kind", ["file", "folder", "shards"])
def test_a_checkpoint_that_is_replaced_after_it_was_opened_is_an_error(tmp_path, kind):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    if kind == "shards":
        save_file(weights(), folder / "part.safetensors")
        index = {"weight_map": dict.fromkeys(weights(), "part.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        path = folder / "part.safetensors"
    else:
        path = folder / "model.safetensors"
        save_file(weights(), path)
    [checkpoint] = open_checkpoints(path if kind == "file" else folder)

    save_file(weights(1), folder / "new")
    os.utime(folder / "new", (0, 0))
    os.replace(folder / "new", path)

    with pytest.raises(CheckpointError, match="was rewritten after it was opened"):
        checkpoint.weights()


def test_an_interrupted_read_stays_interrupted(tmp_path, monkeypatch):
    save_file(weights(), tmp_path / "a.safetensors")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "empty", interrupted)

    with pytest.raises(KeyboardInterrupt):
        Checkpoint(tmp_path / "a.safetensors").weights()


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    save_file(weights(), tmp_path / "a.safetensors")

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)

    with pytest.raises(CheckpointError, match=r"a.safetensors cannot be read: Permission denied\."):
        Checkpoint(tmp_path / "a.safetensors").weights()


# Malice


def header(entries, data=b""):
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(content)) + content + data


def one(**changes):
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}


HEADS = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 2**63),
    "longer than the file": struct.pack("<Q", 10**6) + b"{}",
    "a list": header([]),
    "depth": header(b"[" * 200_000),
    "an entry that is a list": header({"w": []}),
    "a shape that is a number": header(one(shape=1), bytes(4)),
    "a negative shape": header(one(shape=[-1]), bytes(4)),
    "a shape of floats": header(one(shape=[1.0]), bytes(4)),
    "an absurd shape": header(one(shape=[2**62, 2**62]), bytes(4)),
    "a thousand dimensions": header(one(shape=[1] * 1000), bytes(4)),
    "an unknown type": header(one(dtype="F4"), bytes(4)),
    "a type that is no text": header(one(dtype=[]), bytes(4)),
    "offsets the wrong way": header(one(data_offsets=[4, 0]), bytes(4)),
    "offsets beyond the file": header(one(shape=[2], data_offsets=[0, 8]), bytes(4)),
    "a gap": header(one(data_offsets=[4, 8]), bytes(8)),
    "more than its tensors": header(one(), bytes(8)),
    "infinite offsets": header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}'),
    "a name twice": header(b'{"w":1,"w":2}'),
    "texts that are none": header({"__metadata__": {"a": 1}}),
    "aliases that are none": header({"__metadata__": {"tracin.aliases": "[]"}}),
    "aliases of nothing": header({"__metadata__": {"tracin.aliases": '{"a": "b"}'}}),
    "not UTF-8": header(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("content", HEADS.values(), ids=HEADS)
def test_a_hostile_head_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        open_checkpoints(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError):
        Checkpoint(tmp_path / "a.safetensors").weights()


JSON = {
    "depth": "[" * 200_000,
    "a list": "[]",
    "null": "null",
    "not UTF-8": b"\xff\xfe",
    "cut": '{"a": 1',
}
STATES = {
    "a log that is a number": {"log_history": 3},
    "entries that are none": {"log_history": [1, None, "a", []]},
    "an absurd rate": {"log_history": [{"step": 1, "learning_rate": 10**400}], "global_step": 1},
    "a rate that is text": {"log_history": [{"step": 1, "learning_rate": "0.1"}]},
    "steps that are none": {"log_history": [{"step": [], "learning_rate": 0.1}], "global_step": {}},
    "an infinite step": {"log_history": [{"step": float("inf"), "learning_rate": 0.1}]},
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
@pytest.mark.parametrize("file", ["trainer_state.json", "config.json", "index"])
def test_hostile_json_in_a_folder_is_a_checkpoint_error(tmp_path, text, file):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    name = "model.safetensors.index.json" if file == "index" else file
    content = text if isinstance(text, bytes) else text.encode()
    if file != "index":
        save_file(weights(), folder / "model.safetensors")
        (folder / "trainer_state.json").write_text("{}")
    (folder / name).write_bytes(content)

    with pytest.raises(CheckpointError, match=name):
        open_checkpoints(folder)[0].weights()


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_log_of_other_types_gives_no_rate(tmp_path, state):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    save_file(weights(), folder / "model.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps(state))

    found = open_checkpoints(folder)

    with pytest.raises(LearningRateError):
        checkpoint_weights(found, None)


@pytest.mark.parametrize(
    "files", [3, [], {"weight": 3}, {"weight": "../a.safetensors"}, {"weight": "/etc/passwd"}]
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, files):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    save_file(weights(), tmp_path / "a.safetensors")
    index = {"weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"index.json must hold a weight_map"):
        open_checkpoints(folder)


CONTENTS = {
    "a number": 3,
    "text": "abc",
    "nothing": None,
    "an empty dict": {},
    "numbers as names": {1: torch.ones(2)},
    "states of an optimizer that are none": {"model": weights(), "optimizer": {"param_groups": 3}},
    "groups that are none": {"model": weights(), "optimizer": {"param_groups": [3, None]}},
    "a rate that is none": {"model": weights(), "optimizer": {"param_groups": [{"lr": "a"}]}},
    "an absurd step": {"model": weights(), "step": 10**400, "lr": 10**400},
    "a list of lists": {"model": [[weights()]]},
    "Lightning's with other types": {
        "pytorch-lightning_version": 3,
        "state_dict": weights(),
        "optimizer_states": 3,
        "lr_schedulers": {},
        "global_step": "x",
    },
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_other_contents_of_a_pt_are_read_or_refused_in_words(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"a\.pt.*\. "):
        checkpoint_weights(open_checkpoints(tmp_path / "a.pt"), None)


def with_pickle(path, content):
    """A `.pt` with another pickle in it, and checksums that fit."""
    torch.save(weights(), path)
    with zipfile.ZipFile(path) as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, held in records.items():
            new.writestr(name, content if name.endswith("data.pkl") else held)
    return path


STORAGE = (
    b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
)
PICKLES = {
    "nothing": b"",
    "an absurd place in the memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "an absurd bytearray": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "absurd bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    "an absurd storage": STORAGE + b"\x8a\x08" + b"\xff" * 7 + b"\x7ftQ.",
    "a negative storage": STORAGE + b"J\xff\xff\xff\xfftQ.",
    "a storage of text": STORAGE + b"X\x01\x00\x00\x00atQ.",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_hostile_pickle_is_refused_and_takes_no_memory(tmp_path, content):
    path = with_pickle(tmp_path / "a.pt", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(CheckpointError, match=r"a\.pt"):
        open_checkpoints(path)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # of kB
