"""A run with all that its commands work with: settings, the task, the front door."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracin.cli.results import check_writable
from tracin.cli.settings import Settings, read_settings
from tracin.cli.task import Task, load_task
from tracin.errors import DeviceError, RunFileError

if TYPE_CHECKING:
    from tracin import TracIn


@dataclass(frozen=True)
class Opened:
    """A run with all that its commands work with."""

    settings: Settings
    task: Task
    tracer: "TracIn"
    folder: Path


def opened_run(run: Path, sets: list[str] | None, out: Path | None) -> Opened:
    """Read the settings, call the task, and open the front door."""
    settings = read_settings(run, sets or [])
    folder = run.parent / settings.output.folder if out is None else out
    check_writable(folder)
    options = settings.tracin
    _check_device(options.device, run)
    task = load_task(settings.task.function, run)
    from tracin import EKFAC, KFAC, Adam, Kernel, TracIn

    preconditioners = {
        None: None,
        "adam": Adam(),
        "kfac": KFAC(),
        "ekfac": EKFAC(),
        "kernel": Kernel(),
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
    return Opened(settings, task, tracer, folder)


def _check_device(device: str | None, run: Path) -> None:
    from tracin.scoring.device import checked_device

    try:
        checked_device(device)
    except DeviceError as error:
        raise RunFileError(f"{run}: 'tracin.device' = {device!r}: {error}") from error
