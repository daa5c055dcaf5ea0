"""The optimizer of a replay: it begins without memory, and is put back as it was."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.optim import SGD, Optimizer

from tracin.checkpoints import Checkpoint


@contextmanager
def without_state(optimizer: Optimizer) -> Iterator[None]:
    """Empty an optimizer's state; on leaving, its state and options are as they were."""
    state = optimizer.state
    options = [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key != "params"
        }
        for group in optimizer.param_groups
    ]
    optimizer.state = defaultdict(dict)
    try:
        yield
    finally:
        optimizer.state = state
        for group, saved in zip(optimizer.param_groups, options, strict=True):
            group.update(saved)


def has_state_for(checkpoint: Checkpoint, optimizer: Optimizer) -> bool:
    """Whether a checkpoint holds the optimizer's state, or the optimizer keeps none."""
    is_forgetful = type(optimizer) is SGD and not any(
        group["momentum"] for group in optimizer.param_groups
    )
    return is_forgetful or checkpoint.optimizer_path is not None


def groups_text(groups: Sequence[Sequence[str]]) -> str:
    """Parameter groups in words."""
    described = "; ".join(
        f"{len(names)} parameters from {names[0]}" if names else "none" for names in groups
    )
    return f"{len(groups)} groups ({described})"
