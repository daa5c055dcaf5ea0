"""How many labels are wrong: a sample of a ranking to look at, and the estimate that it gives.

The ranking is cut into strata, each as long as all before it together, so that the suspect end is
sampled densely. The count of wrong labels is the stratified estimator, without bias whatever the
ranking is worth; a good ranking makes its interval narrow. J. Neyman, "On the two different aspects
of the representative method", 1934, https://doi.org/10.2307/2342192.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, final

import numpy as np

from tracin.checks import is_int
from tracin.errors import QueryError
from tracin.results.table import Columns, aligned
from tracin.results.tabular import Tabular

STRATA = 7  # the first is 1/64 of the ranking, the last one half
FEWEST = 2 * STRATA  # so that each stratum shows how much its rows differ
Z = 1.959964  # standard errors of a 95 % interval
# The share of the reviewed rows that may lie in other strata than a sample's: reviews that end
# early differ by chance, and a computation on another machine swaps a few neighbours.
ASTRAY = 0.2
SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReviewSample(Tabular):
    """Rows of a ranking to look at, in random order, so that the first of them are a sample, too.

    polars, pandas and pyarrow take it as it is. Printing it gives a table.

    Attributes:
        table: The rows' columns, as those of `tracin.Suspects`, each [rows].
        ranked_by: What the ranking that they were drawn from was ranked by.
        total: How many rows that ranking has.
    """

    table: Columns
    ranked_by: str
    total: int

    @property
    def ids(self) -> np.ndarray:
        """The examples' ids: [rows]."""
        return self.table["ids"]

    @property
    def positions(self) -> np.ndarray:
        """Their positions in train: [rows]."""
        return self.table["positions"]

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> dict[str, np.ndarray]:
        """The table, column by column."""
        return dict(self.table)

    def __str__(self) -> str:
        names = ("ids", "given_labels", "suggested_labels")
        rows = list(zip(*(self.table[name][:SHOWN] for name in names), strict=True))
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        head = f"{len(self)} of {self.total:,} rows to review"
        return f"{head}\n{aligned(['id', 'given', 'suggested'], rows)}{more}"


@final
@dataclass(frozen=True)
class ReviewedStratum:
    """What the review found in one part of the ranking.

    Attributes:
        first: Its first row, from 0.
        stop: The row after its last.
        reviewed: How many of its rows were judged.
        wrong: How many of these have a wrong label.
    """

    first: int
    stop: int
    reviewed: int
    wrong: int

    @property
    def size(self) -> int:
        """How many rows it has."""
        return self.stop - self.first

    @property
    def estimate(self) -> float:
        """How many of its rows have a wrong label, as far as the judged ones tell."""
        return self.size * self.wrong / self.reviewed

    @property
    def variance(self) -> float:
        """That of the estimate over samples.

        With half a wrong and half a right row more than were seen: a stratum in which none was
        found wrong is not for that known to have none.
        """
        share = (self.wrong + 0.5) / (self.reviewed + 1)
        left = 1 - self.reviewed / self.size
        return self.size**2 * left * share * (1 - share) / max(1, self.reviewed - 1)


