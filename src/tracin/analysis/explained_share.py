"""How many examples must be looked at to account for a query's loss (paper, section 6)."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from tracin.analysis.arrays import cpu_tensor
from tracin.analysis.given_scores import as_numbers
from tracin.analysis.plotting import as_percent, axes_for
from tracin.checks import is_int
from tracin.errors import DataError, NonFiniteError, QueryError
from tracin.results.table import aligned, numbers
from tracin.results.tabular import Tabular

SHARES = (0.5, 0.8, 0.9)
SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class ExplainedShare(Tabular):
    """How much of each query's influence the first k examples hold. Printing it gives a table.

    Attributes:
        proponents: [train + 1, queries]; the summed scores of the first k proponents, for every k.
        opponents: [train + 1, queries]; the same of the first k opponents, not positive.
        drops: [queries]; the measured drop of each query's loss over the training, or None.
    """

    proponents: Tensor
    opponents: Tensor
    drops: Tensor | None

    @property
    def predicted(self) -> Tensor:
        """The drop of the loss that all influence together predicts: [queries]."""
        return self.proponents[-1] + self.opponents[-1]

    @property
    def conservation(self) -> Tensor | None:
        """The predicted drop over the measured one: [queries]; 1 where scores add up to it.

        TracIn at checkpoints predicts amounts only roughly (paper, section 3.3). Where this is far
        from 1, trust shares of the influence, not of the loss.
        """
        return None if self.drops is None else self.predicted / self.drops

    def share_of_proponents(self, k: int) -> Tensor:
        """How much of all positive influence the first k proponents hold: [queries], 0 to 1."""
        return self._share(self.proponents, k)

    def share_of_opponents(self, k: int) -> Tensor:
        """How much of all negative influence the first k opponents hold: [queries], 0 to 1."""
        return self._share(self.opponents, k)

    def share_of_drop(self, k: int) -> Tensor:
        """The first k proponents' and k opponents' sum over the drop of the loss: [queries].

        The drop is the measured one where it is known, the predicted one otherwise. It may lie
        outside 0 to 1: opponents take away what proponents gave.
        """
        at = self._checked(k)
        drop = self.predicted if self.drops is None else self.drops
        return (self.proponents[at] + self.opponents[at]) / drop

    def proponents_needed(self, share: float) -> Tensor:
        """How many proponents hold so much of all positive influence: int64 [queries].

        Raises:
            QueryError: It is no share.
        """
        return self._needed(self.proponents, share)

    def opponents_needed(self, share: float) -> Tensor:
        """How many opponents hold so much of all negative influence: int64 [queries].

        Raises:
            QueryError: It is no share.
        """
        return self._needed(self.opponents, share)

    def columns(self) -> dict[str, np.ndarray]:
        """One row per query: drops, and how many examples hold 50, 80 and 90 % of each side."""
        columns = {
            "query": np.arange(self.proponents.shape[1]),
            "predicted drop": numbers(self.predicted),
        }
        if self.drops is not None:
            columns["measured drop"] = numbers(self.drops)
        for side, needed in (
            ("proponents", self.proponents_needed),
            ("opponents", self.opponents_needed),
        ):
            for share in SHARES:
                columns[f"{side} for {100 * share:g} %"] = numbers(needed(share))
        return columns

    def plot(self, ax: Any = None) -> Any:
        """Draw the mean share over queries by the number of examples; returns the axes.

        Args:
            ax: Matplotlib axes to draw on; None for a new figure.

        Raises:
            QueryError: matplotlib is not installed.
        """
        axes = axes_for(ax)
        counts = np.arange(1, len(self.proponents))
        for side, sums in (("proponents", self.proponents), ("opponents", self.opponents)):
            shares = (sums[1:] / sums[-1]).nanmean(1)
            axes.plot(counts, shares.numpy(), label=side)
        axes.set_xscale("log")
        axes.set_xlabel("first k examples")
        axes.set_ylabel("share of their side's influence, mean over queries")
        as_percent(axes.yaxis)
        axes.legend()
        return axes

    def __str__(self) -> str:
        columns = self.columns()
        rows = list(zip(*(each[:SHOWN].tolist() for each in columns.values()), strict=True))
        more = len(columns["query"]) - len(rows)
        tail = f"\n... {more} more queries" if more else ""
        return (
            f"how many examples hold a share of the influence\n{aligned(list(columns), rows)}{tail}"
        )

    def _share(self, sums: Tensor, k: int) -> Tensor:
        # No influence on this side is no share of it.
        return sums[self._checked(k)] / torch.where(sums[-1] == 0, torch.nan, sums[-1])

    def _needed(self, sums: Tensor, share: float) -> Tensor:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise QueryError(
                f"share is above 0 and up to 1; {share!r} was given. Write 80 % as 0.8."
            )
        # The last sum is the whole by construction, so that rounding never asks for one more.
        return (sums.abs() < share * sums[-1].abs()).sum(0)

    def _checked(self, k: int) -> int:
        if not is_int(k, 0, len(self.proponents) - 1):
            raise QueryError(
                f"k is a number of examples from 0 to {len(self.proponents) - 1}; {k!r} was given."
            )
        return k


def explained_share(influence: Any, drops: Any = None) -> ExplainedShare:
    """How much of each query's loss its first proponents and opponents account for.

    The paper asks its readers "to inspect sufficiently many influential examples so as to account
    for the loss on the test example" (section 6). This says how many are sufficient.

    Args:
        influence: [train, queries], as `TracIn.influence` returns it, or [train] of one query.
        drops: [queries]; each query's loss before the training minus the loss after it, such as the
            first minus the last row of `checkpoint_losses`; None if unknown.

    Raises:
        DataError: The shapes do not fit.
        NonFiniteError: A score is NaN or infinite.

    Example:
        >>> from tracin.analysis import explained_share
        >>> shares = explained_share([6.0, -1.0, 3.0, 1.0, 0.0], drops=[10.0])
        >>> shares.share_of_proponents(1), shares.proponents_needed(0.8)
        (tensor([0.6000], dtype=torch.float64), tensor([2]))
        >>> shares.share_of_drop(1), shares.conservation
        (tensor([0.5000], dtype=torch.float64), tensor([0.9000], dtype=torch.float64))
    """
    scores = as_numbers(influence, "influence")
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2 or not scores.numel():
        raise DataError(
            f"influence is [train, queries], or [train] of one query; {list(scores.shape)} came."
        )
    if not bool(scores.isfinite().all()):
        raise NonFiniteError(
            "influence has infinite numbers, of which no share can be taken. Leave their examples "
            "out, or compute in higher precision."
        )
    measured = None if drops is None else cpu_tensor(drops).double()
    if measured is not None and measured.shape != scores.shape[1:]:
        raise DataError(
            f"drops has one number per query, {scores.shape[1]}; {list(measured.shape)} came."
        )
    return ExplainedShare(running(scores.clamp(min=0)), -running((-scores).clamp(min=0)), measured)


def running(amounts: Tensor) -> Tensor:
    """The sums of the largest 0, 1, 2, ... amounts per query: [train + 1, queries]."""
    largest_first = amounts.sort(dim=0, descending=True).values
    return torch.cat([torch.zeros_like(amounts[:1]), largest_first.cumsum(0)])
