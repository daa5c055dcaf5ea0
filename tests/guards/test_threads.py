"""Several threads and one model: right scores, or a refusal in words; and the weights come back."""

import contextlib
import copy
import gc
import os
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tracin
from tracin import ModelInUseError
from tracin.checkpoints import loaded
from tracin.guards import Hold, ownership

ROUNDS = 4


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(rows=24, seed=9):
    some = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=some), torch.arange(rows) % 3


def run_of(model):
    states = [
        {k: torch.full_like(v, 0.1 * n) + v for k, v in model.state_dict().items()} for n in (1, 2)
    ]
    return tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")


def together(*jobs):
    """Run each job in a thread of its own; what they returned or raised."""
    said = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(at):
        start.wait()
        try:
            said[at] = jobs[at]()
        except Exception as error:
            said[at] = error

    threads = [threading.Thread(target=work, args=(at,)) for at in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return said


@pytest.fixture(autouse=True)
def _nobody_holds_anything_afterwards():
    yield
    assert ownership.queue() == []


def test_two_threads_on_one_run_get_the_right_scores_and_the_weights_come_back():
    model = mlp()
    run, own = run_of(model), copy.deepcopy(model.state_dict())
    true = run.self_influence(batch())

    def ask():
        return [run.self_influence(batch(), batch_size=5) for _ in range(ROUNDS)]

    for scores in together(ask, ask):
        for each in scores:
            torch.testing.assert_close(each, true)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in own.items())


@pytest.mark.parametrize("ask", ["influence", "explain", "find_mislabelled", "coverage", "verify"])
def test_two_runs_of_one_model_wait_for_each_other(ask):
    model = mlp()
    calls = {
        "influence": lambda run: run.influence(batch(), batch(3)).tolist(),
        "explain": lambda run: str(run.explain(batch(), batch(3), k=2)),
        "find_mislabelled": lambda run: str(run.find_mislabelled(batch())),
        "coverage": lambda run: str(run.coverage(batch())),
        "verify": lambda run: run.verify(batch()).is_exact,
    }
    runs = [run_of(model), run_of(model)]
    wanted = [calls[ask](run) for run in runs]
    score = runs[0].self_influence(batch())

    found = together(
        *(lambda run=run: calls[ask](run) for run in runs), lambda: runs[0].self_influence(batch())
    )

    assert found[:2] == wanted
    torch.testing.assert_close(found[2], score)


def test_a_model_and_its_part_wait_for_each_other():
    model = mlp()
    part = run_of(model[0])
    whole = run_of(model)
    pairs = batch()[0], batch()[0][:, :1].expand(-1, 8).contiguous()
    part = tracin.TracIn(model[0], "mse", [model[0].state_dict()], learning_rates="equal")
    wanted = part.self_influence(pairs), whole.self_influence(batch())

    for _ in range(ROUNDS):
        found = together(lambda: part.self_influence(pairs), lambda: whole.self_influence(batch()))
        torch.testing.assert_close(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1])


def test_models_that_share_a_parameter_wait_for_each_other():
    one, other = mlp(), mlp(1)
    other[0].weight = one[0].weight
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with loaded(one, mlp(2).state_dict()):
            entered.set()
            leave.wait(60)

    def ask():
        entered.wait(60)
        try:
            return run_of(other).self_influence(batch())
        finally:
            leave.set()

    said = together(hold, ask)

    assert isinstance(said[1], ModelInUseError)


def test_models_that_share_nothing_do_not_wait():
    one, other = mlp(), mlp(1)
    run = run_of(other)

    with loaded(one, mlp(2).state_dict()):
        (scores,) = together(lambda: run.self_influence(batch()))

    torch.testing.assert_close(scores, run.self_influence(batch()))


def test_a_block_of_the_users_own_refuses_other_threads_with_the_way_out():
    model = mlp()
    run = run_of(model)

    with loaded(model, mlp(1).state_dict()):
        (said,) = together(lambda: run.self_influence(batch()))

    assert isinstance(said, ModelInUseError)
    assert "tracin.checkpoints.loaded in the thread 'MainThread'" in str(said)
    assert "copy.deepcopy(model)" in str(said)


def test_one_thread_may_ask_inside_its_own_block():
    model = mlp()
    run = run_of(model)
    true = run.self_influence(batch())

    with loaded(model, mlp(1).state_dict()):
        found = run.self_influence(batch())

    torch.testing.assert_close(found, true)


def test_two_threads_that_would_wait_for_each_other_are_refused():
    one, other = mlp(), mlp(1)
    holds = {
        model: [Hold(model, "a pass", is_brief=True) for _ in range(2)] for model in (one, other)
    }
    both = threading.Barrier(2)

    def take(first, second, at):
        holds[first][at].take()
        both.wait()
        try:
            holds[second][at].take()
        finally:
            holds[first][at].release()
            holds[second][at].release()

    said = together(lambda: take(one, other, 0), lambda: take(other, one, 1))

    assert any(isinstance(each, ModelInUseError) for each in said)


