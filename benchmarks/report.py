"""A table of measurements that is on the disk after each row, whatever becomes of the next."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final


@final
class Report:
    """Rows as they are measured, within a time budget.

    Args:
        about: What was measured, where.
        budget: Seconds after which no further row begins.
        path: Where the JSON goes.
        say: Shows a line.
    """

    def __init__(
        self, about: dict[str, Any], budget: float, path: Path, say: Callable[[str], object] = print
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._about = about
        self._end = time.perf_counter() + budget
        self._path = path
        self._say = say
        for name, value in about.items():
            say(f"{name}: {value}")

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._end - time.perf_counter()

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row; what fails or comes too late is noted, and the next row goes on."""
        row: dict[str, Any] = {"work": name}
        if self.left() <= 0:
            row["skipped"] = "no time was left"
        else:
            start = time.perf_counter()
            try:
                row |= measure()
            except Exception as error:  # one row must not lose the others
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            row["took"] = round(time.perf_counter() - start, 2)
        self.rows.append(row)
        self._path.write_text(json.dumps({"about": self._about, "rows": self.rows}, indent=2))
        self._say(f"{name:<58}" + "  ".join(_cells(row)))


def _cells(row: dict[str, Any]) -> list[str]:
    shown = {key: value for key, value in row.items() if key != "work"}
    return [f"{key} {_short(value)}" for key, value in shown.items() if value is not None]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
    if isinstance(value, list | dict):
        return f"{len(value)}" + (f" ({', '.join(list(value)[:3])})" if value else "")
    return str(value)
