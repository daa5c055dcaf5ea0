"""The commands. torch is imported late, so that --help answers at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin import __version__
from tracin.cli import index_commands
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
from tracin.cli.opened import Opened, opened_run
from tracin.cli.report_command import report
from tracin.cli.results import check_writable, write
from tracin.cli.settings import read_settings
from tracin.cli.task import Task
from tracin.cli.template import RUN, Template, task_text
from tracin.cli.view_commands import apply_decisions, view
from tracin.errors import QueryError, RunFileError
from tracin.plain_text import a_kind, plain

if TYPE_CHECKING:
    import numpy as np

    from tracin.data import Examples

SHOWN = 10

app = typer.Typer(
    help="Which training examples made a model say what it said.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(index_commands.app, name="index")
app.command()(view)
app.command("apply")(apply_decisions)
app.command("report")(report)

Out = Annotated[Path | None, typer.Option("--out", help="Where results go.")]
Query = Annotated[
    str, typer.Option("--query", help="Positions in queries (in train if there are none): 3,17.")
]
Folder = Annotated[
    str | None,
    typer.Option("--index", help="Query this index, not the data: a folder or URL."),
]
HowMany = Annotated[int | None, typer.Option("-k", help="How many of each.")]


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tracin {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Which training examples made a model say what it said."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where results go.")] = Path("tracin-demo"),
) -> None:
    """Find wrong labels in handwritten digits, and explain a prediction."""
    check_writable(out)
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

    Templates: points (small, with all that replay and evaluate need), image (pictures with labels),
    hf (texts with labels, by Hugging Face's Trainer), lm (a language model and a LoRA adapter),
    regression (a table and a number).
    """
    texts = {folder / "run.toml": RUN, folder / "task.py": task_text(template)}
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
    typer.echo(f"  tracin explain {plain(folder / 'run.toml')} --query 0,1 -k 3")


@app.command("self-influence")
def self_influence(run: RunFile, index: Folder = None, sets: Set = None, out: Out = None) -> None:
    """Each training example's influence on itself: high if mislabelled, rare or memorised."""
    index = None if index is None else checked_folder(index)
    opened = opened_run(run, sets, out)
    # Imported late: torch is slow to import, and a missing RUN.toml is reported at once.
    import numpy as np

    from tracin.data import open_examples
    from tracin.results.table import aligned, numbers

    if index is None:
        train = open_examples(opened.task.train, name="train")
        ids, size = train.ids, opened.settings.tracin.batch_size
        scores = numbers(opened.tracer.self_influence(train, batch_size=size))
    else:
        from tracin import Index

        opened_index = Index.open(index, run=opened.tracer)
        ids, scores = opened_index.ids, numbers(opened_index.self_influence())
    columns = {"id": ids, "position": np.arange(len(ids)), "self_influence": scores}
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    shown = aligned(("id", "self-influence"), [(ids[at], scores[at]) for at in order])
    more = f"\n... {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    _finish(opened, f"{shown}{more}", _saving(columns), "self-influence")