def test_what_a_dead_thread_held_is_free():
    model = mlp()
    hold = Hold(model, "a pass", is_brief=False)

    together(hold.take)

    assert run_of(model).self_influence(batch()).shape == (24,)
    hold.release()


def test_what_was_never_released_is_free_once_its_block_is_gone():
    model = mlp()
    hold = Hold(model, "a pass", is_brief=False)
    hold.take()
    del hold

    (scores,) = together(lambda: run_of(model).self_influence(batch()))

    assert scores.shape == (24,)


def test_a_generator_that_is_thrown_away_lets_the_model_go():
    model = mlp()
    blocks = [loaded(model, mlp(1).state_dict())]
    blocks[0].__enter__()

    blocks.clear()

    (scores,) = together(lambda: run_of(model).self_influence(batch()))
    assert scores.shape == (24,)
    assert torch.equal(model[0].weight, mlp()[0].weight)


def test_random_state_and_switches_come_back_when_passes_over_two_models_overlap():
    inside, leave = threading.Event(), threading.Event()

    def slow(model, pair):
        inside.set()
        leave.wait(30)
        return nn.functional.cross_entropy(model(pair[0]), pair[1], reduction="none")

    first, second = mlp(), run_of(mlp(1))
    run = tracin.TracIn(first, slow, [first.state_dict()], learning_rates="equal")

    def second_inside_first():
        inside.wait(30)
        try:
            return second.self_influence(batch())
        finally:
            leave.set()

    torch.manual_seed(3)
    state, flash = torch.get_rng_state(), torch.backends.cuda.flash_sdp_enabled()

    together(lambda: run.self_influence(batch()), second_inside_first)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cuda.flash_sdp_enabled() == flash


def training(folder, model=None, **options):
    """A model, its optimizer, and a Tracer of them."""
    model = mlp() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracer = tracin.Tracer(model, optimizer, "cross_entropy", batch(2), batch(), folder, **options)
    return model, optimizer, tracer


def forward(tracer, model, rows=range(6)):
    """The loss of one traced batch."""
    rows = list(rows)
    with tracer.batch(rows):
        return nn.functional.cross_entropy(model(batch()[0][rows]), batch()[1][rows])


