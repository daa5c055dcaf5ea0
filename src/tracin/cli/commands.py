"""The commands. torch is imported late, so that --help answers at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin import __version__
from tracin.cli.results import check_writable, write
from tracin.cli.settings import Settings, read_settings
from tracin.cli.task import Task, load_task
from tracin.cli.template import RUN, TASK
from tracin.errors import QueryError, RunFileError

if TYPE_CHECKING:
    from tracin import TracIn, WithIds

SHOWN = 10

app = typer.Typer(
    help="Which training examples made a model say what it said.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="What 'tracin init' writes.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting for once.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Where results go.")]
Query = Annotated[
    str, typer.Option("--query", help="Positions in test (in train if there is none): 3,17.")
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
def init(folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path()) -> None:
    """Write a run.toml and a task.py that run as they are."""
    texts = {folder / "run.toml": RUN, folder / "task.py": TASK}
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
    typer.echo(f"Wrote {' and '.join(map(str, texts))}. Try:")
    typer.echo(f"  tracin explain {folder / 'run.toml'} --query 0,1 -k 3")


@app.command("self-influence")
def self_influence(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Each training example's influence on itself: high is mislabelled, rare or memorised."""
    import numpy as np

    from tracin.data import open_examples
    from tracin.influence.table import aligned, numbers, save_parquet

    opened = _opened(run, sets, out)
    train = open_examples(opened.task.train, name="train")
    scores = numbers(
        opened.tracer.self_influence(train, batch_size=opened.settings.tracin.batch_size)
    )
    columns = {"id": train.ids, "position": np.arange(len(train)), "self_influence": scores}
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    shown = aligned(("id", "self-influence"), [(train.ids[at], scores[at]) for at in order])
    more = f"\n... {len(train) - SHOWN} more" if len(train) > SHOWN else ""
    _finish(opened, f"{shown}{more}", lambda path: save_parquet(columns, path), "self-influence")


