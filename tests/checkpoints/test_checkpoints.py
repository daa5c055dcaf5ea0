"""What people have as checkpoints is found, read safely, and put into a model without a trace."""

import copy
import json
import os
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tracin.checkpoints import (
    Checkpoint,
    Recorder,
    checkpoint_weights,
    loaded,
    open_checkpoints,
)
from tracin.checkpoints.readers.torch import torch_version
from tracin.errors import (
    CheckpointError,
    CheckpointWarning,
    DeviceError,
    LearningRateError,
    UnsupportedModelError,
)
from tracin.guards import untouched


class Code:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def weights(seed=0):
    return copy.deepcopy(net(seed).state_dict())


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def hugging_face(folder, step, log=(), state=None):
    folder.mkdir(parents=True)
    save_file(weights(step), folder / "model.safetensors", metadata={"format": "pt"})
    content = {"global_step": step, "log_history": list(log)} if state is None else state
    (folder / "trainer_state.json").write_text(json.dumps(content))
    return folder


def lightning(path, rates=(0.1,), schedulers=()):
    torch.save(
        {
            "epoch": 1,
            "global_step": 20,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {f"model.{key}": value for key, value in weights().items()},
            "optimizer_states": [
                {"state": {}, "param_groups": [{"lr": rate, "params": [0]} for rate in rates]}
            ],
            "lr_schedulers": list(schedulers),
        },
        path,
    )
    return path


# Formats


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_state_dict_saved_by_torch_is_read(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    torch.save(weights(), path)

    [checkpoint] = open_checkpoints(path)

    assert same(checkpoint.weights(), weights())
    assert checkpoint.name == path.name
    assert checkpoint.learning_rate is None


def test_safetensors_are_read(tmp_path):
    save_file(weights(), tmp_path / "net.safetensors")

    [checkpoint] = open_checkpoints(str(tmp_path / "net.safetensors"))

    assert same(checkpoint.weights(), weights())


def test_a_file_of_before_torch_1_6_is_read(tmp_path):
    torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)

    [checkpoint] = open_checkpoints(tmp_path / "old.pt")

    assert same(checkpoint.weights(), weights())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("rate_key", ["learning_rate", "lr"])
def test_a_dict_with_a_state_dict_and_a_rate_is_understood(tmp_path, key, rate_key):
    torch.save({key: weights(), rate_key: 0.25, "global_step": 7}, tmp_path / "a.pt")

    [checkpoint] = open_checkpoints(tmp_path / "a.pt")

    assert same(checkpoint.weights(), weights())
    assert (checkpoint.learning_rate, checkpoint.step) == (0.25, 7)


def test_a_dict_in_memory_is_understood_like_one_in_a_file():
    [checkpoint] = open_checkpoints({"state_dict": weights(), "lr": torch.tensor(0.5)})

    assert same(checkpoint.weights(), weights())
    assert checkpoint.learning_rate == 0.5
    assert checkpoint.name == "checkpoint 0"


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_taken_away(tmp_path, prefix):
    torch.save({prefix + key: value for key, value in weights().items()}, tmp_path / "a.pt")

    [checkpoint] = open_checkpoints(tmp_path / "a.pt")

    assert same(checkpoint.weights(), weights())


def test_a_name_compiled_in_the_middle_is_bare():
    inner = {"body._orig_mod.weight": torch.ones(1), "head.weight": torch.ones(1)}

    assert list(Checkpoint(inner).weights()) == ["body.weight", "head.weight"]


def test_names_stay_where_bare_ones_would_collide():
    both = {"module.weight": torch.ones(1), "weight": torch.zeros(1)}

    assert list(Checkpoint(both).weights()) == ["module.weight", "weight"]


def test_a_hugging_face_folder_gives_the_rate_logged_at_its_step(tmp_path):
    log = [
        {"step": 10, "learning_rate": 0.3, "loss": 1.0},
        {"step": 20, "learning_rate": 0.2, "loss": 0.9},
        {"step": 20, "eval_loss": 0.8},
        {"step": 30, "learning_rate": 0.1, "loss": 0.7},
    ]
    hugging_face(tmp_path / "checkpoint-20", 20, log)

    [checkpoint] = open_checkpoints(tmp_path / "checkpoint-20")

    assert (checkpoint.learning_rate, checkpoint.step) == (0.2, 20)
    assert checkpoint.name == "checkpoint-20"