ASKED = {
    "self_influence": lambda run: run.self_influence(batch()),
    "coverage": lambda run: run.coverage(batch()),
    "verify": lambda run: run.verify(batch()),
    "loaded": lambda run: loaded(run.model, mlp(1).state_dict()).__enter__(),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_between_a_traced_batch_and_its_step_other_threads_are_refused(tmp_path, ask, every):
    model, optimizer, tracer = training(tmp_path, every=every)
    run = run_of(model)

    with tracer:
        for _ in range(every):  # the last of them is not traced where every is 2
            loss = forward(tracer, model)
            loss.backward()
            (said,) = together(lambda: ask(run))
            assert isinstance(said, ModelInUseError)
            assert "a Tracer, between batch() and step(), in the thread 'MainThread'" in str(said)
            optimizer.step()


def test_within_a_traced_batch_and_within_its_step_other_threads_are_refused(tmp_path):
    model, optimizer, tracer = training(tmp_path)
    run, said = run_of(model), []

    def ask(*_):
        said.extend(together(lambda: run.self_influence(batch())))

    with tracer:
        with tracer.batch(list(range(6))):
            ask()
            loss = nn.functional.cross_entropy(model(batch()[0][:6]), batch()[1][:6])
        loss.backward()
        optimizer.register_step_post_hook(ask)  # the Tracer's came before: the step is over
        handles = [optimizer.register_step_pre_hook(ask)]
        optimizer.step()

    assert [isinstance(each, ModelInUseError) for each in said] == [True, True, False]
    handles[0].remove()


def test_after_the_step_other_threads_may_ask_and_the_training_thread_at_any_time(tmp_path):
    model, optimizer, tracer = training(tmp_path)
    run = run_of(model)
    true = run.self_influence(batch())

    with tracer:
        loss = forward(tracer, model)
        torch.testing.assert_close(run.self_influence(batch()), true)
        loss.backward()
        torch.testing.assert_close(run.self_influence(batch()), true)
        optimizer.step()
        (other,) = together(lambda: run.self_influence(batch()))
        torch.testing.assert_close(run.self_influence(batch()), true)

    torch.testing.assert_close(other, true)


def test_micro_batches_hold_the_model_up_to_their_step(tmp_path):
    model, optimizer, tracer = training(tmp_path)
    run = run_of(model)

    with tracer:
        forward(tracer, model).backward()
        forward(tracer, model, range(6, 12)).backward()
        assert isinstance(together(lambda: run.self_influence(batch()))[0], ModelInUseError)
        optimizer.step()
        assert ownership.queue() == []


def test_passes_of_other_threads_between_steps_leave_the_trace_alone(tmp_path):
    def traced(folder, beside):
        model, optimizer, tracer = training(folder)
        run, over = run_of(model), threading.Event()

        def ask():
            while not over.is_set():
                with contextlib.suppress(ModelInUseError):
                    run.self_influence(batch())

        others = [threading.Thread(target=ask) for _ in range(beside)]
        for other in others:
            other.start()
        with tracer:
            for number in range(5):
                loss = forward(tracer, model, range(number, number + 6))
                optimizer.zero_grad()  # no lock holds other threads back before the batch
                loss.backward()
                optimizer.step()
                tracer.save()
        over.set()
        for other in others:
            other.join(60)
        return tracin.tracing.Trace.open(folder).influence()

    alone = traced(tmp_path / "alone", 0)

    assert torch.equal(torch.as_tensor(traced(tmp_path / "beside", 1)), torch.as_tensor(alone))


@pytest.mark.parametrize("end", ["close", "error", "error in the batch", "garbage"])
def test_a_tracer_that_ends_before_its_step_lets_the_model_go(tmp_path, end):
    model, optimizer, tracer = training(tmp_path)
    run = run_of(model)

    if end == "error in the batch":
        with pytest.raises(ZeroDivisionError), tracer.batch([0, 1]):
            raise ZeroDivisionError
    else:
        forward(tracer, model)
    if end == "close":
        with pytest.raises(tracin.TracingError, match="not followed by"):
            tracer.close()
    if end == "error":
        with pytest.raises(ZeroDivisionError), tracer:
            raise ZeroDivisionError
    if end == "garbage":
        del tracer, optimizer
        gc.collect()

    (scores,) = together(lambda: run.self_influence(batch()))
    assert scores.shape == (24,)


def test_a_step_that_is_refused_lets_the_model_go(tmp_path):
    model, optimizer, tracer = training(tmp_path)
    run = run_of(model)
    forward(tracer, model).backward()

    with pytest.raises(tracin.TracingError, match="closure"):
        optimizer.step(lambda: 0.0)

    (scores,) = together(lambda: run.self_influence(batch()))
    assert scores.shape == (24,)


def test_the_step_may_be_taken_in_another_thread_than_the_batch(tmp_path):
    model, optimizer, tracer = training(tmp_path)

    with tracer:
        forward(tracer, model).backward()
        (said,) = together(optimizer.step)
        assert said is None
        assert tracer.step == 1


def test_a_traced_batch_is_refused_while_another_thread_has_the_model(tmp_path):
    model, _, tracer = training(tmp_path)

    with loaded(model, mlp(1).state_dict()):
        (said,) = together(lambda: forward(tracer, model))

    assert isinstance(said, ModelInUseError)
    assert "tracin.checkpoints.loaded in the thread 'MainThread'" in str(said)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_replay_has_its_model_for_itself_until_it_ends(tmp_path, is_broken):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracin.Recorder(model, optimizer, tmp_path / "record", 1) as recorder:
        recorder.save()
        for _ in range(2):
            recorder.batch(list(range(6)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch()[0][:6]), batch()[1][:6]).backward()
            optimizer.step()
    run, said = run_of(model), []
    replay = tracin.Replay(model, optimizer, tmp_path / "record", batch())

    def loss(model, pair):
        said.extend(together(lambda: run.self_influence(batch())))
        if is_broken:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(model(pair[0]), pair[1])

    def walk():
        replay.trace("cross_entropy", batch(2), tmp_path / "trace", training_loss=loss)

    if is_broken:
        with pytest.raises(ZeroDivisionError):
            walk()
    else:
        walk()

    assert said
    assert all(isinstance(each, ModelInUseError) for each in said)
    assert "a Replay in the thread 'MainThread'" in str(said[0])
    assert together(lambda: run.self_influence(batch()))[0].shape == (24,)


def test_a_recorder_saves_the_trained_weights_while_other_threads_ask(tmp_path):
    model, inside, leave = mlp(), threading.Event(), threading.Event()
    own = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def slow(model, pair):
        inside.set()
        leave.wait(0.2)
        return nn.functional.cross_entropy(model(pair[0]), pair[1], reduction="none")

    run = tracin.TracIn(model, slow, [mlp(1).state_dict()], learning_rates="equal")

    def save():
        inside.wait(60)
        with tracin.Recorder(model, optimizer, tmp_path) as recorder:
            return recorder.save()

    _, file = together(lambda: run.self_influence(batch()), save)

    assert all(torch.equal(own[name], one) for name, one in load_file(file).items())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # to fork beside threads is the point
def test_a_forked_child_can_use_what_another_thread_of_its_parent_held():
    model = mlp()
    run = run_of(model)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        held = Hold(model, "a pass", is_brief=True)
        held.take()
        entered.set()
        leave.wait(60)
        held.release()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    child = os.fork()
    if child == 0:
        run.self_influence(batch())
        os._exit(7)
    deadline = time.monotonic() + 60
    status = (0, 0)
    while status[0] == 0 and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    leave.set()
    thread.join()

    assert os.waitstatus_to_exitcode(status[1]) == 7
