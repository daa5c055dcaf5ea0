"""Memory that ran out is said so, and never taken for a model that cannot be watched."""

import pytest
import torch
from torch import Tensor, nn

import tracin
from tracin.gradients.rules import rule as rules
from tracin.out_of_memory import is_out_of_memory, raise_if_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_every_allocator_is_understood(error):
    assert is_out_of_memory(error)
    with pytest.raises(type(error)):
        raise_if_out_of_memory(error)


def test_memory_that_ran_out_is_seen_beneath_the_error_of_another():
    error = ValueError("the layer failed")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")

    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 must match"), ValueError("memory")])
def test_other_errors_are_left_alone(error):
    assert not is_out_of_memory(error)
    raise_if_out_of_memory(error)


def test_a_rule_that_runs_out_of_memory_is_no_rule_that_failed(monkeypatch: pytest.MonkeyPatch):
    model, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.arange(8) % 2)
    sizes: list[int] = []

    def full(delta: Tensor) -> Tensor:
        sizes.append(len(delta))
        if len(delta) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return delta

    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    expected = run.self_influence(data)
    monkeypatch.setattr(rules, "full", full)

    found = run.self_influence(data, batch_size=8)

    torch.testing.assert_close(found, expected)
    assert max(sizes) == 8
    assert run.coverage(data).by(tracin.GradientMethod.FAST) == ["weight", "bias"]
