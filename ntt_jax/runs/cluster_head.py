"""The machines of a Ray cluster, asked without ever waiting for a head that is gone.

Ray ends this process, without a word, a minute after the head of the cluster has gone, or as soon as its own part on
this machine has. What is noticed here before that becomes one line.
"""

import os
import socket
import time
from typing import Any

from ntt_jax.errors import InputError

NO_ANSWER = 30.0
"""Seconds without an answer of the head before the command ends; Ray itself gives up after 60."""
REACHED_WITHIN = 5.0
"""Seconds that a connection may take at the start."""
_AGAIN_WITHIN = 1.0  # and later
_NO_RAYLET = (
    "--ray: Ray's own process on this machine (raylet) has ended; what is finished is saved, the same command goes on "
    "from there"
)
# What an HTTP/2 client says first, with no settings of its own; a server answers with its settings, a frame of type 4.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


class ClusterLost(InputError):
    """There is no cluster any more; Ray must not be asked for anything."""


class Head:
    """The head of the cluster that this process is connected to.

    address: as given to Ray; one of a host and a port is what is looked at, otherwise what Ray says of the head.
    """

    def __init__(self, ray: Any, address: str):
        about = ray.get_runtime_context()
        self._ray, self._at, self._own = ray, host_and_port(address) or host_and_port(about.gcs_address), None
        self._answered, self._raylet = time.monotonic(), None
        own = about.get_node_id()
        for node in ray.nodes():
            if node["NodeID"] == own:
                self._own, self._raylet = own, _listening(str(node.get("RayletSocketName", "")))

    def close(self) -> None:
        """Nobody asks any more."""
        if self._raylet is not None:
            self._raylet.close()

    def nodes(self) -> list[dict[str, Any]] | None:
        """The machines that live, as `ray.nodes`; None while the head does not answer.

        Raises `ClusterLost` when that lasts, or when this machine is none of them any more.
        """
        now = time.monotonic()
        if self._raylet is not None and _ended(self._raylet):
            raise ClusterLost(_NO_RAYLET)  # the head would tell some 15 s later, if Ray had not ended this process
        try:
            if self._at is not None:
                knock(self._at, _AGAIN_WITHIN)
        except OSError as error:
            if now - self._answered < NO_ANSWER:
                return None
            raise ClusterLost(
                f"--ray: the head of the cluster has not answered for {NO_ANSWER:.0f} s ({error.strerror or error}); "
                "what is finished is saved, the same command goes on from there"
            ) from None
        self._answered = now
        living = [node for node in self._ray.nodes() if node["Alive"]]
        if self._own is not None and all(node["NodeID"] != self._own for node in living):
            raise ClusterLost(_NO_RAYLET)
        return living


def _listening(path: str) -> socket.socket | None:
    """A connection with whoever listens at a socket of this machine, which says nothing; None if that is not known."""
    if not path.startswith("/"):  # Windows
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_AGAIN_WITHIN)
        connection.connect(path)
        connection.setblocking(False)
    except OSError:
        connection.close()
        return None
    return connection


def _ended(connection: socket.socket) -> bool:
    """Whether the process at the other end is gone."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def host_and_port(address: str) -> tuple[str, int] | None:
    """What "10.0.0.5:6379" or "ray://host:10001" names; None for words as "auto"."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if colon and port.isdecimal() and len(port) < 6 else None


def knock(at: tuple[str, int], within: float) -> None:
    """Raise `OSError` unless something answers there, within `within` seconds, that may be a Ray head.

    Ray speaks gRPC, which is HTTP/2, and asks for minutes where something listens that does not, or that hangs. With
    Ray's TLS (`RAY_USE_TLS`) only that something listens is found out.
    """
    with socket.create_connection(at, timeout=within) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_PREFACE)
        answer = b""
        while len(answer) < 4 and (part := connection.recv(9 - len(answer))):
            answer += part
    if answer[3:4] != bytes((_SETTINGS,)):
        raise ConnectionError("what listens there is not Ray")
