"""The commands that look at a ranking and act on what was decided: view and apply."""

from pathlib import Path
from typing import Annotated

import typer

from tracin.cli.destination import Overwrite, check_new
from tracin.errors import RunFileError
from tracin.extras import install_line
from tracin.plain_text import plain

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", help="A run's folder, its results, an index, or a ranking's Parquet file."
    ),
]


def view(
    folder: Folder,
    index: Annotated[
        str | None, typer.Option("--index", help="The index that explains: a folder or URL.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="A text file: the name of each class, a line.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    others_may_look: Annotated[
        bool, typer.Option("--i-know", help="With --host: other machines may reach the page.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A name that a proxy passes on."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Look at the ranking in a browser, and decide which labels are wrong.

    Shows what tracin mislabelled wrote, and what explains each example by the rows of an index. No
    code of yours runs. The page is on this machine alone; decisions go to decisions.sqlite.
    """
    try:
        from tracin.view.serving import ServerOptions, is_loopback, serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tracin":
            raise
        raise RunFileError(
            f"The viewer needs {error.name}, which is not installed: {install_line('view')}."
        ) from error
    if not is_loopback(host):
        meaning = (
            f"--host {host} lets other machines reach the page. Whoever has the address with its "
            "token sees your examples and decides about them, and nothing is encrypted."
        )
        if not others_may_look:
            raise RunFileError(
                f"{meaning} Better: ssh -L 8000:localhost:PORT this-machine. If it must be, add "
                "--i-know."
            )
        typer.echo(plain(meaning), err=True)
    names = _names(labels) if labels is not None else ()
    from tracin.view.viewer import Viewer, give_memory_back

    give_memory_back()
    viewer = Viewer(folder, index, names)
    try:
        options = ServerOptions(host, port, tuple(allow_host or ()), browser)
        serve(viewer, options, lambda line: typer.echo(plain(line)))
    finally:
        viewer.close()


def apply_decisions(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", help="A .csv, .json or .parquet file.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the labels of all examples as they were decided in tracin view.

    One row per example: id, position, label, given_label, decision, and keep, which is false where
    the label is wrong and no better one was given.
    """
    from tracin.decisions.decided import mended_columns
    from tracin.decisions.log import DecisionLog
    from tracin.decisions.ranked_table import ranked_table_in
    from tracin.results.saving import save_columns, writer_for

    writer_for(out)  # another suffix is refused before anything is read
    check_new(out, overwrite)
    table = ranked_table_in(folder)
    if not table.log.is_file():
        raise RunFileError(
            f"{table.path} was not decided about: {table.log} is not there. Run tracin view first."
        )
    log = DecisionLog(table.log, table)
    try:
        columns = mended_columns(table, log)
        save_columns(columns, out)
        wrong, relabelled = (
            int((columns["decision"] == kind).sum()) for kind in ("wrong", "relabelled")
        )
    finally:
        log.close()
    typer.echo(
        f"{len(table)} labels, {relabelled} of them new, and {wrong} called wrong without a better "
        f"one (keep is false); written to {plain(out)}"
    )
    if log.others:
        typer.echo(f"{log.others} entries of the log are about other data and were left out.")


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise RunFileError(
            f"--labels {path} cannot be read ({error}). Give a text file in UTF-8 with the name of "
            "one class per line, from class 0 on."
        ) from error
