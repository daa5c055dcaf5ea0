"""On a device a model is held once: checkpoints take the place of its numbers, which come back."""

import pytest
import torch
from torch import Tensor, nn

from tracin import host
from tracin.checkpoints import Checkpoint, loaded
from tracin.checkpoints.readers.safetensors import write_safetensors
from tracin.errors import CheckpointError


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the CPU for a device."""
    monkeypatch.setattr(host, "LOCAL", frozenset())


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weight(model: nn.Module, layer: int = 0) -> Tensor:
    return model.get_parameter(f"{layer}.weight")


def pointers(model: nn.Module) -> dict[str, int]:
    return {name: one.data_ptr() for name, one in model.state_dict().items()}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in model.state_dict().items()}


def same(ones: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(ones[name], others[name]) for name in others)


def test_numbers_of_a_file_come_into_the_models_memory_and_its_own_come_back(tmp_path) -> None:
    model, other = net(), net(1).double()
    weight(model).data[0, 0] = torch.nan
    bits, place = weight(model).data.clone().view(torch.int32), pointers(model)
    before, version = copies(model), weight(model)._version
    write_safetensors(other.state_dict(), tmp_path / "a.safetensors")

    with loaded(model, Checkpoint(tmp_path / "a.safetensors")):
        assert pointers(model) == place
        assert same(model.state_dict(), other.float().state_dict())

    assert pointers(model) == place
    assert torch.equal(weight(model).data.view(torch.int32), bits)
    del before["0.weight"]  # which holds a NaN, compared above
    assert same(model.state_dict(), before)
    assert weight(model)._version == version  # a graph of the user's own is still good


def test_they_come_back_after_an_error_and_where_the_model_wrote_to_them() -> None:
    model, before = net(), copies(net())
    place = pointers(model)

    def interrupted() -> None:
        with loaded(model, net(1).state_dict()):
            weight(model).data.zero_()
            model.get_parameter("2.bias").data = torch.ones(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert same(model.state_dict(), before)
    assert pointers(model) == place


def test_an_error_while_numbers_are_written_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, before, count = net(), copies(net()), []
    copy = Tensor.copy_

    def failing(self: Tensor, *args: object, **options: object) -> Tensor:
        count.append(self)
        if len(count) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return copy(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tensor, "copy_", failing)
    with pytest.raises(torch.OutOfMemoryError), loaded(model, net(1).state_dict()):
        pass

    assert same(model.state_dict(), before)


def test_the_models_own_state_dict_is_a_checkpoint_before_and_after_another() -> None:
    model, before = net(), copies(net())

    for weights, expected in [
        (net(1).state_dict(), copies(net(1))),
        (model.state_dict(), before),
    ]:
        with loaded(model, weights):
            assert same(model.state_dict(), expected)

    assert same(model.state_dict(), before)


@pytest.mark.parametrize("shares", ["within the model", "with the checkpoint"])
def test_shared_memory_is_not_written_over(shares: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    weights = {"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}
    if shares == "within the model":
        weight(model, 1).data = weight(model).data.view(3, 3)
    else:
        weights = {"0.weight": weight(model, 1).data, "1.weight": weight(model).data}
    expected, before = {n: v.clone() for n, v in weights.items()}, copies(model)

    with loaded(model, weights):
        assert same(model.state_dict(), expected)

    assert same(model.state_dict(), before)


def test_a_checkpoint_that_does_not_fit_changes_nothing() -> None:
    model, before = net(), copies(net())
    weights = net(1).state_dict() | {"2.bias": torch.ones(2, dtype=torch.int64)}

    with pytest.raises(CheckpointError, match=r"2\.bias is torch\.int64"), loaded(model, weights):
        pass

    assert same(model.state_dict(), before)
