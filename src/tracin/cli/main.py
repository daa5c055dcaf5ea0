"""The entry point: runs a command, and turns errors into one readable message."""

import errno
import os
import sys
from types import TracebackType

from tracin.errors import TracInError
from tracin.extras import install_line

CLOSED, BAD_INPUT, INTERRUPTED = 1, 2, 130
_INTERRUPTED = "interrupted; nothing half-written is left behind"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 for bad input, 130 for Ctrl-C, 1 for a closed pipe.

    Errors that are bugs keep their traceback and exit with 1.
    """
    try:
        from tracin.cli.commands import app
        from tracin.cli.screen import show
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "tracin":
            raise
        print(
            f"error: the command line needs {error.name}: {install_line('cli')}.",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    try:
        # Not standalone: errors and Ctrl-C come here, where their words and codes are settled.
        code = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except TracInError as error:
        # Notes say where an error comes from, such as the user's own task.
        show("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), err=True)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        # Files have words of their own; what is left without a file's name is the screen's.
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        sys.exit(_screen_is_gone(error))
    except Exception as error:
        sys.exit(_usage(error))
    if code == INTERRUPTED:
        print(_INTERRUPTED, file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _screen_is_gone(error: OSError) -> int:
    """End where the output cannot be written: a pager was closed, or the output's disk is full."""
    # Python would flush once more as it ends, and say that it cannot.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # open until the end
    if error.errno == errno.EPIPE:
        return CLOSED
    print(f"error: standard output cannot be written to: {error.strerror}.", file=sys.stderr)
    return BAD_INPUT


def _usage(error: Exception) -> int:
    """Show a wrong use of the command line; anything else is a bug and is raised again."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if type(error).__name__ == "Abort":
        print(_INTERRUPTED, file=sys.stderr)
        return INTERRUPTED
    if callable(show) and isinstance(code, int):
        show()
        return code
    if isinstance(code, int):
        return code
    raise error.with_traceback(_from_the_command_on(error.__traceback__))


def _from_the_command_on(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of the command line's parser."""
    inner = frames
    while inner is not None:
        module = inner.tb_frame.f_globals.get("__name__", "")
        if module.startswith("tracin.cli.") and module != __name__:
            return inner
        inner = inner.tb_next
    return frames
