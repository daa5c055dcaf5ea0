"""The layer that a forward pass uses last, whatever the order in which layers were registered."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.nn import Module, Parameter
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from tracin.errors import ParametersError

Named = dict[str, Parameter]


def last_used(model: Module, losses_of: Callable[[], Tensor]) -> Named:
    """The trainable parameters of the layer that data meets last on the way to the losses.

    Args:
        model: The model.
        losses_of: One forward pass; the losses of a few examples.

    Returns:
        By name, in the model's order: all that the layer itself has. Of weights that a module uses
        by functions, those of the last such function, with the bias that is added after it.
    """
    watch = _Meetings(model)
    with torch.enable_grad(), watch:
        losses = losses_of()
    counted = _counted(losses, watch.trainable)
    met = [[p for p in meeting if id(p) in counted] for meeting in watch.met]
    return _layer(model, [meeting for meeting in met if meeting], watch.trainable)


def last_foreseen(model: Module) -> Named:
    """The same, as far as the model's code tells without data.

    Raises:
        ParametersError: The code does not tell.
    """
    trainable = _trainable(model)
    # A copy without memory of its own: forward code may leave things on its modules.
    numberless = {id(t): _numberless(t) for t in (*model.parameters(), *model.buffers())}
    kept = {id(numberless[id(p)]): p for _, p in trainable.values()}
    try:
        traced = copy.deepcopy(model, dict(numberless)).eval()
        graph = fx.GraphModule(traced, fx.Tracer().trace(traced)).graph
        graph.eliminate_dead_code()
        found = [[kept[id(p)] for p in used if id(p) in kept] for used in _uses(traced, graph)]
    except Exception as error:  # forward code that needs numbers may raise anything
        raise ParametersError(
            'parameters="last" is the layer that is used last, which the first data shows: its '
            "names are known after a call such as coverage(batch) or self_influence(train)."
        ) from error
    return _layer(model, [used for used in found if used], trainable)


@final
class _Meetings(TorchFunctionMode):
    """Notes each call in which trainable parameters, or tensors made of them, meet others."""

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.trainable = _trainable(model)
        self.met: list[list[Parameter]] = []
        # Tensors made of parameters and buffers alone, with the parameters; kept, so that no id is
        # given twice.
        self._made: dict[int, _Made] = {
            id(tensor): _Made(tensor, [tensor] if id(tensor) in self.trainable else [])
            for tensor in (*model.parameters(), *model.buffers())
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = list(_tensors((*args, *(kwargs or {}).values())))
        made = [self._made[id(tensor)] for tensor in given if id(tensor) in self._made]
        parameters = [p for each in made for p in each.of]
        if parameters and len(made) < len(given):
            self.met.append(parameters)
        elif made and len(made) == len(given):
            for tensor in _tensors(result):
                self._made.setdefault(id(tensor), _Made(tensor, parameters))
        return result


@dataclass(frozen=True)
class _Made:
    """A tensor, and the trainable parameters that it is made of."""

    tensor: Tensor
    of: list[Any]


def _trainable(model: Module) -> dict[int, tuple[str, Parameter]]:
    return {id(p): (name, p) for name, p in model.named_parameters() if p.requires_grad}


def _counted(losses: Any, trainable: Mapping[int, Any]) -> set[int]:
    """The ids of the parameters that the losses depend on; all where that cannot be seen."""
    losses = getattr(losses, "losses", losses)
    nodes, seen, found = [getattr(losses, "grad_fn", None)], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        nodes.extend(following for following, _ in node.next_functions)
    return found & set(trainable) or set(trainable)


def _layer(
    model: Module,
    met: Sequence[Sequence[Parameter]],
    trainable: Mapping[int, tuple[str, Parameter]],
) -> Named:
    """The parameters of the layer that the last of some meetings belongs to."""
    owners = {at: owner for at, owner in _owners(model).items() if at in trainable}
    # A temperature after the last layer is a number of it, and no layer of its own.
    met = [m for m in met if any(p.ndim > 0 for p in m)] or met
    if not met:  # nothing could be watched: the order of registration is all that is known
        met = [[p for _, p in trainable.values() if owners[id(p)] is _last(owners)]]
    last = owners[id(met[-1][-1])]
    chosen = {id(p) for p in met[-1] if owners[id(p)] is last}
    for meeting in reversed(met[:-1]):
        is_bias = all(trainable[at][1].ndim < 2 for at in chosen)
        if not is_bias or any(owners[id(p)] is not last for p in meeting):
            break
        chosen |= {id(p) for p in meeting}
    return {name: p for at, (name, p) in trainable.items() if at in chosen}


def _owners(model: Module) -> dict[int, Module]:
    """The module that each parameter belongs to, by the parameter's id."""
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for module in model.modules():
        if is_parametrized(module):
            # What a weight is computed from is kept in modules within the layer that has it.
            held = module.get_submodule("parametrizations").parameters()
            owners |= {id(p): module for p in held}
    return owners


def _last(owners: Mapping[int, Module]) -> Module:
    return list(owners.values())[-1]


def _numberless(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return Parameter(empty, tensor.requires_grad) if isinstance(tensor, Parameter) else empty


def _uses(model: Module, graph: fx.Graph) -> Iterator[list[Tensor]]:
    """The parameters that each node of a graph uses, in the order of the nodes."""
    for node in graph.nodes:
        if node.op == "call_module":
            yield list(model.get_submodule(node.target).parameters())
        elif node.op in ("call_function", "call_method"):
            given = [each for each in node.all_input_nodes if each.op == "get_attr"]
            named = dict(model.named_parameters(remove_duplicate=False))
            yield [named[each.target] for each in given if each.target in named]


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