def test_between_two_logged_steps_the_earlier_rate_is_taken(tmp_path):
    log = [{"step": 10, "learning_rate": 0.3}, {"step": 30, "learning_rate": 0.1}]
    hugging_face(tmp_path / "checkpoint-20", 20, log)

    [checkpoint] = open_checkpoints(tmp_path / "checkpoint-20")

    assert checkpoint.learning_rate == 0.3


@pytest.mark.parametrize("log", [[], [{"step": 30, "learning_rate": 0.1}]])
def test_the_optimizer_of_hugging_face_is_never_asked_for_its_rate(tmp_path, log):
    folder = hugging_face(tmp_path / "checkpoint-20", 20, log)
    torch.save({"param_groups": [{"lr": 0.7}]}, folder / "optimizer.pt")

    [checkpoint] = open_checkpoints(folder)

    assert checkpoint.learning_rate is None
    with pytest.raises(LearningRateError, match="logs no learning rate up to its step"):
        checkpoint_weights([checkpoint], None)


def test_checkpoint_folders_are_sorted_by_number(tmp_path):
    for step in (10, 9, 100, 2):
        hugging_face(tmp_path / f"checkpoint-{step}", step)
    save_file(weights(), tmp_path / "model.safetensors")

    found = open_checkpoints(tmp_path)

    assert [one.step for one in found] == [2, 9, 10, 100]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_put_together(tmp_path, kind):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    save = save_file if kind == "safetensors" else torch.save
    state = weights()
    names = list(state)
    parts = {f"{stem}-1.{kind}": names[:3], f"{stem}-2.{kind}": names[3:]}
    for file, held in parts.items():
        save({name: state[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))

    [checkpoint] = open_checkpoints(folder)

    assert same(checkpoint.weights(), state)

    (folder / f"{stem}-2.{kind}").unlink()
    with pytest.raises(CheckpointError, match=rf"lists {stem}-2.{kind}.*1 of 2 shards are missing"):
        checkpoint.weights()


def test_an_adapter_alone_is_refused_by_a_model_without_one(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    save_file(weights(), folder / "adapter_model.safetensors")

    [checkpoint] = open_checkpoints(folder)

    with (
        pytest.raises(CheckpointError, match="checkpoint-5 is a PEFT adapter, the trained part"),
        loaded(net(), checkpoint),
    ):
        pass


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()

    with pytest.raises(CheckpointError, match=r"has no weights \(model.safetensors, .*adapter_mod"):
        open_checkpoints(folder)


@pytest.mark.parametrize(
    ("version", "rate"),
    [("4.50.3", 0.3), ("4.51.0", 0.2), ("5.23.0", 0.2), ("5.0.0.dev0", 0.2), (None, 0.2)],
)
def test_the_rate_of_a_release_that_logged_the_next_steps_is_put_right(tmp_path, version, rate):
    log = [{"step": step, "learning_rate": (6 - step) / 10} for step in range(1, 5)]
    folder = hugging_face(tmp_path / "checkpoint-4", 4, log)
    (folder / "config.json").write_text(json.dumps({"transformers_version": version}))

    [checkpoint] = open_checkpoints(folder)

    assert checkpoint.learning_rate == rate


def test_lightning_without_a_scheduler_gives_its_constant_rate(tmp_path):
    [checkpoint] = open_checkpoints(lightning(tmp_path / "a.ckpt"))

    assert (checkpoint.learning_rate, checkpoint.step) == (0.1, 20)
    assert "model.0.weight" in checkpoint.weights()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"schedulers": [{"last_epoch": 3}]}, "holds the next step's rate"),
        ({"rates": (0.1, 0.2)}, "different rates and no names"),
        ({"rates": ()}, "no optimizer state"),
        ({"rates": (0.0,)}, "the rate in its optimizer state is 0.0"),
    ],
)
def test_a_rate_of_lightning_that_may_be_wrong_is_not_taken(tmp_path, options, reason):
    found = open_checkpoints(lightning(tmp_path / "a.ckpt", **options))

    with pytest.raises(LearningRateError, match=reason):
        checkpoint_weights(found, None)
    assert checkpoint_weights(found, "equal") == [1.0]


