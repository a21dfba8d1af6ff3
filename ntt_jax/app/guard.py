"""Who may ask, how much and how long: the frame around every request, before anything of it is used.

The page and the address to call listen on this machine. Other pages in the same browser can reach them all the same,
so a secret token, the Host header (against DNS rebinding) and the Origin header are checked. A request is read whole
first, up to a number of bytes and seconds, so that what is behind the guard never waits for a slow sender.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from ntt_jax.app.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 64 * 1024**2
"""Bytes of one request: as a photo file's limit in the reader, and what surrounds it."""
MAX_TEXT = 4 * 1024**2
"""Bytes of a request that is no form: JSON takes twenty times its size and more in memory once it is parsed."""
MAX_BUFFERED = 512 * 1024**2
"""Bytes of all requests that are being received or answered."""
BODY_SECONDS = 30.0
BUSY = "too many images are waiting; try again after the seconds that Retry-After says"

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
OPEN_PATHS = frozenset({"/v1/health"})
"""What may be asked without a token: whether the process is alive, and nothing else."""


_ONCE = frozenset({"host", "origin", "authorization", "sec-fetch-site", "sec-fetch-mode", "content-type"})
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
{head}
</head>
<body>
<h1>ntt-jax</h1>
<p>{text}</p>
</body>
</html>
"""
_ENTERED = _PAGE.format(
    head='<meta http-equiv="refresh" content="0; url=/">\n<title>ntt-jax</title>', text='<a href="/">Go on</a>'
)
_CLOSED = _PAGE.format(
    head="<title>ntt-jax: no token</title>",
    text="Open the address that the program printed when it started: it ends in <code>?token=...</code>",
)


class _Refusal(Exception):
    def __init__(self, status: int, detail: str, **headers: str):
        self.status, self.detail, self.headers = status, detail, headers


class Guard:
    """An ASGI application around another one.

    token: who does not send it (as `Authorization: Bearer`, in the cookie, or once as `/?token=`) is refused with 401.
    port: of the server, for the cookie's name. hosts: values of the Host header that are answered, others get 421.
    max_body (of forms), max_text (of anything else), body_seconds, max_buffered: limits; 413, 408 and 429 beyond them.
    busy: of a path, after how many seconds it may be asked again; those requests get 429 before any work is spent on
    them. None: it may be asked now.
    """

    def __init__(
        self,
        app: Any,
        *,
        token: str,
        port: int,
        hosts: Collection[str],
        metrics: Metrics,
        max_body: int = MAX_BODY,
        max_text: int = MAX_TEXT,
        body_seconds: float = BODY_SECONDS,
        max_buffered: int = MAX_BUFFERED,
        busy: Callable[[str], int | None] = lambda path: None,
    ):
        self._app, self._token, self._hosts, self._metrics = app, token, frozenset(h.lower() for h in hosts), metrics
        self._cookie = f"ntt_jax_{port}"  # cookies know no ports
        self._max_body, self._max_text = max_body, max_text
        self._seconds, self._max_buffered = body_seconds, max_buffered
        self._buffered, self._busy = 0, busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = dict(message.get("headers", []))
                own = {key.lower(): value for key, value in own.items()}
                missing = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
                message = {**message, "headers": [*message.get("headers", []), *missing]}
            await send(message)

        held = 0
        try:
            headers = _headers(scope)
            self._check_source(headers)
            if scope["path"] not in OPEN_PATHS and not self._has_token(headers):
                await self._enter(scope, headers, answer)
                return
            body, held = await self._read(headers, receive)  # whole: who is refused while sending may not hear of it
            if (seconds := self._busy(scope["path"])) is not None:
                raise _Refusal(429, BUSY, **{"retry-after": str(seconds)})
            await self._app(scope, _replay(body, receive), answer)
        except _Refusal as refusal:
            await _respond(answer, refusal.status, {"detail": refusal.detail}, refusal.headers)
        finally:
            self._buffered -= held
            self._metrics.request(scope["path"], status, time.perf_counter() - started)

    def _check_source(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            raise _Refusal(421, "this server is not called by that name (Host header)")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}", f"https://{host}"}:
            raise _Refusal(403, "requests from other pages are refused (Origin header)")
        # Pictures and scripts of a page come without Origin, and with the cookie if another program of this machine
        # serves that page: to browsers, all ports are one site.
        elsewhere = headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin")
        if elsewhere and headers.get("sec-fetch-mode", "").lower() != "navigate":
            raise _Refusal(403, "requests from other pages are refused (Sec-Fetch-Site header)")

    def _has_token(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not given:
            try:
                cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
            except CookieError:
                cookie = None
            given = cookie.value if cookie is not None else ""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    async def _enter(self, scope: Scope, headers: dict[str, str], answer: Send) -> None:
        """The printed address: the token becomes a cookie, and leaves the address bar and the history.

        The answer is a redirect to "/". For a link in another page, as the file that the browser is started with, it is
        a page that goes on by itself: a redirect would count as sent by that other page, and a browser would hold the
        strict cookie back.
        """
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET":
            if hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
                cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
                if headers.get("sec-fetch-site", "none").lower() in ("none", "same-origin"):
                    await _respond(answer, 303, {}, {"location": "/", "set-cookie": cookie})
                else:
                    await _respond(answer, 200, _ENTERED, {"set-cookie": cookie})
                return
            await _respond(answer, 401, _CLOSED, {})
            return
        detail = "expected the token that the program printed, as Authorization: Bearer TOKEN"
        raise _Refusal(401, detail, **{"www-authenticate": "Bearer"})

    async def _read(self, headers: dict[str, str], receive: Receive) -> tuple[bytes, int]:
        """The body, and how many bytes it keeps from `max_buffered`."""
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        most = self._max_body if form else min(self._max_body, self._max_text)
        length = headers.get("content-length", "0")
        claimed = int(length) if length.isdecimal() and len(length) < 16 else most + 1
        if claimed > most:
            raise _Refusal(413, f"expected at most {most} bytes in one request")
        chunks: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refusal(400, "the request was cut off")
                    chunk = message.get("body", b"")
                    more = message.get("more_body", False)
                    if self._buffered + len(chunk) > self._max_buffered:
                        raise _Refusal(429, "too much is being sent at once; try again", **{"retry-after": "2"})
                    self._buffered += len(chunk)
                    held += len(chunk)
                    if held > most:
                        raise _Refusal(413, f"expected at most {most} bytes in one request")
                    chunks.append(chunk)
        except TimeoutError:
            self._buffered -= held
            raise _Refusal(408, f"the request did not arrive within {self._seconds:g} s") from None
        except BaseException:
            self._buffered -= held
            raise
        return b"".join(chunks), held


def _headers(scope: Scope) -> dict[str, str]:
    """By name in small letters. Refuses a request that says one of the headers twice that decide who may ask."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name = key.decode("latin-1").lower()
        if name in _ONCE and name in found:
            raise _Refusal(400, f"expected one {name} header")
        found[name] = value.decode("latin-1")
    return found


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for an application whose request has been read; what follows is the client going away."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _respond(send: Send, status: int, content: Any, headers: dict[str, str]) -> None:
    text = isinstance(content, str)
    body = content.encode() if text else json.dumps(content).encode()
    kind = "text/html; charset=utf-8" if text else "application/json"
    given = {"content-type": kind, "content-length": str(len(body)), "connection": "close", **headers}
    listed = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
