"""Recorded folders: damage is found, one process writes at a time, and messages say what to do."""

import errno
import json
import os
import signal
from contextlib import nullcontext, suppress

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tracin
from own_process import start_script
from tracin import OptimizerState, Recorder, Visits, open_checkpoints, random_state
from tracin.checkpoints.folder_lock import LOCK
from tracin.checkpoints.record import read_record
from tracin.errors import CheckpointError, TracInError


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()


def recorded(folder, ids="int"):
    """A small folder with all kinds of files."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    with Recorder(model, optimizer, folder, optimizer_state=True, averaged=averaged) as recorder:
        for number in range(2):
            recorder.batch([number] if ids == "int" else [f"one {number}"])
            step(model, optimizer)
            averaged.update_parameters(model)
            recorder.epoch(loss=1.0 / (number + 1))
    return model, optimizer


def answers(folder):
    """All that can be read from a folder, in a form that can be compared."""
    found = []
    for place in (folder, folder / "averaged"):
        for one in open_checkpoints(place):
            state = one.optimizer_state()
            found += [
                (one.name, one.learning_rate, one.step, one.loss, one.trained),
                {name: values.tolist() for name, values in one.weights().items()},
                state and (state.kind, state.groups, repr(state.moments)),
            ]
    visits = Visits.open(folder)
    return found + [(visits.ids(at), visits.random_state(at)) for at in range(len(visits))]


# Damage


def flips(path, most):
    size = path.stat().st_size
    return sorted({at * size // most for at in range(most)}) if size > most else range(size)


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["int", "text"])
def test_a_flipped_bit_is_found_or_changes_no_answer(tmp_path, ids):
    recorded(tmp_path / "run", ids)
    expected = answers(tmp_path / "run")
    files = [one for one in (tmp_path / "run").rglob("*") if one.is_file()]
    assert len(files) == 9

    for path in files:
        whole = path.read_bytes()
        for at in flips(path, 50):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with suppress(CheckpointError):
                assert answers(tmp_path / "run") == expected, f"bit {at % 8} of byte {at} of {path}"
        path.write_bytes(whole)


@pytest.mark.parametrize("place", [".", "optimizer", "averaged"])
@pytest.mark.parametrize("how", ["flipped", "swapped", "cut", "longer", "another's", "removed"])
def test_a_recorded_file_that_changed_is_refused(tmp_path, place, how):
    recorded(tmp_path / "run")
    first, last = sorted((tmp_path / "run" / place).glob("*.safetensors"))
    content, other = bytearray(last.read_bytes()), first.read_bytes()
    if how == "flipped":
        content[-5] ^= 16
    elif how == "swapped":
        first.write_bytes(content)
        content = other
    elif how == "cut":
        content = content[:-4]
    elif how == "longer":
        content += b"\0"
    elif how == "another's":
        content = bytes.fromhex("0200000000000000") + b"{}"
    last.unlink() if how == "removed" else last.write_bytes(content)

    with pytest.raises(CheckpointError):
        answers(tmp_path / "run")


def test_a_checkpoint_taken_out_of_its_folder_still_knows_its_checksum(tmp_path):
    recorded(tmp_path / "run")
    copy = tmp_path / "alone.safetensors"
    content = bytearray((tmp_path / "run" / "step-00000002.safetensors").read_bytes())
    copy.write_bytes(content)
    assert tracin.Checkpoint(copy).weights().keys() == load_file(copy).keys()

    content[-1] ^= 1
    copy.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"alone.safetensors is damaged: .* its checksum"):
        tracin.Checkpoint(copy).weights()


def test_weights_of_every_dtype_come_back_as_they_were(tmp_path):
    model = nn.Linear(2, 2)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    for number, kind in enumerate(kinds):
        model.register_buffer(f"buffer{number}", torch.tensor([[0, 1], [1, 0]]).to(kind).T)
    model.register_buffer("number", torch.tensor(3.5))
    model.register_buffer("nothing", torch.zeros(0, 3))
    model.register_buffer("turned", torch.tensor([1 + 2j], dtype=torch.complex64).conj())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with Recorder(model, optimizer, tmp_path) as recorder:
        path = recorder.save()

    for found in (load_file(path), tracin.Checkpoint(path).weights()):
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.eye(2).to_sparse(), "it is sparse_coo"),
        (torch.zeros(1, dtype=torch.complex128), "it has the dtype complex128"),
        (torch.empty(1, device="meta"), 'is on the device "meta"'),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(tmp_path, values, words):
    model = nn.Linear(2, 2)
    model.register_buffer("odd", values)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with Recorder(model, optimizer, tmp_path) as recorder:
        with pytest.raises(CheckpointError, match=f"'odd' cannot be saved: .*{words}"):
            recorder.save()
        del model.odd


def test_a_random_state_of_other_bytes_is_refused():
    state = random_state.RandomState.now()

    for broken in (b"", state.cpu[:-1], b"\0" * 7):
        with pytest.raises(CheckpointError, match="are not a random state"):
            random_state.RandomState(broken, b"", state.python, state.numpy).restore()
    with pytest.raises(CheckpointError, match="are not a random state"):
        random_state.RandomState(state.cpu, b"", state.python[:9], state.numpy).restore()
    state.restore()


@pytest.mark.parametrize("groups", ["3", "[3]", '[{"lr": 1}]', '[{"parameters": [1]}]', "[" * 9000])
def test_an_optimizer_state_with_other_groups_is_refused(tmp_path, groups):
    from tracin.checkpoints.readers.safetensors import write_sealed

    path = tmp_path / "state.safetensors"
    write_sealed({}, path, {"tracin.optimizer": "SGD", "tracin.groups": groups})

    with pytest.raises(CheckpointError, match="cannot be read"):
        OptimizerState.read(path)


# One writer


def test_a_second_recorder_of_the_process_is_refused_until_the_first_is_closed(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path):
        with pytest.raises(CheckpointError, match="by another Recorder of this process"):
            Recorder(model, optimizer, tmp_path)
        with pytest.raises(CheckpointError, match="by another Recorder of this process"):
            Recorder(model, optimizer, tmp_path / "x" / "..")

    with Recorder(model, optimizer, tmp_path):
        pass
    assert not list(tmp_path.glob(".*"))


def test_a_recorder_that_could_not_begin_leaves_the_folder_free(tmp_path):
    recorded(tmp_path)
    other = nn.Linear(3, 3)

    with pytest.raises(CheckpointError, match="checkpoints of another model"):
        Recorder(other, torch.optim.SGD(other.parameters(), lr=0.1), tmp_path)

    model = nn.Linear(2, 2)
    Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path).close()


HOLDER = """
import sys, time, torch, tracin
model = torch.nn.Linear(2, 2)
recorder = tracin.Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_is_one_process_and_free_when_that_is_killed(tmp_path):
    folder = tmp_path / "run"
    holder = start_script(HOLDER, folder, folder=tmp_path)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        holder.wait_for("ready\n")
        with pytest.raises(CheckpointError, match=rf"another Recorder \(process {holder.pid} on"):
            Recorder(model, optimizer, folder)
    finally:
        os.kill(holder.pid, signal.SIGKILL)

    assert holder.ended(60).code == -signal.SIGKILL
    with Recorder(model, optimizer, folder) as recorder:
        recorder.save()
    assert len(open_checkpoints(folder)) == 1