# Finding


def test_a_glob_is_sorted_by_number(tmp_path):
    for step in (10, 2, 1):
        torch.save(weights(step), tmp_path / f"epoch{step}.pt")
    (tmp_path / "epoch3.txt").write_text("notes")

    found = open_checkpoints(str(tmp_path / "epoch*"))

    assert [one.name for one in found] == ["epoch1.pt", "epoch2.pt", "epoch10.pt"]


def test_a_folder_of_weights_is_sorted_by_number(tmp_path):
    for step in (10, 2):
        torch.save(weights(step), tmp_path / f"epoch{step}.pt")

    assert [one.name for one in open_checkpoints(tmp_path)] == ["epoch2.pt", "epoch10.pt"]


def test_the_order_of_a_list_is_the_users(tmp_path):
    for step in (1, 2, 3):
        torch.save(weights(step), tmp_path / f"{step}.pt")
    listed = [tmp_path / "3.pt", Checkpoint(tmp_path / "1.pt", 0.5), weights(7), tmp_path / "2.pt"]

    found = open_checkpoints(listed)

    assert [one.name for one in found] == ["3.pt", "1.pt", "checkpoint 2", "2.pt"]
    assert found[1].learning_rate == 0.5


def test_a_path_with_brackets_is_a_path(tmp_path):
    torch.save(weights(), tmp_path / "a[1].pt")

    assert len(open_checkpoints(str(tmp_path / "a[1].pt"))) == 1


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"run{seed}").mkdir()
        torch.save(weights(seed), tmp_path / f"run{seed}" / "net.pt")

    found = open_checkpoints(str(tmp_path / "*" / "net.pt"))

    assert [one.name for one in found] == ["run1/net.pt", "run2/net.pt"]


def test_a_checkpoint_without_a_rate_takes_the_one_in_its_file(tmp_path):
    torch.save({"model": weights(), "lr": 0.3}, tmp_path / "a.pt")

    found = open_checkpoints([Checkpoint(tmp_path / "a.pt", name="mine")])

    assert (found[0].learning_rate, found[0].name) == (0.3, "mine")


def test_the_same_file_twice_is_warned_about_and_kept(tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    again = tmp_path / ".." / tmp_path.name / "a.pt"

    with pytest.warns(CheckpointWarning, match="Checkpoint 1 .* is the same as checkpoint 0"):
        found = open_checkpoints([tmp_path / "a.pt", again])

    assert len(found) == 2


def test_state_dicts_that_share_the_models_memory_are_warned_about():
    model = net()

    with pytest.warns(CheckpointWarning, match=r"copy.deepcopy\(model.state_dict\(\)\)"):
        found = open_checkpoints([model.state_dict(), model.state_dict()])

    assert len(found) == 2


def test_equal_but_separate_state_dicts_are_not_duplicates():
    assert len(open_checkpoints([weights(), weights()])) == 2


# What cannot be read


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": weights(), "extra": Code()}, "a.pt")

    with pytest.raises(CheckpointError, match=r"a\.pt holds code .*mkdir.* would run on loading"):
        open_checkpoints("a.pt")
    with pytest.raises(CheckpointError, match=r"weights only, by torch.save.* or as .safetensors"):
        Checkpoint("a.pt").weights()

    assert not Path("executed").exists()


def test_a_whole_pickled_model_is_refused_as_code(tmp_path):
    torch.save(net(), tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"holds code \(torch.nn.modules"):
        open_checkpoints(tmp_path / "a.pt")


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": Code()}))

    with pytest.raises(CheckpointError, match=r"a pickle that torch.save did not write"):
        open_checkpoints(tmp_path / "a.pt")


@pytest.mark.parametrize("kept", [0, 60, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".pt", ".old.pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=suffix == ".pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if kept >= 1 or kept == 0 else int(kept * len(whole))])

    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoints(path)
    with pytest.raises(CheckpointError, match="truncated"):
        Checkpoint(path).weights()


def test_text_is_refused(tmp_path):
    (tmp_path / "a.pt").write_text("hello there")

    with pytest.raises(CheckpointError, match=r"not written by torch.save"):
        open_checkpoints(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "At least one checkpoint is needed"),
        ("absent.pt", "absent.pt does not exist"),
        (["absent"], "absent does not exist"),
        ("absent*.pt", r"glob 'absent\*.pt' matches no checkpoint"),
        (3, "3 was given"),
        (None, "None was given"),
        ([None], "None was given"),
        (nn.Linear(1, 1), r"a Linear was given. For a model, pass model.state_dict\(\)"),
        ([nn.Linear(1, 1)], r"pass model.state_dict\(\)"),
        ({}, "it is empty"),
        ({"epoch": 3}, "holds 'epoch', no tensor"),
        ({"weight": torch.ones(1), "epoch": 3}, "'epoch', no tensor"),
    ],
)
def test_what_is_no_checkpoint_is_refused(given, words):
    with pytest.raises(CheckpointError, match=words):
        open_checkpoints(given)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: neither recorder.json"):
        open_checkpoints(tmp_path)


