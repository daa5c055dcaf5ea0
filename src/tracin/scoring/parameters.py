"""Which parameters are traced: all that are trained, or those of some names."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch.nn import Module, Parameter

from tracin.checkpoints import bare_name
from tracin.errors import ParametersError

Selection = str | Sequence[str] | None

LAST = "last"  # the layer used last


def chosen_parameters(model: Module, selection: Selection) -> dict[str, Parameter]:
    """The parameters to trace, by name, in the model's order.

    Args:
        model: Tied parameters count once, under their first name.
        selection: None for every trainable parameter, names and globs such as ["fc.*"], or
            "last": every one that the last layer may have, for a forward pass shows which layer
            is used last (see `last_used.py`).

    Raises:
        ParametersError: Nothing is trainable, or a name matches no trainable parameter.
    """
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not trainable:
        raise ParametersError(
            "The model has no trainable parameter: none has requires_grad=True. TracIn follows "
            "gradients of trained parameters; call requires_grad_(True) on those that were "
            "trained. A PEFT adapter is frozen unless it is loaded with from_pretrained(..., "
            "is_trainable=True)."
        )
    if selection is None or selection == LAST:
        return trainable
    patterns = _patterns(selection)
    if not patterns:
        raise ParametersError(
            "parameters=[] chooses nothing. Leave it out to trace every trainable parameter."
        )
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in trainable if _matches(name, pattern)}
        if not matching:
            raise ParametersError(_no_match(model, pattern, list(trainable)))
        found |= matching
    return {name: parameter for name, parameter in trainable.items() if name in found}


def _patterns(selection: Any) -> list[str]:
    if isinstance(selection, str):
        return [selection]
    is_list = isinstance(selection, Iterable) and not isinstance(selection, bytes | Mapping)
    patterns: list[Any] = list(selection) if is_list else [selection]
    other = [each for each in patterns if not isinstance(each, str)]
    if other:
        raise ParametersError(
            'parameters is None, "last", or a list of names and globs such as ["fc.*"], but '
            f"{other[0]!r} ({type(other[0]).__name__}) came. Give the names of parameters."
        )
    return patterns


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(bare_name(name), pattern)


def _no_match(model: Module, pattern: str, trainable: list[str]) -> str:
    frozen = [name for name, _ in model.named_parameters() if _matches(name, pattern)]
    why = (
        f"it matches '{frozen[0]}', which has requires_grad=False, so it was not trained."
        if frozen
        else "no parameter has such a name."
    )
    some = ", ".join(f"'{name}'" for name in trainable[:5])
    more = f" and {len(trainable) - 5} more" if len(trainable) > 5 else ""
    return (
        f"parameters names '{pattern}', but {why} The trainable parameters are {some}{more}; "
        "globs such as 'layer.*' work, too."
    )
