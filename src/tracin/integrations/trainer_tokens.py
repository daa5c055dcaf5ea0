"""How a Trainer weighs tokens, seen from what it hands to its model."""

import inspect
import warnings
from typing import Any, final

from torch import Tensor
from torch.nn import Module
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_pt_utils import LabelSmoother

from tracin.checkpoints.token_count import TokenCount
from tracin.errors import CheckpointWarning

ITEMS = "num_items_in_batch"


@final
class TrainerTokens:
    """Counts the tokens of each step: from the labels, or from the number that replaces them.

    With label smoothing, or a `compute_loss_func`, the Trainer keeps labels for itself. Models that
    take the arguments of a loss still get the number of tokens in the whole step.

    Args:
        count: What counts.
        model: The model that is trained, without wrappers.
        args: The Trainer's.
    """

    def __init__(self, count: TokenCount, model: Module, args: TrainingArguments) -> None:
        self._count = count
        self._is_language_model = _is_causal_lm(model)
        self._smoothing = float(args.label_smoothing_factor)
        across = getattr(args, "average_tokens_across_devices", False)
        self._devices = args.world_size if across else 1
        self._tokens: Tensor | float | None = None
        self._examples = 0
        self._is_unseen = self._has_warned = False

    def see(self, model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in the arguments of a forward pass; a hook before it."""
        if not model.training:
            return
        labels, items = kwargs.get("labels"), kwargs.get(ITEMS)
        if isinstance(labels, Tensor):
            self._count.add(labels, items is not None)
            return
        inputs = kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if not self._is_language_model or not isinstance(inputs, Tensor):
            return
        is_own_mean = self._smoothing and (items is None or not _smooths_by_step())
        if is_own_mean and len(inputs) == 1:
            self._count.texts_alike()
        elif items is None or (isinstance(items, Tensor) and items.numel() != 1):
            self._is_unseen = True
        else:
            self._tokens, self._examples = items, self._examples + len(inputs)

    def step(self) -> None:
        """Add up a step, at its end.

        Warns:
            CheckpointWarning: How the Trainer weighs tokens cannot be seen, or was assumed; once.
        """
        if self._tokens is not None and not self._is_unseen:
            self._count.add_step(self._tokens, self._examples * self._devices)
        seen, self._tokens, self._examples = self._tokens, None, 0
        if self._has_warned or not (self._is_unseen or (seen is not None and not self._smoothing)):
            return
        self._has_warned = True
        whose = (
            f"With label_smoothing_factor={self._smoothing:g}"
            if self._smoothing
            else "With a loss of its own (compute_loss_func)"
        )
        known = (
            "and the model does not take its count of tokens (num_items_in_batch), so how tokens "
            'weigh is not recorded: "causal_lm" will be the mean over each text\'s own tokens'
            if self._is_unseen
            else "so tokens are recorded as if that loss divided their sum by num_items_in_batch"
        )
        warnings.warn(
            f"{whose} the Trainer keeps labels from the model, {known}. If it was otherwise, pass "
            'loss="causal_lm_sum" to tracin.TracIn where the Trainer divided by the tokens of a '
            'batch, or "causal_lm_mean" where each text was averaged by itself.',
            CheckpointWarning,
            stacklevel=2,
        )


def _is_causal_lm(model: Module) -> bool:
    """Whether the Trainer takes it for a language model, whose labels are shifted."""
    within = getattr(model, "get_base_model", None)
    base: Any = within() if callable(within) else model
    return type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _smooths_by_step() -> bool:
    """Whether this release divides a smoothed loss by the tokens of the whole step."""
    return ITEMS in inspect.signature(LabelSmoother.__call__).parameters
