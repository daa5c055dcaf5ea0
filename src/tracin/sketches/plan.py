"""What becomes of each parameter's gradients in a row; it is kept beside the rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from tracin.errors import IndexingError
from tracin.sketches.columns import Columns
from tracin.sketches.ways import KINDS, Way


@final
@dataclass(frozen=True)
class Plan:
    """How a checkpoint's gradients become rows; `planned` makes one.

    Attributes:
        seed: Of all random numbers.
        columns: How a row is laid out and scored.
        ways: What each parameter's gradients become.
        numbers: How many numbers each parameter has.
        groups: The number of each parameter's learning rate.
    """

    seed: int
    columns: Columns
    ways: Mapping[str, Way]
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
                "kind": names[type(way)],
                **asdict(way),
            }
            for name, way in self.ways.items()
        }
        return {"seed": self.seed, "columns": self.columns.to_json(), "parameters": parameters}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Plan":
        """What `to_json` gave.

        Raises:
            IndexingError: It is something else.
        """
        try:
            parameters = {name: dict(each) for name, each in content["parameters"].items()}
            numbers = {name: int(each.pop("numbers")) for name, each in parameters.items()}
            groups = {name: int(each.pop("group")) for name, each in parameters.items()}
            ways = {name: _way(each) for name, each in parameters.items()}
            columns = Columns.from_json(content["columns"])
            return cls(int(content["seed"]), columns, ways, numbers, groups)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IndexingError(
                f"The plan of an index cannot be read ({error!r}): it was changed, or written by "
                "another version. Build the index again."
            ) from error


def _way(content: dict[str, Any]) -> Way:
    kind = KINDS[content.pop("kind")]
    if "shape" in content:
        content["shape"] = tuple(content["shape"])
    return kind(**content)
