"""Runs the page on this machine: a port of the kernel's choice, a token of this start's own."""

import asyncio
import html
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import final

import uvicorn

from tracin.errors import OutputError
from tracin.view.app import application
from tracin.view.viewer import Viewer


@final
@dataclass(frozen=True)
class ServerOptions:
    """Where the page is, and who may reach it.

    Attributes:
        host: The address to listen at.
        port: The port; 0 lets the kernel choose.
        allowed_hosts: Names in a Host header that are let in besides those of this machine.
        opens_browser: Whether a browser is opened.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: tuple[str, ...] = ()
    opens_browser: bool = True


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def serve(viewer: Viewer, options: ServerOptions, say: Callable[[str], object]) -> None:
    """Serve until Ctrl-C.

    Args:
        viewer: What is shown.
        options: Where.
        say: Takes lines for the person.

    Raises:
        OutputError: The port is taken.
    """
    token = secrets.token_urlsafe(32)
    with (
        _ending_in_order(),
        _listening(options) as listener,
        _address_file(options, listener, token) as (url, file),
    ):
        # The token goes to a terminal, or to a file that this user alone may read; never into
        # output that is kept, nor into a command line, which `ps` shows to everybody.
        at = url.partition("#")[0]
        if sys.stdout.isatty():
            say(f"Open {url}")
        else:
            say(f"Serving at {at}; open {file} in a browser on this machine.")
        say("Ctrl-C ends it. Decisions are kept as they are made.")
        if options.opens_browser:
            webbrowser.open(file.as_uri())
        hosts = (*options.allowed_hosts, *_own_name(options.host))
        config = uvicorn.Config(
            application(viewer, token, hosts),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            limit_concurrency=64,
            timeout_graceful_shutdown=2,
        )
        with unfinished_requests_end_quietly(), suppress(KeyboardInterrupt):  # how it ends
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def unfinished_requests_end_quietly() -> Iterator[None]:
    """Keep requests that Ctrl-C cuts off from being logged as errors, each with a traceback."""
    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(_is_no_cut)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_cut)


def _is_no_cut(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    is_cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
    return not is_cancelled and "timeout graceful shutdown exceeded" not in str(record.msg)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a SIGTERM, which uvicorn raises again at its end, run what tidies up."""

    def end(*_: object) -> None:
        raise SystemExit(0)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
            listener.listen()  # the address holds from the moment that it is shown
        except OSError as error:
            raise OutputError(
                f"Cannot listen at {options.host}, port {options.port}: {error.strerror or error}. "
                "Leave --port out for a free one."
            ) from error
        yield listener


@contextmanager
def _address_file(
    options: ServerOptions, listener: socket.socket, token: str
) -> Iterator[tuple[str, Path]]:
    """The page's address, and a file that leads there, which only this user may read."""
    name = options.host if is_loopback(options.host) else socket.gethostname()
    name = f"[{name}]" if ":" in name else name
    url = f"http://{name}:{listener.getsockname()[1]}/#token={token}"
    folder = Path(tempfile.mkdtemp(prefix="tracin-view-"))  # 0700
    file = folder / "open.html"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(
                '<!doctype html><meta charset="utf-8"><title>tracin view</title>'
                f'<meta http-equiv="refresh" content="0;url={html.escape(url)}">'
                f'<a href="{html.escape(url)}">tracin view</a>\n'
            )
        yield url, file
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_name(host: str) -> tuple[str, ...]:
    """What a Host header may be where more than this machine is served: the name that was asked."""
    if is_loopback(host):
        return ()
    return (socket.gethostname(), f"[{host}]" if ":" in host else host)