@app.command()
def mislabelled(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Rank training examples by how likely their label is wrong."""
    opened = _opened(run, sets, out)
    suspects = opened.tracer.find_mislabelled(
        opened.task.train,
        rank_by=opened.settings.mislabelled.rank_by,
        batch_size=opened.settings.tracin.batch_size,
    )
    _finish(opened, str(suspects), suspects.save, "mislabelled")


@app.command()
def explain(
    run: RunFile,
    query: Query,
    k: HowMany = None,
    sets: Set = None,
    out: Out = None,
) -> None:
    """The strongest proponents and opponents of some predictions."""
    opened = _opened(run, [*(sets or []), *([f"explain.k={k}"] if k is not None else [])], out)
    options = opened.settings.explain
    asked = _asked(opened.task, query)
    found = opened.tracer.explain(
        asked.queries,
        opened.task.train,
        options.k,
        normalise=None if options.normalise == "none" else options.normalise,
        group=None if options.group == "none" else options.group,
        drop_misclassified=options.drop_misclassified,
        batch_size=opened.settings.tracin.batch_size,
    )
    _finish(opened, str(found), found.save, "explain", **asked.as_settings())


@app.command()
def replay(
    run: RunFile,
    query: Query,
    k: HowMany = None,
    sets: Set = None,
    out: Out = None,
) -> None:
    """Walk the recorded training again, and trace some predictions through every step.

    Needs a Recorder's folder with each step's ids, and the task's 'optimizer'. Exits with 1 where
    the weights do not come out as recorded.
    """
    from tempfile import TemporaryDirectory

    opened = _opened(run, [*(sets or []), *([f"replay.k={k}"] if k is not None else [])], out)
    task, options = opened.task, opened.settings.replay
    if task.optimizer is None:
        raise RunFileError(
            f"{run}: a replay takes the steps of the training again, so the task must return its "
            "'optimizer' too, over the parameters of its 'model'."
        )
    if not isinstance(task.checkpoints, str | Path):
        raise RunFileError(
            f"{run}: a replay needs 'checkpoints' to be a Recorder's folder; the task returned a "
            f"{type(task.checkpoints).__name__}."
        )
    if opened.settings.tracin.device is not None:
        raise RunFileError(
            f"{run}: 'tracin.device' is for scores of checkpoints; a replay trains where the model "
            "is, so leave it out, and put the model there in the task."
        )
    asked = _asked(task, query)
    from tracin.tracing import Path as TracedPath
    from tracin.tracing import Replay

    walked = Replay(
        task.model,
        task.optimizer,
        task.checkpoints,
        task.train,
        start=options.start,
        stop=options.stop,
    )
    with TemporaryDirectory() as folder:
        trace = walked.trace(
            task.loss,
            asked.queries,
            Path(folder) / "trace",
            training_loss=task.training_loss,
            paths=[TracedPath(options.path)],
            every=options.every,
            parameters=opened.settings.tracin.parameters,
        )
        found = trace.explain(options.k)
        shown = f"{found}\n\n{trace.goodness()}\n\n{walked}"
    _finish(opened, shown, found.save, "replay", **asked.as_settings())
    if walked.checks and not walked.is_equal:
        raise typer.Exit(1)


@app.command()
def verify(run: RunFile, sets: Set = None, out: Out = None) -> None:
    """Measure the gradients against plain autograd; exits with 1 where they are not exact.

    The figures go to the screen; with --out, to a file too.
    """
    import numpy as np

    from tracin.influence.table import save_parquet

    opened = _opened(run, sets, out)
    found = opened.tracer.verify(opened.task.train)
    entries = [found.coverage.entries[name] for name in found.errors]
    columns = {
        "parameter": np.array(list(found.errors)),
        "relative_error": np.array(list(found.errors.values())),
        "way": np.array([str(each.way) for each in entries]),
        "reason": np.array([each.reason for each in entries]),
    }
    shown = f"{found.coverage}\n\n{found}"
    if out is None:
        typer.echo(shown)
    else:
        _finish(opened, shown, lambda path: save_parquet(columns, path), "verify")
    if not found.is_exact:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Opened:
    """A run with all that its commands work with."""

    settings: Settings
    task: Task
    tracer: "TracIn"
    folder: Path


def _opened(run: Path, sets: list[str] | None, out: Path | None) -> _Opened:
    settings = read_settings(run, sets or [])
    folder = run.parent / settings.output.folder if out is None else out
    check_writable(folder)
    options = settings.tracin
    if options.device is not None:
        _check_device(options.device, run)
    task = load_task(settings.task.function, run)
    from tracin import TracIn

    tracer = TracIn(
        task.model,
        task.loss,
        task.checkpoints,
        parameters=options.parameters,
        learning_rates=options.learning_rates,
        device=options.device,
        update=options.update,
    )
    return _Opened(settings, task, tracer, folder)


@dataclass(frozen=True)
class _Asked:
    """The queries of a command line."""

    queries: "WithIds"
    positions: list[int]
    where: str

    def as_settings(self) -> dict[str, Any]:
        """As a result's settings name them."""
        return {"query": self.positions, "query_data": self.where}


def _asked(task: Task, query: str) -> _Asked:
    from tracin.data import WithIds, open_examples

    where = "train" if task.test is None else "test"
    test = open_examples(getattr(task, where), name=where)
    positions = _positions(query, len(test), where)
    queries = WithIds(test.take(positions), [test.ids[at] for at in positions])
    return _Asked(queries, positions, where)


def _check_device(device: str, run: Path) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    # Without CUDA built in torch raises an AssertionError; for other kinds, NotImplementedError.
    except (RuntimeError, AssertionError) as error:
        raise RunFileError(
            f"{run}: 'tracin.device' = {device!r}, but there is no such device here: "
            f"{str(error).splitlines()[0]}"
        ) from error


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


def _finish(
    opened: _Opened, shown: str, save: Callable[[Path], None], command: str, **asked: Any
) -> None:
    # Written first: a pager that is closed early must not cost the file.
    path = write(opened.folder, save, opened.settings, command, **asked)
    typer.echo(f"{shown}\n\nwritten to {path}")
