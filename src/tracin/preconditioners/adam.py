"""What Adam multiplied each entry of a gradient by, apart from its learning rate."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from tracin.checkpoints import Checkpoint, bare_name
from tracin.checkpoints.adam_kind import ADAM_KINDS
from tracin.checkpoints.optimizer_state import PARAMETERS, OptimizerState
from tracin.checkpoints.readers.spread_state import spread_by
from tracin.errors import CheckpointError
from tracin.files import bytes_of
from tracin.plain_text import listed
from tracin.preconditioners.preconditioner import HasOptimizerState, Place, Scaling

WAY_OUT = (
    "tracin.Recorder writes them, unless optimizer_state=False; tracin.integrations.transformers."
    "from_run(folder, model) reads a Trainer's, and tracin.integrations.lightning.from_ckpt(paths, "
    "module=module) Lightning's; or give a file of them, by tracin.Checkpoint(..., "
    "optimizer_path=...); or leave the preconditioner out."
)


@final
@dataclass(frozen=True)
class Adam:
    """What Adam made of a gradient: each entry times 1 / (sqrt(v_hat) + eps).

    v_hat are the second moments that Adam or AdamW had at the checkpoint (under AMSGrad their
    largest), with their bias correction; eps and the betas are those of each parameter's group. An
    entry whose second moment is zero has the factor zero: no gradient has reached it, so no step
    has moved it. `tracin.Recorder` writes the moments. Momentum is left out; a `tracin.Tracer`
    follows it. Source: Kingma and Ba, 2015,
    https://arxiv.org/abs/1412.6980; as a preconditioner of influence: LESS,
    https://arxiv.org/abs/2402.04333.

    Example:
        >>> import tempfile, torch, tracin
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> data, folder = (torch.randn(8, 2), torch.randn(8)), tempfile.mkdtemp()
        >>> with tracin.Recorder(model, optimizer, folder) as recorder:
        ...     (model(data[0])[:, 0] - data[1]).square().mean().backward()
        ...     optimizer.step()
        ...     _ = recorder.epoch()
        >>> run = tracin.TracIn(model, "mse", folder, preconditioner=tracin.Adam())
        >>> run.influence(data, data).shape
        torch.Size([8, 8])
    """

    @property
    def follows_training(self) -> bool:
        """Whether checkpoints weigh by their learning rates by default."""
        return True

    @property
    def fits_sketches(self) -> bool:
        """Whether its queries can be multiplied with sketches of plain gradients."""
        return True

    @property
    def is_made_once(self) -> bool:
        """Whether the metric of the last checkpoint serves all."""
        return False

    def check(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Refuse checkpoints without moments, before any is loaded.

        Raises:
            CheckpointError: There are such.
        """
        # A path is enough to know; its file is read when its turn comes.
        lacking = [
            checkpoint.name
            for checkpoint in checkpoints
            if checkpoint.optimizer_path is None and checkpoint.optimizer_state() is None
        ]
        if lacking:
            spread = {spread_by(one.source) for one in checkpoints if isinstance(one.source, Path)}
            ways = " and ".join(sorted(spread - {""}))
            known = (
                f" in one piece: {ways} spread them over processes, so that they cannot be read"
                if ways
                else ""
            )
            raise CheckpointError(
                "preconditioner=tracin.Adam() needs the moments that the optimizer had at each "
                f"checkpoint, but none were written with {listed(lacking)}{known}. {WAY_OUT}"
            )

    def metric(self, place: Place) -> Scaling:
        """The factors at a checkpoint.

        Raises:
            CheckpointError: As from `scaling`.
        """
        return self.scaling(place.checkpoint, place.parameters)

    def scaling(self, checkpoint: HasOptimizerState, parameters: Mapping[str, Tensor]) -> Scaling:
        """The factors at a checkpoint, in the dtype and on the device of the parameters.

        Raises:
            CheckpointError: There is no state, it is not Adam's, or it has no moments for one of
                the parameters.
        """
        state, where = _state_at(checkpoint), f"checkpoint '{checkpoint.name}'"
        groups = {bare_name(n): group for group in state.groups for n in group[PARAMETERS]}
        moments = {bare_name(name): kept for name, kept in state.moments.items()}
        lacking = [
            name
            for name in parameters
            if bare_name(name) not in groups or "step" not in moments.get(bare_name(name), {})
        ]
        if lacking:
            raise CheckpointError(
                "Adam's second moments are needed for every parameter that is traced, but "
                f"{where} has none for {listed(lacking)}: the optimizer did not hold these, or no "
                "gradient had reached them. Leave them out by `parameters`, or leave out the "
                "checkpoint."
            )
        return Scaling(
            {
                name: _factors(groups[bare_name(name)], moments[bare_name(name)], parameter, name)
                for name, parameter in parameters.items()
            }
        )

    def read_at(self, checkpoint: HasOptimizerState) -> Iterator[str | memoryview]:
        """All that the factors at a checkpoint are computed from, for a fingerprint.

        Raises:
            CheckpointError: There is no state, or it is not Adam's.
        """
        state = _state_at(checkpoint)
        for group in state.groups:
            options = {name: group.get(name) for name in ("eps", "amsgrad")}
            betas = tuple(group.get("betas") or ())  # lists in a file
            yield f"{sorted(map(bare_name, group[PARAMETERS]))} {options} {betas[1:]}"
        for name, kept in sorted(state.moments.items()):
            yield f"{bare_name(name)} {_step(kept) if 'step' in kept else None}"
            for key in ("exp_avg_sq", "max_exp_avg_sq"):
                if key in kept:
                    yield f"{key} {kept[key].dtype}"
                    yield bytes_of(kept[key])


