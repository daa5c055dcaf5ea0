"""Weights that transformers saved under other names, or in another layout, than it has in memory.

`save_pretrained` writes the names of a model's first release, with experts one by one; in memory
names are newer and experts are stacked. Only `from_pretrained` knows the way back, so it is called.
"""

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from tracin.checkpoints.state_dict import bare_name, refuse_other_shapes
from tracin.errors import CheckpointError
from tracin.plain_text import first_line
from tracin.random_state import same_random_state


def pretrained_parts(model: Module) -> dict[str, Module]:
    """The outermost models of transformers in a model: prefix of their names -> model.

    The prefix is "" where the model itself is one, perhaps in a wrapper.
    """
    loaded = sys.modules.get("transformers.modeling_utils")
    kind: Any = getattr(loaded, "PreTrainedModel", ())
    found: dict[str, Module] = {}
    within: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, kind) and not any(name.startswith(one) for one in within):
            within.append(f"{name}." if name else "")
            found[bare_name(f"{name}." if name else "")] = module
    return found


def has_other_layouts(model: Module) -> bool:
    """Whether transformers changes tensors, not names alone, between the file and this model."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter
    except ImportError:  # before release 5 names alone could differ
        return False
    mapping: Any = get_model_conversion_mapping(model)  # pyright: ignore[reportArgumentType]
    return any(isinstance(one, WeightConverter) for one in mapping)


def as_in_memory(
    parts: Mapping[str, Module], weights: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The weights under the names and in the layout of a model with these parts.

    Args:
        parts: What `pretrained_parts` found.
        weights: The weights by the names in the file, with a part's prefix, or of one part alone
            without it.
        name: What messages call the checkpoint.
    """
    found = {bare_name(key): values for key, values in weights.items()}
    for prefix, part in parts.items():
        inner = {key.removeprefix(prefix) for key in found if key.startswith(prefix)}
        is_alone = not inner and len(parts) == 1
        taken = {key if is_alone else prefix + key for key in (found if is_alone else inner)}
        saved = {key if is_alone else key.removeprefix(prefix): found.pop(key) for key in taken}
        found |= {prefix + key: values for key, values in converted(part, saved, name).items()}
    return found


def converted(model: Module, saved: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One model's weights, as `from_pretrained` reads them; names it does not know stay."""
    twin, config = empty_twin(model, name), model.config
    kind: Any = type(model)

    class Twin(kind):
        """Looks up conversions as the model's own class, but is never built from a config.

        Parts that the user replaced, such as a head, are then those of the model.
        """

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            self.__dict__.update(twin.__dict__)
            # Fixed tensors that are never saved are separated from missing weights below.
            self._keys_to_ignore_on_load_missing = None

    Twin.__name__, Twin.__qualname__, Twin.__module__ = (
        kind.__name__,
        kind.__qualname__,
        kind.__module__,
    )
    with quiet():
        try:
            read, report = Twin.from_pretrained(
                None,
                config=config,
                state_dict=dict(saved),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:
            raise CheckpointError(
                f"{name} does not fit the model: {kind.__name__}.from_pretrained fails "
                f"({type(error).__name__}: {first_line(error)}). One of its weights may be "
                "missing or have another shape; else give a state dict under the names that the "
                "model has: model.state_dict() after from_pretrained."
            ) from error
    refuse_other_shapes(sorted(report["mismatched_keys"]), name)
    fixed = unsaved(model)
    missing = set(report["missing_keys"])
    state = read.state_dict()
    nothing = torch.empty(0)  # for a name that the model lacks, only the name matters
    return {
        **{key: saved.get(key, nothing) for key in sorted(report["unexpected_keys"])},
        **{key: values for key, values in state.items() if key not in missing},
        **{key: values for key, values in fixed.items() if key in missing},
    }


def empty_twin(model: Module, name: str) -> Module:
    """A copy of a model's structure, whose tensors have no numbers and take no memory."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CheckpointError(
            f"{name} has other names or layouts than the model. To read it as from_pretrained "
            f"does, the model must be copied, which failed ({type(error).__name__}: "
            f"{first_line(error)}). Give a state dict under the names that the model has: "
            "model.state_dict() after from_pretrained."
        ) from error


def unsaved(model: Module) -> dict[str, Tensor]:
    """What `save_pretrained` leaves out because it never changes, such as sinusoidal positions."""
    trained = {id(one) for one in model.parameters() if one.requires_grad}
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    state = model.state_dict(keep_vars=True)
    return {key: state[key] for key in left_out & set(state) if id(state[key]) not in trained}


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, reports or warnings of transformers, and no random numbers taken."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with same_random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
