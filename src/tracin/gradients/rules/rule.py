"""A rule gives the per-example gradients of the parameters of one torch function.

To add a layer that is not covered: write a function that takes a `Use` and then the torch
function's own arguments, where a parameter comes as a `Leaf`, and register it with `rule_for`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, final

import torch
from torch import Tensor

from tracin.gradients.forms import HALF, PerExampleGradient, full
from tracin.gradients.layouts import Layout
from tracin.out_of_memory import raise_if_out_of_memory


@final
@dataclass(frozen=True, eq=False)
class Leaf:
    """A parameter, or a tensor made of parameters alone, where a call takes it."""

    name: str
    tensor: Tensor
    roots: tuple[str, ...]  # the parameters it is made of
    steps: tuple["Step", ...] = ()  # the way back to what it is made of, where that is known
    version: int = 0  # the tensor's count of changes in place when it was made

    @property
    def is_overwritten(self) -> bool:
        """Whether it, or what it was made of, was changed in place since."""
        return self.tensor._version != self.version or any(
            step.source.tensor._version != step.version for step in self.steps
        )


Move = Callable[
    [PerExampleGradient], PerExampleGradient | None
]  # from the gradients of what was made to those of its source


@final
@dataclass(frozen=True, eq=False)
class Step:
    """From a tensor that was made of parameters alone back to one of its sources.

    Attributes:
        source: A parameter, or a tensor made of parameters alone.
        move: Gives the source's gradients; None where that form has no short way.
        version: The source's count of changes in place at the time.
    """

    source: Leaf
    move: Move
    version: int = 0


class NoRule(Exception):  # noqa: N818  # not an error: the next rule is tried
    """The rule does not hold for this call; the next one is tried."""


MakeForm = Callable[[Tensor], PerExampleGradient]  # from the output's gradient, [examples, *output]
Parts = Sequence[tuple[Any, MakeForm]]  # what takes the form; entries that are no Leaf are dropped
Rule = Callable[..., Parts]

_RULES: dict[Callable[..., Any], Rule] = {}
_LAST_RESORT: list[Rule] = []


def rule_for(*funcs: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for these torch functions."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(funcs, rule))
        return rule

    return register


def last_resort(rule: Rule) -> Rule:
    """Register the rule that is tried where no other holds."""
    _LAST_RESORT.append(rule)
    return rule


@final
class Use:
    """One call in which parameters meet data, and what is needed to read their gradients."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        examples: int,
        output: Layout,
        inputs: Mapping[int, Layout | None],
        *,
        is_live: bool = False,
    ) -> None:
        self.is_live = is_live  # whether shares of coupled examples are wanted
        self.name = name
        self.func = func
        self.examples = examples
        self.output = output
        self.dtype: torch.dtype | None = None  # of the output's gradient, once that is known
        self.parts: list[tuple[Leaf, MakeForm]] = []
        self.rule = ""  # the one that reads this call, by name
        self.passed_over: list[str] = []  # those that do not, and why
        self._inputs = inputs
        self._versions: list[tuple[Tensor, int]] = []

    def layout(self, tensor: Any) -> Layout:
        """Where a data tensor holds the examples. Raises NoRule for anything else."""
        layout = self._inputs.get(id(tensor)) if isinstance(tensor, Tensor) else None
        if layout is None:
            raise NoRule("this argument holds no examples")
        return Layout(layout.dim, layout.copies, self.output.outer)

    def has_examples(self, tensor: Tensor) -> bool:
        """Whether a tensor holds examples at all."""
        return self._inputs.get(id(tensor)) is not None

    def data(self, tensor: Any) -> Tensor:
        """A data tensor with the examples first: [examples, *the rest, copies in their place]."""
        layout = self.layout(tensor)
        if layout.copies > 1 and self.output.copies == 1:
            raise NoRule("the argument's merged examples cannot be told apart by the output")
        self._versions.append((tensor, tensor._version))
        # What knew the graph would keep it alive, and the graph's hooks whoever took the gradients.
        return layout.split(tensor.detach(), self.examples)

    def watch(self, tensor: Tensor) -> None:
        """Note a tensor that must stay as it is until the backward pass."""
        self._versions.append((tensor, tensor._version))

    def find_rule(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Settle which rule reads this call; False if none does."""
        if self.output.outer is None:
            self.passed_over.append("examples and positions of its output cannot be told apart")
            return False
        leaves = set(leaves_in(args)) | set(leaves_in(kwargs))
        specific = _RULES.get(self.func)
        for rule in ([specific] if specific else []) + _LAST_RESORT:
            try:
                parts = [part for part in rule(self, *args, **kwargs) if isinstance(part[0], Leaf)]
            except NoRule as reason:
                self._versions.clear()
                self._pass_over(rule, str(reason))
                continue
            except TypeError as error:
                if _takes(rule, self, args, kwargs):
                    raise
                self._pass_over(rule, f"its arguments are not those of the call: {error}")
                continue
            given = {leaf for leaf, _ in parts}
            if given == leaves:
                self.parts = parts
                self.rule = _name_of(rule)
                return True
            left_out = ", ".join(sorted(leaf.name for leaf in leaves - given))
            self._pass_over(rule, f"it returns nothing for {left_out}")
        return False

    def _pass_over(self, rule: Rule, reason: str) -> None:
        self.passed_over.append(f"{_name_of(rule)}: {reason}")

    @property
    def reason(self) -> str:
        """Which rule reads this call and which do not, in words."""
        why_not = "; ".join(self.passed_over)
        if self.rule:
            return f"rule {self.rule} ({why_not})" if why_not else f"rule {self.rule}"
        return f"has no rule ({why_not})" if why_not else "has no rule"

    def forms(self, delta: Tensor) -> list[tuple[Leaf, PerExampleGradient | Exception]]:
        """Each parameter's per-example gradients, from the gradient of the call's output."""
        self.dtype = delta.dtype
        split = self.output.split(full(delta), self.examples)
        forms: list[tuple[Leaf, PerExampleGradient | Exception]] = []
        for leaf, make in self.parts:
            try:
                self._check_versions()
                forms.append((leaf, make(split)))
            except (RuntimeError, ValueError, NoRule) as error:
                raise_if_out_of_memory(error)
                forms.append((leaf, error))
        self.let_go()
        return forms

    def let_go(self) -> None:
        """Keep no inputs: what reads them refers to this object, in a cycle."""
        self.parts = []
        self._versions = []

    def as_multiplied(self, side: Tensor) -> Tensor:
        """A side of a product in the precision in which the call multiplied it, as autocast may."""
        return side.to(self.dtype) if self.dtype in HALF else side

    @property
    def read(self) -> list[tuple[Tensor, int]]:
        """What the rule reads, each tensor with the count of its changes in place at the time."""
        return list(self._versions)

    def _check_versions(self) -> None:
        if any(tensor._version != version for tensor, version in self._versions):
            raise RuntimeError("an input was changed in place after the call")


def _name_of(rule: Rule) -> str:
    return getattr(rule, "func", rule).__name__.strip("_")  # of a partial, the function in it


def _takes(rule: Rule, use: Use, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature(rule).bind(use, *args, **kwargs)
    except TypeError:
        return False
    return True


def positions(tensor: Tensor) -> Tensor:
    """[examples, any.., width] -> [examples, positions, width], in full precision."""
    return full(tensor).reshape(tensor.shape[0], -1, tensor.shape[-1])


def summed(rows: Tensor) -> Tensor:
    """[examples, positions, width] -> [examples, width]; one position is only renamed."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.sum(1)


def mark(values: Any, leaves: Mapping[int, Leaf]) -> Any:
    """A call's arguments with every parameter replaced by its Leaf."""
    if isinstance(values, Mapping):
        return {key: mark(value, leaves) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)([mark(value, leaves) for value in values])
    return leaves.get(id(values), values) if isinstance(values, Tensor) else values


def plain(values: Any) -> Any:
    """A call's arguments with every Leaf replaced by its tensor, cut off from the graph."""
    if isinstance(values, Leaf):
        return values.tensor.detach()
    if isinstance(values, Mapping):
        return {key: plain(value) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)([plain(value) for value in values])
    return values


def leaves_in(values: Any) -> list[Leaf]:
    """Every Leaf among marked arguments."""
    if isinstance(values, Leaf):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in leaves_in(value)]
    return []
