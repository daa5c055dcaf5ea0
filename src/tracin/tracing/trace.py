"""What a Tracer found: scores on the disk, read back as influence, explanations and checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
from torch import Tensor

from tracin.checks import count_within
from tracin.errors import QueryError, TracingError
from tracin.plain_text import many, plain
from tracin.results.explanations import Explanations, TopInfluences
from tracin.scoring.top_k import top_k
from tracin.tracing.diagnostics import TraceDiagnostics, goodness_of
from tracin.tracing.folder import check_table, open_saved
from tracin.tracing.manifest import (
    SELF,
    STEPS,
    About,
    Save,
    read_about,
    read_saves,
    read_trace_ids,
    scores_name,
)
from tracin.tracing.paths import Quadrature
from tracin.tracing.step_table import Steps

# Scores that are ranked at a time: 16 MB, and as much again for their order.
HELD = 1 << 22


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The influence of every training example on every query, along a whole training.

    Scores are read from the disk as they are asked for, as they were at one save: what a Tracer
    adds later changes nothing. At first use each table is compared with its checksum.

    Attributes:
        folder: The Tracer's folder.
        about: What was traced.
        save: The state it was in.
        ids: [train].
        query_ids: [queries].
        tables: Name -> the table, memory-mapped; it stays readable when its save is replaced.
    """

    folder: Path
    about: About
    save: Save
    ids: np.ndarray
    query_ids: np.ndarray
    tables: Mapping[str, np.ndarray]
    _checked: set[str] = field(default_factory=set)

    def __repr__(self) -> str:
        about, paths = self.about, ", ".join(path.value for path in self.paths)
        of = f"on {many(about.queries, 'query')} along {paths}" if about.queries else "no queries"
        return (
            f"Trace({many(about.train, 'example')}, {of}, {many(self.save.rows, 'step')} traced, "
            f"{plain(self.folder)})"
        )

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The trace in a folder as of its last save, also while its Tracer is at work.

        Raises:
            TracingError: There is none, training broke off before its first save, or a file is
                missing or damaged.
        """
        folder = Path(folder).expanduser()
        about = read_about(folder)
        saves = read_saves(folder, about)
        if not saves or not saves[-1].rows:
            raise TracingError(
                f"The trace in {folder} was never saved: its training broke off. Train again; a "
                "Tracer saves when it is closed, and by tracer.save()."
            )
        tables = open_saved(folder, about, saves[-1])
        return cls(folder, about, saves[-1], *read_trace_ids(folder, about), tables)

    @property
    def paths(self) -> tuple[Quadrature, ...]:
        """The amounts that were added up."""
        return self.about.members

    @property
    def steps(self) -> Steps:
        """All traced steps: the queries' losses, and what was predicted."""
        return Steps(self._table(STEPS), self.about.queries, self.about.members)

    def influence(self, path: Quadrature | None = None) -> Tensor:
        """The influence of every training example on every query: [train, queries].

        Args:
            path: Which of the traced paths; by default the first.

        Raises:
            QueryError: This path was not traced, or no queries were.
        """
        return torch.from_numpy(np.array(self._scores(path)))

    def ideal(self) -> Tensor:
        """TracInIdeal (paper, section 3.1): [train, queries], float64.

        The sum over each example's own steps of the queries' real loss drop; exact, and defined
        only where every step had one example.

        Raises:
            QueryError: There are no queries, or a step had more examples. Its real drop is in
                `steps.actual`, and `influence` along a path shares it among its examples.
        """
        self._refuse_no_queries()
        steps = self.steps
        if bool((steps.examples != 1).any()):
            raise QueryError(
                "TracInIdeal is defined where each step has one example, but steps of up to "
                f"{int(steps.examples.max())} were traced: a step's real loss drop "
                "(trace.steps.actual) cannot be split among them. "
                "influence(tracin.tracing.Quadrature.TRAPEZOID) shares it out so that shares add "
                "up to it."
            )
        drops = torch.zeros(self.about.train, self.about.queries, dtype=torch.float64)
        return drops.index_add_(
            0, torch.from_numpy(steps.first), torch.from_numpy(np.array(steps.actual))
        )

    def self_influence(self) -> Tensor:
        """Each example's influence on itself, added up over its steps: [train], float64.

        First order, the gradient taken in the training pass itself.

        Raises:
            QueryError: How the training loss weighed its examples could not be measured in some
                step.
        """
        if self.save.unweighed:
            raise QueryError(
                "Self-influence needs to know by what each example's loss was multiplied in the "
                f"training loss, but {self.save.unweighed}. Give the weights in the loop: "
                "tracer.batch(ids, weights=...), such as torch.full((examples,), 1 / examples) "
                "for a mean; or give the Tracer the loss that is trained."
            )
        return torch.from_numpy(np.array(self._table(SELF)))

    def explain(self, k: int = 10, path: Quadrature | None = None) -> Explanations:
        """The k strongest proponents and opponents of each query, reading the scores in blocks.

        Raises:
            QueryError: k is below 1 or above the number of training examples, or no queries were
                traced.
        """
        self._refuse_no_queries()
        most = self.about.train
        count_within(k, most, f"there are {most} training examples", QueryError)
        scores = self._scores(path)
        step = max(1, HELD // self.about.queries)
        sides = []
        for sign in (1, -1):
            best = torch.zeros(self.about.queries, 0)
            at = torch.zeros(self.about.queries, 0, dtype=torch.int64)
            for start in range(0, self.about.train, step):
                block = torch.from_numpy(np.array(scores[start : start + step].T, order="C"))
                of_block = top_k(block, k, largest=sign > 0)
                best = torch.cat([best, of_block.values], 1)
                at = torch.cat([at, of_block.places + start], 1)
                order = top_k(best, k, positions=at, largest=sign > 0).places
                best, at = best.gather(1, order), at.gather(1, order)
            positions = at.numpy()
            sides.append(TopInfluences(self.ids[positions], positions, best, best[:, :, None]))
        target = self.about.target or None
        return Explanations(self.query_ids, sides[0], sides[1], ("training",), target=target)

    def goodness(self, path: Quadrature | None = None) -> TraceDiagnostics:
        """How well predicted loss changes agree with the real ones (Remark 3.3, Lemma 3.1)."""
        is_partial = bool(self.about.parameters)
        return goodness_of(self.steps, self._path(path), is_partial=is_partial)

    def _scores(self, path: Quadrature | None) -> np.ndarray:
        self._refuse_no_queries()
        return self._table(scores_name(self._path(path)))

    def _table(self, name: str) -> np.ndarray:
        """A table, compared with its checksum once."""
        if name not in self._checked:
            check_table(self.folder, name, self.tables[name], self.save)
            self._checked.add(name)
        return self.tables[name]

    def _refuse_no_queries(self) -> None:
        if not self.about.queries:
            raise QueryError(
                "Without queries only self-influence was traced; give some to the Tracer."
            )

    def _path(self, path: Quadrature | None) -> Quadrature:
        if path is None:
            return self.paths[0]
        if path not in self.paths:
            traced = ", ".join(each.name for each in self.paths)
            raise QueryError(
                f"The trace holds {traced}, not {path!r}. Give paths=[...] to the Tracer."
            )
        return path
