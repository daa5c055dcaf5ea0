"""Decisions as tasks for Label Studio."""

import json
from typing import Any

from tracin.results.table import Columns


def label_studio_bytes(columns: Columns) -> bytes:
    """One task per decision, to import into Label Studio; docs/view.md has its configuration.

    A label that is right or new becomes the annotation's choice; one that is wrong, with no better
    one, leaves the choice open. Format: https://labelstud.io/guide/predictions and /guide/tasks.

    Args:
        columns: As `decided_columns` returns them.
    """
    tasks: list[dict[str, Any]] = []
    lists = {name: values.tolist() for name, values in columns.items()}
    for at, kind in enumerate(lists["decision"]):
        given, new = lists["given_label"][at], lists["new_label"][at]
        label = {"right": given, "relabelled": new}.get(kind)
        results = [_choice("decision", kind)]
        if label is not None:
            results.append(_choice("label", str(label)))
        tasks.append(
            {
                "data": {
                    "id": str(lists["id"][at]),
                    "position": lists["position"][at],
                    "given_label": str(given),
                },
                "annotations": [{"result": results}],
            }
        )
    return (json.dumps(tasks, indent=1) + "\n").encode()


def _choice(name: str, value: str) -> dict[str, Any]:
    return {
        "from_name": name,
        "to_name": "example",
        "type": "choices",
        "value": {"choices": [value]},
    }
