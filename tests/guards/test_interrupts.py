"""Ctrl-C at bad moments: it stays a Ctrl-C, and nothing is left changed."""

import signal
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode

import tracin
from own_process import run_script
from tracin.guards import Guard, ownership
from tracin.guards.settings import functions_now
from tracin.restoring import Restoring

ROOT = Path(__file__).parents[2]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


class Unmerging(nn.Linear):
    """Folds something into itself in eval(), as adapters do."""

    is_merged = False

    def train(self, mode=True):
        self.is_merged = not mode
        return super().train(mode)


def run_of(model, loss):
    return tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")


def changing(raised):
    """A loss that changes what it can reach, and then raises."""

    def loss(model, pair):
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        torch.backends.cuda.enable_flash_sdp(False)
        BaseTorchFunctionMode().__enter__()
        warnings.catch_warnings().__enter__()
        torch.manual_seed(77)
        model.train()
        model.requires_grad_(False)
        model[0].weight.grad = torch.ones(5, 4, dtype=torch.float32)
        model[0].weight.data = torch.zeros(5, 4, dtype=torch.float32)
        model[0].bias = nn.Parameter(torch.zeros(5))
        model[0].note = "left behind"
        model.register_forward_hook(lambda *_: None)
        torch._C._functorch._vmap_increment_nesting(2, "error")
        raise raised

    return loss


def world(model):
    return {
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "attention": torch.backends.cuda.flash_sdp_enabled(),
        "functions": functions_now(),
        "transforms": torch._C._functorch.get_dynamic_layer_stack_depth(),
        "warnings": id(warnings.filters),
        "random": torch.get_rng_state().tolist(),
        "mode": [module.training for module in model.modules()],
        "tensors": [
            (n, id(p), p.data_ptr(), p.requires_grad, id(p.grad))
            for n, p in model.named_parameters()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "held": ownership.queue(),
        "Ctrl-C": signal.getsignal(signal.SIGINT),
    }


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), RuntimeError("broken")])
@pytest.mark.parametrize("ask", ["self_influence", "verify", "coverage"])
def test_whatever_a_loss_changes_before_it_raises_comes_back(raised, ask):
    model = mlp()
    model[0].weight.grad = torch.ones(5, 4)
    data = torch.randn(4, 4), torch.arange(4) % 3
    before = world(model)

    with pytest.raises(type(raised)):
        getattr(run_of(model, changing(raised)), ask)(data)

    assert {key: one for key, one in world(model).items() if one != before[key]} == {}


def test_the_users_own_modes_and_autocast_are_still_on_after_a_call():
    model = mlp()
    run = run_of(model, "cross_entropy")
    data = torch.randn(4, 4), torch.arange(4) % 3

    with torch.device("cpu"), torch.no_grad():
        before = world(model)
        run.self_influence(data)
        assert world(model) == before


def test_eval_and_train_of_layers_are_never_called():
    model = nn.Sequential(Unmerging(4, 3))

    run_of(model, "cross_entropy").self_influence((torch.randn(4, 4), torch.arange(4) % 3))

    assert not model[0].is_merged


def test_attributes_that_a_forward_pass_sets_come_back():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = super().forward(x)
            return self.last

    model = Counting(4, 3)

    run_of(model, "cross_entropy").self_influence((torch.randn(4, 4), torch.arange(4) % 3))

    assert (model.calls, hasattr(model, "last")) == (0, False)


def test_an_exit_that_is_broken_off_is_finished_by_the_second():
    model, tries = mlp(), []
    guard = Guard(model)
    put_back = guard._restore

    def broken_off():
        tries.append(1)
        if len(tries) == 1:
            raise KeyboardInterrupt
        put_back()

    guard._put_back = broken_off

    with pytest.raises(KeyboardInterrupt), guard, guard:
        model[0].weight.data = torch.zeros(5, 4, dtype=torch.float32)

    assert torch.equal(model[0].weight, mlp()[0].weight)
    assert ownership.queue() == []


def test_inner_blocks_that_never_ended_are_ended_by_the_outermost():
    said = []
    outer = Restoring(lambda: said.append("outer"))
    inner = [Restoring(lambda at=at: said.append(at)) for at in range(2)]

    with outer, outer:
        for each in inner:
            each.__enter__()
    for each in inner:
        each.__exit__()

    assert said == [1, 0, "outer"]


def test_a_generator_left_by_an_interrupt_changes_nothing_later():
    model, held = mlp(), []

    def walking():
        was = torch.is_grad_enabled()
        try:
            torch.set_grad_enabled(not was)
            yield
        finally:
            torch.set_grad_enabled(was)
            held.append("ended")

    def call():
        steps = walking()
        next(steps)
        raise KeyboardInterrupt

    guard = Guard(model)
    with pytest.raises(KeyboardInterrupt) as caught, guard, guard:
        call()

    assert caught.value.__traceback__ is not None  # alive, and with it the frames
    assert held == ["ended"]


def test_what_broke_on_the_way_out_does_not_hide_the_interrupt():
    guard = Guard(mlp())

    def interrupted():
        try:
            raise KeyboardInterrupt
        finally:
            torch._C._pop_torch_function_stack()  # "trying to pop from empty mode stack"

    with pytest.raises(KeyboardInterrupt), guard, guard:
        interrupted()


def test_an_error_inside_a_handler_of_an_older_interrupt_stays_itself():
    def broken():
        guard = Guard(mlp())
        with guard, guard:
            torch.ones(2) @ torch.ones(3)

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="inconsistent tensor size"):
            broken()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms here")
def test_signals_that_come_while_things_are_put_back_are_delivered_after():
    order = []

    def ring(*_):
        order.append("signal")
        raise KeyboardInterrupt

    was = signal.signal(signal.SIGALRM, ring)

    def put_back():
        signal.raise_signal(signal.SIGALRM)
        order.append("put back")

    restoring = Restoring(put_back)
    with pytest.raises(KeyboardInterrupt), restoring, restoring:
        pass
    found = signal.signal(signal.SIGALRM, was)

    assert (order, found) == (["put back", "signal"], ring)


@pytest.mark.slow
def test_interrupts_at_every_line_leave_nothing_changed(tmp_path):
    """A part of what `python -m experiments.interrupts` does."""
    code = "import sys; sys.path.insert(0, sys.argv.pop()); from experiments import interrupts; "
    code += "sys.exit(interrupts.main())"

    done = run_script(code, "--only", "loaded", "--timer", "30", ROOT, folder=tmp_path)

    assert done.code == 0, done.stderr
    assert done.stdout.count("left    0") == 2, done.stdout
