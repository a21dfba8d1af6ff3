"""A running `ntt-jax app` or `serve` in this process, on a port of its own, for tests."""

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from ntt_jax.app import running

TOKEN = "a-token-for-the-tests"


@contextlib.contextmanager
def full_disk(most: int = 100) -> Iterator[None]:
    """The system refuses to write more than so many bytes to a file of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def served(make: Any) -> Iterator[httpx.Client]:
    """A client, with the token, of the application that `make(address)`, a context manager, gives."""
    address = running.listen("127.0.0.1", 0, TOKEN)
    with make(address) as guard:
        server = running.make_server(guard)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [address.listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        headers = {"authorization": f"Bearer {TOKEN}"}
        try:
            with httpx.Client(base_url=address.url, headers=headers, timeout=300) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            address.listener.close()
