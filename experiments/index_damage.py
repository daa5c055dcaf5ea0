"""Damages the files of an index, and counts what comes of it; nothing may be silently wrong.

python -m experiments.index_faults --flips 200
python -m experiments.index_faults --hostile

A flip is one bit of one file. A hostile manifest has one field that is missing, of another type or
absurd, under a checksum that holds. After each, the index is opened, checked and asked for all that
it answers, and what comes is one of:

refused   an IndexingError, before any wrong number
said      the answers are right, and `verify` or the answer's notes say which file is damaged
equal     the answers are right, and nothing is said
silent    an answer differs, and nothing is said: must not be
crash     an error of another type: must not be
"""

import copy
import importlib.util
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tracin
from tracin.index.store import sealed_json

BAD = ("silent", "crash")
# What a manifest says under a checksum that holds is believed where no row depends on it.
FREE = ("weights", "name", "losses", "source", "checkpoints.0 deleted")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 62, 1 << 3000, 1e308, "", "x", "../../x", [], {}, [[]], [None],
)  # fmt: skip


@dataclass
class Damage:
    """An index that is damaged in one place at a time.

    Attributes:
        folder: Where it is.
        run: The run that it was built by.
        train: Its data.
        counts: File kind -> outcome -> how often.
        bad: What was silently wrong or crashed, in words.
    """

    folder: Path
    run: tracin.TracIn
    train: Any
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queries = tuple(one[:3] + 0 for one in self.train)
        self.true = dict(self._answers())
        self.notes = self._notes()

    def flips(self, count: int, seed: int = 0) -> None:
        """Flip so many bits of each kind of file, one after another."""
        chance = random.Random(seed)
        kinds: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                within = path.relative_to(self.folder)
                kinds.setdefault(within.parts[0], []).append(path)
        for kind, paths in kinds.items():
            for _ in range(count):
                path = chance.choice(paths)
                whole = path.read_bytes()
                changed = bytearray(whole)
                changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
                self._try(kind, path, bytes(changed), whole, must_tell=True)

    def hostile(self, some: Mapping[str, Any] | None = None) -> None:
        """Change each field of the manifest, under a checksum that holds; or make `some` of it."""
        path = self.folder / "manifest.json"
        whole = path.read_bytes()
        changes = mutations(sealed_json.unsealed(whole)) if some is None else some.items()
        for name, changed in changes:
            content = sealed_json.written(changed)
            kind = "hostile"
            if any(part in name for part in FREE):
                kind = "hostile, but free to say"
            self._try(kind, path, content, whole, what=name)

    def _try(
        self,
        kind: str,
        path: Path,
        content: bytes,
        whole: bytes,
        *,
        must_tell: bool = False,
        what: str = "",
    ) -> None:
        path.write_bytes(content)
        try:
            outcome, why = self._outcome()
        finally:
            path.write_bytes(whole)
        if must_tell and outcome == "equal":
            outcome = "silent"
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome in BAD and "free" not in kind:
            self.bad.append(f"{path.relative_to(self.folder)} {what}: {outcome}, {why}")

    def _outcome(self) -> tuple[str, str]:
        try:
            report = tracin.Index.open(self.folder).verify()
            for name, answer in self._answers():
                if not same(answer, self.true[name]):
                    return "silent", f"{name} differs"
            is_told = not report.is_sound or self._notes() != self.notes
            return ("said" if is_told else "equal"), ""
        except tracin.IndexingError as error:
            return "refused", str(error)
        except BaseException as error:
            return "crash", repr(error)[:200]

    def _notes(self) -> tuple[str, ...]:
        index = tracin.Index.open(self.folder)
        return index.with_run(self.run).explain(self.queries, k=2, progress=False).notes

    def _answers(self) -> Iterator[tuple[str, Any]]:
        """All that an index is asked for, each from one that was opened anew."""
        index = tracin.Index.open(self.folder, train=self.train)
        yield "ids", index.ids
        yield "self-influence", index.self_influence().numpy()
        for name, column in index.table().items():
            yield f"table {name}", column
        yield "influence", index.with_run(self.run).influence(self.queries, progress=False).numpy()
        ways: dict[str, Callable[[], dict[str, Any]]] = {"estimates": dict}
        ways["exact"] = lambda: {"exact": True}
        if importlib.util.find_spec("faiss"):
            ways["faiss"] = lambda: {"finder": nearest(index)}
        for way, options in ways.items():
            found = index.with_run(self.run).explain(self.queries, k=2, progress=False, **options())
            for name, column in found.columns().items():
                yield f"{way} {name}", column


def nearest(index: tracin.Index) -> Any:
    """The finder that is kept with the index."""
    from tracin.integrations.faiss import Nearest

    return Nearest.open(index)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether answers are equal to the last bit."""
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.all(one == other))


def mutations(held: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field replaced, deleted and doubled: where, and the whole."""
    for path in paths(held):
        name = ".".join(map(str, path))
        for odd in ODD:
            yield f"{name} = {json.dumps(odd)[:20]}", changed(held, path, odd)
        yield f"{name} deleted", changed(held, path, _GONE)
        if isinstance(path[-1], str):
            yield f"{name} beside another", changed(held, (*path[:-1], f"{path[-1]}_"), 1)
    deep: Any = {}
    for _ in range(900):  # as deep as the library that writes JSON goes
        deep = {"x": deep}
    yield "about nested deeply", {**held, "about": deep}


_GONE = object()


def paths(held: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where all fields are; of equal entries of a list the first alone."""
    if isinstance(held, dict):
        for name, value in held.items():
            yield (*before, name)
            yield from paths(value, (*before, name))
    elif isinstance(held, list) and held:
        yield (*before, 0)
        yield from paths(held[0], (*before, 0))


def changed(held: Any, path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy in which one field is another, or gone."""
    whole = copy.deepcopy(dict(held))
    at: Any = whole
    for part in path[:-1]:
        at = at[part]
    if value is _GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return whole


def built(folder: Path, run: tracin.TracIn, train: Any) -> Damage:
    """A complete index with all its files, to be damaged."""
    torch.set_num_threads(1)
    index = run.index(
        train,
        folder,
        tracin.Projection(dim=64),
        shard_size=20,
        batch_size=20,
        recall_queries=4,
        progress=False,
    )
    if importlib.util.find_spec("faiss"):
        nearest(index)
    return Damage(folder, run, train)


def report(damage: Damage) -> str:
    """A line a kind of file."""
    lines = [
        f"{kind}: {sum(counts.values())} tried; "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        for kind, counts in damage.counts.items()
    ]
    return "\n".join([*lines, *damage.bad])
