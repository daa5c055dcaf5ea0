"""Float32 products are float32's within passes, tolerances follow the lowest precision in play."""

import re
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracin
from tracin import precision
from tracin.guards import untouched
from tracin.precision import (
    BFLOAT16,
    BFLOAT16_PRODUCTS,
    FLOAT8,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    TF32,
    Precision,
    exact_matmuls,
    in_double,
    lowest_precision,
    precision_of,
    precision_of_products,
)
from tracin.process_wide import Setting
from tracin.torch_internals import get_fp32_precision, set_fp32_precision

CPU = torch.device("cpu")
PLACES = [("generic", "all"), *product(("cuda", "mkldnn"), ("all", "matmul", "conv", "rnn"))]


def settings() -> list[object]:
    """Everything torch has to say of float32 precision, by both its ways to say it."""

    def said(read: Callable[[], object]) -> object:
        try:
            return read()
        except RuntimeError:
            return "torch refuses to say"

    return [
        *[get_fp32_precision(*place) for place in PLACES],
        said(torch.get_float32_matmul_precision),
        said(lambda: torch.backends.cuda.matmul.allow_tf32),
        said(lambda: torch.backends.cudnn.allow_tf32),
    ]


def reset() -> None:
    """Torch's own defaults, whatever other tests of the process have set."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    set_fp32_precision("generic", "all", "none")
    set_fp32_precision("cuda", "all", "none")
    set_fp32_precision("cuda", "matmul", "none")
    set_fp32_precision("mkldnn", "matmul", "none")


@pytest.fixture(autouse=True)
def _settings_come_back() -> Iterator[None]:
    reset()
    before = settings()
    yield
    reset()
    assert settings() == before


def _older(name: str) -> Callable[[], None]:
    return lambda: torch.set_float32_matmul_precision(name)


def _newer(backend: str, operator: str, value: str) -> Callable[[], None]:
    return lambda: set_fp32_precision(backend, operator, value)


def _cudnn(value: bool) -> Callable[[], None]:
    return lambda: setattr(torch.backends.cudnn, "allow_tf32", value)


CHOICES: dict[str, list[Callable[[], None]]] = {
    "torch's defaults": [],
    "the older setting, high": [_older("high")],
    "the older setting, medium": [_older("medium")],
    "cuDNN without TF32": [_cudnn(False)],
    "both older settings": [_older("high"), _cudnn(False)],
    "the newer setting for everything": [_newer("generic", "all", "tf32")],
    "the newer setting for a backend": [_newer("cuda", "all", "tf32")],
    "the newer setting, against its default": [
        _newer("generic", "all", "tf32"),
        _newer("cuda", "all", "ieee"),
    ],
    "the newer setting for matmul": [_newer("cuda", "matmul", "tf32")],
    "the newer setting for convolutions": [_newer("cuda", "conv", "ieee")],
    "both generations at odds": [_older("high"), _newer("cuda", "matmul", "ieee")],
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=list(CHOICES))
def test_no_product_runs_in_tf32_within_and_every_setting_comes_back(choice):
    for choose in choice:
        choose()
    before = settings()

    with exact_matmuls(), exact_matmuls():
        within = [get_fp32_precision(*place) for place in PLACES]

    assert not {"tf32", "bf16"} & set(within)
    assert settings() == before


def test_an_operator_without_a_setting_still_follows_its_default_afterwards():
    with exact_matmuls():
        pass

    set_fp32_precision("generic", "all", "tf32")

    assert get_fp32_precision("mkldnn", "conv") in ("tf32", "none")  # "none" before torch 2.9
    assert get_fp32_precision("cuda", "all") == get_fp32_precision("generic", "all")


def test_a_model_that_reads_or_sets_the_older_settings_still_runs_within():
    with exact_matmuls():
        with torch.backends.cudnn.flags(enabled=False):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_settings_come_back_after_an_error(error):
    torch.set_float32_matmul_precision("high")
    before = settings()

    with pytest.raises(error), exact_matmuls():
        raise error

    assert settings() == before


def test_the_last_of_two_threads_to_leave_puts_back_what_the_first_found():
    torch.set_float32_matmul_precision("high")
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen: list[str] = []

    def second() -> None:
        first_is_in.wait()
        with exact_matmuls():
            second_is_in.set()
            first_is_out.wait()
            seen.append(torch.get_float32_matmul_precision())

    thread = threading.Thread(target=second)
    thread.start()
    with exact_matmuls():
        first_is_in.set()
        second_is_in.wait()
    first_is_out.set()
    thread.join()

    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == "high"


def test_an_interrupted_change_is_taken_back_step_by_step():
    made = [0, 0]

    def change(keep: Callable[[Callable[[], object]], None]) -> None:
        keep(lambda: made.__setitem__(0, 0))
        made[0] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Setting(change)():
        pass

    assert made == [0, 0]


def test_an_interrupted_return_is_finished():
    level, interrupts = [0], [KeyboardInterrupt()]

    def change(keep: Callable[[Callable[[], object]], None]) -> None:
        def undo() -> None:
            if interrupts:
                raise interrupts.pop()
            level[0] = 0

        keep(undo)
        level[0] = 1

    with pytest.raises(KeyboardInterrupt), Setting(change)():
        pass

    assert level == [0]


class Rounded(TorchDispatchMode):
    """Rounds what goes into products to some bits of mantissa, as tensor cores do."""

    aten = torch.ops.aten
    PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.convolution, aten.convolution_backward)

    def __init__(self, dropped: int) -> None:
        super().__init__()
        self._half, self._mask = 1 << (dropped - 1), ~((1 << dropped) - 1)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.PRODUCTS:
            args = [self._rounded(arg) for arg in args]
        return func(*args, **(kwargs or {}))

    def _rounded(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
            return tensor
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + self._half) & self._mask).view(torch.float32)


def test_products_are_tried_out_whatever_turned_tf32_on():
    with Rounded(13):
        in_tf32 = precision_of_products(CPU)
    with Rounded(16):
        in_bfloat16 = precision_of_products(CPU)

    assert in_tf32 == TF32
    assert in_bfloat16 == BFLOAT16_PRODUCTS
    assert precision_of_products(CPU) == FLOAT32


def test_trying_out_products_heeds_neither_autocast_nor_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            found = precision_of_products(CPU)
    finally:
        torch.set_default_dtype(torch.float32)

    assert found == FLOAT32


class Island(nn.Module):
    """A float64 model, a part of which runs in another precision whatever the model's is."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.before, self.after, self.dtype = nn.Linear(3, 3), nn.Linear(3, 1), dtype
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        island = self.before(inputs).to(self.dtype).square()
        return self.after(island.double())[:, 0]


