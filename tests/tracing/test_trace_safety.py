"""A trace's folder: readers see whole saves alone, damage is found, and no step is lost unseen."""

import errno
import os
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from own_process import run_script
from tracin import NonFiniteError, QueryError, Tracer, TracingError, TracingWarning
from tracin.tracing import Trace, manifest


def data(examples=60):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(examples, 6, generator=generator), torch.arange(examples) % 3


X, Y = data()


def new():
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def opened(model, optimizer, folder, queries=2, **options):
    asked = (X[:queries], Y[:queries]) if queries else None
    return Tracer(model, optimizer, "cross_entropy", asked, (X, Y), folder, **options)


def step(tracer, model, optimizer, number, inputs=X):
    rows = torch.arange(number, number + 20)
    optimizer.zero_grad()
    with tracer.batch(rows):
        loss = F.cross_entropy(model(inputs[rows]), Y[rows])
    loss.backward()
    optimizer.step()


def traced(folder, steps=3, **options):
    model, optimizer = new()
    with opened(model, optimizer, folder, **options) as tracer:
        for number in range(steps):
            step(tracer, model, optimizer, number)
    return model, optimizer


def broken_off(folder, saved, died):
    """A training that saves after some steps and breaks off after others."""
    model, optimizer = new()
    with suppress(KeyboardInterrupt), opened(model, optimizer, folder) as tracer:
        for number in range(died):
            step(tracer, model, optimizer, number)
            if number + 1 == saved:
                tracer.save()
                at_save = (
                    tracer.trace().influence(),
                    {k: v.clone() for k, v in model.state_dict().items()},
                )
        raise KeyboardInterrupt
    return at_save if saved else (None, None), model


# What readers see


@pytest.mark.parametrize(("saved", "died"), [(1, 2), (5, 9), (5, 5)])
def test_a_broken_off_trace_reads_as_its_last_save(tmp_path, saved, died):
    (at_save, _), _ = broken_off(tmp_path, saved, died)

    trace = Trace.open(tmp_path)

    assert trace.save.step == saved == len(trace.steps)
    assert torch.equal(trace.influence(), at_save)
    assert np.isclose(trace.goodness().conservation_ratio, 1, atol=0.1)


def test_a_trace_read_while_training_goes_on_does_not_change(tmp_path):
    model, optimizer = new()
    with opened(model, optimizer, tmp_path) as tracer:
        step(tracer, model, optimizer, 0)
        now = tracer.trace()
        scores, own, losses = now.influence(), now.self_influence(), np.array(now.steps.actual)
        tracer.save()
        saved = Trace.open(tmp_path)
        for number in range(1, 6):
            step(tracer, model, optimizer, number)
            tracer.save()

        for trace in (now, saved):
            assert torch.equal(trace.influence(), scores)
            assert torch.equal(trace.self_influence(), own)
            assert np.array_equal(trace.steps.actual, losses)
        assert not torch.equal(tracer.trace().influence(), scores)
    assert sorted(one.name for one in (tmp_path / "saved").iterdir()) == ["5", "6"]


def test_going_on_from_the_older_of_two_saves_drops_the_newer(tmp_path):
    model, optimizer = new()
    weights = {}
    with suppress(KeyboardInterrupt), opened(model, optimizer, tmp_path / "a") as tracer:
        for number in range(5):
            step(tracer, model, optimizer, number)
            tracer.save()
            weights[number + 1] = {k: v.clone() for k, v in model.state_dict().items()}
        raise KeyboardInterrupt
    reader = Trace.open(tmp_path / "a")
    scores, steps = reader.influence(), np.array(reader.steps.rows)

    model.load_state_dict(weights[4])
    with opened(model, optimizer, tmp_path / "a") as tracer:
        step(tracer, model, optimizer, 7)
    assert Trace.open(tmp_path / "a").save.step == 5

    assert torch.equal(reader.influence(), scores)  # what was open stays as it was
    assert np.array_equal(reader.steps.rows, steps)


# No step is lost unseen


