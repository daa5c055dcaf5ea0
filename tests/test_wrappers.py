"""Wrapped models: scores are those of the model within, on each rank by itself."""

import os
import socket

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel

import tracin
from own_process import SERVER
from slow_twin import self_influence
from tracin import UnsupportedModelError
from tracin.wrappers import unwrapped

FSDP1 = {
    "device_id": torch.device("cpu"),
    "sharding_strategy": ShardingStrategy.NO_SHARD,  # as one rank has no other, without a warning
}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(seed=1, rows=12):
    torch.manual_seed(seed)
    return torch.randn(rows, 4), torch.arange(rows) % 3


@pytest.fixture
def alone(tmp_path):
    """A process group of one rank."""
    where = f"file://{tmp_path / 'ranks'}"
    distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def ddp_of_compiled(model):
    return DistributedDataParallel(torch.compile(model, backend="eager"))


def compiled_ddp(model):
    return torch.compile(DistributedDataParallel(model), backend="eager")


@pytest.mark.parametrize(
    "wrap", [DistributedDataParallel, nn.DataParallel, ddp_of_compiled, compiled_ddp]
)
def test_wrappers_come_off_in_any_order(alone, wrap):
    model = mlp()

    assert unwrapped(wrap(model)) is model


def test_a_bare_model_stays_itself_even_with_parts_called_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = mlp()

    model = Holder()

    assert unwrapped(model) is model


def test_the_loss_gets_the_model_within(alone):
    model, seen = mlp(), []

    def loss(given, pair):
        seen.append(given)
        return nn.functional.cross_entropy(given(pair[0]), pair[1], reduction="none")

    run = tracin.TracIn(
        DistributedDataParallel(model), loss, [model.state_dict()], learning_rates=[1.0]
    )
    run.self_influence(batch())

    assert all(given is model for given in seen)


@pytest.mark.parametrize("wrap", [DistributedDataParallel, nn.DataParallel, compiled_ddp])
def test_scores_of_a_wrapped_model_are_those_of_the_bare_one(alone, wrap):
    model = mlp()
    wrapped = wrap(model)

    run = tracin.TracIn(
        wrapped, "cross_entropy", [wrapped.state_dict()], learning_rates=[1.0], parameters=["2.*"]
    )

    assert list(run.parameters) == ["2.weight", "2.bias"]
    bare = tracin.TracIn(
        model, "cross_entropy", [model.state_dict()], learning_rates=[1.0], parameters=["2.*"]
    )
    assert torch.equal(run.self_influence(batch()), bare.self_influence(batch()))


def reducing(model):
    """The model in DistributedDataParallel, and the list of what its reducer sends."""
    wrapped, sent = DistributedDataParallel(model), []

    def note(state, bucket):
        sent.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, note)
    return wrapped, sent


def test_no_reducer_fires_while_a_batch_of_the_training_waits_for_its_backward(alone, tmp_path):
    model = mlp()
    wrapped, sent = reducing(model)
    run = tracin.TracIn(wrapped, "cross_entropy", [model.state_dict()], learning_rates=[1.0])
    wanted = torch.autograd.grad(
        nn.functional.cross_entropy(model(batch()[0]), batch()[1]), list(model.parameters())
    )

    loss = nn.functional.cross_entropy(wrapped(batch()[0]), batch()[1])  # the reducer waits now
    run.self_influence(batch())
    run.influence(batch(), batch(2))
    run.explain(batch(), batch(2), k=2)
    run.coverage(batch())
    run.verify(batch())
    index = run.index(batch(), tmp_path, tracin.Projection(64), recall_queries=2)
    index.with_run(run).explain(batch(2), k=2)
    assert sent == []
    loss.backward()

    assert len(sent) == 1
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


class Hooked:
    """A model whose every backward pass through a parameter is counted, as reducers do."""

    def __init__(self):
        self.model, self.passes = mlp(), 0
        for parameter in self.model.parameters():
            parameter.register_post_accumulate_grad_hook(self._count)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, fused=True)

    def _count(self, parameter):
        self.passes += 1