class Rounds(torch.autograd.Function):
    """Goes through bfloat16, as custom kernels do."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.bfloat16()

    @staticmethod
    def backward(ctx: Any, *deltas: Any) -> Tensor:
        return deltas[0].double()


def autocast_losses() -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return nn.Linear(3, 1)(torch.randn(4, 3))[:, 0].float()


def checkpointed_losses() -> Tensor:
    from torch.utils.checkpoint import checkpoint

    layer, inputs = nn.Linear(3, 1), torch.randn(4, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        return checkpoint(layer, inputs, use_reentrant=True)[:, 0].float()  # type: ignore


def island(dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: Island(dtype)(torch.randn(4, 3).double())


def custom_losses() -> Tensor:
    inputs = torch.randn(4, 3).double().requires_grad_()
    return Rounds.apply(inputs).double().sum(1)  # type: ignore[union-attr]


GRAPHS: dict[str, tuple[Callable[[], Tensor], Precision]] = {
    "float32": (lambda: nn.Linear(3, 1)(torch.randn(4, 3))[:, 0], FLOAT32),
    "float64": (lambda: nn.Linear(3, 1).double()(torch.randn(4, 3).double())[:, 0], FLOAT64),
    "float32 data in a float64 model": (
        lambda: nn.Linear(3, 1).double()(torch.randn(4, 3).double())[:, 0],
        FLOAT64,
    ),
    "float32 within float64": (island(torch.float32), FLOAT32),
    "bfloat16 within float64": (island(torch.bfloat16), BFLOAT16),
    "float16 within float64": (island(torch.float16), FLOAT16),
    "losses in float64 of a float32 model": (
        lambda: nn.Linear(3, 1)(torch.randn(4, 3))[:, 0].double(),
        FLOAT32,
    ),
    "a float32 parameter in float64": (
        lambda: nn.Parameter(torch.ones(4)).double().square(),
        FLOAT32,
    ),
    "autocast": (autocast_losses, BFLOAT16),
    "autocast in reentrant checkpointing": (checkpointed_losses, BFLOAT16),
    "a function of the user's own": (custom_losses, BFLOAT16),
    "complex": (
        lambda: nn.Linear(3, 1, dtype=torch.cfloat)(torch.randn(4, 3) + 0j)[:, 0].abs(),
        FLOAT32,
    ),
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_lowest_precision_of_a_graph_is_found(graph):
    losses, expected = GRAPHS[graph]

    assert lowest_precision(losses()) == expected


def test_tf32_counts_where_the_graph_holds_float32_and_nowhere_else():
    in_float32, in_float64 = GRAPHS["float32"][0](), GRAPHS["float64"][0]()

    with Rounded(13):
        assert lowest_precision(in_float32) == TF32
        assert lowest_precision(in_float64) == FLOAT64


def test_complex_numbers_and_eighths_have_a_precision():
    assert precision_of(torch.complex128) == FLOAT64
    assert precision_of(torch.float8_e4m3fn) == FLOAT8
    tolerances = [each.tolerance for each in (FLOAT64, FLOAT32, TF32, FLOAT16, BFLOAT16, FLOAT8)]
    assert tolerances == sorted(tolerances)


def test_passes_run_without_tf32_and_leave_it_on():
    seen: list[str] = []

    class Reads(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(input)

    model = Reads(3, 2)
    torch.set_float32_matmul_precision("high")

    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")
    run.self_influence((torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))

    assert set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"


def test_inference_mode_is_refused_in_words_and_no_grad_is_not():
    model = nn.Linear(3, 2)
    data = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates="equal")

    with (
        torch.inference_mode(),
        pytest.raises(tracin.LossError, match=r"inside torch.inference_mode.*Leave that block"),
    ):
        run.self_influence(data)
    with torch.no_grad():
        within = run.self_influence(data)

    torch.testing.assert_close(within, run.self_influence(data))


def test_a_model_made_in_inference_mode_is_refused_in_words():
    with torch.inference_mode():
        model = nn.Linear(3, 2)

    with (
        pytest.raises(tracin.UnsupportedModelError, match="weight was made inside"),
        untouched(model),
    ):
        pass


def test_float64_is_made_on_the_cpu_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch):
    moved: list[str] = []
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: moved.append("cpu") or tensor)

    found = in_double(torch.ones(2))

    assert found.dtype == torch.float64
    assert moved == ["cpu"]


def test_no_tensor_is_made_float64_on_its_device_first():
    source = Path(tracin.__file__).parent
    early = [path.name for path in source.rglob("*.py") if ".double().cpu()" in path.read_text()]

    assert early == []


def test_private_names_of_torch_are_imported_in_one_file():
    source = Path(tracin.__file__).parent
    private = re.compile(r"torch\._[a-zA-Z]|from torch\._|\.aten\._")
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        if path.name != "torch_internals.py"
        for line in path.read_text().splitlines()
        if private.search(line)
    ]

    assert found == []


@pytest.mark.parametrize("used_before", [False, True])
def test_an_autocast_around_the_call_keeps_no_cast_of_a_checkpoint(used_before: bool) -> None:
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(8, 2), torch.randn(16, 8), torch.randint(2, (16,))
    states = [{name: factor * v for name, v in model.state_dict().items()} for factor in (-1, 3)]
    run = tracin.TracIn(model, "cross_entropy", states, learning_rates="equal")

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    wanted = tracin.TracIn(model, loss, states, learning_rates="equal").self_influence(
        (inputs, labels)
    )
    with torch.autocast("cpu", torch.bfloat16):
        own = model(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        if used_before:
            model(inputs)
        found = run.self_influence((inputs, labels))
        assert torch.equal(model(inputs), own)
        assert torch.is_autocast_cache_enabled()
    torch.testing.assert_close(found, wanted)


def test_a_layer_under_autocast_is_read_in_the_numbers_that_it_multiplied() -> None:
    """Its inputs are float32, its products bfloat16: rounding the inputs is part of the layer."""
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(300, 7), torch.randn(4, 5, 300)

    def loss(model: torch.nn.Module, batch: tuple[Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch[0]).float().square().mean((1, 2))

    found = tracin.TracIn(model, loss, [model.state_dict()], learning_rates="equal")
    scores = found.self_influence((inputs,))
    rounded = inputs.bfloat16().double()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(inputs)
    deltas = (2 * outputs.float() / 35).bfloat16().double()
    weight = torch.einsum("eto,eti->eoi", deltas, rounded)
    wanted = weight.square().sum((1, 2)) + deltas.sum(1).square().sum(1)
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("allowed", [False, True])
def test_products_follow_torchs_settings_where_a_run_allows_tf32(allowed: bool) -> None:
    model, seen = torch.nn.Linear(2, 2), set()

    def loss(model: torch.nn.Module, batch: tuple[Tensor]) -> Tensor:
        seen.add(torch.get_float32_matmul_precision())
        return model(batch[0]).square().sum(1)

    torch.set_float32_matmul_precision("high")
    run = tracin.TracIn(
        model, loss, [model.state_dict()], learning_rates="equal", allow_tf32=allowed
    )
    run.self_influence((torch.ones(3, 2),))
    assert seen == {"high" if allowed else "highest"}
    assert torch.get_float32_matmul_precision() == "high"
