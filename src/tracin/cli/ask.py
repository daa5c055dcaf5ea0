"""`tracin ask`: a question in, an answer out, and the training texts behind it."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin.cli.conversation import Conversation, check_tokenizer, conversation_of, text_of_tokens
from tracin.cli.destination import FileFormat, Format, Out, Output, Overwrite
from tracin.cli.index_commands import RunFile, Set, checked_folder
from tracin.cli.opened import Opened, opened_run
from tracin.cli.results import deliver
from tracin.cli.settings import read_settings, unless_none, with_option
from tracin.errors import QueryError

if TYPE_CHECKING:
    from torch import Tensor

    from tracin.cli.text_answer import TextHit
    from tracin.results.explanations import Explanations

# Candidates per text that is shown, since near-copies are folded.
SPARE = 5


def ask(
    run: RunFile,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A text for the model.")],
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="The answer to explain; the model's own if left out."),
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option("--checkpoint", help="Which one answers, from 0; the last if left out."),
    ] = None,
    k: Annotated[int | None, typer.Option("-k", help="How many texts of each kind.")] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="Search this index, not the data: a folder or URL."),
    ] = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Ask a language model, and see which training texts made it answer so.

    The task must return its 'tokenizer' too; a chat template is filled in where it has one. The
    influence is that on the loss of the answer's tokens. With --out, the result goes to a file too.
    """
    index = None if index is None else checked_folder(index)
    changed = with_option(sets, "ask.k", k)
    read_settings(run, changed)  # a mistake is reported before torch is imported
    shown_format = Format.TABLE if out is None and file_format is None else file_format
    opened = opened_run(run, changed, Output(out, shown_format, overwrite), "ask")
    tracer, tokenizer = opened.tracer, opened.task.tokenizer
    check_tokenizer(tokenizer, "ask")
    number = _number(checkpoint, [one.name for one in tracer.checkpoints])
    conversation = conversation_of(opened, number, question, answer)
    from tracin.cli.text_answer import TextAnswer

    query = conversation.as_query()
    name = tracer.checkpoints[number].name
    explanations = _explained(opened, query, index)
    proponents, opponents = _hits(opened, explanations)
    found = TextAnswer(
        question,
        text_of_tokens(tokenizer, conversation.answer),
        _source(conversation, answer, opened.settings.ask.new_tokens),
        _loss_at(opened, number, query),
        name,
        proponents,
        opponents,
        explanations.notes,
    )
    arguments: dict[str, Any] = {
        "question": question,
        "answer": found.answer,
        "is_generated": answer is None,
        "is_cut": conversation.is_cut,
        "checkpoint": name,
        "loss": found.loss,
        "index": index,
    }
    deliver(opened, str(found), found.columns, **arguments)


def _source(conversation: Conversation, answer: str | None, most: int) -> str:
    """Where an answer is from, in words."""
    if answer is not None:
        return "as given"
    cut = f", cut off by ask.new_tokens = {most}" if conversation.is_cut else ""
    return f"generated{cut}"


def _number(checkpoint: int | None, names: list[str]) -> int:
    if checkpoint is None:
        return len(names) - 1
    if not 0 <= checkpoint < len(names):
        listed = ", ".join(f"{at} ({name})" for at, name in enumerate(names))
        raise QueryError(f"--checkpoint {checkpoint}: there is no such one; there are {listed}.")
    return checkpoint


def _explained(opened: Opened, query: "dict[str, Tensor]", index: str | None) -> "Explanations":
    options, task = opened.settings.ask, opened.task
    size = opened.settings.tracin.size
    normalise = unless_none(options.normalise)
    if index is not None:
        from tracin import Index

        rows = Index.open(index, run=opened.tracer, train=task.train)
        most = min(len(rows), SPARE * options.k)
        return rows.explain(query, most, normalise=normalise, batch_size=size)
    from tracin.data import open_examples

    train = open_examples(task.train, name="train")
    most = min(len(train), SPARE * options.k)
    return opened.tracer.explain(train, query, most, normalise=normalise, batch_size=size)


def _hits(opened: Opened, explanations: "Explanations") -> "list[list[TextHit]]":
    """The texts of both sides; a score of zero, or of the other sign, explains nothing."""
    from tracin.cli.text_answer import folded_hits
    from tracin.results.shown import Showing
    from tracin.results.shown_rows import shown_rows

    task, options = opened.task, opened.settings.ask
    decode = partial(text_of_tokens, task.tokenizer) if task.decode is None else task.decode
    how = Showing(task.labels, decode, task.show)
    only = explanations[0]
    sides = [
        [one for one in only.proponents if one.score > 0],
        [one for one in only.opponents if one.score < 0],
    ]
    texts = [
        [
            each.words or str(each)
            for each in shown_rows(
                task.train, [one.position for one in side], [one.id for one in side], how
            )
        ]
        for side in sides
    ]
    overlap = unless_none(options.near_copies)
    return folded_hits(sides, texts, options.k, overlap)


def _loss_at(opened: Opened, number: int, query: "dict[str, Tensor]") -> float:
    """The answer's loss at a checkpoint."""
    import torch

    from tracin.checkpoints import loaded
    from tracin.data import move
    from tracin.guards import untouched
    from tracin.sharding import device_of

    run = opened.tracer
    with (
        untouched(run.model),
        loaded(run.model, run.checkpoints[number], run.device),
        torch.no_grad(),
    ):
        losses = run.loss(run.model, move(query, device_of(run.model)))
    return float(losses.reshape(-1)[0])
