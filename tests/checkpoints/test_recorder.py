"""The Recorder writes down what happened in training, and changes nothing of it."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tracin import TracIn, files
from tracin.checkpoints import Recorder, checkpoint_weights, loaded, open_checkpoints
from tracin.checkpoints.folder_lock import LOCK
from tracin.errors import CheckpointError, CheckpointWarning, LearningRateError
from tracin.files import sealed

ENTRY = {
    "file": "step-00000003.safetensors",
    "step": 3,
    "epoch": 0,
    "learning_rates": [],
    "loss": None,
    "checksum": "",
    "optimizer": "",
    "averaged": "",
}


def record_with(**changed):
    empty = {"checkpoints": [], "losses": [], "steps": [], "trained": [], "visits": []}
    return sealed({"format": 2, **empty, **changed})


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))


def sgd(model, rate=0.1):
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)


def train(model, optimizer, steps, after=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3)).square().mean().backward()
        optimizer.step()
        after()


def rates_of(folder):
    content = json.loads((folder / "recorder.json").read_text())
    return [
        rates
        for segment in content["steps"]
        for count, *rates in segment["runs"]
        for _ in range(count)
    ]


def copied(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


# What is written


def test_a_checkpoint_an_epoch_is_written_with_its_rate(tmp_path):
    model = net()
    optimizer = sgd(model)
    states = []
    with Recorder(model, optimizer, tmp_path / "run") as recorder:
        for _ in range(3):
            train(model, optimizer, 4)
            path = recorder.epoch()
            states.append(copied(model))
            assert path is not None
            assert path.name == f"step-{4 * recorder.epochs:08d}.safetensors"

    found = open_checkpoints(tmp_path / "run")

    assert [one.step for one in found] == [4, 8, 12]
    assert [one.learning_rate for one in found] == [0.1] * 3
    assert all(same(one.weights(), state) for one, state in zip(found, states, strict=True))
    assert checkpoint_weights(found, "span") == pytest.approx([0.6, 0.4, 0.2])


def test_a_checkpoint_every_so_many_steps_is_written(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path, every=3) as recorder:
        train(model, optimizer, 7)
        assert recorder.epoch() is None
        recorder.save()

    content = json.loads((tmp_path / "recorder.json").read_text())

    assert [one.step for one in open_checkpoints(tmp_path)] == [3, 6, 7]
    assert [one["epoch"] for one in content["checkpoints"]] == [0, 0, 1]


def test_the_warm_up_of_a_scheduler_is_recorded_as_it_was_used(tmp_path):
    model = net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5))
    used = []

    def after():
        scheduler.step()

    optimizer.register_step_pre_hook(lambda *_: used.append([optimizer.param_groups[0]["lr"]]))
    with Recorder(model, optimizer, tmp_path, every=4):
        train(model, optimizer, 10, after)

    found = open_checkpoints(tmp_path)

    assert used[0] == [0.0]
    assert used[-1] == [0.1]
    assert rates_of(tmp_path) == used
    assert [one.learning_rate for one in found] == [used[3][0], used[7][0]]


def test_a_checkpoint_of_a_step_at_rate_zero_opens_but_has_no_rate(tmp_path):
    model = net()
    optimizer = sgd(model, 0.0)
    with Recorder(model, optimizer, tmp_path, every=1):
        train(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] = 0.1
        train(model, optimizer, 1)

    found = open_checkpoints(tmp_path)

    with pytest.raises(LearningRateError, match=r"00001.safetensors \(the rate of step 1 is 0.0\)"):
        checkpoint_weights(found)
    assert checkpoint_weights(found[1:]) == [0.1]


def test_a_checkpoint_before_the_first_step_has_the_rate_of_that_step(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        recorder.save()
        assert open_checkpoints(tmp_path)[0].learning_rate is None
        train(model, optimizer, 4)
        recorder.save()

    found = open_checkpoints(tmp_path)

    assert checkpoint_weights(found) == [0.1, 0.1]
    assert checkpoint_weights(found, "span") == pytest.approx([0.2, 0.2])


def test_a_checkpoint_that_no_step_follows_has_no_rate(tmp_path):
    model = net()
    with Recorder(model, sgd(model), tmp_path) as recorder:
        recorder.save()

    with pytest.raises(LearningRateError, match="saved before the first step"):
        checkpoint_weights(open_checkpoints(tmp_path))


def test_saving_before_going_on_does_not_replace_the_last_checkpoint(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        train(model, optimizer, 4)
        file = recorder.save()
    written = file.read_bytes()
    train(model, optimizer, 1)

    with pytest.raises(CheckpointError, match="up to step 4, but the model does not hold"):
        Recorder(model, optimizer, tmp_path).save()

    assert file.read_bytes() == written


def test_the_log_of_a_constant_rate_stays_small(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        for _ in range(1000):
            optimizer.step()
        recorder.save()

    content = json.loads((tmp_path / "recorder.json").read_text())

    assert content["steps"] == [{"groups": [["weight", "bias"]], "runs": [[1000, 0.1]]}]


def test_groups_with_rates_of_their_own_are_recorded_by_name(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(
        [
            {"params": model[3].parameters(), "lr": torch.tensor(0.5)},
            {"params": [*model[0].parameters(), *model[1].parameters()]},
        ],
        lr=0.25,
    )
    with Recorder(model, optimizer, tmp_path, every=2):
        train(model, optimizer, 2)

    [checkpoint] = open_checkpoints(tmp_path)

    expected = {name: 0.5 if name[0] == "3" else 0.25 for name, _ in model.named_parameters()}
    assert checkpoint.learning_rate == expected
    assert checkpoint_weights([checkpoint], "span") == [
        {name: 2 * rate for name, rate in expected.items()}
    ]


def test_a_group_that_is_added_is_seen(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[1].parameters(), *model[3].parameters()], lr=0.5)
    with Recorder(model, optimizer, tmp_path, every=2):
        train(model, optimizer, 2)
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.25})
        train(model, optimizer, 2)

    found = open_checkpoints(tmp_path)
    [first, second] = checkpoint_weights(found, "span")

    assert found[0].learning_rate == 0.5
    assert isinstance(first, dict)
    assert (first["0.weight"], first["3.weight"]) == (0.25, 1.5)
    assert isinstance(second, dict)
    assert (second["0.weight"], second["3.weight"]) == (0.25, 0.5)


def test_a_selection_of_a_folder_still_covers_the_training(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path, every=2):
        train(model, optimizer, 9)

    found = open_checkpoints(tmp_path)

    assert sum(checkpoint_weights(found, "span")) == pytest.approx(0.9)
    assert sum(checkpoint_weights(found[::3], "span")) == pytest.approx(0.9)


def test_files_of_a_folder_keep_their_rates_when_named_one_by_one(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path, every=2):
        train(model, optimizer, 6)

    by_glob = open_checkpoints(str(tmp_path / "*.safetensors"))
    by_list = open_checkpoints([tmp_path / "step-00000006.safetensors"])

    assert checkpoint_weights(by_glob, "span") == pytest.approx([0.3, 0.2, 0.1])
    assert checkpoint_weights(by_list) == [0.1]


def test_a_tied_weight_is_stored_once_and_read_twice(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    path = Recorder(model, sgd(model), tmp_path).save()

    [checkpoint] = open_checkpoints(tmp_path)

    assert list(load_file(path)) == ["embedding.weight"]
    assert same(checkpoint.weights(), copied(model))
    with loaded(Tied(), checkpoint) as other:
        assert torch.equal(other.head.weight, model.head.weight)


def test_views_into_one_storage_are_stored_apart(tmp_path):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            flat = torch.arange(6.0)
            self.first = nn.Parameter(flat[:4].view(2, 2).t())
            self.second = nn.Parameter(flat[2:])

    model = Views()
    Recorder(model, sgd(model), tmp_path).save()

    [checkpoint] = open_checkpoints(tmp_path)

    assert same(checkpoint.weights(), copied(model))


def test_a_compiled_model_is_recorded_and_fits_the_bare_one(tmp_path):
    model = net()
    wrapped = torch.compile(model)
    optimizer = torch.optim.SGD(
        [
            {"params": model[3].parameters(), "lr": 0.5},
            {"params": [*model[0].parameters(), *model[1].parameters()], "lr": 0.25},
        ]
    )
    with Recorder(wrapped, optimizer, tmp_path, every=1):  # type: ignore[arg-type]
        train(model, optimizer, 1)

    [checkpoint] = open_checkpoints(tmp_path)

    assert same(checkpoint.weights(), copied(model))
    with loaded(net(1), checkpoint) as other:
        assert torch.equal(other[0].weight, model[0].weight)


# What is left alone


def test_training_is_the_same_with_and_without_a_recorder(tmp_path):
    def run(record):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        recorder = Recorder(model, optimizer, tmp_path, every=2) if record else None
        train(model, optimizer, 7)
        if recorder:
            recorder.save()
            recorder.close()
        return copied(model), torch.get_rng_state()

    with_it, random_with = run(True)
    without, random_without = run(False)

    assert same(with_it, without)
    assert torch.equal(random_with, random_without)


def test_closing_removes_the_hooks(tmp_path):
    model = net()
    optimizer = sgd(model)

    with Recorder(model, optimizer, tmp_path, every=1) as recorder:
        train(model, optimizer, 1)
    train(model, optimizer, 1)
    recorder.close()

    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert [one.step for one in open_checkpoints(tmp_path)] == [1]


def test_an_exception_in_training_closes_the_recorder(tmp_path):
    model = net()
    optimizer = sgd(model)

    def broken():
        with Recorder(model, optimizer, tmp_path, every=2):
            train(model, optimizer, 3)
            raise Interrupted

    with pytest.raises(Interrupted):
        broken()

    assert not optimizer._optimizer_step_pre_hooks
    assert len(rates_of(tmp_path)) == 3


def test_a_step_that_fails_is_not_counted(tmp_path):
    model = net()
    optimizer = sgd(model)

    def closure():
        raise ZeroDivisionError

    with Recorder(model, optimizer, tmp_path) as recorder:
        with pytest.raises(ZeroDivisionError):
            optimizer.step(closure)
        train(model, optimizer, 1)
        assert recorder.step == 1
        recorder.save()


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_gradient_scaling_skips_is_not_counted(tmp_path, fused):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with Recorder(model, optimizer, tmp_path) as recorder:
        for value in (1.0, float("inf"), 2.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.tensor([value])).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        recorder.save()

    assert recorder.step == 2


# Crashes


@pytest.mark.parametrize("name", ["recorder.json", "step-00000004.safetensors"])
@pytest.mark.parametrize(("owner", "function"), [(os, "replace"), (files, "flush")])
def test_an_interrupted_save_leaves_the_folder_readable(
    tmp_path, monkeypatch, name, owner, function
):
    model = net()
    optimizer = sgd(model)
    recorder = Recorder(model, optimizer, tmp_path, every=2)
    train(model, optimizer, 2)
    saved = copied(model)
    real = getattr(owner, function)

    def interrupted(path, *rest):
        if name in str(path):
            raise Interrupted
        return real(path, *rest)

    monkeypatch.setattr(owner, function, interrupted)
    with pytest.raises(Interrupted):
        train(model, optimizer, 2)
    monkeypatch.undo()

    [checkpoint] = open_checkpoints(tmp_path)
    assert checkpoint.step == 2
    assert same(checkpoint.weights(), saved)
    assert [one.name for one in tmp_path.glob(".*")] == [LOCK]

    recorder.save()
    assert [one.step for one in open_checkpoints(tmp_path)] == [2, 4]


def test_a_killed_process_leaves_nothing_for_good(tmp_path):
    model = net()
    Recorder(model, sgd(model), tmp_path).save()
    (tmp_path / "optimizer").mkdir()
    (tmp_path / ".step-00000009.safetensors.unfinished").write_bytes(b"half")
    (tmp_path / ".tmpAb12Cd").write_bytes(b"half")
    (tmp_path / "optimizer" / ".step-00000009.safetensors.0f.unfinished").write_bytes(b"half")
    (tmp_path / ".tmp-of-mine").write_bytes(b"not ours")
    (tmp_path / ".folder.unfinished").mkdir()

    with Recorder(model, sgd(model), tmp_path):
        pass

    assert not list((tmp_path / "optimizer").iterdir())
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".folder.unfinished",
        ".tmp-of-mine",
        "optimizer",
        "recorder.json",
        "step-00000000.safetensors",
    ]


# Going on


def test_a_new_recorder_goes_on_after_the_last_checkpoint(tmp_path):
    model = net()
    optimizer = sgd(model, 0.5)
    recorder = Recorder(model, optimizer, tmp_path, every=4)
    train(model, optimizer, 6)
    recorder.epoch()
    del recorder  # a crash, two steps after the last checkpoint

    again = net(1)
    optimizer = sgd(again, 0.25)
    recorder = Recorder(again, optimizer, tmp_path, every=4)
    latest = recorder.latest()
    assert latest is not None
    again.load_state_dict(latest.weights())
    assert (latest.step, recorder.step) == (4, 4)
    train(again, optimizer, 4)
    recorder.close()

    found = open_checkpoints(tmp_path)
    assert [one.step for one in found] == [4, 8]
    assert [one.learning_rate for one in found] == [0.5, 0.25]
    assert rates_of(tmp_path) == [[0.5]] * 4 + [[0.25]] * 4


def test_steps_after_the_last_checkpoint_leave_the_log_when_training_repeats_them(tmp_path):
    model = net()
    optimizer = sgd(model, 0.5)
    with Recorder(model, optimizer, tmp_path, every=4) as recorder:
        train(model, optimizer, 6)
    assert len(rates_of(tmp_path)) == 6

    optimizer = sgd(model, 0.5)
    with Recorder(model, optimizer, tmp_path, every=4) as recorder:
        latest = recorder.latest()
        assert latest is not None
        model.load_state_dict(latest.weights())
        train(model, optimizer, 1)

    assert len(rates_of(tmp_path)) == 5


def test_training_on_from_other_weights_is_refused_at_the_first_step(tmp_path):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path, every=2):
        train(model, optimizer, 2)

    afresh = net(1)
    optimizer = sgd(afresh)
    with (
        Recorder(afresh, optimizer, tmp_path),
        pytest.raises(CheckpointError, match=r"does not hold the last one's weights: '0.weight'"),
    ):
        train(afresh, optimizer, 1)

    assert len(rates_of(tmp_path)) == 2


def test_a_folder_of_another_model_is_refused(tmp_path):
    model = net()
    Recorder(model, sgd(model), tmp_path).save()
    other = nn.Sequential(nn.Linear(3, 5))

    with pytest.raises(
        CheckpointError,
        match=r"another model: 0.weight is \[4, 3\] there and \[5, 3\] here; 0.bias .*; "
        r"\S+ is .* there and missing here, and 6 more. Give a new folder",
    ):
        Recorder(other, sgd(other), tmp_path)


def test_a_missing_file_of_the_folder_is_named(tmp_path):
    model = net()
    Recorder(model, sgd(model), tmp_path).save().unlink()

    with pytest.raises(CheckpointError, match=r"lists step-00000000.safetensors, which is not"):
        open_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must hold a JSON object, but holds a list"),
        ('{"format": 99}', "has format 99, and this release of tracin reads 2"),
        ('{"format": 2}', "does not match its own checksum"),
        (sealed({"format": 2}), "not as a Recorder writes it"),
        (record_with(more=[]), "not as a Recorder writes it"),
        (record_with(steps=[{"groups": [["a"]], "runs": [[1]]}]), "another number of rates"),
        (record_with(steps=[{"groups": [["a"]], "runs": [[-1, 0.1]]}]), "has no count"),
        (record_with(steps=[{"groups": [[1]], "runs": []}]), "a list of names is none"),
        (record_with(losses=[[1, 1]]), "not as a Recorder writes it"),
        (record_with(checkpoints=[ENTRY | {"step": "3"}]), "'step' is a str, not an int"),
        (record_with(checkpoints=[ENTRY | {"file": "../3.safetensors"}]), "is not a checkpoint of"),
        (record_with(checkpoints=[ENTRY]), "logs 0 steps, too few for 'step-00000003.safe"),
        (record_with(), "lists no checkpoint yet"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text, words):
    (tmp_path / "recorder.json").write_text(text)

    with pytest.raises(CheckpointError, match=words):
        open_checkpoints(tmp_path)


# What is refused


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "step", None])
def test_every_is_epoch_or_a_number_of_steps(tmp_path, every):
    model = net()

    with pytest.raises(CheckpointError, match='every is "epoch" or a whole number of at least 1'):
        Recorder(model, sgd(model), tmp_path, every=every)


def test_the_optimizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"6 of 6 are not in it: '0.weight'"):
        Recorder(net(), sgd(net()), tmp_path)


def test_a_trainable_parameter_outside_the_optimizer_is_refused(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)

    with pytest.raises(CheckpointError, match=r"4 of 6 .*freeze what is not trained"):
        Recorder(model, optimizer, tmp_path)

    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    Recorder(model, optimizer, tmp_path)


def test_what_is_no_optimizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a Linear was given. If it is a wrapper, pass"):
        Recorder(net(), nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Noted(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {**super().state_dict(*args, **kwargs), "note": "one"}

    model = Noted(1, 1)

    with pytest.raises(CheckpointError, match="state dict holds 'note'"):
        Recorder(model, sgd(model), tmp_path).save()


@pytest.mark.parametrize("extra", [{"calls": 3}, torch.ones(2), None, b"amax"])
def test_extra_state_of_modules_is_left_out(tmp_path, extra):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return extra

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(Extra(3, 2))
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        train(model, optimizer, 1)
        recorder.save()

    with Recorder(model, optimizer, tmp_path) as recorder:
        train(model, optimizer, 1)
        recorder.save()

    first, last = open_checkpoints(tmp_path)
    assert first.weights().keys() == {"0.weight", "0.bias"}
    scores = TracIn(model, "mse", [last]).self_influence((torch.ones(2, 3), torch.ones(2, 2)))
    assert len(scores) == 2


def test_training_without_any_save_is_warned_about(tmp_path):
    model = net()
    optimizer = sgd(model)
    recorder = Recorder(model, optimizer, tmp_path)
    train(model, optimizer, 2)

    with pytest.warns(CheckpointWarning, match=r"2 steps .*no checkpoint was saved: call recorder"):
        recorder.close()