@app.command()
def mislabelled(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Rank training examples by how likely their label is wrong."""
    opened = opened_run(run, sets, out)
    suspects = opened.tracer.find_mislabelled(
        opened.task.train,
        opened.task.validation,
        rank_by=opened.settings.mislabelled.rank_by,
        batch_size=opened.settings.tracin.batch_size,
    )
    _finish(opened, str(suspects), suspects.save, "mislabelled")


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
) -> None:
    """The strongest proponents and opponents of some predictions."""
    if exact and index is None:
        raise QueryError("--exact is for --index FOLDER: without an index scores are exact.")
    if index is None and (keep or engine != "serial"):
        raise QueryError("--keep and --engine are about the rows of an index: add --index.")
    index = None if index is None else checked_folder(index)
    changed = [*(sets or []), *([f"explain.k={k}"] if k is not None else [])]
    read_settings(run, changed)  # a mistake is reported before torch is imported
    chosen: Any = engine_of(engine, workers, address)
    opened = opened_run(run, changed, out)
    options = opened.settings.explain
    chosen_queries = _queries(opened.task, query)
    if index is not None:
        from tracin import Index

        other = [name for name in ("normalise", "group") if getattr(options, name) != "none"]
        if other:
            raise QueryError(
                f"An index gives the scores themselves: explain.{other[0]} is not for --index."
            )
        opened_index = Index.open(index, run=opened.tracer, train=opened.task.train)
        conditions = [*(keep or []), *(["right"] if options.drop_misclassified else [])]
        explanations = opened_index.explain(
            chosen_queries.queries,
            options.k,
            exact=exact,
            where=keep_of(conditions),
            engine=None if engine == "serial" else chosen,
            batch_size=opened.settings.tracin.batch_size,
        )
        arguments = {
            **chosen_queries.as_settings(),
            "asked_index": index,
            "exact": exact,
            "keep": conditions,
            "notes": explanations.notes,
        }
        return _finish(opened, str(explanations), explanations.save, "explain", **arguments)
    explanations = opened.tracer.explain(
        opened.task.train,
        chosen_queries.queries,
        options.k,
        normalise=None if options.normalise == "none" else options.normalise,
        group=None if options.group == "none" else options.group,
        drop_misclassified=options.drop_misclassified,
        batch_size=opened.settings.tracin.batch_size,
    )
    _finish(opened, str(explanations), explanations.save, "explain", **chosen_queries.as_settings())


@app.command("select")
def select_examples(
    run: RunFile,
    query: Query,
    budget: Annotated[
        int | None, typer.Option("--budget", "-n", help="How many examples at most.")
    ] = None,
    sets: Set = None,
    out: Out = None,
) -> None:
    """Expand a few examples into a set: those of a pool that help the model with them most.

    The pool is the task's 'pool', or its training data. Near-duplicates are left out.
    """
    changed = [*(sets or []), *([f"select.budget={budget}"] if budget is not None else [])]
    read_settings(run, changed)  # a mistake is reported before torch is imported
    opened = opened_run(run, changed, out)
    options, task = opened.settings.select, opened.task
    chosen_queries = _queries(task, query)
    from tracin import select

    found = select(
        opened.tracer,
        task.train if task.pool is None else task.pool,
        chosen_queries.queries,
        options.budget,
        normalise=None if options.normalise == "none" else options.normalise,
        duplicates=None if options.duplicates == "none" else options.duplicates,
        batch_size=opened.settings.tracin.batch_size,
    )
    where = {**chosen_queries.as_settings(), "pool": "train" if task.pool is None else "pool"}
    _finish(opened, str(found), found.save, "select", **where)


@app.command()
def replay(
    run: RunFile,
    query: Query,
    k: HowMany = None,
    sets: Set = None,
    out: Out = None,
) -> None:
    """Repeat the recorded training, and trace some predictions through every step.

    Needs a Recorder's folder with each step's ids, and the task's 'optimizer'. Exits with 1 if
    the weights do not match the record.
    """
    from tempfile import TemporaryDirectory

    opened = opened_run(run, [*(sets or []), *([f"replay.k={k}"] if k is not None else [])], out)
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
    chosen_queries = _queries(task, query)
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
        )
        explanations = trace.explain(options.k)
        shown = f"{explanations}\n\n{trace.goodness()}\n\n{replayed}"
    _finish(opened, shown, explanations.save, "replay", **chosen_queries.as_settings())
    if replayed.checks and not replayed.is_equal:
        raise typer.Exit(1)


@app.command()
def evaluate(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Compare ways of scoring on the task's queries, and recommend one.

    With the task's 'fit', models are trained on halves of the data: only that says which scores
    predict retraining. Trainings are kept in the results' folder; a re-run continues.
    """
    opened = opened_run(run, sets, out)
    from tracin.cli.evaluated import evaluated

    evaluation, arguments = evaluated(opened, run)
    _finish(opened, str(evaluation), evaluation.save, "evaluate", **arguments)


@app.command()
def verify(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Measure the gradients against plain autograd; exits with 1 if they are not exact.

    The figures go to the screen; with --out, to a file too.
    """
    opened = opened_run(run, sets, out)
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
    if out is None:
        typer.echo(shown)
    else:
        _finish(opened, shown, _saving(columns), "verify")
    if not verification.is_exact:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Queries:
    """The queries of a command line."""

    queries: "Examples"
    positions: list[int]
    where: str

    def as_settings(self) -> dict[str, Any]:
        """As a result's settings name them."""
        return {"query": self.positions, "query_data": self.where}


def _queries(task: Task, query: str) -> _Queries:
    from tracin.data import open_examples

    where = "train" if task.queries is None else "queries"
    among = open_examples(getattr(task, where), name=where)
    positions = _positions(query, len(among), where)
    return _Queries(among.subset(positions), positions, where)


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


def _saving(columns: "Mapping[str, np.ndarray]") -> Callable[[Path], None]:
    """What saves a table of columns to a path."""
    from tracin.results.saving import save_columns

    return lambda path: save_columns(columns, path)


def _finish(
    opened: Opened, shown: str, save: Callable[[Path], None], command: str, **arguments: Any
) -> None:
    # Written first: a pager that is closed early must not cost the file.
    path = write(opened.folder, save, opened.settings, command, **arguments)
    typer.echo(f"{shown}\n\nwritten to {plain(path)}")