def test_a_lock_of_another_host_is_believed_and_the_message_says_how_to_remove_it(tmp_path):
    owner = {"host": "elsewhere", "pid": 12, "started": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(CheckpointError, match=r"process 12 on elsewhere.*delete .*writer\.lock"):
        Recorder(model, optimizer, tmp_path)

    (tmp_path / LOCK).unlink()
    Recorder(model, optimizer, tmp_path).close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', "\0\0"])
def test_a_lock_file_that_says_nothing_is_taken_over_or_refused_in_words(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    is_said = content == '{"host": 3}'
    with pytest.raises(CheckpointError, match="delete") if is_said else nullcontext():
        Recorder(model, optimizer, tmp_path).close()


def test_a_forked_child_neither_releases_nor_takes_the_folder(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path) as recorder:
        child = os.fork()
        if child == 0:
            try:
                Recorder(model, optimizer, tmp_path)
            except CheckpointError:
                recorder._release()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / LOCK).is_file()
        recorder.save()


@pytest.mark.parametrize("rank", ["1", "7"])
def test_ranks_above_0_count_steps_and_write_nothing(tmp_path, monkeypatch, rank):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path) as first:
        first.save()
        before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
        monkeypatch.setenv("RANK", rank)

        other = nn.Linear(2, 2)
        steps = torch.optim.SGD(other.parameters(), lr=0.1)
        with Recorder(other, steps, tmp_path, every=1) as recorder:
            recorder.batch([0, 1])
            step(other, steps)
            assert recorder.save() is None
            assert recorder.epoch() is None
            assert (recorder.step, recorder.epochs) == (1, 1)
            assert recorder.latest() is not None

        assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


