"""What a Recorder keeps besides weights and rates: losses, moments, averages, ids, states."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random.mtrand import get_bit_generator
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tracin
from own_process import run_script
from tracin.checkpoints import Recorder, checkpoint_weights, open_checkpoints, visits
from tracin.checkpoints.folder_lock import LOCK
from tracin.checkpoints.record import LogEntry, read_record
from tracin.checkpoints.schedule import kept
from tracin.checkpoints.visits import Visits
from tracin.errors import CheckpointError, CheckpointWarning
from tracin.guards import Guard
from tracin.random_state import RandomState, same_random_state


def net(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2))


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def step(model, optimizer, x=None):
    optimizer.zero_grad()
    model(torch.ones(6, 3) if x is None else x).square().mean().backward()
    optimizer.step()


def recorded(tmp_path, losses, **options):
    """A run with one step an epoch and these losses."""
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, **options) as recorder:
        for loss in losses:
            step(model, optimizer)
            recorder.epoch(loss=loss)
    return model, recorder


def steps_of(folder):
    return [one.step for one in open_checkpoints(folder)]


def names_in(folder):
    return sorted(one.name for one in folder.iterdir() if one.is_file() and one.name != LOCK)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def ema(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


# When to save


def test_every_n_epochs_saves_at_each_nth_epoch(tmp_path):
    recorded(tmp_path, [None] * 7, every_n_epochs=3)

    content = json.loads((tmp_path / "recorder.json").read_text())

    assert [(one["step"], one["epoch"]) for one in content["checkpoints"]] == [(3, 3), (6, 6)]


def test_every_n_epochs_counts_on_when_training_goes_on(tmp_path):
    model, _ = recorded(tmp_path, [None] * 4, every_n_epochs=2)
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every_n_epochs=3) as recorder:
        saved = []
        for _ in range(3):
            step(model, optimizer)
            saved.append(recorder.epoch())

    assert [path is not None for path in saved] == [False, True, False]
    assert steps_of(tmp_path) == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs is a whole number of at least 1; 0 was given"),
        ({"every_n_epochs": True}, "every_n_epochs is a whole number"),
        ({"every": 5, "every_n_epochs": 2}, "every_n_epochs=2 counts epochs, and every=5 steps"),
        ({"keep": 0}, "keep is None or a whole number of at least 1; 0 was"),
        ({"keep": 1.5}, "keep is None or"),
        ({"keep": 2, "every": 5}, "keep=2 needs the loss of each checkpoint, and every=5 saves"),
        ({"averaged": {}}, r"averaged must be a torch.nn.Module .*; a dict was given"),
        ({"averaged": nn.Linear(1, 1)}, r"averaged must hold .* '0.weight'.* differ in name"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, words):
    model = net()

    with pytest.raises(CheckpointError, match=words):
        Recorder(model, adam(model), tmp_path, **options)


# Losses, and which checkpoints are kept


def test_losses_are_written_down_and_come_back_with_the_checkpoints(tmp_path):
    _, recorder = recorded(tmp_path, [2.0, None, torch.tensor(0.5), np.float32(0.25), 1])

    assert recorder.losses == [(1, 1, 2.0), (3, 3, 0.5), (4, 4, 0.25), (5, 5, 1.0)]
    assert list(read_record(tmp_path).losses) == recorder.losses
    assert [one.loss for one in open_checkpoints(tmp_path)] == [2.0, None, 0.5, 0.25, 1.0]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), "low", True, torch.ones(2)])
def test_a_loss_is_a_finite_number(tmp_path, loss):
    model = net()
    recorder = Recorder(model, adam(model), tmp_path)

    with pytest.raises(CheckpointError, match="must be one finite number"):
        recorder.save(loss=loss)
    with pytest.raises(CheckpointError, match="must be one finite number"):
        recorder.epoch(loss=loss)

    assert not names_in(tmp_path)
    assert recorder.epochs == 0


def test_a_second_save_of_one_step_takes_the_place_of_the_first(tmp_path):
    model = net()
    recorder = Recorder(model, adam(model), tmp_path)

    recorder.save(loss=2.0)
    recorder.save()
    assert recorder.losses == [(0, 0, 2.0)]
    assert read_record(tmp_path).entries[0].loss == 2.0

    recorder.save(loss=1.0)
    assert recorder.losses == [(0, 0, 1.0)]
    recorder.close()


def test_the_checkpoints_with_the_largest_reductions_are_kept_and_the_last(tmp_path):
    # Reductions: none, 1, 4, 0.5, 2, -1.
    _, recorder = recorded(tmp_path, [10.0, 9.0, 5.0, 4.5, 2.5, 3.5], keep=2, optimizer_state=True)

    expected = [3, 5, 6]
    names = [f"step-{number:08d}.safetensors" for number in expected]
    assert steps_of(tmp_path) == expected
    assert names_in(tmp_path) == ["recorder.json", *names]
    assert names_in(tmp_path / "optimizer") == names
    assert [loss for _, _, loss in recorder.losses] == [10.0, 9.0, 5.0, 4.5, 2.5, 3.5]


def test_the_last_checkpoint_counts_among_the_kept_where_it_ranks_there(tmp_path):
    recorded(tmp_path, [10.0, 9.0, 5.0], keep=2)

    assert steps_of(tmp_path) == [2, 3]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [1, 3, 6])
def test_dropping_one_by_one_is_dropping_at_the_end(seed, keep):
    generator = random.Random(seed)
    losses = [(one, one, generator.choice([0.0, 1.0, 2.0, 5.0])) for one in range(1, 20)]
    entries = [LogEntry(str(number), number, number, (), loss) for number, _, loss in losses]
    left = []
    for count, entry in enumerate(entries, start=1):
        left = kept([*left, entry], losses[:count], keep)

    assert left == kept(entries, losses, keep)
    assert entries[-1] in left
    assert keep <= len(left) <= keep + 1


def test_files_are_deleted_only_once_the_record_no_longer_lists_them(tmp_path, monkeypatch):
    model = net()
    optimizer = adam(model)
    recorder = Recorder(model, optimizer, tmp_path, keep=1)
    recorder.save(loss=3.0)
    step(model, optimizer)
    recorder.save(loss=1.0)
    step(model, optimizer)
    seen = []
    real = Path.unlink

    def watched(path, missing_ok=False):
        if path.exists() and path.parent == tmp_path:
            seen.append(path.name in (tmp_path / "recorder.json").read_text())
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    recorder.save(loss=0.9)
    step(model, optimizer)
    recorder.save(loss=0.95)

    assert seen == [False]
    assert steps_of(tmp_path) == [1, 3]
    recorder.close()


def test_keep_needs_the_loss(tmp_path):
    model = net()
    recorder = Recorder(model, adam(model), tmp_path, keep=2, every_n_epochs=2)

    with pytest.raises(CheckpointError, match=r"keep=2 ranks .* call recorder.epoch\(loss="):
        recorder.save()
    assert recorder.epoch() is None
    with pytest.raises(CheckpointError, match=r"no loss was given"):
        recorder.epoch()
    assert recorder.epochs == 1


def test_keep_does_not_rank_what_was_saved_without_a_loss(tmp_path):
    model, _ = recorded(tmp_path, [None, 1.0])

    with pytest.raises(CheckpointError, match=r"1 of 2 .* the first being step-00000001.saf.*new"):
        Recorder(model, adam(model), tmp_path, keep=1)


# The optimizer's moments


def test_the_optimizers_moments_are_written_and_restored(tmp_path):
    model = net(dropout=0.0)
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every=2, optimizer_state=True) as recorder:
        for _ in range(2):
            step(model, optimizer)
    latest = recorder.latest()
    assert latest is not None
    for _ in range(2):
        step(model, optimizer)

    again = net(1, dropout=0.0)
    again.load_state_dict(latest.weights())
    other = adam(again)
    state = latest.optimizer_state()
    assert state is not None
    state.restore(again, other)
    for _ in range(2):
        step(again, other)

    assert latest.optimizer_path == tmp_path.resolve() / "optimizer" / "step-00000002.safetensors"
    assert same(model.state_dict(), again.state_dict())


def test_without_the_option_no_moments_are_read(tmp_path):
    recorded(tmp_path, [None], optimizer_state=False)

    [checkpoint] = open_checkpoints(tmp_path)

    assert checkpoint.optimizer_path is None
    assert checkpoint.optimizer_state() is None
    assert not (tmp_path / "optimizer").exists()


def test_moments_of_an_earlier_save_of_the_step_do_not_stay(tmp_path):
    model = net()
    with Recorder(model, adam(model), tmp_path, optimizer_state=True) as recorder:
        recorder.save()
    with Recorder(model, adam(model), tmp_path, optimizer_state=False) as recorder:
        recorder.save()

    assert open_checkpoints(tmp_path)[0].optimizer_state() is None


def test_an_optimizer_with_parameters_of_another_model_is_refused_at_once(tmp_path):
    model = net()
    optimizer = torch.optim.SGD([*model.parameters(), *net().parameters()], lr=0.1)

    with pytest.raises(CheckpointError, match="holds 4 parameters that are not the model's"):
        Recorder(model, optimizer, tmp_path, optimizer_state=True)


# Averaged weights


def test_averaged_weights_open_from_their_folder_with_the_same_rates_and_steps(tmp_path):
    model = net()
    optimizer = adam(model)
    averaged = ema(model)
    states = []
    with Recorder(model, optimizer, tmp_path, averaged=averaged) as recorder:
        for _ in range(3):
            step(model, optimizer)
            averaged.update_parameters(model)
            recorder.epoch(loss=1.0)
            states.append(
                {key: value.clone() for key, value in averaged.module.state_dict().items()}
            )

    trained, averages = open_checkpoints(tmp_path), open_checkpoints(tmp_path / "averaged")

    assert [one.step for one in averages] == [one.step for one in trained] == [1, 2, 3]
    assert [one.learning_rate for one in averages] == [0.01] * 3
    assert checkpoint_weights(averages, "span") == checkpoint_weights(trained, "span")
    assert checkpoint_weights([*trained, *averages], "span")[:3] == checkpoint_weights(
        trained, "span"
    )
    assert all(same(one.weights(), kept) for one, kept in zip(averages, states, strict=True))
    assert same(trained[-1].weights(), model.state_dict())
    assert "n_averaged" not in load_file(tmp_path / "averaged" / "step-00000001.safetensors")
    assert [one.step for one in open_checkpoints(str(tmp_path / "averaged" / "*"))] == [1, 2, 3]


def test_both_kinds_of_weights_trace(tmp_path, monkeypatch):
    model = net()
    recorded_model = net()
    optimizer = adam(recorded_model)
    with Recorder(recorded_model, optimizer, tmp_path, averaged=ema(recorded_model)) as recorder:
        step(recorded_model, optimizer)
        recorder.epoch()
    data = [(torch.ones(3), 0), (torch.zeros(3), 1)]
    monkeypatch.chdir(tmp_path / "averaged")

    with pytest.warns(CheckpointWarning, match="Trained with AdamW"):
        trained = tracin.TracIn(model, "cross_entropy", tmp_path).self_influence(data)
    averaged = tracin.TracIn(model, "cross_entropy", ".").self_influence(data)

    assert len(trained) == len(averaged) == 2
    assert list(trained) != list(averaged)


def test_checkpoints_saved_without_averages_are_no_part_of_theirs(tmp_path):
    model, _ = recorded(tmp_path, [None, None])
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, averaged=ema(model)) as recorder:
        step(model, optimizer)
        recorder.epoch()

    assert steps_of(tmp_path) == [1, 2, 3]
    assert steps_of(tmp_path / "averaged") == [3]

    (tmp_path / "averaged" / "step-00000003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lists step-00000003.safetensors, which is not"):
        open_checkpoints(tmp_path / "averaged")


def test_a_run_of_its_own_may_be_called_averaged(tmp_path):
    recorded(tmp_path, [None])
    recorded(tmp_path / "averaged", [None, None])

    assert steps_of(tmp_path) == [1]
    assert steps_of(tmp_path / "averaged") == [1, 2]


# Ids and random states


def test_the_ids_of_each_step_come_back_by_micro_batch(tmp_path):
    model = net()
    optimizer = adam(model)
    given = [
        [[0, 1, 1], [5]],
        [[2**40, -3]],
        [[7], [7], [8, 9]],
    ]
    forms = [torch.tensor, np.asarray, list, tuple, lambda ids: torch.tensor(ids).int()]
    with Recorder(model, optimizer, tmp_path) as recorder:
        for number, batches in enumerate(given):
            for place, ids in enumerate(batches):
                form = forms[(number + place) % 5] if max(ids) < 2**31 else list
                recorder.batch(form(ids))
            step(model, optimizer)
        recorder.epoch()

    visits = Visits.open(tmp_path)

    assert len(visits) == 3
    assert [visits.ids(number) for number in range(3)] == given
    with pytest.raises(CheckpointError, match="visits of 3 steps, counted from 0; step 3 is none"):
        visits.ids(3)
    with pytest.raises(CheckpointError, match="step -1 is none"):
        visits.random_state(-1)


def test_ids_may_be_text(tmp_path):
    model = net()
    optimizer = adam(model)
    given = [[["a/1.png", "zwölf\n"], ["\ud800"]], [["a/1.png"]]]
    with Recorder(model, optimizer, tmp_path) as recorder:
        for batches in given:
            for ids in batches:
                recorder.batch(np.asarray(ids) if ids == ["a/1.png"] else ids)
            step(model, optimizer)
        recorder.save()

    visits = Visits.open(str(tmp_path))

    assert [visits.ids(number) for number in range(2)] == given
    assert names_in(tmp_path / "visits") == ["00000000-00000002.safetensors"]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_random_state_of_each_step_comes_back(tmp_path, dropout):
    model = net(dropout=dropout)
    optimizer = adam(model)
    drawn = []
    with Recorder(model, optimizer, tmp_path) as recorder:
        for number in range(4):
            if number == 2:
                np.random.standard_normal()
                random.gauss(0, 1)
            recorder.batch([number])
            state = RandomState.now()
            drawn.append([model(torch.ones(6, 3)), np.random.standard_normal(2), random.random()])
            state.restore()
            step(model, optimizer)
            drawn[-1][0] = torch.rand(3)
            state.restore()
            torch.rand(3 if dropout else 0)
        recorder.save()

    visits = Visits.open(tmp_path)

    for number, (_, normal, uniform) in enumerate(drawn):
        visits.random_state(number).restore()
        assert np.array_equal(np.random.standard_normal(2), normal)
        assert random.random() == uniform
    states = len(load_file(tmp_path / "visits" / "00000000-00000004.safetensors")["random_ends"])
    # CPU, CUDA, Python and NumPy once; then what has changed: the CPU's at each step with dropout.
    assert states == 4 + 2 + (3 if dropout else 0)


def test_restoring_gives_the_same_dropout(tmp_path):
    model = net(dropout=0.5)
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        outputs = []
        for number in range(3):
            recorder.batch([number])
            optimizer.zero_grad()
            outputs.append(model[1](torch.ones(50)))
            optimizer.step()
        recorder.save()
    visits = Visits.open(tmp_path)

    for number in (2, 0, 1):
        visits.random_state(number).restore()
        assert torch.equal(model[1](torch.ones(50)), outputs[number])


def test_a_normal_left_over_in_numpy_is_part_of_the_state():
    np.random.seed(0)
    np.random.standard_normal()
    one_left = RandomState.now()
    drawn = np.random.standard_normal()
    none_left = RandomState.now()
    one_left.restore()

    assert RandomState.now() == one_left
    assert one_left != none_left
    assert np.random.standard_normal() == drawn
    assert RandomState.now() == none_left


@pytest.mark.parametrize(
    "block",
    [same_random_state, lambda: Guard(nn.Identity())],
    ids=["same_random_state", "Guard"],
)
def test_a_normal_that_a_block_drew_is_left_over_again(block):
    np.random.seed(0)
    np.random.standard_normal()
    state = RandomState.now()
    with block():
        np.random.standard_normal()
        assert RandomState.now() != state

    assert RandomState.now() == state


def test_a_block_restores_a_numpy_generator_of_another_kind():
    held = get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        with same_random_state():
            drawn = np.random.random()
        again = np.random.random()
    finally:
        np.random.set_bit_generator(held)

    assert again == drawn


def test_a_replaced_numpy_generator_is_left_alone():
    held = get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        state = RandomState.now()
        state.restore()
    finally:
        np.random.set_bit_generator(held)

    assert state.numpy == b""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_random_state_of_a_gpu_comes_back():
    torch.rand(1, device="cuda")
    state = RandomState.now()
    drawn = torch.rand(5, device="cuda")
    assert RandomState.now().cuda != state.cuda
    state.restore()

    assert RandomState.now() == state
    assert torch.equal(torch.rand(5, device="cuda"), drawn)


def test_a_state_of_more_devices_than_here_is_refused(monkeypatch):
    state = RandomState.now()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(CheckpointError, match="is of 2 CUDA devices, but 1 are here"):
        RandomState(state.cpu, b"\x02" + bytes(32), state.python, state.numpy).restore()


def test_a_step_without_ids_is_refused_where_others_have_some(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        for number in range(4):
            recorder.batch([number])
            step(model, optimizer)
        before = model[0].weight.detach().clone()
        with pytest.raises(
            CheckpointError,
            match=r"batch\(ids\) was called for step 3 but not for step 4: call it before each",
        ):
            step(model, optimizer)
        assert torch.equal(model[0].weight, before)
        recorder.save()

    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path), pytest.raises(CheckpointError, match="for step 4:"):
        step(model, optimizer)


def test_ids_that_begin_late_are_refused(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        step(model, optimizer)
        recorder.batch([1])
        with pytest.raises(CheckpointError, match="called for step 1 but not for step 0"):
            step(model, optimizer)
        recorder.save()

    with pytest.raises(CheckpointError, match=r"has no visits: .* recorder.batch\(ids\) is called"):
        Visits.open(tmp_path)


@pytest.mark.parametrize(
    "ids",
    [
        "abc",
        3,
        None,
        torch.tensor(3),
        [],
        [1.5],
        torch.ones(2),
        torch.ones(2, dtype=torch.bfloat16),
        [True, False],
        [1, "a"],
        [[1, 2]],
        [[1], [2, 3]],
        [2**64],
        [2**63],
        np.array([2**63], dtype=np.uint64),
    ],
)
def test_what_are_no_ids_is_refused(tmp_path, ids):
    model = net()
    recorder = Recorder(model, adam(model), tmp_path)

    with pytest.raises(CheckpointError, match=r"recorder.batch\(ids\) takes"):
        recorder.batch(ids)


def test_ids_of_two_kinds_are_refused(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        recorder.batch([1])
        with pytest.raises(CheckpointError, match="whole numbers so far, and now strings"):
            recorder.batch(["a"])
        step(model, optimizer)
        with pytest.raises(CheckpointError, match="whole numbers so far, and now strings"):
            recorder.batch(["a"])
        recorder.save()


def test_ids_given_within_a_closure_count(tmp_path):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=1)
    with Recorder(model, optimizer, tmp_path) as recorder:

        def closure():
            recorder.batch([7, 8])
            optimizer.zero_grad()
            loss = model(torch.ones(6, 3)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.step(closure=closure)
        with pytest.raises(CheckpointError, match="step 1 but not for step 2"):
            optimizer.step(lambda: model(torch.ones(6, 3)).sum())
        recorder.save()

    assert [Visits.open(tmp_path).ids(number) for number in range(2)] == [[[7, 8]]] * 2


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_ids_of_a_step_that_gradient_scaling_skips_are_dropped(tmp_path, fused, place):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    with Recorder(model, optimizer, tmp_path, scaler=scaler) as recorder:
        for value in (1.0, float("inf"), 2.0, float("inf"), float("inf"), 3.0, 4.0):
            ids = [0 if value == float("inf") else int(value)]
            if place == "before":
                recorder.batch(ids)
            optimizer.zero_grad()
            scaler.scale(model(torch.tensor([value])).sum()).backward()
            if place == "after":
                recorder.batch(ids)
            scaler.step(optimizer)
            scaler.update()
        recorder.save()

    visits = Visits.open(tmp_path)

    assert [visits.ids(number) for number in range(len(visits))] == [[[1]], [[2]], [[3]], [[4]]]


def test_looking_at_a_finished_folder_takes_nothing_away(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every=2) as recorder:
        for number in range(3):
            recorder.batch([number])
            step(model, optimizer)

    Recorder(model, adam(model), tmp_path).latest()

    assert len(Visits.open(tmp_path)) == 3


def test_ids_after_the_last_checkpoint_leave_when_training_repeats_them(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every=2) as recorder:
        for number in range(3):
            recorder.batch([number])
            step(model, optimizer)

    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every=2) as recorder:
        latest = recorder.latest()
        assert latest is not None
        model.load_state_dict(latest.weights())
        recorder.batch([10, 11])
        step(model, optimizer)

    visits = Visits.open(tmp_path)
    assert [visits.ids(number) for number in range(len(visits))] == [[[0]], [[1]], [[10, 11]]]


def test_a_run_that_saved_nothing_may_begin_again_with_other_ids(tmp_path):
    model = net()
    optimizer = adam(model)
    recorder = Recorder(model, optimizer, tmp_path)
    recorder.batch([1])
    step(model, optimizer)
    with pytest.warns(CheckpointWarning):
        recorder.close()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        recorder.batch(["one"])
        step(model, optimizer)
        recorder.save()

    assert Visits.open(tmp_path).ids(0) == [["one"]]


def test_a_visits_file_cut_short_is_refused(tmp_path):
    model = net(dropout=0.5)
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path, every=2) as recorder:
        for number in range(5):
            recorder.batch([number])
            step(model, optimizer)
    files = sorted((tmp_path / "visits").iterdir())
    assert len(Visits.open(tmp_path)) == 5
    assert len(files) == 3
    os.truncate(files[1], files[1].stat().st_size - 3)

    with pytest.raises(CheckpointError, match=r"00000002-00000004.safetensors is damaged"):
        Visits.open(tmp_path)


def test_visits_of_another_release_are_refused(tmp_path):
    for name in ("ids.i64", "00000001-00000002.safetensors", "../00000000-00000002.safetensors"):
        with pytest.raises(CheckpointError, match=r"has no file of visits '.*' after 0 others"):
            Visits.within(tmp_path, [(name, "1ad27358")], 5)


def test_what_a_killed_process_wrote_of_visits_is_deleted(tmp_path):
    model = net()
    optimizer = adam(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        recorder.batch([1])
        step(model, optimizer)
        (tmp_path / "visits").mkdir()
        (tmp_path / "visits" / "00000000-00000009.safetensors").touch()
        recorder.save()

    assert names_in(tmp_path / "visits") == ["00000000-00000001.safetensors"]


def test_what_is_held_in_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(visits, "MOST_BYTES", 1 << 18)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = np.arange(10_000)
    with Recorder(model, optimizer, tmp_path) as recorder:
        for _ in range(50):
            ids += 1
            recorder.batch(ids)
            optimizer.step()
            assert recorder._visits._bytes <= visits.MOST_BYTES
        recorder.save()

    found = Visits.open(tmp_path)
    assert len(found.parts) == 13
    assert found.ids(0) == [list(range(1, 10_001))]
    assert found.ids(49) == [ids.tolist()]


# All together

TRAINING = """
import os, random, sys
import numpy as np, torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
import tracin
from tracin.checkpoints import companions, recorder as module, visits

