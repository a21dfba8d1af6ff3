"""Starting the two programs: the address, the token, the server, and an end that loses nothing."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ntt_jax.app.api import Service, editing_router, make_application
from ntt_jax.app.guard import BODY_SECONDS, Guard
from ntt_jax.app.page_api import page_router
from ntt_jax.app.project import Project
from ntt_jax.app.search import Search
from ntt_jax.app.segment_folder import SegmentFolder
from ntt_jax.app.workbench import Workbench
from ntt_jax.errors import InputError
from ntt_jax.runs.models import Compute
from ntt_jax.segmenter.segmenter import Segmenter

LOCAL = ("127.0.0.1", "::1", "localhost")
DOOR = "open.html"
"""The file in the project's folder that the browser is started with."""
_CONNECTIONS = 512


@dataclass(frozen=True)
class Address:
    """Where a program listens: the socket, bound already; the token of its users; the names it answers to."""

    listener: socket.socket
    token: str
    hosts: Collection[str]
    url: str

    @property
    def port(self) -> int:
        """The port, chosen by the system where 0 was asked for."""
        return self.listener.getsockname()[1]


def listen(host: str, port: int, token: str | None = None) -> Address:
    """Bind the address and make a token, if none is given.

    Raises `InputError` if the port is taken or the host is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port, or 0 for any") from None
    port = listener.getsockname()[1]
    names = set(LOCAL) if host in LOCAL else {host, *LOCAL, *_own_names(host)}
    hosts = {f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names}
    token = token or secrets.token_urlsafe(24)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    return Address(listener, token, hosts, f"http://{shown}:{port}")


def _own_names(host: str) -> set[str]:
    """Under which a machine that listens on all its addresses is called."""
    if host not in ("0.0.0.0", "::"):
        return set()
    name = socket.gethostname()
    names = {name, socket.getfqdn()}
    with contextlib.suppress(OSError):
        names |= {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    return {name.lower() for name in names}


@contextlib.contextmanager
def page(
    folder: Path,
    sam2: Any,
    dinov2: Any,
    address: Address,
    *,
    files: tuple[Path, Path] | None = None,
    compute: Compute | None = None,
    warm: bool = True,
    **options: Any,
) -> Iterator[Guard]:
    """The application of `ntt-jax app` over a folder of photos.

    files: of SAM 2 and DINOv2, so that the commands can go on with what was found (`SegmentFolder`). compute: how the
    models run. warm: compile what the first clicks need before they come. options: as for `Segmenter`, saying the same
    as `compute`.

    Raises `InputError` as `Project`.
    """
    project = Project(folder)
    try:
        bench = Workbench(project, sam2, dinov2, **options)
        service = Service(bench.segmenter, edits=bench.edits)
        config, how = bench.segmenter.config, compute or Compute()
        run = None if files is None else SegmentFolder(project, *files, config=config, compute=how)
        search = Search(bench, lambda: service.metrics.images(1), run)
        try:
            router = page_router(service, bench, search)
            if warm:
                threading.Thread(target=bench.warm, name="warming", daemon=True).start()
            yield _guarded(service, address, router, title="ntt-jax app", home="index.html")
        finally:
            search.close()
    finally:
        project.close()


@contextlib.contextmanager
def service(segmenter: Segmenter, address: Address, **options: Any) -> Iterator[Guard]:
    """The application of `ntt-jax serve`; options as for `Service`."""
    made = Service(segmenter, **options)
    yield _guarded(made, address, editing_router(made), title="ntt-jax serve", home="docs.html")


def _guarded(service: Service, address: Address, *routers: Any, title: str, home: str) -> Guard:
    app = make_application(service, *routers, title=title, home=home)
    return Guard(
        app, token=address.token, port=address.port, hosts=address.hosts, metrics=service.metrics, busy=service.busy
    )


class _Protocol(H11Protocol):
    """uvicorn's, for clients that never finish the head of a request: the connection is closed after some seconds.

    Without it they would hold all connections there may be, token or not. If so many come that half of those are held,
    the oldest one is closed for each that comes. (The guard has an eye on what follows the head.)
    """

    head_seconds = BODY_SECONDS
    most_waiting = _CONNECTIONS // 2
    waiting: dict["_Protocol", None]
    """Those of a server whose head has not arrived, oldest first."""
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self.transport.close)
            self.waiting[self] = None
            if len(self.waiting) > self.most_waiting:
                oldest = next(iter(self.waiting))
                oldest._forget()
                oldest.transport.abort()

    def _forget(self) -> None:
        self.waiting.pop(self, None)
        if self._late is not None:
            self._late.cancel()
            self._late = None


def make_server(guard: Guard) -> uvicorn.Server:
    """The server of both programs, with its limits."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        guard,
        log_level="error",  # what is wrong with a request is told to who sent it
        access_log=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=_CONNECTIONS,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
        http=type("_Protocol", (_Protocol,), {"waiting": {}}),
        ws="none",
        proxy_headers=False,  # nothing here depends on what a proxy says of who asks
    )
    return uvicorn.Server(config)


def run(guard: Guard, address: Address, *, started: Callable[[], None], browser: Path | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    started: called when requests are answered. browser: a folder of the user's; the page is opened by a file in it.
    """
    server = make_server(guard)
    door = None if browser is None else browser / DOOR

    def announce() -> None:
        while not server.started and not server.should_exit:
            threading.Event().wait(0.02)
        if server.started:
            started()
            if door is not None:
                with contextlib.suppress(OSError):  # the address is printed all the same
                    _write_door(door, f"{address.url}/?token={address.token}")
                    webbrowser.open(door.resolve().as_uri())

    threading.Thread(target=announce, daemon=True).start()
    try:
        server.run(sockets=[address.listener])
    finally:
        address.listener.close()
        if door is not None:
            with contextlib.suppress(OSError):
                door.unlink()


def _write_door(path: Path, url: str) -> None:
    """A page that leads to an address and that this user alone can read.

    What a program is started with can be read by all users of a machine: a browser is not to be started with the token.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={url}"><a href="{url}">ntt-jax</a>\n')