def test_a_glob_that_finds_other_files_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("")

    with pytest.raises(CheckpointError, match="among the 1 files it matches"):
        open_checkpoints(str(tmp_path / "*.txt"))


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.h5").write_text("")

    with pytest.raises(CheckpointError, match=r"not a kind of checkpoint .*'.safetensors', '.pt'"):
        open_checkpoints(tmp_path / "a.h5")


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")

    with pytest.raises(CheckpointError, match=r"a.pt must hold a state dict .* holds a list"):
        open_checkpoints(tmp_path / "a.pt")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_trainer_state_is_refused(tmp_path, text):
    folder = hugging_face(tmp_path / "checkpoint-1", 1)
    (folder / "trainer_state.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"trainer_state\.json"):
        open_checkpoints(folder)


def test_an_old_torch_is_warned_about(tmp_path, monkeypatch):
    torch.save(weights(), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")

    assert torch_version() == (2, 6)
    with pytest.warns(CheckpointWarning, match=r"torch 2.6.0\+cpu reads a.pt"):
        open_checkpoints(tmp_path / "a.pt")


# Loading


def everything(model):
    return (
        {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()},
        [(id(one), one.requires_grad, one.grad) for one in model.parameters()],
        [module.training for module in model.modules()],
        [id(buffer) for buffer in model.buffers()],
    )


def assert_untouched(model, before):
    after = everything(model)
    for key, (pointer, values) in before[0].items():
        assert after[0][key][0] == pointer
        assert torch.equal(after[0][key][1], values)
    assert [one[:2] for one in after[1]] == [one[:2] for one in before[1]]
    assert all(a[2] is b[2] for a, b in zip(after[1], before[1], strict=True))
    assert after[2:] == before[2:]


def prepared():
    model = net()
    model(torch.randn(6, 3)).sum().backward()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    return model


def test_within_loaded_the_model_is_the_checkpoint_and_after_it_is_itself():
    model, other = prepared(), net(1).eval()
    before = everything(model)
    x = torch.randn(5, 3)

    with loaded(model, other.state_dict()) as inside:
        assert inside is model
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(x), other(x))

    assert_untouched(model, before)


def test_an_exception_within_loaded_leaves_no_trace():
    model = prepared()
    before = everything(model)

    with pytest.raises(KeyboardInterrupt), loaded(model, weights(1)):
        raise KeyboardInterrupt

    assert_untouched(model, before)


def test_a_checkpoint_that_does_not_fit_leaves_no_trace():
    model = prepared()
    before = everything(model)
    wrong = weights(1) | {"3.bias": torch.zeros(7)}

    with pytest.raises(CheckpointError), loaded(model, wrong):
        pass

    assert_untouched(model, before)


def test_the_optimizer_still_trains_the_same_parameters_after():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(6, 3)).sum().backward()
    expected = [one.detach() - 0.1 * one.grad for one in model.parameters()]

    with loaded(model, weights(1)):
        pass
    optimizer.step()

    assert all(
        torch.allclose(one, right) for one, right in zip(model.parameters(), expected, strict=True)
    )


