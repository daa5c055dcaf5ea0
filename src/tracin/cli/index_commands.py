"""The commands of `tracin index`: build, look at, check, clean and lengthen an index."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin.cli.destination import Format, Output
from tracin.cli.settings import read_settings
from tracin.errors import RunFileError

if TYPE_CHECKING:
    from tracin.engines import Engine

app = typer.Typer(
    help="A gradient index: sketch the training data once, query repeatedly.", no_args_is_help=True
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="What 'tracin init' writes.")]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="The index: a folder or a URL.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting for this run.")
]
Workers = Annotated[int | None, typer.Option("--workers", help="How many worker processes.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="serial, processes, ranks (torchrun, SLURM), mesh (torchrun, sharded), or ray.",
    ),
]
Address = Annotated[str | None, typer.Option("--address", help="Of the Ray cluster, such as auto.")]


@app.command()
def build(
    run: RunFile,
    engine: EngineName = "serial",
    workers: Workers = None,
    address: Address = None,
    sets: Set = None,
) -> None:
    """Build the index that [index] in RUN.toml names; finished parts are not built again."""
    from tracin.cli.opened import opened_run

    read_settings(run, sets or [])  # a mistake is reported before torch is imported
    chosen = engine_of(engine, workers, address)
    opened = opened_run(run, sets, Output(format=Format.TABLE), "index")
    options = opened.settings.index
    from tracin.sketches import Projection

    index = opened.tracer.index(
        opened.task.train,
        index_folder(run, options.folder),
        Projection(options.dim, options.seed, options.split),
        number_format=options.number_format,
        shard_size=options.shard_size,
        engine=chosen,
        batch_size=opened.settings.tracin.size,
    )
    typer.echo(str(index))


@app.command()
def append(
    run: RunFile,
    engine: EngineName = "serial",
    workers: Workers = None,
    address: Address = None,
    sets: Set = None,
) -> None:
    """Add rows for new training data or checkpoints; the same as build."""
    build(run, engine, workers, address, sets)


@app.command()
def info(folder: Folder) -> None:
    """Show what an index holds, and what is still to be built."""
    from tracin.index.index import Index

    typer.echo(str(Index.open(checked_folder(folder))))


@app.command("verify")
def verify_index(folder: Folder) -> None:
    """Read every byte of an index; exits with 1 if one is not as it was written."""
    from tracin.index.index import Index

    report = Index.open(checked_folder(folder)).verify()
    typer.echo(str(report))
    if not report.is_sound:
        raise typer.Exit(1)


@app.command()
def gc(folder: Folder) -> None:
    """Delete what no index needs: unfinished files of killed workers, dropped checkpoints."""
    from tracin.index.index import Index

    typer.echo(str(Index.open(checked_folder(folder)).gc()))


def checked_folder(folder: str) -> str:
    """The folder of an index, as it was given."""
    path = Path(folder)
    if "://" in folder or not path.is_file():
        return folder
    if path.suffix == ".toml":
        place = index_folder(path, read_settings(path, []).index.folder)
        raise RunFileError(
            f"{folder} is a run file, and this command takes the folder of an index. For the index "
            f"of this run, give {place}."
        )
    raise RunFileError(f"{folder} is a file, and an index is a folder or a URL.")


def index_folder(run: Path, folder: str) -> str:
    """Where a RUN.toml's index is."""
    return folder if "://" in folder else str(run.parent / folder)


def engine_of(name: str, workers: int | None, address: str | None) -> "Engine":
    """The engine that the command line names."""
    if workers is not None and workers < 1:
        raise RunFileError(f"--workers must be at least 1; got {workers}.")
    from tracin import engines

    options: dict[str, Any] = {"workers": workers, "address": address}
    taken = {"serial": (), "processes": ("workers",), "ranks": (), "mesh": ()}
    taken |= {"ray": ("workers", "address")}
    if name not in taken:
        raise RunFileError(f"--engine must be one of {', '.join(taken)}; got {name!r}.")
    for option, value in options.items():
        if value is not None and option not in taken[name]:
            raise RunFileError(f"--{option} is not for --engine {name}; leave it out.")
    if name == "processes":
        return engines.Processes(2 if workers is None else workers)
    if name == "ranks":
        return engines.Ranks.from_environment()
    if name == "mesh":
        return engines.Mesh()
    if name == "ray":
        from tracin.integrations.ray import RayCluster

        return RayCluster(address, workers)
    return engines.Serial()
