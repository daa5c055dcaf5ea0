"""Any other function: its own vector-Jacobian product, by vmap over this one call."""

from typing import Any

from torch import Tensor
from torch.func import vjp, vmap

from tracin.gradients.batching import quiet_batching
from tracin.gradients.forms import Dense, Form
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, full, last_resort, leaves_in


@last_resort
def local(use: Use, *args: Any, **kwargs: Any) -> Parts:
    """Exact for a function that treats examples apart, at the price of writing gradients out.

    Bilinear, PReLU, recurrent cells, einsum and whatever torch adds later come this way.
    """
    name = getattr(use.func, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        raise NoRule("the call changes its input")
    call = [*args, *kwargs.values()]
    leaves = list(dict.fromkeys(leaves_in(call)))
    batched: dict[int, Tensor] = {}
    for tensor in _data_in(call):
        if use.has_examples(tensor):
            batched[id(tensor)] = use.data(tensor)
    made: list[Form] = []

    def forms(delta: Tensor) -> list[Form]:
        def one(delta: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
            known = dict(zip(batched, data, strict=True))

            def output(*tensors: Tensor) -> Tensor:
                values = dict(zip(leaves, tensors, strict=True))
                return full(
                    use.func(
                        *_filled(args, known, values),
                        **dict(zip(kwargs, _filled(kwargs.values(), known, values), strict=True)),
                    )
                )

            return vjp(output, *(leaf.tensor.detach() for leaf in leaves))[1](delta)

        with quiet_batching():
            gradients = vmap(one)(delta, *batched.values())
        return [Dense(full(gradient)) for gradient in gradients]

    def form(place: int, delta: Tensor) -> Form:
        if not made:
            made.extend(forms(delta))
        return made[place]

    return [
        (leaf, lambda delta, place=place: form(place, delta)) for place, leaf in enumerate(leaves)
    ]


def _data_in(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _data_in(value)]
    return []


def _filled(values: Any, known: dict[int, Tensor], parameters: dict[Leaf, Tensor]) -> Any:
    """The call's arguments for one example."""
    filled = []
    for value in values:
        if isinstance(value, Leaf):
            filled.append(parameters[value])
        elif isinstance(value, Tensor):
            filled.append(known.get(id(value), value.detach()))
        elif type(value) in (list, tuple):
            filled.append(type(value)(_filled(value, known, parameters)))
        else:
            filled.append(value)
    return filled
