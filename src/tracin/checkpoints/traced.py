"""Parameters that are traced must be those that were trained, where a record says which."""

from collections.abc import Collection, Sequence

from torch.nn import Module

from tracin.checkpoints.checkpoint import Checkpoint
from tracin.checkpoints.names import bare_name
from tracin.checkpoints.state_dicts import listed
from tracin.errors import CheckpointError


def refuse_other_traced(
    model: Module, checkpoints: Sequence[Checkpoint], traced: Collection[str], is_choice: bool
) -> None:
    """Compare what is traced with what a `tracin.Recorder` saw trained.

    Args:
        model: The model.
        checkpoints: Those without a list of trained parameters say nothing.
        traced: The names of the parameters to trace.
        is_choice: Whether the user chose them, and may have left some out.

    Raises:
        CheckpointError: A traced parameter was not trained, or a trained one is frozen now.
    """
    ours = {bare_name(name) for name in traced}
    known = {bare_name(name) for name, _ in model.named_parameters()}
    for checkpoint in checkpoints:
        trained = set(checkpoint.trained)
        if not trained & known:
            continue  # no list, or another model, of which loading has the words
        if never := sorted(ours - trained):
            raise CheckpointError(
                f"{checkpoint.name} was recorded while {listed(never)} took no steps: frozen, or "
                "not in the optimizer. Gradients of what was not trained explain nothing: freeze "
                "it in the model, parameter.requires_grad_(False), or name by `parameters` what "
                "was trained."
            )
        if frozen := [] if is_choice else sorted(known & trained - ours):
            raise CheckpointError(
                f"{checkpoint.name} was recorded while {listed(frozen)} was trained, which is "
                "frozen in the model now. Call requires_grad_(True) on it (a PEFT adapter: "
                "from_pretrained(..., is_trainable=True)), or leave it out by `parameters`."
            )
