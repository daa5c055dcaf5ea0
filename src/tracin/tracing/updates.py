"""Update rules: how an optimizer's step is made of this step's gradient and of terms of its own.

To trace another optimizer: write a function that takes a `StepTaken` and returns an `Update`, and
register it with `update_rule`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, final

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from tracin.errors import TracingError


@final
@dataclass(frozen=True, eq=False)
class StepTaken:
    """One parameter's part of a step that an optimizer has just taken.

    Attributes:
        options: Those of its group as they were in the step: lr, weight_decay, betas, ...
        state: What the optimizer keeps for it, after the step.
        before: The parameter before the step.
        gradient: The gradient that the optimizer was given.
    """

    options: Mapping[str, Any]
    state: Mapping[str, Any]
    before: Tensor
    gradient: Tensor

    def option(self, name: str) -> float:
        """An option that is a number, or a tensor of one."""
        return float(self.options[name])


@final
@dataclass(frozen=True, eq=False)
class Update:
    """A step, taken apart: before - after = scale * gradient + decay + carried.

    The identity is exact, whatever share is called the gradient's own; tests hold each rule to it.

    Attributes:
        scale: What an example's part of the gradient is multiplied by: a number, or one for each
            entry of the parameter. With momentum it is the whole weight that the gradient will
            have in this and all later steps, if rate and scaling stay as they are.
        decay: The part of weight decay, which belongs to no example; None for none.
        carried: What momentum brings from earlier steps, less what it keeps of this one for later
            ones (both are in `scale`): it comes and goes, and adds up to little. None for none.
    """

    scale: float | Tensor
    decay: Tensor | None = None
    carried: Tensor | None = None


UpdateRule = Callable[[StepTaken], Update]

_RULES: dict[type[Optimizer], UpdateRule] = {}


def update_rule(*kinds: type[Optimizer]) -> Callable[[UpdateRule], UpdateRule]:
    """Register how optimizers of these classes make their steps.

    Example:
        >>> import torch, tracin
        >>> class SignedSGD(torch.optim.Optimizer):
        ...     "Steps of one size, in the direction of the gradient's signs."
        >>> @tracin.tracing.update_rule(SignedSGD)
        ... def signed(step):
        ...     return tracin.tracing.Update(step.option("lr") / step.gradient.abs())
    """

    def register(rule: UpdateRule) -> UpdateRule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


def rule_of(optimizer: Optimizer) -> UpdateRule:
    """The rule of this optimizer's own class.

    Raises:
        TracingError: There is none.
    """
    rule = _RULES.get(type(optimizer))
    if rule is None:
        known = ", ".join(sorted(kind.__name__ for kind in _RULES))
        raise TracingError(
            f"There is no update rule for the optimizer {type(optimizer).__name__}, so its steps "
            f"cannot be shared among examples. There are rules for {known}; write one with "
            "tracin.tracing.update_rule."
        )
    return rule


@update_rule(SGD)
def sgd(step: StepTaken) -> Update:
    """Plain, with momentum, dampening, Nesterov's momentum and L2 weight decay."""
    rate, momentum = step.option("lr"), step.option("momentum")
    scale = rate
    if momentum:
        scale *= (1 - step.option("dampening")) / (1 - momentum)
    decay = _l2(step, scale)
    if step.options.get("maximize"):
        scale = -scale
    if not momentum:
        return Update(scale, decay)
    moved = rate * step.state["momentum_buffer"]
    if step.options["nesterov"]:
        moved = momentum * moved + rate * _with_l2(step)
    return Update(scale, decay, _rest(moved, scale * step.gradient, decay))


@update_rule(Adam, AdamW)
def adam(step: StepTaken) -> Update:
    """With L2 or decoupled weight decay, and AMSGrad; second moments as they were realised."""
    rate, epsilon = step.option("lr"), step.option("eps")
    first, second = (float(beta) for beta in step.options["betas"])
    count = float(step.state["step"])
    key = "max_exp_avg_sq" if step.options["amsgrad"] else "exp_avg_sq"
    root = step.state[key].sqrt() / sqrt(1 - second**count)
    steepness = rate / (root + epsilon)
    scale = _whole_weight(first, count) * steepness
    is_decoupled = step.options.get("decoupled_weight_decay", False)
    if is_decoupled:
        weight = rate * step.option("weight_decay")
        decay, own = (weight * step.before if weight else None), None
    else:
        decay = own = _l2(step, scale)
    if step.options.get("maximize"):
        scale = -scale
    if first == 0:
        return Update(scale, decay)
    moved = steepness * step.state["exp_avg"] / (1 - first**count)
    return Update(scale, decay, _rest(moved, scale * step.gradient, own))


@update_rule(Adagrad)
def adagrad(step: StepTaken) -> Update:
    """With L2 weight decay and a decaying rate."""
    count = float(step.state["step"])
    rate = step.option("lr") / (1 + (count - 1) * step.option("lr_decay"))
    scale = rate / (step.state["sum"].sqrt() + step.option("eps"))
    decay = _l2(step, scale)
    return Update(-scale if step.options.get("maximize") else scale, decay)


@update_rule(RMSprop)
def rmsprop(step: StepTaken) -> Update:
    """Centred or not, with momentum and L2 weight decay."""
    rate, momentum = step.option("lr"), step.option("momentum")
    variance = step.state["square_avg"]
    if step.options["centered"]:
        variance = variance.addcmul(step.state["grad_avg"], step.state["grad_avg"], value=-1)
    scale = rate / (variance.sqrt() + step.option("eps")) / (1 - momentum)
    decay = _l2(step, scale)
    if step.options.get("maximize"):
        scale = -scale
    if not momentum:
        return Update(scale, decay)
    moved = rate * step.state["momentum_buffer"]
    return Update(scale, decay, _rest(moved, scale * step.gradient, decay))


def _l2(step: StepTaken, scale: float | Tensor) -> Tensor | None:
    """Weight decay that is added to the gradient, and goes the gradient's way."""
    weight = step.option("weight_decay")
    return scale * (weight * step.before) if weight else None


def _with_l2(step: StepTaken) -> Tensor:
    gradient = -step.gradient if step.options.get("maximize") else step.gradient
    return gradient + step.option("weight_decay") * step.before


def _rest(moved: Tensor, own: Tensor, decay: Tensor | None) -> Tensor:
    return moved - own if decay is None else moved - own - decay


def _whole_weight(beta: float, count: float) -> float:
    """What a gradient of step `count` weighs in this and all later steps of Adam, as first moment.

    The sum over k >= 0 of (1 - beta) beta^k / (1 - beta^(count + k)): 1 but for the first steps,
    whose bias correction makes them weigh more.
    """
    total, power = 0.0, 1.0
    while power > 1e-12:
        total += (1 - beta) * power / (1 - beta**count * power)
        power *= beta
    return total