def test_steps_before_the_first_save_are_not_dropped_in_silence(tmp_path):
    _, model = broken_off(tmp_path, 0, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    tracer = opened(model, optimizer, tmp_path)
    with pytest.raises(TracingError, match=r"saved after 0 steps, but the model holds other wei"):
        step(tracer, model, optimizer, 6)


@pytest.mark.parametrize("saved", [0, 3])
def test_a_training_begun_again_repeats_what_was_lost(tmp_path, saved):
    broken_off(tmp_path / "a", saved, 5)
    traced(tmp_path / "a", 5)
    traced(tmp_path / "b", 5)

    one, other = Trace.open(tmp_path / "a"), Trace.open(tmp_path / "b")
    assert torch.equal(one.influence(), other.influence())
    assert np.array_equal(one.steps.rows, other.steps.rows)


def test_a_tracer_that_took_no_step_binds_nobody(tmp_path):
    model, optimizer = new()
    with suppress(KeyboardInterrupt), opened(model, optimizer, tmp_path) as tracer:
        with tracer.batch([0]):
            model(X[:1])
        raise KeyboardInterrupt
    with pytest.raises(TracingError, match="never saved"):
        Trace.open(tmp_path)

    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with opened(model, optimizer, tmp_path) as tracer:
        step(tracer, model, optimizer, 0)
    assert len(Trace.open(tmp_path).steps) == 1


# One Tracer a folder


def test_a_second_tracer_is_refused_until_the_first_is_closed(tmp_path):
    model, optimizer = new()
    with opened(model, optimizer, tmp_path) as tracer:
        step(tracer, model, optimizer, 0)
        with pytest.raises(TracingError, match="by another Tracer of this process"):
            opened(*new(), tmp_path)
    opened(model, optimizer, tmp_path).close()
    assert not list(tmp_path.glob(".*"))


def test_a_relative_folder_survives_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, optimizer = new()
    with opened(model, optimizer, "trace") as tracer:
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        step(tracer, model, optimizer, 0)
    assert len(Trace.open(tmp_path / "trace").steps) == 1


# Damage


def answers(folder):
    trace = Trace.open(folder)
    found = [trace.save, trace.about, trace.ids.tolist(), trace.query_ids.tolist()]
    found += [trace.influence(path).tolist() for path in trace.paths]
    return [*found, trace.self_influence().tolist(), np.array(trace.steps.rows).tolist()]


@pytest.mark.slow
def test_a_flipped_bit_is_found_or_changes_no_answer(tmp_path):
    traced(tmp_path, 2)
    expected = answers(tmp_path)
    outcomes = dict.fromkeys(("an error", "equal"), 0)
    for path in [one for one in tmp_path.rglob("*") if one.is_file()]:
        whole = path.read_bytes()
        size = len(whole)
        for at in sorted({place * size // 200 for place in range(200)}):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            try:
                assert answers(tmp_path) == expected, f"bit {at % 8} of byte {at} of {path}"
                outcomes["equal"] += 1
            except TracingError:
                outcomes["an error"] += 1
        path.write_bytes(whole)
    assert outcomes["an error"] > 300


def test_damaged_tables_are_not_gone_on_with(tmp_path):
    model, optimizer = traced(tmp_path, 3)
    for name in ("saved/3/scores-trapezoid.f32", "saved/3/self_influence.f64", "steps.f64"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        tracer = opened(model, optimizer, tmp_path)
        with pytest.raises(TracingError, match="damaged"):
            step(tracer, model, optimizer, 4)
        tracer._stop(is_broken=True)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["trace.json", "ids.json", "saved/3/saved.json"])
@pytest.mark.parametrize("text", ["{", "[" * 90_000, "[]", '{"format": 3}', '{"format": 1}', ""])
def test_a_file_of_other_content_is_refused_in_words(tmp_path, name, text):
    traced(tmp_path, 3)
    (tmp_path / name).write_text(text)
    with pytest.raises(TracingError):
        answers(tmp_path)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("trace.json", {"train": 10**15}),
        ("trace.json", {"train": -1}),
        ("trace.json", {"train": "60"}),
        ("trace.json", {"queries": 10**12}),
        ("trace.json", {"paths": ["none"]}),
        ("trace.json", {"paths": []}),
        ("trace.json", {"more": 1}),
        ("ids.json", {"train": [[1]]}),
        ("ids.json", {"train": []}),
        ("saved/3/saved.json", {"rows": 10**12, "step": 10**12}),
        ("saved/3/saved.json", {"rows": True}),
        ("saved/3/saved.json", {"files": {}}),
        ("saved/3/saved.json", {"files": {"../../etc": ""}}),
        ("saved/3/saved.json", {"step": 2}),
    ],
)
def test_hostile_content_with_a_right_checksum_is_refused_in_words(tmp_path, name, changed):
    traced(tmp_path, 3)
    content = manifest.read_sealed(tmp_path / name, manifest.FORMAT, TracingError)
    manifest.write_json(tmp_path / name, {**content, **changed})
    with pytest.raises(TracingError):
        answers(tmp_path)


def test_saves_without_what_says_of_what_are_not_taken_for_a_new_trace(tmp_path):
    model, optimizer = traced(tmp_path)
    (tmp_path / "trace.json").unlink()
    with pytest.raises(TracingError, match=r"holds saves of a trace, but trace.json.* is gone"):
        opened(model, optimizer, tmp_path)


def test_texts_of_other_queries_are_seen_to_differ():
    from tracin.data import open_examples
    from tracin.tracing.fingerprints import query_fingerprint

    def of(*texts):
        examples = [{"text": text, "x": X[0]} for text in texts]
        return query_fingerprint(open_examples(examples, name="queries"))

    assert of("a", "b") == of("a", "b") != of("a", "c")


# The disk


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_is_said_before_the_first_step(tmp_path, monkeypatch):
    model, optimizer = new()
    before = model.weight.detach().clone()
    monkeypatch.setattr("tracin.tracing.folder.reserve", full)
    tracer = opened(model, optimizer, tmp_path)
    with pytest.raises(TracingError, match=r"cannot be written to \(No space.*Free some space"):
        step(tracer, model, optimizer, 0)
    assert torch.equal(model.weight, before)


def test_a_disk_that_fills_up_is_said_before_the_step_is_taken(tmp_path, monkeypatch):
    model, optimizer = new()
    tracer = opened(model, optimizer, tmp_path)
    step(tracer, model, optimizer, 0)
    tracer.save()
    before = model.weight.detach().clone()
    tracer._tables.steps._reserved = 0
    monkeypatch.setattr("tracin.tracing.folder.reserve", full)
    with pytest.raises(TracingError, match="No space"):
        step(tracer, model, optimizer, 1)
    assert torch.equal(model.weight, before)
    assert len(Trace.open(tmp_path).steps) == 1


@pytest.mark.parametrize("when", ["first", "later", "save", "row"])
def test_training_goes_on_without_a_trace_if_asked(tmp_path, monkeypatch, when):
    alone, optimizer = new()
    for number in range(4):
        rows = torch.arange(number, number + 20)
        optimizer.zero_grad()
        F.cross_entropy(alone(X[rows]), Y[rows]).backward()
        optimizer.step()

    def train(tracer, model, optimizer):
        if when == "first":
            monkeypatch.setattr("tracin.tracing.folder.reserve", full)
        for number in range(4):
            step(tracer, model, optimizer, number)
            if number == 1:
                if when == "save":
                    monkeypatch.setattr("tracin.tracing.folder.flush", full)
                tracer.save()
                if when == "later":
                    tracer._tables.steps._reserved = 0
                    monkeypatch.setattr("tracin.tracing.folder.reserve", full)
                elif when == "row":
                    monkeypatch.setattr(type(tracer._tables.steps), "append", full)

    model, optimizer = new()
    with opened(model, optimizer, tmp_path, stops_training=False) as tracer:  # noqa: SIM117
        with pytest.warns(TracingWarning, match="No space.*Training continues, but is not traced"):
            train(tracer, model, optimizer)

    assert torch.equal(model.weight, alone.weight)
    if when in ("later", "row"):
        assert len(Trace.open(tmp_path).steps) == 2


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no fallocate")
def test_the_tables_have_no_holes(tmp_path):
    model, optimizer = new()
    with opened(model, optimizer, tmp_path) as tracer:
        step(tracer, model, optimizer, 0)
        for path in [*tmp_path.glob("*.f32"), *tmp_path.glob("*.f64")]:
            assert path.stat().st_blocks * 512 >= path.stat().st_size


# Numbers


@pytest.mark.parametrize("queries", [0, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_training_data_that_is_not_finite_is_named(tmp_path, queries, bad):
    spoiled = X.clone()
    spoiled[9, 0] = bad
    model, optimizer = new()
    tracer = opened(model, optimizer, tmp_path, queries)
    step(tracer, model, optimizer, 20, spoiled)
    tracer.save()
    with pytest.raises(NonFiniteError, match=r"training example \d+ is NaN or .* in step 1"):
        step(tracer, model, optimizer, 0, spoiled)
    found = Trace.open(tmp_path).self_influence()
    assert bool(torch.isfinite(found).all())


def test_after_a_step_that_failed_nothing_is_saved_over_the_last_save(tmp_path):
    spoiled = X.clone()
    spoiled[9, 0] = float("nan")
    model, optimizer = new()
    tracer = opened(model, optimizer, tmp_path)
    step(tracer, model, optimizer, 20)
    tracer.save()
    with pytest.raises(NonFiniteError):
        step(tracer, model, optimizer, 0, spoiled)
    for call in (tracer.save, tracer.trace, tracer.close):
        with pytest.raises(TracingError, match="could not be traced to its end"):
            call()
    assert len(Trace.open(tmp_path).steps) == 1


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.tensor(0.25))

    def forward(self, x):
        return self.linear(x) * self.temperature + self.shift


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("queries", [0, 3])
def test_parameters_without_dimensions_are_traced(tmp_path, kind, queries):
    torch.manual_seed(0)
    model = Scaled()
    optimizer = kind(model.parameters(), lr=0.05)
    with opened(model, optimizer, tmp_path, queries) as tracer:
        for number in range(6):
            step(tracer, model, optimizer, number)
        tracer.save()
    trace = Trace.open(tmp_path)
    assert bool((trace.self_influence()[:20] > 0).all())
    if queries:
        assert abs(trace.goodness().conservation_ratio - 1) < 0.1


def test_queries_that_share_a_number_without_dimensions_are_traced(tmp_path):
    class Queries(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, at):
            return {"x": X[at], "y": Y[at], "scale": torch.tensor(2.0)}

    def loss(model, batch):
        return batch["scale"] * F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    model, optimizer = new()
    train = {"x": X, "y": Y, "scale": torch.full((60,), 1.0)}
    with Tracer(model, optimizer, loss, Queries(), train, tmp_path) as tracer:
        step(tracer, model, optimizer, 0)
    assert len(Trace.open(tmp_path).steps) == 1


@pytest.mark.parametrize(
    "ask",
    [Trace.explain, Trace.influence, Trace.ideal, Trace.goodness],
)
def test_what_needs_queries_says_so_where_there_are_none(tmp_path, ask):
    traced(tmp_path, queries=0)
    with pytest.raises(QueryError, match="Without queries only self-influence was traced"):
        ask(Trace.open(tmp_path))


@pytest.mark.parametrize("held", [2, 10, 1 << 22])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_explain_in_blocks_ranks_as_a_sort_does_with_ties_in_order(tmp_path, monkeypatch, held, k):
    monkeypatch.setattr("tracin.tracing.trace.HELD", held)
    traced(tmp_path, 2)
    trace = Trace.open(tmp_path)

    found = trace.explain(k)

    scores = trace.influence().T
    assert (scores == 0).sum() > 20
    for sign, hits in ((1, found.proponents), (-1, found.opponents)):
        order = (sign * scores).argsort(dim=1, descending=True, stable=True)[:, :k]
        assert hits.positions.tolist() == order.tolist()


# Killed processes

LOOP = """
import os, signal, sys, torch, tracin
from torch.nn import functional as F
torch.set_num_threads(1)
folder, weights, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
torch.manual_seed(0)
model = torch.nn.Linear(6, 3)
if os.path.exists(weights):
    model.load_state_dict(torch.load(weights))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
with tracin.Tracer(model, optimizer, "cross_entropy", (x[:2], y[:2]), (x, y), folder) as tracer:
    tracer._open()
    while tracer.step < 12:
        rows = torch.arange(tracer.step, tracer.step + 20)
        optimizer.zero_grad()
        with tracer.batch(rows):
            loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        if tracer.step == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        if tracer.step % 4 == 0:
            torch.save(model.state_dict(), weights + ".tmp")
            os.replace(weights + ".tmp", weights)
            if tracer.step == stop + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            tracer.save()
"""


@pytest.mark.slow
def test_a_killed_training_that_goes_on_has_the_trace_of_an_undisturbed_one(tmp_path):
    def run(folder, stop):
        words = (tmp_path / folder, tmp_path / f"{folder}.pt", stop)
        return run_script(LOOP, *words, folder=tmp_path).code

    assert run("whole", 0) == 0
    expected = Trace.open(tmp_path / "whole")
    for stop in (2, 6, 9):
        folder = f"killed{stop}"
        assert run(folder, stop) == -9
        if stop > 4:
            left = Trace.open(tmp_path / folder)
            assert left.save.step == stop // 4 * 4 == len(left.steps)
        shutil.copytree(tmp_path / folder, tmp_path / f"{folder}-copy")
        assert run(folder, 0) == 0
        trace = Trace.open(tmp_path / folder)
        assert torch.equal(trace.influence(), expected.influence())
        assert torch.equal(trace.self_influence(), expected.self_influence())
        assert np.array_equal(trace.steps.rows, expected.steps.rows)
