"""Which queries a command line is about, and the options that name them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from tracin.cli.task import Task
from tracin.errors import QueryError, RunFileError

if TYPE_CHECKING:
    from tracin.data import Examples

Query = Annotated[
    str, typer.Option("--query", help="Positions in queries (in train if there are none): 3,17.")
]
Folder = Annotated[
    str | None,
    typer.Option("--index", help="Query this index, not the data: a folder or URL."),
]
HowMany = Annotated[int | None, typer.Option("-k", help="How many of each.")]


@final
@dataclass(frozen=True)
class ChosenQueries:
    """The queries of a command line.

    Attributes:
        queries: The examples.
        positions: Where they are among the task's.
        where: Which of the task's data they are from.
    """

    queries: "Examples"
    positions: list[int]
    where: str

    def as_settings(self) -> dict[str, Any]:
        """As a result's settings name them."""
        return {"query": self.positions, "query_data": self.where}


def queries_of(task: Task, query: str | None) -> ChosenQueries:
    """The queries at some positions of the task's; None for all.

    Raises:
        QueryError: A position is none, or comes twice.
    """
    from tracin.data import open_examples

    where = "train" if task.queries is None else "queries"
    among = open_examples(getattr(task, where), name=where)
    everything = list(range(len(among)))
    positions = everything if query is None else _positions(query, len(among), where)
    return ChosenQueries(among.subset(positions), positions, where)


def query_groups(task: Task, queries: ChosenQueries) -> list[Any] | None:
    """The group of each query; None where the task names none.

    Raises:
        RunFileError: The task names another number of groups than it has queries.
    """
    if task.groups is None or task.queries is None:
        return None
    from tracin.data import open_examples

    given = task.groups
    named = list(given.tolist() if hasattr(given, "tolist") else given)
    count = len(open_examples(task.queries, name="queries"))
    if len(named) != count:
        raise RunFileError(
            f"The task's 'groups' has {len(named)} entries for {count} queries. Name the group of "
            "each query."
        )
    return [named[position] for position in queries.positions]


def _positions(text: str, examples: int, where: str) -> list[int]:
    try:
        positions = [int(each) for each in text.split(",")]
    except ValueError as error:
        raise QueryError(f"--query takes positions such as 3,17, not {text!r}.") from error
    for position in positions:
        if not 0 <= position < examples:
            raise QueryError(
                f"--query {position}: the task's '{where}' holds {examples} examples, at positions "
                f"0 to {examples - 1}."
            )
    if len(set(positions)) < len(positions):
        raise QueryError(f"--query {text}: a position comes twice.")
    return positions
