"""A folder to look at, and a client of its page."""

import sys
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from tracin.view.app import application
from tracin.view.viewer import Viewer

sys.path.insert(0, str(Path(__file__).parent.parent / "decisions"))
from ranking import saved

__all__ = ["BASE", "TOKEN", "Client", "saved", "saved_many"]
TOKEN, BASE = "t" * 43, "http://127.0.0.1:8765"


class Client(TestClient):
    """As the page asks: under this machine's name, with the token."""

    def __init__(self, viewer: Viewer, **options):
        self.viewer = viewer
        app = application(viewer, TOKEN, options.pop("hosts", ()))
        headers = {"authorization": f"Bearer {TOKEN}"}
        super().__init__(app, base_url=BASE, headers=headers)

    def rows(self, **asked) -> dict:
        answer = self.get("/api/rows", params={"n": 100, **asked})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def positions(self, **asked) -> list[int]:
        return [row["position"] for row in self.rows(**asked)["rows"]]

    def decide(self, rows, kind, label=None, seen=None, tab="tab", status=200) -> dict:
        now = [self.viewer.log.latest(row).seq for row in rows] if seen is None else seen
        body = {"rows": rows, "kind": kind, "label": label, "seen": now, "tab": tab}
        answer = self.post("/api/decide", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


def saved_many(folder: Path, rows: int) -> Path:
    """A longer ranking, by loss."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    loss = generator.exponential(size=rows).astype(np.float32)
    given = generator.integers(0, 5, rows)
    columns = {
        "ids": np.arange(rows),
        "positions": np.arange(rows),
        "given_labels": given,
        "suggested_labels": np.where(generator.random(rows) < 0.5, given, (given + 1) % 5),
        "loss": loss,
        "margin": generator.normal(size=rows).astype(np.float32),
    }
    order = np.argsort(-loss, kind="stable")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({name: values[order] for name, values in columns.items()})
    pq.write_table(table, folder / "mislabelled.parquet")
    return folder