torch.set_num_threads(1)
folder, stop, is_recorded = sys.argv[1], sys.argv[2], sys.argv[3] == "recorded"
visits.MOST_BYTES = 0
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
recorder, done = None, 0
if is_recorded:
    recorder = tracin.Recorder(
        model, optimizer, folder, keep=2, optimizer_state=True, averaged=averaged
    )
    done = recorder.epochs
    latest = recorder.latest()
    if latest is not None:
        model.load_state_dict(latest.weights())
        latest.optimizer_state().restore(model, optimizer)
        averaged.module.load_state_dict(
            tracin.open_checkpoints(folder + "/averaged")[-1].weights()
        )
        averaged.n_averaged.fill_(recorder.step)
losses = [9.0, 5.0, 4.5, 4.4, 1.0, 2.0]
for epoch in range(done, 6):
    torch.manual_seed(epoch), random.seed(epoch), np.random.seed(epoch)
    for number in range(3):
        if recorder:
            recorder.batch([epoch, number])
        optimizer.zero_grad()
        model(torch.randn(8, 3) * random.random() + np.random.rand()).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
        if stop == "step" and (epoch, number) == (3, 1):
            os._exit(3)
    if epoch == 3:
        if stop == "record":
            module.write_record = lambda record: os._exit(3)
        if stop == "delete":
            companions.Companions.delete = lambda self, name: os._exit(3)
    if recorder:
        recorder.epoch(loss=losses[epoch])
