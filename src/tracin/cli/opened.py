"""A run with all that its commands work with: settings, the task, the front door."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tracin.cli.destination import Destination, Output
from tracin.cli.settings import Settings, TracInTable, read_settings
from tracin.cli.task import Task, load_task
from tracin.errors import DeviceError, RunFileError

if TYPE_CHECKING:
    from tracin import TracIn


@dataclass(frozen=True)
class Opened:
    """A run with all that its commands work with.

    Attributes:
        settings: What the RUN.toml and the command line say.
        task: What the task function returned.
        tracer: The front door.
        destination: Where the result goes.
        stdout: Standard output, which only the result is written to if a program reads it.
    """

    settings: Settings
    task: Task
    tracer: "TracIn"
    destination: Destination
    stdout: TextIO


def opened_run(run: Path, sets: list[str] | None, output: Output, command: str) -> Opened:
    """Read the settings, call the task, and open the front door.

    Args:
        run: The RUN.toml.
        sets: Settings that the command line changes.
        output: Where the result goes, as the command line says.
        command: Its name.
    """
    settings = read_settings(run, sets or [])
    destination = output.destination(command, run.parent / settings.output.folder)
    options = settings.tracin
    _check_device(options.device, run)
    stdout = sys.stdout
    if destination.is_for_programs:
        # A task may print, and so may its data and its loss, until the command ends.
        sys.stdout = sys.stderr
    task = load_task(settings.task.function, run)
    from tracin import EKFAC, KFAC, Adam, Kernel, TracIn

    kept = _curvature_folder(options, run)
    preconditioners = {
        None: None,
        "adam": Adam(),
        "kfac": KFAC(folder=kept),
        "ekfac": EKFAC(folder=kept),
        "kernel": Kernel(),
        "adam_kernel": Kernel(under=Adam()),
    }

    tracer = TracIn(
        task.model,
        task.loss,
        task.checkpoints,
        parameters=options.parameters,
        learning_rates=options.learning_rates,
        device=options.device,
        preconditioner=preconditioners[options.preconditioner],
    )
    return Opened(settings, task, tracer, destination, stdout)


def _curvature_folder(options: TracInTable, run: Path) -> Path | None:
    if options.curvature_folder is None:
        return None
    if options.preconditioner not in ("kfac", "ekfac"):
        raise RunFileError(
            f'{run}: \'tracin.curvature_folder\' keeps what preconditioner = "kfac" or "ekfac" '
            f"computes, but the preconditioner is {options.preconditioner!r}. Leave it out."
        )
    if not options.curvature_folder:
        raise RunFileError(
            f"{run}: 'tracin.curvature_folder' is empty; it is the path of a folder."
        )
    return run.parent / options.curvature_folder


def _check_device(device: str | None, run: Path) -> None:
    from tracin.scoring.device import checked_device

    try:
        checked_device(device)
    except DeviceError as error:
        raise RunFileError(f"{run}: 'tracin.device' = {device!r}: {error}") from error
