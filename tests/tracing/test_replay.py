"""A recorded training walked again: the same weights, and new queries answered as if asked then."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tracin
from tracin import CheckpointError, Recorder, Replay, Tracer, TracingError, TracingWarning
from tracin.tracing import Quadrature

TRAIN, CLASSES, STEPS = 24, 3, 12


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, CLASSES)
    )


def plain_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, CLASSES))


def data(examples, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


TRAINING, QUERIES = data(TRAIN, 1), data(4, 2)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def batches():
    """Two micro-batches a step."""
    order = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        yield torch.randperm(TRAIN, generator=order)[:12].split(6)


def train(folder, model, optimizer, *, first=True, ids=None, trace=None, every=4, state=True):
    """Train under a Recorder, and under a Tracer too if `trace` names its folder."""
    ids = torch.arange(TRAIN) if ids is None else ids
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    tracer = trace and Tracer(model, optimizer, "cross_entropy", QUERIES, TRAINING, trace)
    with Recorder(model, optimizer, folder, every, optimizer_state=state) as recorder:
        if first:
            recorder.save()
        for step in batches():
            optimizer.zero_grad()
            for rows in step:
                recorder.batch([ids[row] for row in rows.tolist()])
                inputs, labels = TRAINING[0][rows], TRAINING[1][rows]
                if tracer:
                    with tracer.batch(rows, torch.full((6,), 1 / 12)):
                        loss = F.cross_entropy(model(inputs), labels)
                else:
                    loss = F.cross_entropy(model(inputs), labels)
                (loss / 2).backward()
            optimizer.step()
            scheduler.step()
    if tracer:
        tracer.close()
        return tracin.tracing.Trace.open(trace)
    return None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_new_queries_score_as_if_they_had_been_asked_while_training(tmp_path, kind):
    model = plain_net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    asked_then = train(tmp_path / "run", model, optimizer, trace=tmp_path / "then")

    replay = Replay(model, optimizer, tmp_path / "run", TRAINING)
    asked_now = replay.trace("cross_entropy", QUERIES, tmp_path / "now")

    assert replay.is_equal
    assert [check.step for check in replay.checks] == [4, 8, 12]
    for path in asked_then.paths:
        torch.testing.assert_close(
            asked_now.influence(path), asked_then.influence(path), rtol=1e-6, atol=1e-9
        )
    torch.testing.assert_close(asked_now.self_influence(), asked_then.self_influence())


def test_the_default_path_is_walked_with_batch_statistics_and_dropout(tmp_path):
    model = build()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(tmp_path / "run", model, optimizer)

    with Replay(model, optimizer, tmp_path / "run", TRAINING) as replay:
        for step in replay:
            optimizer.zero_grad()
            assert len(step) == 2
            for _, (inputs, labels) in step:
                (F.cross_entropy(model(inputs), labels) / 2).backward()
            optimizer.step()

    assert replay.is_equal
    assert all(check.difference == 0 for check in replay.checks)


def test_everything_is_left_as_it_was_found(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["nesterov"](model.parameters())
    train(tmp_path / "run", model, optimizer)
    weights = copy.deepcopy(model.state_dict())
    places = [parameter.data_ptr() for parameter in model.parameters()]
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()

    Replay(model, optimizer, tmp_path / "run", TRAINING).trace(
        "cross_entropy", QUERIES, tmp_path / "now"
    )

    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert str(state) == str(optimizer.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert not optimizer._optimizer_step_post_hooks


def test_a_part_begins_at_the_nearest_checkpoint(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(tmp_path / "run", model, optimizer)

    replay = Replay(model, optimizer, tmp_path / "run", TRAINING, start=6, stop=10)
    part = replay.trace("cross_entropy", QUERIES, tmp_path / "part", paths=[Quadrature.FIRST_ORDER])
    whole = [
        Replay(model, optimizer, tmp_path / "run", TRAINING, stop=stop).trace(
            "cross_entropy", QUERIES, tmp_path / f"to {stop}", paths=[Quadrature.FIRST_ORDER]
        )
        for stop in (6, 10)
    ]

    assert (replay.first, replay.start, replay.stop) == (4, 6, 10)
    assert [check.step for check in replay.checks] == [8]
    assert replay.is_equal
    expected = whole[1].influence() - whole[0].influence()
    # Momentum of steps before the part is carried into it, and credited to them alone then.
    carried = (part.influence() - expected).abs().max() / expected.abs().max()
    assert carried < 0.5
    assert len(part.steps.actual) == 4


def test_a_part_of_plain_descent_is_its_share_of_the_whole(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(tmp_path / "run", model, optimizer, state=False)

    def traced(start, stop):
        replay = Replay(model, optimizer, tmp_path / "run", TRAINING, start=start, stop=stop)
        folder = tmp_path / f"{start} to {stop}"
        return replay.trace(
            "cross_entropy", QUERIES, folder, paths=[Quadrature.TRAPEZOID]
        ).influence()

    torch.testing.assert_close(
        traced(0, 6) + traced(6, 12), traced(0, 12), rtol=1e-5, atol=1e-8, check_dtype=False
    )


def test_without_a_first_checkpoint_the_seed_will_do(tmp_path):
    model = plain_net()
    train(tmp_path / "run", model, OPTIMIZERS["nesterov"](model.parameters()), first=False)
    again = plain_net()
    optimizer = OPTIMIZERS["nesterov"](again.parameters())

    replay = Replay(again, optimizer, tmp_path / "run", TRAINING)
    replay.trace("cross_entropy", QUERIES, tmp_path / "now")

    assert replay.is_equal
    assert len(replay.checks) == 3


def test_another_beginning_is_told(tmp_path):
    model = plain_net()
    train(tmp_path / "run", model, OPTIMIZERS["sgd"](model.parameters()), first=False)
    other = plain_net(seed=1)
    optimizer = OPTIMIZERS["sgd"](other.parameters())
    replay = Replay(other, optimizer, tmp_path / "run", TRAINING)

    with pytest.warns(TracingWarning, match=r"after step 4 .* began at the weights that the model"):
        replay.trace("cross_entropy", QUERIES, tmp_path / "now")

    assert not replay.is_equal
    assert len(replay.checks) == 3
    assert all(check.difference > 0.1 for check in replay.checks)


def test_another_training_is_told_once(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(tmp_path / "run", model, optimizer)
    model.eval()  # no dropout
    replay = Replay(model, optimizer, tmp_path / "run", TRAINING)

    with pytest.warns(
        TracingWarning,
        match=r"not the recorded training: after step 4 .* at the checkpoint of step 0; from there",
    ) as told:
        replay.trace("cross_entropy", QUERIES, tmp_path / "now")

    assert len(told) == 1
    assert not replay.is_equal


def test_ids_may_be_text_and_the_loss_ones_own(tmp_path):
    names = [f"row {at}" for at in range(TRAIN)]
    model = plain_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(tmp_path / "run", model, optimizer, ids=names)

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1]) / 2

    replay = Replay(model, optimizer, tmp_path / "run", tracin.WithIds(TRAINING, names))
    found = replay.trace("cross_entropy", QUERIES, tmp_path / "now", training_loss=loss)

    assert replay.is_equal
    assert found.explain(k=1)[0].proponents[0].id.startswith("row ")


def test_without_queries_self_influence_is_traced(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    then = train(tmp_path / "run", model, optimizer, trace=tmp_path / "then")

    replay = Replay(model, optimizer, tmp_path / "run", TRAINING)
    now = replay.trace("cross_entropy", None, tmp_path / "now")

    torch.testing.assert_close(now.self_influence(), then.self_influence())


def recorded(tmp_path, kind="nesterov", **options):
    model = plain_net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(tmp_path / "run", model, optimizer, **options)
    return model, optimizer


def test_a_record_without_ids_is_refused(tmp_path):
    model = plain_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with Recorder(model, optimizer, tmp_path / "run") as recorder:
        model(TRAINING[0]).sum().backward()
        optimizer.step()
        recorder.epoch()

    with pytest.raises(CheckpointError, match=r"has no visits: .* recorder\.batch\(ids\)"):
        Replay(model, optimizer, tmp_path / "run", TRAINING)


@pytest.mark.parametrize(("start", "stop"), [(-1, None), (12, None), (5, 5), (0, 13)])
def test_steps_that_are_not_there_are_refused(tmp_path, start, stop):
    model, optimizer = recorded(tmp_path)

    with pytest.raises(TracingError, match="has the ids of 12 steps, counted from 0"):
        Replay(model, optimizer, tmp_path / "run", TRAINING, start=start, stop=stop)


def test_an_optimizer_that_remembers_begins_where_its_state_is(tmp_path):
    model, optimizer = recorded(tmp_path, state=False)

    assert Replay(model, optimizer, tmp_path / "run", TRAINING, start=9).first == 0
    plain = OPTIMIZERS["sgd"](model.parameters())
    assert Replay(model, plain, tmp_path / "run", TRAINING, start=9).first == 8


def test_ones_own_loop_begins_at_a_checkpoint(tmp_path):
    model, optimizer = recorded(tmp_path)
    replay = Replay(model, optimizer, tmp_path / "run", TRAINING, start=9)

    with replay, pytest.raises(TracingError, match="is that of step 8, before the start at 9"):
        list(replay)


def test_a_replay_is_walked_within_its_block(tmp_path):
    model, optimizer = recorded(tmp_path)

    with pytest.raises(TracingError, match="runs within its block"):
        list(Replay(model, optimizer, tmp_path / "run", TRAINING))


def test_a_step_that_is_not_taken_is_refused(tmp_path):
    model, optimizer = recorded(tmp_path)

    with (
        pytest.raises(TracingError, match=r"Step 0 of the replay must end in one .* there were 0"),
        Replay(model, optimizer, tmp_path / "run", TRAINING) as replay,
    ):
        list(replay)


def test_other_groups_are_refused(tmp_path):
    model, _ = recorded(tmp_path, "sgd", state=False)
    halves = [
        {"params": [p for n, p in model.named_parameters() if n.startswith("0")]},
        {"params": [p for n, p in model.named_parameters() if not n.startswith("0")]},
    ]
    optimizer = torch.optim.SGD(halves, lr=0.1)
    replay = Replay(model, optimizer, tmp_path / "run", TRAINING)

    with pytest.raises(TracingError, match=r"had 1 groups \(4 parameters from 0\.weight\), and"):
        replay.trace("cross_entropy", QUERIES, tmp_path / "now")


def test_other_data_are_refused(tmp_path):
    model, optimizer = recorded(tmp_path)
    fewer = (TRAINING[0][:10], TRAINING[1][:10])
    replay = Replay(model, optimizer, tmp_path / "run", fewer)

    with pytest.raises(TracingError, match=r"The id \d+ is not of the 10 training examples"):
        replay.trace("cross_entropy", QUERIES, tmp_path / "now")


def test_a_folder_with_another_trace_is_refused(tmp_path):
    model, optimizer = recorded(tmp_path)
    Replay(model, optimizer, tmp_path / "run", TRAINING).trace(
        "cross_entropy", QUERIES, tmp_path / "now"
    )

    with pytest.raises(TracingError, match="give a new folder"):
        Replay(model, optimizer, tmp_path / "run", TRAINING).trace(
            "cross_entropy", QUERIES, tmp_path / "now"
        )


def test_a_target_is_about_what_the_training_predicted_in_the_end(tmp_path):
    model = plain_net()
    train(tmp_path / "record", model, OPTIMIZERS["sgd"](model.parameters()))
    predicted = model.eval()(QUERIES[0]).argmax(1)
    assert (predicted != QUERIES[1]).any()

    def replayed(name, queries, **options):
        twin = plain_net(1)
        replay = Replay(twin, OPTIMIZERS["sgd"](twin.parameters()), tmp_path / "record", TRAINING)
        return replay.trace("cross_entropy", queries, tmp_path / name, **options)

    found = replayed("found", QUERIES, target=tracin.Predicted())
    wanted = replayed("wanted", (QUERIES[0], predicted))

    torch.testing.assert_close(found.influence(), wanted.influence())
    assert found.explain(1).target == "Predicted()"
