"""Which parameters are traced: all that are trained, the last layer, or names and globs."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch.nn import Module, Parameter

from tracin.checkpoints import bare_name
from tracin.errors import ParametersError

Selection = str | Sequence[str] | None


def chosen_parameters(model: Module, selection: Selection) -> dict[str, Parameter]:
    """The parameters to trace, by name, in the model's order.

    Args:
        model: Tied parameters count once, under their first name.
        selection: None for every trainable parameter, "last" for those of the last layer that
            has any, or names and globs such as ["fc.*"].

    Raises:
        ParametersError: Nothing is trainable, or a name matches no trainable parameter.
    """
    trainable = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not trainable:
        raise ParametersError(
            "The model has no trainable parameter: none has requires_grad=True. TracIn follows "
            "gradients of trained parameters; call model.requires_grad_(True) for those that were "
            "trained."
        )
    if selection is None:
        return trainable
    if selection == "last":
        return last_layer(model)
    patterns = [selection] if isinstance(selection, str) else list(selection)
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


def last_layer(model: Module) -> dict[str, Parameter]:
    """The trainable parameters of the last module that has some of its own."""
    trainable = {id(p): (n, p) for n, p in model.named_parameters() if p.requires_grad}
    last: dict[str, Parameter] = {}
    for module in model.modules():
        own = [trainable[id(p)] for p in module.parameters(recurse=False) if id(p) in trainable]
        last = dict(own) or last
    return last


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
