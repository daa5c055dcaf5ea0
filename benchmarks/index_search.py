"""python -m benchmarks.index_search: the exact search against plain streaming over the same rows.

Plain streaming is what any exact search must do: read the kept numbers, make them float32, multiply
them with the queries. Both are timed in turns, on a folder that the system has in memory.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pairs import Ratio, timed
from tracin.index.row_scan import RowScan, SketchedQueries
from tracin.index.search import BLOCK_ROWS, Search
from tracin.index.store import Entry, Manifest, Store, number_format
from tracin.sketches import Columns, Dot, Plan, Side


def main() -> None:
    """Print a line a number of queries."""
    options = parsed()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = filled(folder, options.rows, options.dim, options.format)
        columns = Columns((Dot(Side(0, options.dim, 10 * options.dim)),), options.dim)
        plan = Plan(0, columns, {}, {}, {})
        size = options.rows * options.dim * number_format(options.format).bytes
        print(
            f"{options.rows:,} x {options.dim} {options.format}, {options.threads} threads, torch "
            f"{torch.__version__}; median of {options.rounds}\n\n"
            "| queries | plain streaming | | search, top and bottom 10 | | share |\n"
            "|---|---|---|---|---|---|"
        )
        for count in (1, 16):
            queries = torch.randn(count, options.dim)
            asked = SketchedQueries(("a",), (0,), (queries,), ([1.0],))
            reading = RowScan(store, plan, asked, 1 << 28, progress=False)
            works = {
                "plain": lambda q=queries: streamed(store, q),
                "search": lambda r=reading: Search(r, 10).found(),
            }
            for work in works.values():
                work()
            seconds = timed(works, options.rounds)
            plain, search = (float(np.median(seconds[name])) for name in works)
            ratio = Ratio.of(seconds["plain"], seconds["search"])
            print(
                f"| {count} | {plain * 1e3:.0f} ms | {size / plain / 1e9:.1f} GB/s | "
                f"{search * 1e3:.0f} ms | {size / search / 1e9:.1f} GB/s | {ratio.median:.2f} "
                f"({ratio.least:.2f}-{ratio.most:.2f}) |",
                flush=True,
            )


def filled(folder: str, rows: int, dim: int, number_format: str) -> Store:
    """A store of random rows at one checkpoint."""
    entry = Entry("a", "a", 0, (1.0,))
    manifest = Manifest({}, dim, ((0, dim),), number_format, 8192, (rows,), (entry,))
    store = Store.create(Path(folder) / "index", manifest, np.arange(rows))
    some = torch.Generator().manual_seed(0)
    for unit in store.manifest.units():
        numbers = torch.randn(unit.stop - unit.start, dim, generator=some)
        store.write(unit, numbers, {})
    return store


def streamed(store: Store, queries: Tensor) -> Tensor:
    """All scores, in the same small blocks, and nothing made of them."""
    scores = torch.empty(0)
    for shard in store.shards("a"):
        kept = shard.tensors["rows"]
        for start in range(0, len(kept), BLOCK_ROWS):
            scores = kept[start : start + BLOCK_ROWS].float() @ queries.T
    return scores


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index_search", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--format", default="float16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the rows are written for the time being")
    return parser.parse_args()


if __name__ == "__main__":
    main()