if recorder:
    recorder.close()
torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], sys.argv[4])
"""


def trained(folder, stop="", recorded="recorded", result=None):
    words = (folder, stop, recorded, f"{result or folder}.pt")
    return run_script(TRAINING, *words, folder=folder.parent).code


def content(folder):
    """What all files hold; the order of a safetensors file's metadata says nothing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {
            name: value.tolist() for name, value in load_file(path).items()
        }
        if path.suffix == ".safetensors"
        else path.read_bytes()
        for path in files
    }


def test_a_killed_run_that_goes_on_ends_as_an_undisturbed_one(tmp_path):
    assert trained(tmp_path / "undisturbed") == 0
    expected = content(tmp_path / "undisturbed")
    for stop in ("step", "record", "delete"):
        folder = tmp_path / stop
        assert trained(folder, stop) == 3
        # As it was left, it opens, and its ids go no further than its rates.
        found, visits = open_checkpoints(folder), Visits.open(folder)
        assert len(visits) == found[-1].step == (15 if stop == "delete" else 9)
        left_over = len(names_in(folder)) - len([*found, "recorder.json"])
        assert left_over == {"step": 0, "record": 1, "delete": 2}[stop]
        assert len(open_checkpoints(folder / "averaged")) == len(found)
        # A copy of a folder that nobody closed goes on just the same.
        shutil.copytree(folder, tmp_path / "copy" / stop)
        assert trained(tmp_path / "copy" / stop) == 0
        assert content(tmp_path / "copy" / stop) == expected


def test_training_is_the_same_with_all_options_and_without_a_recorder(tmp_path):
    assert trained(tmp_path / "with") == 0
    assert trained(tmp_path / "without", recorded="not") == 0

    with_it, optimizer_with, random_with = torch.load(tmp_path / "with.pt")
    without, optimizer_without, random_without = torch.load(tmp_path / "without.pt")

    assert same(with_it, without)
    assert torch.equal(random_with, random_without)
    for number, kept_for in optimizer_with["state"].items():
        assert same(kept_for, optimizer_without["state"][number])