DDP = """
import sys, torch, tracin
import torch.distributed as dist
from torch import nn
rank, folder, meeting = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Linear(4, 3)
model = nn.parallel.DistributedDataParallel(net)
torch.manual_seed(rank + 1)
x, y = torch.randn(8, 4), torch.randint(0, 3, (8,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tracin.Recorder(model, optimizer, folder, every=1, optimizer_state=True) as recorder:
    for number in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert recorder.step == 10
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_in_a_loop_of_two_processes_the_first_one_records(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    ranks = [
        start_script(DDP, rank, tmp_path / "run", tmp_path / "meet", folder=folder)
        for rank, folder in enumerate(folders)
    ]

    assert [rank.ended(120).code for rank in ranks] == [0, 0]
    found = open_checkpoints(tmp_path / "run")
    assert [one.step for one in found] == list(range(1, 11))
    assert all(one.weights().keys() == {"weight", "bias"} for one in found)
    assert found[-1].trained == ("bias", "weight")


# The disk


def test_a_relative_folder_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, "run") as recorder:
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        step(model, optimizer)
        recorder.save()

    assert len(open_checkpoints(tmp_path / "run")) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_files_get_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        recorded(tmp_path / "run")
    finally:
        os.umask(before)

    modes = {one.stat().st_mode & 0o777 for one in (tmp_path / "run").rglob("*") if one.is_file()}
    assert modes == {0o640}


def test_a_full_disk_is_said_in_words_and_the_folder_still_opens(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, optimizer, tmp_path)
    recorder.save()
    step(model, optimizer)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written to \(No space.*Free some space"):
        recorder.save()
    with pytest.raises(CheckpointError, match=r"cannot be written to \(No space"):
        recorder.close()
    monkeypatch.undo()

    assert [one.step for one in open_checkpoints(tmp_path)] == [0]
    Recorder(model, optimizer, tmp_path)


@pytest.mark.parametrize("folder", ["a\0b", "x" * 300, "file/run"])
def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    model = nn.Linear(2, 2)

    with pytest.raises(CheckpointError, match="cannot be made a folder"):
        Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), folder)


# Optimizers


class Lookahead(torch.optim.Optimizer):
    """Does not call the base class's __init__, as many wrappers do not."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, {}

    def step(self, closure=None):
        return self.optimizer.step(closure)


class AcceleratedOptimizer(Lookahead):
    """As Accelerate wraps an optimizer."""


def listeners(model, optimizer, folder):
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    return (
        lambda: Recorder(model, optimizer, folder / "run"),
        lambda: tracin.Tracer(model, optimizer, "cross_entropy", (x, y), (x, y), folder / "trace"),
    )


@pytest.mark.parametrize("kind", [0, 1])
def test_a_wrapper_without_hooks_is_refused_with_the_way_out(tmp_path, kind):
    model = nn.Linear(2, 2)
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))

    with pytest.raises(TracInError, match=r"cannot listen to this Lookahead.*Pass the optimizer"):
        listeners(model, optimizer, tmp_path)[kind]()


@pytest.mark.parametrize("wraps", [1, 2])
def test_the_optimizer_within_an_accelerated_one_is_heard(tmp_path, wraps):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(wraps):
        optimizer = AcceleratedOptimizer(optimizer)

    record, trace = listeners(model, optimizer, tmp_path)
    with record() as recorder, trace() as tracer:
        with tracer.batch([0, 1]):
            loss = nn.functional.cross_entropy(model(torch.ones(2, 2)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        recorder.save()

    assert (recorder.step, tracer.step) == (1, 1)


@pytest.mark.slow
def test_accelerates_own_optimizer_is_heard(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    bare = nn.Linear(2, 2)
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(
        bare, torch.optim.SGD(bare.parameters(), 0.1)
    )

    with Recorder(model, optimizer, tmp_path) as recorder:
        step(model, optimizer)
        recorder.epoch()

    assert [one.learning_rate for one in open_checkpoints(tmp_path)] == [0.1]


# Which parameters were trained


def test_the_record_names_the_parameters_that_were_trained(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, tmp_path, every=1):
        step(model, optimizer)
        assert read_record(tmp_path).trained == ("1.bias", "1.weight")
        model[0].weight.requires_grad_(True)
        step(model, optimizer)
        model[0].weight.requires_grad_(False)

    assert open_checkpoints(tmp_path)[0].trained == ("0.weight", "1.bias", "1.weight")

    with Recorder(model, optimizer, tmp_path) as recorder:
        step(model, optimizer)
        recorder.save()
    assert read_record(tmp_path).trained == ("0.weight", "1.bias", "1.weight")
