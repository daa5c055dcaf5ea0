"""cleanlab's Datalab: a ranking of suspects as one of the issues that it reports.

Importing this module registers the issue type "tracin_suspect" with Datalab, for classes and for
numbers (https://docs.cleanlab.ai/stable/cleanlab/datalab/guide/custom_issue_manager.html). The name
does not contain "label": Datalab finds an issue's columns by a part of their names, so
`get_issues("label")` would return these columns, too.
"""

from typing import Any, ClassVar, final

import numpy as np

from tracin.checks import is_int
from tracin.errors import DataError, QueryError
from tracin.extras import install_line
from tracin.report.judged import are_classes, disagreements
from tracin.results.suspects import RANKINGS, Suspects, mean_rank

try:
    import pandas
    from cleanlab.datalab.internal.issue_manager import IssueManager
    from cleanlab.datalab.internal.issue_manager_factory import register
except ImportError as error:
    raise ImportError(
        "tracin.integrations.cleanlab needs cleanlab's Datalab, which is not installed: "
        f"{install_line('datalab')}."
    ) from error


@final
class SuspectIssueManager(IssueManager):
    """What Datalab makes of `issue_types={"tracin_suspect": {"suspects": suspects}}`.

    `tracin_suspect_score` is the share of examples that are more suspect by the column that ranks:
    near 0 for the most suspect label, near 1 for the least. `Datalab.get_info("tracin_suspect")`
    has the suggested labels.

    Args:
        datalab: The Datalab; it must hold the examples that were ranked, in their order.
        suspects: What `tracin.TracIn.find_mislabelled` returned, whole.
        count: How many of the most suspect examples are flagged, such as the number of wrong labels
            that `suspects.estimate` says. None flags those whose suggested label has a higher mean
            probability than the given one; targets that are numbers need a count.

    Raises:
        QueryError: There are no suspects; count is missing, or not from 1 to their number.
        DataError: The Datalab holds other examples, or other labels.

    Example:
        >>> import torch, tracin
        >>> from cleanlab import Datalab
        >>> import tracin.integrations.cleanlab
        >>> model = torch.nn.Linear(2, 2)
        >>> run = tracin.TracIn(
        ...     model, "cross_entropy", [model.state_dict()], learning_rates="equal"
        ... )
        >>> train = torch.randn(50, 2), torch.arange(50) % 2
        >>> suspects = run.find_mislabelled(train)
        >>> lab = Datalab({"y": train[1].tolist()}, label_name="y")  # doctest: +SKIP
        >>> lab.find_issues(
        ...     issue_types={"tracin_suspect": {"suspects": suspects, "count": 5}}
        ... )  # doctest: +SKIP
        >>> int(lab.get_issues("tracin_suspect").is_tracin_suspect_issue.sum())  # doctest: +SKIP
        5
    """

    description: ClassVar[str] = (
        "Examples whose label is suspect by what the model did with them at checkpoints "
        "of its training. Look at an example before you change its label."
    )
    issue_name: ClassVar[str] = "tracin_suspect"
    verbosity_levels: ClassVar[dict[int, list[str]]] = {0: [], 1: ["ranked_by"], 2: [], 3: []}

    def __init__(
        self, datalab: Any, suspects: Suspects | None = None, count: int | None = None
    ) -> None:
        super().__init__(datalab)
        # Checked here: what find_issues raises, Datalab prints and goes on.
        self._suspects = _whole(suspects, datalab)
        self._count = _checked(count, self._suspects)

    def find_issues(self, suspects: Suspects | None = None, count: int | None = None) -> None:
        """Set `issues` and `summary`, [train] in Datalab's order, and `info`.

        Args:
            suspects: What the manager was made with; Datalab gives it twice.
            count: The same.
        """
        ranked = self._suspects
        places = np.argsort(ranked.positions)  # rows of the table, in the order of the data
        is_issue = disagreements(ranked)
        if self._count is not None:
            is_issue = np.arange(len(ranked)) < self._count
        shares = mean_rank(RANKINGS[ranked.ranked_by](ranked.scores[ranked.ranked_by])).numpy()
        self.issues = pandas.DataFrame(
            {
                f"is_{self.issue_name}_issue": is_issue[places],
                self.issue_score_key: 1 - shares[places],
            }
        )
        self.summary = self.make_summary(1 - float(is_issue.mean()))
        self.info = self.collect_info()

    def collect_info(self) -> dict[str, Any]:
        """The labels as `tracin.Suspects` has them, in Datalab's order, and what ranks."""
        ranked = self._suspects
        places = np.argsort(ranked.positions)
        return {
            "ranked_by": ranked.ranked_by,
            "checkpoints": list(ranked.checkpoints),
            "given_label": ranked.given_labels[places].tolist(),
            "suggested_label": ranked.suggested_labels[places].tolist(),
        }


register(SuspectIssueManager)
register(SuspectIssueManager, task="regression")


def _whole(suspects: Any, datalab: Any) -> Suspects:
    """The ranking, if it ranks the Datalab's examples with the Datalab's labels."""
    if not isinstance(suspects, Suspects):
        raise QueryError(
            'Datalab needs the ranking: issue_types={"tracin_suspect": {"suspects": suspects}}, '
            f"with what find_mislabelled returned; {type(suspects).__name__} was given."
        )
    held = len(datalab.data)
    if not np.array_equal(np.sort(suspects.positions), np.arange(held)):
        raise DataError(
            f"The Datalab holds {held} examples, but the suspects are {len(suspects)} rows "
            f"of positions up to {max(suspects.positions, default=-1)}. Give the whole ranking, "
            "and make the Datalab from the data that was ranked, in the same order."
        )
    if datalab.has_labels:
        given = suspects.given_labels[np.argsort(suspects.positions)]
        _refuse_other_labels(given, datalab, are_classes(suspects))
    return suspects


def _refuse_other_labels(given: np.ndarray, datalab: Any, is_classes: bool) -> None:
    """Labels may have other names in Datalab, and numbers another scale, but no other order."""
    labels = np.asarray(datalab.labels)
    way_out = "Make the Datalab from the data that was ranked, in the same order, same labels."
    if not is_classes:
        if (np.diff(given[np.argsort(labels, kind="stable")]) < 0).any():
            raise DataError(
                "The Datalab's labels are not those that were ranked: sorted by them, the ranked "
                f"targets are not in order. {way_out}"
            )
        return
    pairs, rows = np.unique(np.stack([given, labels], 1), axis=0, return_index=True)
    for column, word in enumerate(("class", "label")):
        values, counts = np.unique(pairs[:, column], return_counts=True)
        if (counts > 1).any():
            one, other = sorted(rows[pairs[:, column] == values[counts > 1][0]])[:2]
            names = [str(datalab.class_names[labels[row]]) for row in (one, other)]
            raise DataError(
                "The Datalab's labels are not those that were ranked: positions "
                f"{one} and {other} have one {word}, but the ranking has {given[one]} and "
                f"{given[other]} there, the Datalab {names[0]!r} and {names[1]!r}. {way_out}"
            )


def _checked(count: Any, suspects: Suspects) -> int | None:
    if count is None and are_classes(suspects):
        return None
    if not is_int(count, 1, len(suspects)):
        raise QueryError(
            "count is how many of the most suspect examples are flagged, a whole number from 1 to "
            f"{len(suspects)}, or None for classes (targets that are numbers have no label that "
            f"the model prefers); {count!r} was given."
        )
    return count