def test_gradients_within_loaded_are_those_of_the_checkpoint():
    model, other = net(), net(1).eval()
    x = torch.randn(5, 3)

    with loaded(model, weights(1)):
        inside = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    outside = torch.autograd.grad(other(x).square().sum(), list(other.parameters()))

    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_a_graph_from_before_can_be_run_backward_after():
    model = net().eval()
    x = torch.randn(5, 3)
    output = model(x).square().sum()
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))

    with loaded(model, weights(1)):
        model(x)
    output.backward()

    assert all(
        torch.equal(one.grad, right)
        for one, right in zip(model.parameters(), expected, strict=True)
    )


def test_layers_that_write_to_their_weights_write_to_nothing_of_the_users():
    model = nn.Embedding(3, 2, max_norm=1.0)
    state = {"weight": torch.full((3, 2), 5.0)}
    own = model.state_dict()
    kept = model.weight.detach().clone()

    for source in (state, own):
        with loaded(model, source):
            model.weight.detach().mul_(3)
            model(torch.tensor([0, 1, 2]))

    assert torch.equal(state["weight"], torch.full((3, 2), 5.0))
    assert torch.equal(model.weight.detach(), kept)


def test_buffers_that_a_forward_pass_changes_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(1), persistent=False)
            self.register_buffer("cache", torch.zeros(1), persistent=False)
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            self.seen += 1
            self.cache = torch.ones(4)
            return x * self.weight

    model = Counting()
    before = everything(model)

    with loaded(model, {"weight": torch.zeros(1)}):
        model(torch.ones(1))

    assert_untouched(model, before)
    assert (model.seen.item(), model.cache.shape) == (0.0, (1,))


def test_a_layer_that_folds_weights_in_eval_is_not_made_to():
    class Folding(nn.Linear):
        def train(self, mode=True):
            self.weight.data.mul_(2)
            return super().train(mode)

    model = Folding(2, 2)
    before = everything(model)

    with loaded(model, {"weight": torch.ones(2, 2), "bias": torch.ones(2)}):
        assert torch.equal(model.weight.detach(), torch.ones(2, 2))

    assert_untouched(model, before)


def test_weights_take_the_dtype_of_the_model():
    model = net().double()

    with loaded(model, weights(1)):
        assert model[0].weight.dtype == torch.float64
        assert torch.equal(model[0].weight.detach(), weights(1)["0.weight"].double())


@pytest.mark.parametrize("keep", ["embedding.weight", "head.weight", "both"])
def test_a_tied_weight_may_be_stored_once_or_twice(keep):
    model = Tied()
    value = torch.randn(5, 3)
    both = {"embedding.weight": value, "head.weight": value.clone()}

    with loaded(model, both if keep == "both" else {keep: value}):
        assert model.head.weight is model.embedding.weight
        assert torch.equal(model.head.weight.detach(), value)


