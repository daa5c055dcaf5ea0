"""What was decided, as columns: row by row of the decisions, and as labels for all the data."""

from datetime import UTC, datetime

import numpy as np

from tracin.decisions.cells import as_label
from tracin.decisions.log import KINDS, Decision, DecisionLog
from tracin.decisions.ranked_table import RankedTable


def decided_columns(table: RankedTable, log: DecisionLog) -> dict[str, np.ndarray]:
    """One row per decision that holds, in the order of the data: [decided] each.

    The columns are id, position, given_label, decision ("wrong", "right", "relabelled"), new_label
    (None unless relabelled) and decided_at (in UTC).
    """
    holding = log.holding()
    rows = np.fromiter(holding, dtype=np.int64, count=len(holding))
    return {
        "id": table.ids.array(rows),
        "position": table.positions[rows],
        "given_label": table.given.array(rows),
        "decision": _objects([one.kind for one in holding.values()]),
        "new_label": _objects([one.label for one in holding.values()]),
        "decided_at": _objects([_moment(one) for one in holding.values()]),
    }


def mended_columns(table: RankedTable, log: DecisionLog) -> dict[str, np.ndarray]:
    """One row per example of the table, in the order of the data: [rows] each.

    The columns are id, position, label (the new one where one was given), given_label, decision,
    and keep: False where the label was called wrong and no better one was given.
    """
    labels = np.array(table.given.array(), copy=True)
    for row, one in log.holding().items():
        if one.kind == "relabelled":
            # Checked again: an entry by an earlier release may be of another kind.
            labels[row] = as_label(one.label, table.given)
    names = np.array(KINDS, dtype=object)
    return {
        "id": table.ids.array(),
        "position": table.positions,
        "label": labels,
        "given_label": table.given.array(),
        "decision": names[log.kinds],
        "keep": log.kinds != KINDS.index("wrong"),
    }


def _moment(decision: Decision) -> str:
    return datetime.fromtimestamp(decision.at, UTC).isoformat(timespec="seconds")


def _objects(values: list) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
