"""What an optimizer multiplied each entry of a gradient by, beside its learning rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint, bare_name
from tracin.checkpoints.optimizer_state import PARAMETERS, OptimizerState
from tracin.errors import CheckpointError, QueryError
from tracin.gradients.forms import PerExampleGradient, scaled
from tracin.plain_text import listed

WAY_OUT = (
    "Record them while training, by tracin.Recorder(..., optimizer_state=True), or give a file of "
    'them, by tracin.Checkpoint(..., optimizer_path=...); or score with update="sgd".'
)
KINDS = ("Adam", "AdamW")


class HasOptimizerState(Protocol):
    """A checkpoint, or anything else that has a name and an optimizer's state."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def optimizer_state(self) -> OptimizerState | None:
        """What the optimizer remembered then, if that is known."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """The factors of a step: each entry of a gradient moves its weight by rate x factor x gradient.

    Attributes:
        factors: Parameter name -> one factor an entry, [numbers], none below zero.
    """

    factors: Mapping[str, Tensor]

    def squared_norm(self, name: str, form: PerExampleGradient) -> Tensor:
        """The squared lengths of one parameter's gradients under the factors: [examples]."""
        return form.squared_norm_under(self.factors[name])

    def scaled(self, name: str, form: PerExampleGradient) -> PerExampleGradient:
        """One parameter's gradients times the factors, written out unless they are few rows."""
        return scaled(form, self.factors[name])


ScalingOf = Callable[[HasOptimizerState, Mapping[str, Tensor]], Scaling]


def adam(checkpoint: HasOptimizerState, parameters: Mapping[str, Tensor]) -> Scaling:
    """The factors of Adam's step into a checkpoint, 1 / (sqrt(v_hat) + eps), by entry.

    v_hat are the recorded second moments (under AMSGrad their largest), with their bias correction;
    eps and the betas are those of each parameter's group. An entry whose second moment is zero
    has the factor zero: no gradient has reached it, so no step has moved it.

    Args:
        checkpoint: Whose state is read.
        parameters: Those that need factors; they come in the dtype and on the device of these.

    Raises:
        CheckpointError: There is no state, it is not Adam's, or it has no moments for one of the
            parameters.
    """
    state = checkpoint.optimizer_state()
    where = f"checkpoint '{checkpoint.name}'"
    if state is None:
        raise CheckpointError(
            f'update="adam" needs the second moments that Adam had at each checkpoint, but none '
            f"were written with {where}. {WAY_OUT}"
        )
    if state.kind not in KINDS:
        raise CheckpointError(
            f'update="adam" needs the second moments of Adam or AdamW, but {where} has the state '
            f'of {state.kind}. Score with update="sgd", or, if its step is Adam\'s, write the '
            'moments with kind="Adam": tracin.OptimizerState("Adam", groups, moments).write(path).'
        )
    groups = {bare_name(n): group for group in state.groups for n in group[PARAMETERS]}
    moments = {bare_name(name): kept for name, kept in state.moments.items()}
    lacking = [
        name
        for name in parameters
        if bare_name(name) not in groups or "step" not in moments.get(bare_name(name), {})
    ]
    if lacking:
        raise CheckpointError(
            f"Adam's second moments are needed for every parameter that is traced, but {where} has "
            f"none for {listed(lacking)}: the optimizer did not hold these, or no gradient had "
            "reached them. Leave them out by `parameters`, or leave out the checkpoint."
        )
    return Scaling(
        {
            name: _factors(groups[bare_name(name)], moments[bare_name(name)], parameter, name)
            for name, parameter in parameters.items()
        }
    )


# The words of the front door; None leaves gradients as they are.
UPDATES: Mapping[str, ScalingOf | None] = {"sgd": None, "adam": adam}


def scaling_of(word: str, checkpoints: Sequence[Checkpoint]) -> ScalingOf | None:
    """What the front door's word stands for.

    Raises:
        QueryError: There is no such word.
        CheckpointError: A checkpoint lacks the state that is needed; said before any is loaded.
    """
    if word not in UPDATES:
        allowed = ", ".join(f'"{each}"' for each in UPDATES)
        raise QueryError(f"update is one of {allowed}; {word!r} was given.")
    found = UPDATES[word]
    if found is not None:
        # A path is enough to know; its file is read when its turn comes.
        lacking = [
            checkpoint.name
            for checkpoint in checkpoints
            if checkpoint.optimizer_path is None and checkpoint.optimizer_state() is None
        ]
        if lacking:
            raise CheckpointError(
                f'update="{word}" needs the moments that the optimizer had at each checkpoint, but '
                f"none were written with {listed(lacking)}. {WAY_OUT}"
            )
    return found


def _factors(
    group: Mapping[str, Any], moments: Mapping[str, Tensor], parameter: Tensor, name: str
) -> Tensor:
    """One parameter's factors: [numbers]."""
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    lacking = [f"option {each!r}" for each in ("eps", "betas") if each not in group]
    lacking += [] if key in moments else [f"moment {key!r}"]
    if lacking:
        raise CheckpointError(
            f"Adam's state of {name} lacks its {' and '.join(lacking)}. Write it as torch keeps it."
        )
    second, step = moments[key], float(moments["step"])
    if second.shape != parameter.shape or step < 1:
        raise CheckpointError(
            f"Adam's {key} of {name} has shape {list(second.shape)} after {step:g} steps, and the "
            f"model's parameter has shape {list(parameter.shape)}: it must have the same shape, "
            "and at least one step. Give the model that was trained."
        )
    kind = parameter.dtype.to_real()
    if second.is_complex():  # torch keeps the squares of real and of imaginary parts so
        second = torch.view_as_real(second)
    # Half precision would lose the square of a small gradient.
    precise = torch.promote_types(torch.promote_types(second.dtype, kind), torch.float32)
    second = second.detach().to(parameter.device, precise).flatten()
    if not bool((second >= 0).all()) or not bool(torch.isfinite(second).all()):
        raise CheckpointError(
            f"Adam's {key} of {name} has entries that are negative or not finite, so that it has "
            "no square root. Leave this checkpoint out, or write its state again."
        )
    correction = 1 - float(group["betas"][1]) ** step
    factors = (second / correction).sqrt_().add_(float(group["eps"])).reciprocal_()
    return factors.masked_fill_(second == 0, 0).to(kind)