def test_query_passes_of_a_tracer_fire_no_reducer_and_no_hook(alone, tmp_path):
    hooked = Hooked()
    model, optimizer = hooked.model, hooked.optimizer
    wrapped, sent = reducing(model)
    steps, seen = 4, []

    with tracin.Tracer(
        wrapped, optimizer, "cross_entropy", batch(2), batch(), tmp_path, parameters="last"
    ) as tracer:
        for _ in range(steps):
            optimizer.zero_grad()
            with tracer.batch(list(range(12))):
                loss = nn.functional.cross_entropy(wrapped(batch()[0]), batch()[1])
            loss.backward()
            seen.append((len(sent), hooked.passes))
            optimizer.step()

    assert (len(sent), hooked.passes) == seen[-1] == (steps, 4 * steps)
    assert all(state["step"] == steps for state in optimizer.state.values())


def test_query_passes_of_a_replay_fire_no_hook_and_leave_the_optimizer_alone(tmp_path):
    hooked = Hooked()
    model, optimizer = hooked.model, hooked.optimizer
    with tracin.Recorder(model, optimizer, tmp_path / "record", 2) as recorder:
        recorder.save()
        for _ in range(4):
            recorder.batch(list(range(12)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
            optimizer.step()
    walks = []

    for queries in (None, batch(2)):
        hooked.passes = 0
        replay = tracin.Replay(model, optimizer, tmp_path / "record", batch())
        replay.trace("cross_entropy", queries, tmp_path / str(len(walks)))
        walks.append(hooked.passes)

    assert walks == [4 * 4] * 2  # of the walk's own backward passes
    assert all(state["step"] == 4 for state in optimizer.state.values())
    assert replay.is_equal


def test_a_data_parallel_part_is_scored_as_it_is():
    model = mlp()
    model[0] = nn.DataParallel(model[0])

    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[1.0])

    wanted = self_influence(model, "cross_entropy", batch())
    torch.testing.assert_close(run.self_influence(batch()), wanted.float())


def test_a_part_wrapped_in_ddp_is_refused_with_the_way_out(alone):
    model = nn.ModuleDict({"encoder": DistributedDataParallel(mlp()), "head": nn.Linear(3, 2)})

    with pytest.raises(UnsupportedModelError, match=r"model\.encoder = model\.encoder\.module"):
        tracin.TracIn(model, "mse", [model.state_dict()], learning_rates=[1.0])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # FSDP1 is deprecated, and in use
@pytest.mark.parametrize("is_part", [False, True])
def test_fsdp1_is_refused_with_the_way_out(alone, is_part):
    model = mlp()
    if is_part:
        model[0] = FullyShardedDataParallel(model[0], **FSDP1)
    else:
        model = FullyShardedDataParallel(model, **FSDP1)

    with pytest.raises(UnsupportedModelError, match=r"FSDP1.*full_state_dict=True.*fully_shard"):
        tracin.TracIn(model, "mse", [mlp().state_dict()], learning_rates=[1.0])


def test_weights_spread_by_zero_3_are_refused_with_the_way_out():
    model = mlp()
    model[0].weight = nn.Parameter(torch.empty(0))
    model[0].weight.ds_id = 0

    with pytest.raises(UnsupportedModelError, match=r"ZeRO-3.*zero_to_fp32\.py"):
        unwrapped(model)


def test_what_is_no_module_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module, but a dict"):
        tracin.TracIn({}, "mse", [mlp().state_dict()], learning_rates=[1.0])


def rank(number, port, said):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=number, world_size=2)
    model = DistributedDataParallel(mlp())
    if number == 0:  # a rank that scores alone must not wait for the other
        run = tracin.TracIn(model, "cross_entropy", [mlp().state_dict()], learning_rates=[1.0])
        said.put((run.self_influence(batch()), run.verify(batch()).is_exact))
    distributed.barrier()
    run = tracin.TracIn(model, "cross_entropy", [mlp().state_dict()], learning_rates=[1.0])
    train = batch(seed=number, rows=10 + 4 * number)
    scores = run.self_influence(train, batch_size=4)
    wanted = self_influence(mlp(), "cross_entropy", train)
    said.put((float(((scores - wanted) / wanted).abs().max()), run.verify(train).is_exact))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_each_rank_scores_its_own_data_and_waits_for_nobody():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = SERVER.Queue()
    ranks = [SERVER.Process(target=rank, args=(number, port, said)) for number in (0, 1)]

    for process in ranks:
        process.start()
    alone = said.get(timeout=60)
    both = [said.get(timeout=60) for _ in ranks]
    for process in ranks:
        process.join(60)

    wanted = self_influence(mlp(), "cross_entropy", batch())
    torch.testing.assert_close(alone[0].double(), wanted.double(), rtol=1e-4, atol=0)
    assert alone[1]
    assert all(gap < 1e-4 and is_exact for gap, is_exact in both)
