"""`tracin report`: saved results as one HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracin.cli.destination import Overwrite, check_new
from tracin.cli.index_commands import Set
from tracin.cli.settings import read_settings
from tracin.errors import RunFileError
from tracin.plain_text import plain

NAME = "report.html"


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|RUN.toml", help="Results, a Tracer's folder, or a run, to see its data."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file; report.html in the folder if left out.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="On top of the page.")] = None,
    sets: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Write saved results as one HTML file, to open in a browser.

    A folder alone shows ids. With a RUN.toml the page also shows what the examples are: the task is
    run for its train and queries and, if it returns them, 'labels', 'show' and 'decode'.
    """
    settings = read_settings(source, sets or []) if source.suffix == ".toml" else None
    folder = source if settings is None else source.parent / settings.output.folder
    if settings is None and sets:
        raise RunFileError("--set changes a setting of a RUN.toml; give one in place of a folder.")
    if settings is not None and not folder.is_dir():
        raise RunFileError(
            f"{source}: there are no results in {folder} yet. 'tracin mislabelled {source}' and "
            f"'tracin explain {source} --query 0' write some."
        )
    page = folder / NAME if out is None else out
    check_new(page, overwrite)
    # Imported late: torch is slow to import, and a missing file is reported at once.
    from tracin.report.saved import saved_results
    from tracin.report.write import write_page
    from tracin.results.shown import Showing

    saved = saved_results(folder)
    # Results first: a task may take long, and nothing to show is reported at once.
    examples = {} if settings is None else _examples(settings.task.function, source)
    made = write_page(
        page,
        saved.results,
        train=examples.get("train"),
        queries=examples.get("queries"),
        how=Showing(examples.get("labels"), examples.get("decode"), examples.get("show")),
        title=title,
        notes=saved.notes,
    )
    typer.echo("\n".join([f"written to {made}", *map(plain, saved.notes)]))


def _examples(function: str, run: Path) -> Mapping[str, Any]:
    """What a page needs of a task."""
    from tracin.cli.task import load_task

    task = load_task(function, run)
    return {
        "train": task.train,
        "queries": task.train if task.queries is None else task.queries,
        "labels": task.labels,
        "show": task.show,
        "decode": task.decode,
    }
