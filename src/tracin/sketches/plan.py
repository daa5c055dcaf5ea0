"""How each parameter's gradients become columns of a row; stored in an index's manifest."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, final

from tracin.errors import IndexingError
from tracin.schema import MOST, AnyMapping, Fields, Items, Kinds, Named, Text, Whole
from tracin.sketches.columns import Columns
from tracin.sketches.kinds import (
    KINDS,
    BiasOf,
    Convolved,
    Factored,
    Hashed,
    SketchKind,
    TwoSided,
    Written,
)


@final
@dataclass(frozen=True)
class Plan:
    """How a checkpoint's gradients become rows; `planned` makes one.

    Attributes:
        seed: The seed of all random numbers.
        columns: The layout of a row, and its score.
        kinds: The sketch of each parameter.
        numbers: The size of each parameter.
        groups: The number of each parameter's group. Parameters of a group have one learning rate.
    """

    seed: int
    columns: Columns
    kinds: Mapping[str, SketchKind]
    numbers: Mapping[str, int]
    groups: Mapping[str, int]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.columns.width

    def to_json(self) -> dict[str, Any]:
        """As dicts, lists, strings and numbers, for a manifest."""
        names = {kind: name for name, kind in KINDS.items()}
        parameters = {
            name: {
                "numbers": self.numbers[name],
                "group": self.groups[name],
                "kind": names[type(kind)],
                **asdict(kind),
            }
            for name, kind in self.kinds.items()
        }
        return {"seed": self.seed, "columns": self.columns.to_json(), "parameters": parameters}

    @classmethod
    def from_json(cls, content: Any) -> "Plan":
        """The plan of what `to_json` returned.

        Raises:
            IndexingError: The content is something else.
        """
        try:
            fields = SCHEMA(content, "plan")
            parameters = fields["parameters"]
            numbers = {name: each.pop("numbers") for name, each in parameters.items()}
            groups = {name: each.pop("group") for name, each in parameters.items()}
            kinds = {name: KINDS[each.pop("kind")](**each) for name, each in parameters.items()}
            columns = Columns.from_json(fields["columns"])
            found = cls(fields["seed"], columns, kinds, numbers, groups)
            for name, kind in kinds.items():
                _refuse_odd(found, name, kind)
            return found
        except ValueError as error:
            raise IndexingError(
                f"Cannot read the plan of an index ({error}): the file was changed, or written by "
                "another version. Build the index again."
            ) from error


_SIDES = Items(Whole(1), 2, 2)
_EACH = {"numbers": Whole(), "group": Whole()}
_BLOCK = {**_EACH, "block": Whole()}
SCHEMA = Fields(
    {
        "seed": Whole(-MOST),
        "columns": AnyMapping(),
        "parameters": Named(
            Kinds(
                {
                    "written": {**_EACH, "start": Whole()},
                    "hashed": _BLOCK,
                    "two-sided": {**_BLOCK, "left": Whole(1), "right": Whole(1), "shape": _SIDES},
                    "convolved": {**_BLOCK, "shape": _SIDES},
                    "factored": _BLOCK,
                    "bias": {**_EACH, "weight": Text()},
                }
            )
        ),
    }
)


def _refuse_odd(plan: Plan, name: str, kind: SketchKind) -> None:
    """Refuse a kind that its parameter or its block cannot have.

    Raises:
        ValueError: It is one.
    """
    blocks, numbers = plan.columns.blocks, plan.numbers[name]
    if plan.groups[name] >= plan.columns.groups:
        raise ValueError(f"no block is of the group of '{name}'")
    match kind:
        case Written(start) if start + numbers > plan.width:
            raise ValueError(f"the columns of '{name}' end beyond the {plan.width} of a row")
        case BiasOf(weight) if not isinstance(plan.kinds.get(weight), Factored):
            raise ValueError(f"'{name}' goes with '{weight}', which keeps no factors")
        case Hashed(block) | Factored(block) if block >= len(blocks):
            raise ValueError(f"'{name}' goes to block {block} of {len(blocks)}")
        case Convolved(block, shape) if block >= len(blocks) or prod(shape) != numbers:
            raise ValueError(f"'{name}' has not {list(shape)} numbers, or no block")
        case TwoSided(block, left, right, shape) if (
            block >= len(blocks) or prod(shape) != numbers or left > shape[0] or right > shape[1]
        ):
            raise ValueError(f"'{name}' has not {list(shape)} numbers, or no block")
        case _:
            pass
