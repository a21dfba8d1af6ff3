"""Starting the two programs: the address, the token, the server, and an end that loses nothing."""

import contextlib
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ntt_jax.app.api import Service, editing_router, make_application
from ntt_jax.app.guard import Guard
from ntt_jax.app.page_api import page_router
from ntt_jax.app.project import Project
from ntt_jax.app.search import Search
from ntt_jax.app.workbench import Workbench
from ntt_jax.errors import InputError
from ntt_jax.segmenter.segmenter import Segmenter

LOCAL = ("127.0.0.1", "::1", "localhost")
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
def page(folder: Path, sam2: Any, dinov2: Any, address: Address, **options: Any) -> Iterator[Guard]:
    """The application of `ntt-jax app` over a folder of photos; options as for `Segmenter`.

    Raises `InputError` as `Project`.
    """
    project = Project(folder)
    try:
        bench = Workbench(project, sam2, dinov2, **options)
        service = Service(bench.segmenter, edits=bench.edits)
        search = Search(bench, lambda: service.metrics.images(1))
        try:
            router = page_router(service, bench, search)
            threading.Thread(target=bench.warm, name="warming", daemon=True).start()
            yield _guarded(service, address, router, title="ntt-jax app")
        finally:
            search.close()
    finally:
        project.close()


@contextlib.contextmanager
def service(segmenter: Segmenter, address: Address, **options: Any) -> Iterator[Guard]:
    """The application of `ntt-jax serve`; options as for `Service`."""
    made = Service(segmenter, **options)
    yield _guarded(made, address, editing_router(made), title="ntt-jax serve")


def _guarded(service: Service, address: Address, *routers: Any, title: str) -> Guard:
    app = make_application(service, *routers, title=title)
    return Guard(app, token=address.token, port=address.port, hosts=address.hosts, metrics=service.metrics)


def run(guard: Guard, address: Address, *, started: Callable[[], None], browser: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM. started: called when requests are answered."""
    config = uvicorn.Config(
        guard,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=_CONNECTIONS,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
        http="h11",
    )
    server = uvicorn.Server(config)

    def announce() -> None:
        while not server.started and not server.should_exit:
            threading.Event().wait(0.02)
        if server.started:
            started()
            if browser:
                webbrowser.open(f"{address.url}/?token={address.token}")

    threading.Thread(target=announce, daemon=True).start()
    try:
        server.run(sockets=[address.listener])
    finally:
        address.listener.close()
