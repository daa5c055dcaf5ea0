"""Where the examples are: learned by running one example copied twice, then three times.

A dimension that grows with the number of copies holds the examples. Sizes alone could mislead (a
batch of 32 sequences of 32 tokens), and dimensions move (nn.MultiheadAttention puts positions
first), so nothing is guessed from a single run.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

from torch import Tensor
from torch.overrides import resolve_name

from tracin.gradients.arguments import tensors_in
from tracin.gradients.mode import Mode
from tracin.gradients.opening import opened
from tracin.gradients.reordering import ReorderingCall, is_judged, learn_judged

FEW, MORE = 2, 3  # copies of the example in the two runs


@final
@dataclass(frozen=True)
class Layout:
    """The examples are dimension `dim`, `copies` times as long as the number of examples.

    Positions merged into that dimension make several copies per example; `outer` says whether the
    examples are the slow index of the merged dimension (None: not yet known).
    """

    dim: int
    copies: int
    outer: bool | None = True

    def split(self, tensor: Tensor, examples: int) -> Tensor:
        """[.., examples x copies, ..] -> [examples, .., copies, ..]: the rest stays in place."""
        copies = tensor.shape[self.dim] // examples
        if copies == 1:
            return tensor.movedim(self.dim, 0).unsqueeze(self.dim + 1)
        sizes = (examples, copies) if self.outer else (copies, examples)
        at = self.dim if self.outer else self.dim + 1
        return tensor.unflatten(self.dim, sizes).movedim(at, 0)

    def fits(self, tensor: Tensor, examples: int) -> bool:
        """Whether a tensor of another batch can be split like this."""
        return tensor.ndim > self.dim and tensor.shape[self.dim] % examples == 0


@final
@dataclass(frozen=True)
class Derived:
    """The output has no examples: it is made of parameters alone, a parameter of its own kind."""


@final
@dataclass(frozen=True)
class Meeting:
    """A parameter meets data here: the layouts of the output and of each tensor that goes in."""

    output: Layout
    inputs: tuple[Layout | None, ...]


Role = Derived | Meeting


@final
@dataclass(frozen=True)
class ShapeProbe:
    """What the runs on copies of one example showed.

    Attributes:
        roles: For every call that takes a parameter, by name, what it does; calls whose output
            cannot be told apart are left out, so that their parameters get another method.
        judged: The calls that may reorder examples, in order.
    """

    roles: Mapping[str, Role]
    judged: Sequence[ReorderingCall]


@lru_cache(maxsize=1024)
def call_name(func: Callable[..., Any]) -> str:
    """The name of a torch function, such as `torch.nn.functional.linear`."""
    return resolve_name(func) or getattr(func, "__name__", repr(func))


class CallNames:
    """Names every call that takes a parameter: function, parameters, how many-th of its kind."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def name(self, func: Callable[..., Any], parameters: Sequence[str]) -> str:
        """The name of the next call of `func` with these parameters."""
        call = f"{call_name(func)}({', '.join(parameters)})"
        self._seen[call] += 1
        return f"{call}#{self._seen[call]}"


@dataclass
class _Call:
    func: Callable[..., Any]
    sources: list[str | tuple[int, int] | None]  # a parameter, an earlier call's output, or data
    shapes: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    follows: list[bool]  # whether gradients flow through each output: not if it was detached
    is_single: bool


@final
class ShapeRecorder(Mode):
    """Notes the shapes of every call from the first parameter on.

    With `is_live` it runs beneath a training step.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, is_live: bool = False) -> None:
        super().__init__()
        self.is_live = is_live
        self.calls: list[_Call] = []
        self._source: dict[int, str | tuple[int, int]] = {
            id(p): name for name, p in parameters.items()
        }
        self.judged: list[tuple[Callable[..., Any], list[tuple[int, ...]]]] = []
        self._kept: list[Any] = []  # outputs stay alive, so that no id is used twice

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in(args, kwargs))
        sources = [self._source.get(id(tensor)) for tensor in tensors]
        if is_judged(func):
            self.judged.append((func, [tuple(tensor.shape) for tensor in tensors]))
        inside = opened(func)
        if inside is not None and any(source is not None for source in sources):
            with self:
                return inside(*args, **kwargs)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        output = func(*args, **kwargs)
        if any(source is not None for source in sources):
            self._note(func, sources, shapes, output, {id(tensor) for tensor in tensors})
        return output

    def _note(self, func: Any, sources: Any, shapes: Any, output: Any, given: set[int]) -> None:
        made = list(tensors_in((output,), {}))
        for place, tensor in enumerate(made):
            if id(tensor) not in given:  # `weight.to(dtype)` may hand the weight itself back
                self._source[id(tensor)] = (len(self.calls), place)
        self._kept.extend(made)
        outputs = [tuple(tensor.shape) for tensor in made]
        follows = [tensor.requires_grad for tensor in made]
        self.calls.append(
            _Call(func, sources, shapes, outputs, follows, isinstance(output, Tensor))
        )


def compared(few: ShapeRecorder, more: ShapeRecorder) -> ShapeProbe:
    """Compare the runs with FEW and with MORE copies of one example, call by call."""
    return ShapeProbe(_roles(few, more), learn_judged(few.judged, more.judged))


def _roles(few: ShapeRecorder, more: ShapeRecorder) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    names = CallNames()
    derived: dict[tuple[int, int], str] = {}
    if [call.func for call in few.calls] != [call.func for call in more.calls]:
        return roles
    for number, (one, other) in enumerate(zip(few.calls, more.calls, strict=True)):
        parameters = [
            source if isinstance(source, str) else derived[source]
            for source in other.sources
            if isinstance(source, str) or source in derived
        ]
        if not parameters:
            continue
        name = names.name(other.func, parameters)
        if not other.outputs:
            continue
        if one.outputs == other.outputs:
            roles[name] = Derived()
            # The watch takes what was detached (DoRA's norms) for numbers, and names calls so.
            for place in (at for at, follows in enumerate(other.follows) if follows):
                derived[number, place] = output_name(name, place, other.is_single)
        elif other.is_single and (output := _layout(one.outputs[0], other.outputs[0])) is not None:
            inputs = tuple(_layout(*pair) for pair in zip(one.shapes, other.shapes, strict=True))
            roles[name] = Meeting(output, inputs)
    return roles


def output_name(call: str, place: int, is_single: bool) -> str:
    """The name of one output of a call."""
    return call if is_single else f"{call}[{place}]"


def _layout(few: tuple[int, ...], more: tuple[int, ...]) -> Layout | None:
    if len(few) != len(more):
        return None
    grown = [dim for dim, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
    if len(grown) != 1:
        return None
    copies, rest = divmod(more[grown[0]], MORE)
    if rest or few[grown[0]] != FEW * copies:
        return None
    return Layout(grown[0], copies, True if copies == 1 else None)
