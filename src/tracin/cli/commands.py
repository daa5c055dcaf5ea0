"""The commands. torch is imported late, so that --help answers at once."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin import __version__
from tracin.cli import index_commands
from tracin.cli.ask import ask
from tracin.cli.chosen_queries import Folder, HowMany, Query, queries_of, query_groups
from tracin.cli.destination import (
    FileFormat,
    Format,
    Out,
    Output,
    Overwrite,
    check_new,
    check_pyarrow,
    check_writable,
)
from tracin.cli.index_commands import (
    Address,
    EngineName,
    RunFile,
    Set,
    Workers,
    checked_folder,
    engine_of,
)
from tracin.cli.keep import keep_of
from tracin.cli.log_lines import shown_log
from tracin.cli.opened import Opened, opened_run
from tracin.cli.report_command import NAME, report
from tracin.cli.results import deliver
from tracin.cli.settings import read_settings, unless_none, with_option
from tracin.cli.template import Template, run_text, task_text
from tracin.cli.tokens_command import tokens
from tracin.cli.view_commands import apply_decisions, view
from tracin.errors import QueryError, RunFileError
from tracin.plain_text import a_kind, plain

if TYPE_CHECKING:
    import numpy as np

    from tracin.results.explanations import Explanations

SHOWN = 10
QUESTIONS = {Template.questions: "what is the capital of peru ?", Template.lm: "the cat"}

app = typer.Typer(
    help="Which training examples made a model say what it said.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(index_commands.app, name="index")
app.command()(ask)
app.command()(tokens)
app.command()(view)
app.command("apply")(apply_decisions)
app.command("report")(report)

Rows = Annotated[
    int | None,
    typer.Option("--rows", "-n", min=1, help="How many rows to show; a file has all of them."),
]


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tracin {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, help="Log to standard error; -vv logs more."),
    ] = 0,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which training examples made a model say what it said."""
    context.with_resource(shown_log(verbose))
    # A command may turn standard output away from what a task prints; here it comes back.
    context.with_resource(redirect_stdout(sys.stdout))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="A folder.")] = Path("tracin-demo"),
    overwrite: Overwrite = False,
) -> None:
    """Find wrong labels in handwritten digits, and explain a prediction."""
    check_pyarrow()
    check_writable(out)
    check_new(out / NAME, overwrite)
    from tracin.demo import run

    run(out, typer.echo)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path(),
    template: Annotated[
        Template, typer.Option("--template", help="What the task is about.")
    ] = Template.points,
) -> None:
    """Write a run.toml and a task.py that run as they are, to put your own parts into.

    \b
    Templates:
      points      small, with all that replay and evaluate need
      image       pictures with labels
      hf          texts with labels, by Hugging Face's Trainer
      lm          texts, by a LoRA adapter and Trainer; for tracin ask, too
      questions   questions and answers, to try tracin ask
      regression  a table and a number
    """  # noqa: D301  # the backspace keeps the lines as they are
    texts = {folder / "run.toml": run_text(template), folder / "task.py": task_text(template)}
    for path in texts:
        if path.exists():
            raise RunFileError(
                f"{path} is already there and is not overwritten; name a new folder."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"{folder} cannot be written to: {error.strerror}.") from error
    typer.echo(f"Wrote {' and '.join(map(plain, texts))}. Try:")
    run = plain(folder / "run.toml")
    if template is not Template.questions:
        typer.echo(f"  tracin explain {run} --query 0,1 -k 3")
    if template in QUESTIONS:
        typer.echo(f'  tracin ask {run} "{QUESTIONS[template]}" -k 3')


