"""A person's decisions about labels, opened again to retrain with."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch

from tracin.analysis.edited_data import kept_examples, label_column, relabelled_examples
from tracin.checks import is_int
from tracin.decisions.decided import decided_columns, mended_columns
from tracin.decisions.exports import label_studio_bytes
from tracin.decisions.log import DecisionLog
from tracin.decisions.ranked_table import ranked_table_in
from tracin.errors import DecisionError
from tracin.plain_text import plain
from tracin.results.saving import write_whole
from tracin.results.table import aligned
from tracin.results.tabular import Tabular

if TYPE_CHECKING:
    from tracin.decisions.cells import Cell

SHOWN = 10


@final
@dataclass(frozen=True, eq=False, repr=False)
class Decisions(Tabular):
    """What was decided about labels in `tracin view`. All columns are [decided].

    Decisions are kept in `decisions.sqlite` beside the ranking, by id and by a fingerprint of all
    ids and given labels: a ranking of other data does not show them.

    Attributes:
        ids: The examples' ids.
        positions: Their positions in the training data, rising.
        given_labels: The labels in the data.
        kinds: "wrong", "right" or "relabelled".
        new_labels: The new label of those that are relabelled; None of others.
        decided_at: When, in UTC.
        mended: By name, one value per example of the ranking: id, position, label, given_label,
            decision, keep.
        others: How many entries of the file are about other data, and are not shown.

    Example:
        >>> import tempfile, torch, tracin
        >>> model, folder = torch.nn.Linear(3, 2), tempfile.mkdtemp()
        >>> run = tracin.TracIn(model, "cross_entropy", [model.state_dict()], learning_rates=[0.1])
        >>> train = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> run.find_mislabelled(train).save(f"{folder}/mislabelled.parquet")
        >>> tracin.Decisions.decide(folder, 4, "relabelled", 1)
        >>> tracin.Decisions.decide(folder, 0, "wrong")
        >>> decisions = tracin.Decisions.open(folder)
        >>> decisions.relabelled(train)[1].tolist()
        [1, 0, 1, 1, 1]
    """

    ids: np.ndarray
    positions: np.ndarray
    given_labels: np.ndarray
    kinds: np.ndarray
    new_labels: np.ndarray
    decided_at: np.ndarray
    mended: dict[str, np.ndarray]
    others: int = 0

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "Decisions":
        """Read the decisions that hold.

        Args:
            folder: What `tracin view` was given: a run's folder, its results, or an index.

        Returns:
            The decisions; none if nothing was decided.

        Raises:
            DecisionError: There is no ranking, or a file cannot be read.
        """
        table = ranked_table_in(folder)
        # Nothing is written: not even an empty log where none is.
        path = table.log if table.log.is_file() else Path(":memory:")
        log = DecisionLog(path, table)
        try:
            columns = decided_columns(table, log)
            return cls(*columns.values(), mended=mended_columns(table, log), others=log.others)
        finally:
            log.close()

    @staticmethod
    def decide(
        folder: str | os.PathLike[str], position: int, kind: str, label: "Cell" = None
    ) -> None:
        """Add a decision by program, as `tracin view` does by a key.

        Args:
            folder: As for `open`.
            position: Of the example in the training data.
            kind: "wrong", "right", "relabelled", or "undecided" to clear.
            label: The new label, for "relabelled".

        Raises:
            DecisionError: There is no such position or kind, a label where none belongs, or one of
                another kind than those of the data.
        """
        table = ranked_table_in(folder)
        is_whole = is_int(position) or isinstance(position, np.integer)
        row = int(np.searchsorted(table.positions, position)) if is_whole else len(table)
        if row == len(table) or table.positions[row] != position:
            raise DecisionError(
                f"Position {position!r} is not in {table.path}, which holds {len(table)} examples."
            )
        log = DecisionLog(table.log, table)
        try:
            log.decide([row], kind, label, tab="program")
        finally:
            log.close()

    def __len__(self) -> int:
        return len(self.ids)

    def relabelled(self, train: Any, key: int | str = 1, *, keep_wrong: bool = False) -> Any:
        """The training data as it was decided, to train again with; the given data is unchanged.

        Args:
            train: The data of the ranking: tensors, or a map-style dataset.
            key: Where an example has its label: the place in a tuple, or the key in a dict.
            keep_wrong: Whether examples whose label is wrong stay, under it, where no better label
                was given.

        Returns:
            Data of the same kind, under the new labels, without the examples called wrong.

        Raises:
            DecisionError: Its labels are not those that were decided about.
            DataError: It is a DataLoader, or has no such label.
        """
        labels = self._labels_of(train, key)
        found = relabelled_examples(train, labels, key)
        keep = torch.from_numpy(self.mended["keep"])
        return (
            found if keep_wrong or bool(keep.all()) else kept_examples(found, keep.nonzero()[:, 0])
        )

    def columns(self) -> dict[str, np.ndarray]:
        """The decisions, column by column."""
        return {
            "id": self.ids,
            "position": self.positions,
            "given_label": self.given_labels,
            "decision": self.kinds,
            "new_label": self.new_labels,
            "decided_at": self.decided_at,
        }

    def save_label_studio(self, path: str | os.PathLike[str]) -> None:
        """Write the decisions as tasks that Label Studio imports.

        Raises:
            OutputError: The disk refuses.
        """
        content = label_studio_bytes(self.columns())
        write_whole(Path(path), lambda unfinished: unfinished.write_bytes(content))

    def __str__(self) -> str:
        names = ["id", "given", "decision", "new label"]
        columns = (self.ids, self.given_labels, self.kinds, self.new_labels)
        rows = [
            ["" if cell is None else cell for cell in row]
            for row in list(zip(*columns, strict=True))[:SHOWN]
        ]
        more = f"\n... {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        counts = ", ".join(
            f"{int((self.kinds == kind).sum())} {kind}" for kind in ("wrong", "right", "relabelled")
        )
        return f"{len(self)} decided: {counts}\n{aligned(names, rows)}{more}"

    def _labels_of(self, train: Any, key: int | str) -> torch.Tensor:
        given, positions = self.mended["given_label"], self.mended["position"]
        if given.dtype.kind not in "if":
            raise DecisionError(
                "Labels of this ranking are texts, and training data has numbers. Use "
                "decisions.mended, which has the new label of every position, in your own code."
            )
        if len(positions) and (positions != np.arange(len(positions))).any():
            raise DecisionError(
                "The ranking holds some of the training examples alone, so that it has no label of "
                "the others. Rank all of them, or use decisions.mended."
            )
        if given.dtype.kind == "i":
            now = label_column(train, key).numpy()
            differing = np.flatnonzero(now != given) if len(now) == len(given) else [-1]
            if len(differing):
                at = int(differing[0])
                what = (
                    f"it has {len(now)} labels, and {len(given)} were ranked"
                    if at < 0
                    else f"the label at position {at} is {now[at]}, and was {plain(given[at])}"
                )
                raise DecisionError(
                    f"The data is not that of the decisions: {what}. Give the data as it was when "
                    "it was ranked."
                )
        return torch.from_numpy(self.mended["label"])
