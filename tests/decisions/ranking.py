"""A saved ranking to decide about, without a model."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GIVEN = [0, 1, 2, 0, 1, 2, 0, 1]
SUGGESTED = [0, 2, 2, 1, 1, 0, 0, 1]
LOSS = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.5]


def saved(folder: Path, **changed) -> Path:
    """Write mislabelled.parquet, ranked by loss, as `Suspects.save` does."""
    columns = {
        "ids": [100 + at for at in range(len(GIVEN))],
        "positions": list(range(len(GIVEN))),
        "given_labels": GIVEN,
        "suggested_labels": SUGGESTED,
        "loss": LOSS,
        "margin": [-one for one in LOSS],
        **changed,
    }
    columns = {name: values for name, values in columns.items() if values is not None}
    order = np.argsort(-np.array(LOSS), kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: [values[at] for at in order] for name, values in columns.items()})
    pq.write_table(table, folder / "mislabelled.parquet")
    return folder
