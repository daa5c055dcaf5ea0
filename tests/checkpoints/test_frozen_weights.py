"""What a Recorder leaves out: frozen weights stay where they are, and must be those of training."""

import copy

import pytest
import torch
from torch import nn

import tracin
from tracin.checkpoints import Recorder, loaded, open_checkpoints
from tracin.checkpoints.readers.safetensors import read_shapes
from tracin.checkpoints.tensor_checksum import tensor_checksum
from tracin.errors import CheckpointError

DATA = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def trainable(model):
    return [one for one in model.parameters() if one.requires_grad]


def sgd(model):
    return torch.optim.SGD(trainable(model), lr=0.1)


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(DATA[0]), DATA[1]).backward()
    optimizer.step()


def recorded(folder, model, steps=2, **options):
    optimizer = sgd(model)
    with Recorder(model, optimizer, folder, every=1, **options):
        for _ in range(steps):
            step(model, optimizer)
    return open_checkpoints(folder)


def state_in(model, checkpoint):
    with loaded(model, checkpoint):
        return {name: values.clone() for name, values in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_file_holds_what_is_trained_and_buffers(tmp_path):
    model = net()

    first, last = recorded(tmp_path, model)

    assert read_shapes(last.source).keys() == model.state_dict().keys() - {"0.weight", "0.bias"}
    assert first.left_out().by_name.keys() == {"0.weight", "0.bias"}
    assert same(state_in(net(), last), model.state_dict())


def test_frozen_weights_are_written_where_asked(tmp_path):
    model = net()

    last = recorded(tmp_path, model, frozen_weights=True)[-1]
    other = net()
    nn.init.ones_(other[0].weight)

    assert same(state_in(other, last), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_base_may_be_in_another_precision(tmp_path, dtype):
    last = recorded(tmp_path, net())[-1]

    state_in(net().to(dtype), last)
    other = net().to(dtype)
    with torch.no_grad():
        other[0].bias[0] += 0.5

    with pytest.raises(
        CheckpointError, match=r"1 of the 2 weights .* others .*'0.bias'.*same seed"
    ):
        state_in(other, last)


def test_another_base_is_refused_by_name(tmp_path):
    last = recorded(tmp_path, net())[-1]
    swapped, lacking = net(), nn.Sequential(nn.Identity(), *net()[1:])
    with torch.no_grad():
        swapped[0].weight.copy_(swapped[0].weight.flip(0))

    with pytest.raises(CheckpointError, match=r"'0.weight'.*frozen_weights=True"):
        tracin.TracIn(swapped, "cross_entropy", [last]).self_influence(DATA)
    with pytest.raises(CheckpointError, match=r"the model, which lacks '0.weight', '0.bias'"):
        state_in(lacking, last)


@pytest.mark.parametrize("is_added", [True, False], ids=["a new group", "in the optimizer"])
def test_weights_that_are_trained_later_are_right_at_every_checkpoint(tmp_path, is_added):
    model = net()
    optimizer = sgd(model) if is_added else torch.optim.SGD(model.parameters(), lr=0.1)
    states = []
    with Recorder(model, optimizer, tmp_path) as recorder:
        for number in range(4):
            if number == 2:
                model[0].requires_grad_(True)
                if is_added:
                    optimizer.add_param_group({"params": list(model[0].parameters())})
            if number == 3:
                model[0].requires_grad_(False)
            step(model, optimizer)
            recorder.save()
            states.append(copy.deepcopy(model.state_dict()))

    found = open_checkpoints(tmp_path)

    assert not torch.equal(states[1]["0.weight"], states[2]["0.weight"])
    assert all(same(state_in(net(), one), it) for one, it in zip(found, states, strict=True))
    assert all(same(state_in(net(), open_checkpoints(one.source)[0]), states[at])
               for at, one in enumerate(found))  # fmt: skip
    with Recorder(model, optimizer, tmp_path) as recorder:
        step(model, optimizer)
        recorder.save()
    assert same(state_in(net(), open_checkpoints(tmp_path)[-1]), model.state_dict())
    assert same(state_in(net(), open_checkpoints(tmp_path)[0]), states[0])


def test_a_frozen_teacher_that_averages_is_written(tmp_path):
    model = net()
    optimizer, states = sgd(model), []
    with Recorder(model, optimizer, tmp_path) as recorder:
        for _ in range(2):
            step(model, optimizer)
            with torch.no_grad():
                model[0].weight.mul_(0.9)
            recorder.save()
            states.append(copy.deepcopy(model.state_dict()))

    found = open_checkpoints(tmp_path)

    assert [list(one.left_out().by_name) for one in found] == [["0.bias"]] * 2
    assert all(same(state_in(net(), one), it) for one, it in zip(found, states, strict=True))


@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained after"])
def test_a_frozen_weight_that_changes_between_checkpoints_is_refused(tmp_path, is_trained):
    model = net()
    optimizer = sgd(model)
    with Recorder(model, optimizer, tmp_path) as recorder:
        step(model, optimizer)
        recorder.save()
        with torch.no_grad():
            model[0].weight.mul_(0.9)
        if is_trained:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})

        with pytest.raises(CheckpointError, match=r"'0.weight' changed, though frozen"):
            recorder.save()