def _state_at(checkpoint: HasOptimizerState) -> OptimizerState:
    """The optimizer's state, if it is Adam's."""
    state = checkpoint.optimizer_state()
    where = f"checkpoint '{checkpoint.name}'"
    if state is None:
        raise CheckpointError(
            "preconditioner=tracin.Adam() needs the second moments that Adam had at each "
            f"checkpoint, but none were written with {where}. {WAY_OUT}"
        )
    if state.kind not in ADAM_KINDS:
        raise CheckpointError(
            "preconditioner=tracin.Adam() needs the second moments of Adam or AdamW, but "
            f"{where} has the state of {state.kind}. Leave the preconditioner out, or, if its "
            'step is Adam\'s, write the moments with kind="Adam": '
            'tracin.OptimizerState("Adam", groups, moments).write(path).'
        )
    return state


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
    second, step = moments[key], _step(moments)
    eps, beta = _options(group, name)
    if second.shape != parameter.shape or not step >= 1:  # nor is NaN
        raise CheckpointError(
            f"Adam's {key} of {name} has shape {list(second.shape)} after {step:g} steps, and the "
            f"model's parameter has shape {list(parameter.shape)}: it must have the same shape, "
            "and at least one step. Give the model that was trained."
        )
    kind = parameter.dtype.to_real()
    if second.is_complex() != parameter.is_complex() or not (
        second.is_complex() or second.is_floating_point()
    ):
        raise CheckpointError(
            f"Adam's {key} of {name} is {second.dtype}, and the parameter {parameter.dtype}: these "
            "are moments of other numbers. Give the model that was trained."
        )
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
    factors = (second / (1 - beta**step)).sqrt_().add_(eps).reciprocal_()
    return factors.masked_fill_(second == 0, 0).to(kind)


def _step(moments: Mapping[str, Tensor]) -> float:
    """After how many steps the moments were written; NaN if that is no number."""
    return float(moments["step"]) if moments["step"].numel() == 1 else math.nan


def _options(group: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The group's eps, and the second of its betas."""
    try:
        eps, (_, beta) = float(group["eps"]), map(float, group["betas"])
    except (TypeError, ValueError):
        eps = beta = math.nan
    if not (0 <= eps < math.inf and 0 <= beta < 1):
        raise CheckpointError(
            f"Adam's options of {name} are eps={group['eps']!r} and betas={group['betas']!r}, but "
            "eps is a number of at least 0, and betas are two from 0 to below 1. Write the state "
            "as torch keeps it."
        )
    return eps, beta