@app.command("self-influence")
def self_influence(
    run: RunFile,
    index: Folder = None,
    rows: Rows = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Each training example's influence on itself: high if mislabelled, rare or memorised."""
    index = None if index is None else checked_folder(index)
    opened = opened_run(run, sets, Output(out, file_format, overwrite), "self-influence")
    # Imported late: torch is slow to import, and a missing RUN.toml is reported at once.
    import numpy as np

    from tracin.data import open_examples
    from tracin.results.table import aligned, numbers

    if index is None:
        train = open_examples(opened.task.train, name="train")
        ids, size = train.ids, opened.settings.tracin.size
        scores = numbers(opened.tracer.self_influence(train, batch_size=size))
    else:
        from tracin import Index

        opened_index = Index.open(index, run=opened.tracer)
        ids, scores = opened_index.ids, numbers(opened_index.self_influence())
    columns = {"id": ids, "position": np.arange(len(ids)), "self_influence": scores}
    order = np.argsort(-scores, kind="stable")[: SHOWN if rows is None else rows]
    shown = aligned(("id", "self-influence"), [(ids[at], scores[at]) for at in order])
    left = len(ids) - len(order)
    if rows is not None and opened.destination.path is None:
        columns = {name: values[order] for name, values in columns.items()}
    deliver(opened, f"{shown}\n... {left} more" if left else shown, lambda: columns)


@app.command()
def mislabelled(
    run: RunFile,
    rows: Rows = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank training examples by how likely their label is wrong."""
    opened = opened_run(run, sets, Output(out, file_format, overwrite), "mislabelled")
    suspects = opened.tracer.find_mislabelled(
        opened.task.train,
        opened.task.validation,
        rank_by=opened.settings.mislabelled.rank_by,
        batch_size=opened.settings.tracin.size,
    )
    shown = suspects.as_text(SHOWN if rows is None else rows)
    # A program that asks for some rows gets no more; a file holds all.
    some = suspects if rows is None or opened.destination.path is not None else suspects.head(rows)
    deliver(opened, shown, some.columns, hint="To look at them and decide: tracin view")
    _keep_examples(opened, [suspects.positions], adds=False)


@app.command()
def explain(
    run: RunFile,
    query: Query,
    k: HowMany = None,
    index: Folder = None,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="With --index: rescore candidates by the model."),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="With --index: only rows such as: right, label=3, ..."),
    ] = None,
    engine: EngineName = "serial",
    workers: Workers = None,
    address: Address = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """The strongest proponents and opponents of some predictions."""
    if exact and index is None:
        raise QueryError("--exact is for --index FOLDER: without an index scores are exact.")
    if index is None and (keep or engine != "serial"):
        raise QueryError("--keep and --engine are about the rows of an index: add --index.")
    index = None if index is None else checked_folder(index)
    changed = with_option(sets, "explain.k", k)
    read_settings(run, changed)  # a mistake is reported before torch is imported
    chosen: Any = engine_of(engine, workers, address)
    opened = opened_run(run, changed, Output(out, file_format, overwrite), "explain")
    options = opened.settings.explain
    chosen_queries = queries_of(opened.task, query)
    if index is not None:
        from tracin import Index

        if options.group != "none":
            raise QueryError("An index explains queries one by one: explain.group is not for it.")
        if options.query_form is not None:
            raise QueryError(
                "An index holds queries as sketches: explain.query_form is not for it. Leave it "
                "out, or --index."
            )
        opened_index = Index.open(index, run=opened.tracer, train=opened.task.train)
        conditions = [*(keep or []), *(["right"] if options.drop_misclassified else [])]
        explanations = opened_index.explain(
            chosen_queries.queries,
            options.k,
            exact=exact,
            normalise=unless_none(options.normalise),
            where=keep_of(conditions),
            engine=None if engine == "serial" else chosen,
            target=opened.task.target,
            batch_size=opened.settings.tracin.size,
        )
        arguments = {
            **chosen_queries.as_settings(),
            "asked_index": index,
            "exact": exact,
            "keep": conditions,
            "notes": explanations.notes,
            "target": explanations.target,
        }
        deliver(opened, str(explanations), explanations.columns, **arguments)
        return _keep_examples(opened, _sides(explanations), adds=True)
    explanations = opened.tracer.explain(
        opened.task.train,
        chosen_queries.queries,
        options.k,
        normalise=unless_none(options.normalise),
        group=unless_none(options.group),
        drop_misclassified=options.drop_misclassified,
        target=opened.task.target,
        batch_size=opened.settings.tracin.size,
        query_form=options.form,
    )
    arguments = {
        **chosen_queries.as_settings(),
        "notes": explanations.notes,
        "target": explanations.target,
    }
    deliver(opened, str(explanations), explanations.columns, **arguments)
    _keep_examples(opened, _sides(explanations), adds=True)


@app.command("select")
def select_examples(
    run: RunFile,
    query: Annotated[
        str | None,
        typer.Option("--query", help="Positions in queries: 3,17; all of them if left out."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", "-n", help="How many examples at most.")
    ] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="Select from this index, not the data: a folder or URL."),
    ] = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Expand a few examples into a set: those of a pool that help the model with them most.

    The pool is the task's 'pool', or its training data, or the rows of an index. By the task's
    'groups' an example counts for the group of queries that it helps most. Near-duplicates are
    left out.
    """
    index = None if index is None else checked_folder(index)
    changed = with_option(sets, "select.budget", budget)
    read_settings(run, changed)  # a mistake is reported before torch is imported
    opened = opened_run(run, changed, Output(out, file_format, overwrite), "select")
    options, task = opened.settings.select, opened.task
    if query is None and task.queries is None:
        raise QueryError(
            "The task returns no 'queries' to select for. Give --query 3,17, positions in its "
            "training data."
        )
    chosen_queries = queries_of(task, query)
    from tracin import Index, select

    whole = task.train if task.pool is None else task.pool
    found = select(
        opened.tracer if index is None else Index.open(index, run=opened.tracer),
        whole if index is None else None,
        chosen_queries.queries,
        options.budget,
        groups=query_groups(task, chosen_queries),
        normalise=unless_none(options.normalise),
        duplicates=unless_none(options.duplicates),
        target=task.target,
        batch_size=opened.settings.tracin.size,
    )
    pool = "train" if task.pool is None else "pool"
    where = {**chosen_queries.as_settings(), "pool": pool if index is None else index}
    deliver(opened, str(found), found.columns, **where)


@app.command()
def replay(
    run: RunFile,
    query: Query,
    k: HowMany = None,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Repeat the recorded training, and trace some predictions through every step.

    Needs a Recorder's folder with each step's ids, and the task's 'optimizer'. Exits with 1 if
    the weights do not match the record.
    """
    from tempfile import TemporaryDirectory

    changed = with_option(sets, "replay.k", k)
    opened = opened_run(run, changed, Output(out, file_format, overwrite), "replay")
    task, options = opened.task, opened.settings.replay
    if task.optimizer is None:
        raise RunFileError(
            f"{run}: a replay takes the steps of the training again, so the task must return its "
            "'optimizer' too, over the parameters of its 'model'."
        )
    if not isinstance(task.checkpoints, str | Path):
        raise RunFileError(
            f"{run}: a replay needs 'checkpoints' to be a Recorder's folder; the task returned "
            f"{a_kind(task.checkpoints)}."
        )
    if opened.settings.tracin.device is not None:
        raise RunFileError(
            f"{run}: 'tracin.device' is for scores of checkpoints; a replay trains where the model "
            "is, so leave it out, and put the model there in the task."
        )
    chosen_queries = queries_of(task, query)
    from tracin.tracing import Quadrature as TracedPath
    from tracin.tracing import Replay

    replayed = Replay(
        task.model,
        task.optimizer,
        task.checkpoints,
        task.train,
        start=options.start,
        stop=options.stop,
    )
    with TemporaryDirectory() as folder:
        trace = replayed.trace(
            task.loss,
            chosen_queries.queries,
            Path(folder) / "trace",
            training_loss=task.training_loss,
            paths=[TracedPath(options.path)],
            every=options.every,
            parameters=opened.settings.tracin.parameters,
            target=task.target,
        )
        explanations = trace.explain(options.k)
        shown = f"{explanations}\n\n{trace.goodness()}\n\n{replayed}"
    deliver(opened, shown, explanations.columns, **chosen_queries.as_settings())
    if replayed.checks and not replayed.is_equal:
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: RunFile,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare ways of scoring on the task's queries, and recommend one.

    With the task's 'fit', models are trained on halves of the data: only that says which scores
    predict retraining. Trainings are kept in the results' folder; a re-run continues.
    """
    opened = opened_run(run, sets, Output(out, file_format, overwrite), "evaluate")
    from tracin.cli.evaluated import evaluated

    evaluation, arguments = evaluated(opened, run)
    deliver(opened, str(evaluation), evaluation.columns, **arguments)


@app.command()
def verify(
    run: RunFile,
    sets: Set = None,
    out: Out = None,
    file_format: FileFormat = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure the gradients against plain autograd; exits with 1 if they are not exact.

    The figures go to the screen; with --out, to a file too.
    """
    # Figures to look at, which nothing else reads: a file only where one is named.
    shown_format = Format.TABLE if out is None and file_format is None else file_format
    opened = opened_run(run, sets, Output(out, shown_format, overwrite), "verify")
    import numpy as np

    verification = opened.tracer.verify(opened.task.train)
    entries = [verification.coverage.entries[name] for name in verification.errors]
    columns = {
        "parameter": np.array(list(verification.errors)),
        "relative_error": np.array(list(verification.errors.values())),
        "method": np.array([str(each.method) for each in entries]),
        "reason": np.array([each.reason for each in entries]),
    }
    shown = f"{verification.coverage}\n\n{verification}"
    deliver(opened, shown, lambda: columns)
    if not verification.is_exact:
        raise typer.Exit(1)


def _sides(explanations: "Explanations") -> "list[np.ndarray]":
    return [explanations.proponents.positions, explanations.opponents.positions]


def _keep_examples(opened: Opened, positions: "list[np.ndarray]", *, adds: bool) -> None:
    """What the examples look like, beside a result that `tracin view` can open."""
    path = opened.destination.path
    if path is None or path.suffix != ".parquet":
        return
    import numpy as np

    from tracin.cli.kept_examples import keep_examples

    most = opened.settings.output.examples
    ordered = np.concatenate([each.ravel() for each in positions])
    said = keep_examples(opened.task, ordered, path.parent, most, adds=adds)
    if said:
        typer.echo(said)
