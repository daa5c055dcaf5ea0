"""A trace is saved and resumed to the same result, or refused by the name of what changed."""

import copy
import signal
import sys

import numpy as np
import pytest
import torch

import tracin
from own_process import run_script
from traced_training import (
    ALL,
    OPTIMIZERS,
    batches,
    fit,
    mlp,
    seeded,
    sgd,
    traced,
)
from tracin import Tracer, TracingError

pytestmark = pytest.mark.usefixtures("float64")


def test_a_broken_run_resumes_to_the_same_result(tmp_path, train, queries):
    rows = batches(9)
    make = OPTIMIZERS["AdamW"]
    whole, _ = traced(tmp_path / "a", mlp, make, train, queries, rows)

    model = seeded(mlp)
    optimizer = make(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "b", paths=ALL)
    fit(tracer, model, optimizer, train, rows[:4])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    tracer.save()
    fit(tracer, model, optimizer, train, rows[4:6])  # lost in the crash
    tracer._stop(is_broken=True)

    model = seeded(mlp)
    optimizer = make(model.parameters())
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    with Tracer(
        model, optimizer, "cross_entropy", queries, train, tmp_path / "b", paths=ALL
    ) as tracer:
        fit(tracer, model, optimizer, train, rows[4:])
        found = tracer.trace()
    for path in ALL:
        assert torch.equal(found.influence(path), whole.influence(path))
    assert torch.equal(found.self_influence(), whole.self_influence())
    assert np.array_equal(np.array(found.steps.rows), np.array(whole.steps.rows))


KILLED = """
import os, signal, sys
import torch
from torch import nn
from torch.nn import functional as F
import tracin

folder, dies = sys.argv[1], int(sys.argv[2])
torch.set_default_dtype(torch.float32)
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, labels = torch.randn(24, 6), torch.randint(3, (24,))
model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rows = torch.stack([torch.randperm(24)[:4] for _ in range(9)])
own = folder + ".pt"
start = 0
if os.path.exists(own):
    saved = torch.load(own)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    start = saved["step"]
queries = inputs[:3] + 0.1, labels[:3]
with tracin.Tracer(model, optimizer, "cross_entropy", queries, (inputs, labels), folder) as tracer:
    for step in range(start, 9):
        optimizer.zero_grad()
        with tracer.batch(rows[step]):
            loss = F.cross_entropy(model(inputs[rows[step]]), labels[rows[step]])
        loss.backward()
        if step == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        if step % 3 == 2:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "random": torch.get_rng_state(), "step": step + 1}, own)
            tracer.save()
"""


def test_a_killed_process_resumes_to_the_same_result(tmp_path, monkeypatch):
    def run(name):
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / name), "-1"])
        exec(KILLED, {})

    ended = run_script(KILLED, tmp_path / "killed", 5, folder=tmp_path)
    assert ended.code == -signal.SIGKILL
    run("killed")
    run("whole")
    whole, killed = (tracin.tracing.Trace.open(tmp_path / name) for name in ("whole", "killed"))
    assert torch.equal(whole.influence(), killed.influence())
    assert torch.equal(whole.self_influence(), killed.self_influence())
    assert np.array_equal(whole.steps.rows, killed.steps.rows)


def begun(folder, train, queries):
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    with Tracer(model, optimizer, "cross_entropy", queries, train, folder) as tracer:
        fit(tracer, model, optimizer, train, batches(2))
    return model, optimizer


def test_resumed_with_another_optimizer(tmp_path, train, queries):
    model, _ = begun(tmp_path / "a", train, queries)
    with pytest.raises(TracingError, match=r"optimizer changed \(was 'SGD', now 'Adam'\)"):
        Tracer(
            model,
            torch.optim.Adam(model.parameters()),
            "cross_entropy",
            queries,
            train,
            tmp_path / "a",
        )


def test_resumed_with_other_queries(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    other = (queries[0] + 1, queries[1])
    with pytest.raises(TracingError, match="the queries changed"):
        Tracer(model, optimizer, "cross_entropy", other, train, tmp_path / "a")


def test_resumed_with_more_or_fewer_data(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    fewer = (train[0][:-1], train[1][:-1])
    with pytest.raises(
        TracingError, match=r"number of training examples changed \(was 24, now 23\)"
    ):
        Tracer(model, optimizer, "cross_entropy", queries, fewer, tmp_path / "a")


def test_resumed_with_other_parameters(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    with pytest.raises(TracingError, match=r"choice of parameters changed.*'2\.\*'"):
        Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a", parameters="2.*")


def test_resumed_with_other_weights(tmp_path, train, queries):
    begun(tmp_path / "a", train, queries)
    model = mlp()  # without the seed
    optimizer = sgd(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="saved after 0 and 2 steps, but the model holds other"):
        fit(tracer, model, optimizer, train, batches(1))


def test_a_finished_trace_is_not_begun_anew(tmp_path, train, queries):
    begun(tmp_path / "a", train, queries)
    model = seeded(mlp)
    optimizer = sgd(model.parameters())
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="holds the finished trace of 2 steps"):
        fit(tracer, model, optimizer, train, batches(1))
    assert len(tracin.tracing.Trace.open(tmp_path / "a").steps) == 2


def test_a_cut_off_file_is_told(tmp_path, train, queries):
    model, optimizer = begun(tmp_path / "a", train, queries)
    path = tmp_path / "a" / "steps.f64"
    path.write_bytes(path.read_bytes()[:-8])
    tracer = Tracer(model, optimizer, "cross_entropy", queries, train, tmp_path / "a")
    with pytest.raises(TracingError, match="does not hold the 2 steps"):
        fit(tracer, model, optimizer, train, batches(1))
