"""Any other function: its own vector-Jacobian product, by vmap over this one call."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.func import vjp, vmap

from tracin.gradients.batching import quiet_batching
from tracin.gradients.forms import Computed, Dense, PerExampleGradient, full
from tracin.gradients.rules.rule import Leaf, NoRule, Parts, Use, last_resort, leaves_in

# Numbers of gradients that one call writes out for all parameters and examples at once, 16 MB in
# float32; beyond, each parameter's are written out in blocks when they are needed.
AT_ONCE = 1 << 22


@last_resort
def local(use: Use, *args: Any, **kwargs: Any) -> Parts:
    """Exact for a function that treats examples apart, at the price of writing gradients out.

    Bilinear, PReLU, recurrent cells, einsum and whatever torch adds later get this rule.
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
    made: list[PerExampleGradient] = []

    def gradients(
        wanted: Sequence[Leaf], delta: Tensor, data: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        def one(delta: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
            known = dict(zip(batched, data, strict=True))

            def output(*tensors: Tensor) -> Tensor:
                values = {leaf: leaf.tensor.detach() for leaf in leaves}
                values |= dict(zip(wanted, tensors, strict=True))
                return full(
                    use.func(
                        *_filled(args, known, values),
                        **dict(zip(kwargs, _filled(kwargs.values(), known, values), strict=True)),
                    )
                )

            return vjp(output, *(leaf.tensor.detach() for leaf in wanted))[1](delta)

        with quiet_batching():
            return [full(gradient) for gradient in vmap(one)(delta, *data)]

    def form(place: int, delta: Tensor) -> PerExampleGradient:
        data = list(batched.values())
        examples = len(delta)
        if examples * sum(leaf.tensor.numel() for leaf in leaves) <= AT_ONCE:
            if not made:
                made.extend(Dense(rows) for rows in gradients(leaves, delta, data))
            return made[place]
        leaf = leaves[place]

        def make(start: int, stop: int) -> Tensor:
            few = [tensor[start:stop] for tensor in data]
            return gradients([leaf], delta[start:stop], few)[0].reshape(stop - start, -1)

        numbers = leaf.tensor.numel()
        each = delta[0].numel() + sum(tensor[0].numel() for tensor in data)
        return Computed(make, examples, numbers, numbers + each, delta.device)

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