def test_a_tie_that_the_checkpoint_lacks_is_refused():
    two = {"embedding.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}

    with (
        pytest.raises(CheckpointError, match="one tied tensor in the model, but two different"),
        loaded(Tied(), two),
    ):
        pass


@pytest.mark.parametrize("theirs", ["", "module.", "_orig_mod."])
def test_wrapped_models_and_wrapped_checkpoints_meet(theirs):
    model = net()
    state = {theirs + key: value for key, value in weights(1).items()}
    for wrapped in (model, torch.compile(model), nn.DataParallel(model)):
        with loaded(wrapped, state):
            assert torch.equal(model[0].weight.detach(), weights(1)["0.weight"])
        assert torch.equal(model[0].weight.detach(), weights(0)["0.weight"])


def test_a_model_that_calls_its_part_module_is_loaded():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    model, other = Outer(), Outer()

    with loaded(model, other.state_dict()):
        assert torch.equal(model.module.weight, other.module.weight)


def test_names_that_differ_are_listed_on_both_sides():
    state = {key.replace("3.", "head."): value for key, value in weights().items()}

    with (
        pytest.raises(
            CheckpointError,
            match=r"lacks '3.weight', '3.bias'; the model lacks 'head.weight', 'head.bias'.*"
            "Give the model that these weights were saved from",
        ),
        loaded(net(), state),
    ):
        pass


def test_a_prefix_that_would_fit_is_named(tmp_path):
    [checkpoint] = open_checkpoints(lightning(tmp_path / "a.ckpt"))

    with (
        pytest.raises(CheckpointError, match=r"a.ckpt does not fit .*begin with 'model.' fit once"),
        loaded(net(), checkpoint),
    ):
        pass


def test_a_part_that_would_fit_is_named():
    model = nn.ModuleDict({"body": net()})

    with (
        pytest.raises(CheckpointError, match="fit the model's part 'body'"),
        loaded(model, weights()),
    ):
        pass


def test_shapes_that_differ_are_named():
    state = weights() | {"3.weight": torch.zeros(9, 4), "3.bias": torch.zeros(9)}

    with (
        pytest.raises(CheckpointError, match=r"3.weight is \[9, 4\] and not \[2, 4\]; 3.bias is"),
        loaded(net(), state),
    ):
        pass


def test_numbers_are_not_lost_in_a_conversion():
    state = weights() | {"3.bias": torch.zeros(2, dtype=torch.int64)}

    with (
        pytest.raises(CheckpointError, match=r"3.bias is torch.int64 and torch.float32"),
        loaded(net(), state),
    ):
        pass


def test_a_count_of_batches_may_be_missing():
    state = {key: value for key, value in weights(1).items() if "num_batches" not in key}
    model = net()

    with loaded(model, state):
        assert torch.equal(model[3].bias.detach(), state["3.bias"])


def test_a_model_without_numbers_is_refused():
    with torch.device("meta"):
        model = nn.Linear(2, 2)

    with (
        pytest.raises(DeviceError, match='weight is on the device "meta"'),
        loaded(model, nn.Linear(2, 2).state_dict()),
    ):
        pass


def test_a_model_on_several_devices_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    class Elsewhere(nn.Parameter):
        @property
        def device(self):
            return torch.device("cuda", 1)

    model[1].weight = Elsewhere(torch.ones(2, 2))

    with (
        pytest.raises(DeviceError, match=r"over 2: 0.weight on cpu, 1.weight on cuda:1"),
        loaded(model, model.state_dict()),
    ):
        pass


def test_a_lazy_parameter_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.LazyLinear(2)

    with (
        pytest.raises(UnsupportedModelError, match="run one batch through the model"),
        loaded(model, nn.Linear(2, 2).state_dict()),
    ):
        pass


def test_a_file_fits_through_loaded(tmp_path):
    save_file(weights(1), tmp_path / "a.safetensors")
    model = net()

    with loaded(model, open_checkpoints(tmp_path / "a.safetensors")[0]):
        assert same({key: value.clone() for key, value in model.state_dict().items()}, weights(1))
    assert same(dict(model.state_dict()), weights(0))


def test_an_ordered_dict_with_metadata_is_a_state_dict():
    assert isinstance(net().state_dict(), OrderedDict)
    assert same(Checkpoint(net().state_dict()).weights(), weights())


def test_untouched_brings_back_modes_gradients_and_random_states():
    model = prepared()
    before = everything(model)
    grads = [None if one.grad is None else one.grad.clone() for one in model.parameters()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def meddle():
        with untouched(model):
            model.eval()
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            model(torch.randn(6, 3)).sum().backward()
            random.random(), np.random.rand()
            model.train()
            model[1].running_mean = torch.ones(4)
            model[3].weight.requires_grad_(False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        meddle()

    assert_untouched(model, before)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad is None or torch.equal(parameter.grad, grad)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_checkpoint_of_a_record_keeps_what_the_record_knows(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path, optimizer_state=True) as recorder:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        file = recorder.epoch(loss=0.5)

    [found] = open_checkpoints(Checkpoint(file, name="mine"))

    assert (found.name, found.loss, found.learning_rate) == ("mine", 0.5, 0.1)
    assert found.optimizer_path == tmp_path / "optimizer" / file.name