def test_frozen_weights_without_numbers_are_refused(tmp_path):
    model = net()
    model[0].to("meta")

    with (
        Recorder(model, sgd(model), tmp_path) as recorder,
        pytest.raises(CheckpointError, match=r"'0.weight' cannot be saved: .* \"meta\""),
    ):
        recorder.save()


def test_a_run_resumes_on_its_own_base_alone(tmp_path):
    model = net()
    recorded(tmp_path, model)
    other = copy.deepcopy(model)
    nn.init.zeros_(other[0].bias)

    recorded(tmp_path, model, steps=1)
    assert [one.step for one in open_checkpoints(tmp_path)] == [1, 2, 3]
    other.load_state_dict(model.state_dict() | {"0.bias": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"does not hold the last one's weights: '0.bias'"):
        recorded(tmp_path, other, steps=1)
    with pytest.raises(CheckpointError, match=r"0.weight is \[5, 4\] there and missing here"):
        Recorder(nn.Sequential(nn.Identity(), *model[1:]), sgd(model), tmp_path)


def test_averages_leave_out_the_same_weights(tmp_path):
    model = net()
    optimizer, averaged = sgd(model), torch.optim.swa_utils.AveragedModel(model)
    with Recorder(model, optimizer, tmp_path, averaged=averaged) as recorder:
        for _ in range(3):
            step(model, optimizer)
            averaged.update_parameters(model)
        recorder.save()

    [found] = open_checkpoints(tmp_path / "averaged")

    assert found.left_out().by_name.keys() == {"0.weight", "0.bias"}
    assert same(state_in(net(), found), averaged.module.state_dict())


class Halved(torch.Tensor):
    """Stands for quantised weights: numbers in bytes, which a matmul makes whole."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("detach", "alias"):
            return cls(args[0].codes)
        whole = [one.codes.float() / 2 if isinstance(one, cls) else one for one in args]
        return func(*whole, **(kwargs or {}))


class Quantised(nn.Linear):
    """A linear layer whose state dict holds more than its weight."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight.absmax"] = torch.ones(1)
        destination[prefix + "weight_format"] = "rows"


def quantised(code=1):
    model = net()
    layer = Quantised(4, 5)
    layer.weight = nn.Parameter(
        Halved(torch.arange(20).view(5, 4).to(torch.int8) % 5 - code), requires_grad=False
    )
    layer.bias.requires_grad_(False).zero_()
    model[0] = layer
    return model


def test_a_quantised_base_stays_where_it_is(tmp_path):
    model = quantised()
    found = recorded(tmp_path, model)
    twin = net()
    twin.load_state_dict(found[-1].weights(), strict=False)
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight.codes.float() / 2)
        twin[0].bias.zero_()

    scores = tracin.TracIn(quantised(), "cross_entropy", found[-1:]).self_influence(DATA)

    expected = tracin.TracIn(twin, "cross_entropy", [twin.state_dict()], learning_rates=[0.1])
    assert torch.allclose(scores, expected.self_influence(DATA))
    with pytest.raises(CheckpointError, match=r"others in this model: '0.weight'"):
        tracin.TracIn(quantised(2), "cross_entropy", found[-1:]).self_influence(DATA)


def test_a_checksum_sees_each_bit_and_each_place():
    numbers = torch.randn(40_001, generator=torch.Generator().manual_seed(0))
    moved, flipped = numbers.clone(), numbers.clone()
    moved[[3, 4]] = moved[[4, 3]]
    flipped[-1] = -flipped[-1]

    told = {tensor_checksum(one) for one in (numbers, moved, flipped, numbers[1:], numbers.half())}

    assert len(told) == 5
    assert tensor_checksum(numbers[1:]) == tensor_checksum(numbers[1:].clone())
    assert tensor_checksum(numbers[:40_000].view(200, 200).t()) == tensor_checksum(
        numbers[:40_000].view(200, 200).t().contiguous()
    )