@final
@dataclass(frozen=True, repr=False)
class WrongLabels(Tabular):
    """How many labels are wrong, estimated from a reviewed sample, with a 95 % interval.

    Attributes:
        strata: What the review found, from the most suspect part of the ranking to the least.

    Example:
        >>> found = WrongLabels((ReviewedStratum(0, 40, 10, 8), ReviewedStratum(40, 80, 10, 0)))
        >>> print(found)
        about 32 of 80 labels are wrong (95 %: 21 to 43)
    """

    strata: tuple[ReviewedStratum, ...]

    @property
    def total(self) -> int:
        """How many labels there are."""
        return self.strata[-1].stop

    @property
    def wrong(self) -> float:
        """How many of them are wrong: the estimate."""
        return sum(each.estimate for each in self.strata)

    @property
    def low(self) -> float:
        """The lower end of the interval; not below the wrong ones that were seen."""
        return max(self.wrong - self._half(), sum(each.wrong for each in self.strata))

    @property
    def high(self) -> float:
        """The upper end of the interval; right ones that were seen are not wrong."""
        right = sum(each.reviewed - each.wrong for each in self.strata)
        return min(self.wrong + self._half(), self.total - right)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per stratum."""
        return {
            name: np.array([getattr(each, name) for each in self.strata])
            for name in ("first", "stop", "reviewed", "wrong", "estimate")
        }

    def __str__(self) -> str:
        return (
            f"about {self.wrong:,.0f} of {self.total:,} labels are wrong "
            f"(95 %: {self.low:,.0f} to {self.high:,.0f})"
        )

    def _half(self) -> float:
        return Z * math.sqrt(sum(each.variance for each in self.strata))


def drawn(total: int, n: Any, seed: Any) -> np.ndarray:
    """The rows of a ranking to review, in random order: [n].

    Raises:
        QueryError: n is too small or larger than the ranking, or seed is no whole number.
    """
    _check_total(total)
    count = int(n) if isinstance(n, np.integer) else n
    if not is_int(count, 1, total):
        raise QueryError(
            f"n={n!r} rows to review were asked for, but there are {total}. Give an n "
            f"from {FEWEST} to {total}."
        )
    if count < FEWEST:
        raise QueryError(
            f"n={count} rows are too few to sample {STRATA} parts of the ranking; give at least "
            f"{FEWEST}."
        )
    if not is_int(seed, low=0):
        raise QueryError(f"seed is a whole number of at least 0; {seed!r} was given.")
    random = np.random.default_rng(seed)
    bounds = strata_of(total)
    counts = allocation(np.diff(bounds), count)
    rows = [
        first + random.choice(stop - first, many, replace=False)
        for (first, stop), many in zip(pairwise(bounds), counts, strict=True)
    ]
    return random.permutation(np.concatenate(rows))


def estimated(places: Mapping[Any, int], reviewed: Any) -> WrongLabels:
    """The estimate from a reviewed sample.

    Args:
        places: Each id's row in the ranking.
        reviewed: id -> whether its label is wrong, or pairs of these; None where the reviewer could
            not tell.

    Raises:
        QueryError: It holds an id that the ranking lacks, something else than True, False and None,
            or rows that are no sample of this ranking.
    """
    _check_total(len(places))
    answers = _answers(reviewed, places)
    bounds = strata_of(len(places))
    rows = np.array([places[each] for each in answers], dtype=np.int64)
    within = np.searchsorted(bounds, rows, side="right") - 1
    _refuse_other_rows(np.bincount(within, minlength=len(bounds) - 1), bounds)
    strata = []
    for at, (first, stop) in enumerate(pairwise(bounds)):
        here = [a for a, w in zip(answers.values(), within, strict=True) if w == at]
        judged = [bool(answer) for answer in here if answer is not None]
        if not judged:
            raise QueryError(
                f"None of the reviewed rows that could be judged is among rows {first} to "
                f"{stop - 1} of the ranking, so nothing is known of these. Review the whole sample "
                "that suspects.sample() gave, or a larger one."
            )
        strata.append(ReviewedStratum(int(first), int(stop), len(judged), sum(judged)))
    return WrongLabels(tuple(strata))


def strata_of(total: int) -> np.ndarray:
    """Where the strata of a ranking begin, and its end.

    Example:
        >>> strata_of(640).tolist()
        [0, 10, 20, 40, 80, 160, 320, 640]
    """
    shares = 0.5 ** np.arange(STRATA - 1, -1, -1)
    ends = np.floor(total * shares + 0.5).astype(np.int64)
    return np.unique(np.concatenate([[0], ends]))


def allocation(sizes: np.ndarray, n: int) -> np.ndarray:
    """How many rows of each stratum are reviewed: as the roots of their sizes, at least two.

    Wrong labels grow rarer down a ranking. If their share falls as one over the row, this is the
    allocation with the smallest variance (Neyman, 1934).

    Args:
        sizes: [strata].
        n: All together.

    Example:
        >>> allocation(np.array([10, 10, 20, 40, 80, 160, 320]), 140).tolist()
        [8, 8, 11, 16, 22, 31, 44]
    """
    counts = np.minimum(sizes, 2)
    while counts.sum() < n:
        # One more where the fewest are, measured by the roots.
        open_ = np.where(counts < sizes, (counts + 0.5) / np.sqrt(sizes), np.inf)
        counts[open_.argmin()] += 1
    return counts


def _answers(reviewed: Any, places: Mapping[Any, int]) -> dict[Any, bool | None]:
    pairs: Iterable[Any] = reviewed.items() if isinstance(reviewed, Mapping) else reviewed
    answers: dict[Any, bool | None] = {}
    try:
        listed = [(name, answer) for name, answer in pairs]
    except (TypeError, ValueError) as error:
        raise QueryError(
            "reviewed is a mapping from ids to True (the label is wrong), False or None, or pairs "
            f"of these such as zip(ids, is_wrong); {type(reviewed).__name__} was given."
        ) from error
    for name, answer in listed:
        if not isinstance(name, Hashable) or name not in places:
            raise QueryError(
                f"reviewed holds the id {name!r}, which the ranking does not have. Give the ids "
                "of suspects.sample()."
            )
        if name in answers:
            raise QueryError(f"reviewed holds the id {name!r} twice. Give one answer per id.")
        if answer is not None and not isinstance(answer, bool | np.bool_):
            raise QueryError(
                f"reviewed says {answer!r} of {name!r}; say True where the label is wrong, False "
                "where it is right, or None where you cannot tell."
            )
        answers[name] = None if answer is None else bool(answer)
    return answers


def _refuse_other_rows(counts: np.ndarray, bounds: np.ndarray) -> None:
    """Refuse rows that were not drawn by `drawn`: chosen by hand, or from another ranking."""
    n = int(counts.sum())
    wanted = allocation(np.diff(bounds), n) if n >= FEWEST else counts
    if n >= FEWEST and int(np.abs(counts - wanted).sum()) / 2 <= ASTRAY * n:
        return
    first = int(bounds[-1]) // 8
    within = int(np.searchsorted(bounds, first))
    here, expected = int(counts[:within].sum()), int(wanted[:within].sum())
    found = (
        f"{n} rows were reviewed, and at least {FEWEST} are needed"
        if n < FEWEST
        else f"{here} of {n} reviewed rows are among the first {first} of the ranking, where a "
        f"sample has {expected}"
    )
    raise QueryError(
        f"Wrong labels are counted from a sample of this ranking, but {found}. Review rows that "
        "suspects.sample() gave, from its first on, and keep the ranking as it was."
    )


def _check_total(total: int) -> None:
    if total < FEWEST:
        raise QueryError(
            f"A ranking of {total} rows is too short to sample: look at all of them. A sample "
            f"needs at least {FEWEST}."
        )
