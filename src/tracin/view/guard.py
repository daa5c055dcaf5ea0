"""Stands before all else: lets in this machine's own names alone, and the API only by its token."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 1 << 16
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
PROBLEMS = {
    401: "This needs the token: open the address that tracin view printed.",
    403: "Another site asked for this.",
    411: "A request with a body says its length.",
    413: "The body is too large.",
    421: "This host is unknown: use 127.0.0.1 or localhost, or start with --allow-host.",
}


@final
class Guard:
    """An ASGI application in front of another.

    A page of another site may send requests to this machine, also under a name that it has pointed
    here (DNS rebinding), so the Host header must be one of a few names, at any port (tunnels), and
    an Origin must be the same. Only the raw headers and path are looked at: a URL put together from
    a forged Host would move the path (CVE-2026-48710).

    Args:
        app: The application.
        token: What the API's requests carry as "Authorization: Bearer ...".
        hosts: Names that are let in besides those of this machine.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str] = ()) -> None:
        self._app, self._bearer = app, f"Bearer {token}".encode()
        self._hosts = {*LOOPBACK, *(name.lower() for name in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            return  # no websockets; a lifespan is left unanswered
        problem = self._problem(scope)
        is_api = scope["path"].startswith("/api/")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message.get("headers", [])}
                more = {**HEADERS, "cache-control": "no-store"} if is_api or problem else HEADERS
                message["headers"] = [
                    *message.get("headers", []),
                    *(
                        (name.encode(), value.encode())
                        for name, value in more.items()
                        if name.encode() not in names
                    ),
                ]
            await send(message)

        app: ASGIApp = (
            self._app
            if problem is None
            else JSONResponse({"error": PROBLEMS[problem]}, status_code=problem)
        )
        await app(scope, receive, sending)

    def _problem(self, scope: Scope) -> int | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = _values(headers, b"host")
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None or found[1] not in self._hosts:
            return 421
        origins = _values(headers, b"origin")
        if origins and origins not in ([f"http://{hosts[0]}"], [f"https://{hosts[0]}"]):
            return 403
        if scope["path"].startswith("/api/"):
            given = [value for name, value in headers if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._bearer):
                return 401
        if scope["method"] not in ("GET", "HEAD") or _values(headers, b"transfer-encoding"):
            length = _values(headers, b"content-length")
            if len(length) != 1 or not length[0].isdecimal():
                return 411
            if len(length[0]) > 9 or int(length[0]) > LARGEST_BODY:
                return 413
        return None


def media_key(token: str) -> str:
    """What pictures are asked by: an <img> sends no header, and must not carry the token.

    Example:
        >>> len(media_key("secret"))
        32
    """
    return hmac.new(token.encode(), b"media", hashlib.sha256).hexdigest()[:32]


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for key, value in headers if key == name]
