"""`tracin tokens`: which tokens of queries and of training texts carry their scores."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from tracin.cli.chosen_queries import Folder, HowMany, queries_of
from tracin.cli.conversation import check_tokenizer, conversation_of
from tracin.cli.destination import FileFormat, Out, Output, Overwrite
from tracin.cli.index_commands import RunFile, Set, checked_folder
from tracin.cli.opened import Opened, opened_run
from tracin.cli.results import deliver
from tracin.cli.settings import read_settings, unless_none, with_option
from tracin.cli.task import Task
from tracin.errors import QueryError


def tokens(
    run: RunFile,
    query: Annotated[
        str | None,
        typer.Option("--query", help="Positions in queries (in train if there are none): 3,17."),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", help="Ask the model this, as 'tracin ask' does."),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="The answer to --question; the model's own if left out."),
    ] = None,
    k: HowMany = None,
    index: Folder = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Which tokens of some texts, and of their proponents and opponents, carry the scores.

    For a language model whose loss is a sum over tokens, such as "causal_lm". The task's 'decode'
    or 'tokenizer' names tokens. 'tracin report' draws the texts of each pair as heat maps.
    """
    if (query is None) == (question is None):
        raise QueryError('Give either --query 3,17 or --question "TEXT".')
    if answer is not None and question is None:
        raise QueryError("--answer is for --question: a text of the data has its own tokens.")
    index = None if index is None else checked_folder(index)
    changed = with_option(sets, "tokens.k", k)
    read_settings(run, changed)  # a mistake is reported before torch is imported
    opened = opened_run(run, changed, Output(out, file_format, overwrite), "tokens")
    task, tracer, options = opened.task, opened.tracer, opened.settings.tokens
    from tracin.data import open_examples
    from tracin.losses import HasTokens, no_tokens

    if not isinstance(tracer.loss, HasTokens):  # before a pass over the data
        raise no_tokens(tracer.loss)
    decode = _decode(task)
    queries, arguments = _queries(opened, query, question, answer)
    train = open_examples(task.train, name="train")
    normalise, size = unless_none(options.normalise), opened.settings.tracin.size
    if index is None:
        found = tracer.explain(train, queries, options.k, normalise=normalise, batch_size=size)
    else:
        from tracin import Index

        rows = Index.open(index, run=tracer, train=train)
        found = rows.explain(queries, options.k, normalise=normalise, batch_size=size)
    shares = tracer.tokens(train, queries, found, decode=decode)
    deliver(opened, str(shares), shares.columns, asked_index=index, **arguments)


def _queries(
    opened: Opened, query: str | None, question: str | None, answer: str | None
) -> tuple[Any, dict[str, Any]]:
    """The texts asked about, and what the result's settings say of them."""
    task = opened.task
    if question is None:
        chosen = queries_of(task, query)
        return chosen.queries, chosen.as_settings()
    check_tokenizer(task.tokenizer, "tokens")
    conversation = conversation_of(opened, len(opened.tracer.checkpoints) - 1, question, answer)
    said = {"question": question, "is_generated": answer is None}
    return conversation.as_query(), said


def _decode(task: Task) -> Callable[[list[int]], str] | None:
    """What names a token: the task's 'decode', else its 'tokenizer'."""
    if task.decode is not None or task.tokenizer is None:
        return task.decode
    check_tokenizer(task.tokenizer, "tokens")
    return task.tokenizer.decode
