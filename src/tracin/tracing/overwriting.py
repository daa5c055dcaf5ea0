"""Some optimizers write into the gradients that they are given; those must be copied in time."""

from typing import final

import torch
from torch.optim import Optimizer

from tracin.errors import TracingError
from tracin.plain_text import listed
from tracin.tracing.raw_gradients import densified
from tracin.tracing.step import StepInputs
from tracin.tracing.traced_parameters import TracedParameters


@final
class OverwriteCheck:
    """Copies are made until a step is seen to leave the gradients alone.

    SGD, for one, adds Nesterov's momentum to the gradients themselves with foreach=True.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._options = ""  # those of the last step, but for its rates
        self._is_overwriting = True

    def expects_overwriting(self) -> bool:
        """Whether the gradients must be copied before a step with the options of now."""
        options = repr(
            [
                {key: value for key, value in group.items() if key not in ("params", "lr")}
                for group in self._optimizer.param_groups
            ]
        )
        if options != self._options:
            self._options, self._is_overwriting = options, True
        return self._is_overwriting

    def observe(self, inputs: StepInputs, parameters: TracedParameters, step: int) -> None:
        """Compare the gradients after a step with what the optimizer was given."""
        changed = []
        for name, version in inputs.versions.items():
            now, given = parameters.traced[name].grad, inputs.gradients[name]
            # Fused steps unscale gradients without counting that as a change.
            if (
                now is None
                or now._version != version
                or (now is not given and not torch.equal(densified(now), given))
            ):
                changed.append(name)
        if changed and not self._is_overwriting and inputs.scale == 1:
            raise TracingError(
                f"The optimizer {type(self._optimizer).__name__} wrote into the gradient of "
                f"{listed(changed)} in step {step}, but left it alone in the step before, so what "
                "it was given is lost. Use an optimizer that consistently does one or the other."
            )
        self._is_overwriting = bool(changed)
