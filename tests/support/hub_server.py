"""A server on this machine that speaks the Hugging Face Hub's protocol and has Meta's files, with faults on request.

What it imitates: `/api/models/ID[/revision/R]`, HEAD and GET of `/ID/resolve/R/FILE` with ETag, X-Repo-Commit,
X-Linked-Etag and X-Linked-Size, large files by a redirect to `/cdn/`, gated and missing repositories with X-Error-Code,
and `/meta/PATH`. Ranges and If-Range as CDNs answer them. It does not imitate Xet, rate limits or pages.
"""

import dataclasses
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".pt", ".pth", ".zip")


@dataclasses.dataclass
class Fault:
    """What goes wrong with one request. status: this answer at once. after: so many bytes of the body, and then `then`:
    "close" the connection, or "stall" until the server ends. flip: one bit of the body is another."""

    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    after: int | None = None
    then: str = "close"
    flip: bool = False


class HubServer:
    """Use as a context manager. `repositories`: files by id; `meta`: by path; `faults`: by path, one per request."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.meta: dict[str, bytes] = {}
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.unsized = False  # whether files of `meta` come without their length, until the connection is closed
        self.stalled = threading.Event()
        self.release = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        # Two of them: the Hub sends for large files to another host, where a token must not follow.
        self.servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in self.servers
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://127.0.0.1:{self.servers[1].server_port}"

    @property
    def meta_url(self) -> str:
        return f"{self.url}/meta"

    def commit(self, identifier: str) -> str:
        files = self.repositories[identifier]
        text = "".join(f"{name} {hashlib.sha1(data).hexdigest()}\n" for name, data in sorted(files.items()))
        return hashlib.sha1(text.encode()).hexdigest()

    def paths(self, method: str = "GET") -> list[str]:
        """Paths of the requests so far."""
        return [path for verb, path, _ in self.requests if verb == method]

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every GET of a path."""
        return [headers.get("range") for verb, where, headers in self.requests if (verb, where) == ("GET", path)]

    def cdn_path(self, identifier: str, name: str) -> str:
        return f"/cdn/{hashlib.sha256(self.repositories[identifier][name]).hexdigest()}"

    def __enter__(self) -> "HubServer":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release.set()
        for server, thread in zip(self.servers, self.threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        fault = self.hub.faults[path].pop(0) if not head and self.hub.faults[path] else Fault()
        if fault.status is not None:
            self.send(fault.status, b"fault", fault.headers, head)
        elif path.startswith("/api/models/"):
            self.model(path.removeprefix("/api/models/"), head)
        elif "/resolve/" in path:
            self.resolve(path, head)
        elif path.startswith("/cdn/"):
            digest = path.removeprefix("/cdn/")
            every = (data for files in self.hub.repositories.values() for data in files.values())
            self.body(next(data for data in every if hashlib.sha256(data).hexdigest() == digest), head, fault)
        elif path.removeprefix("/meta/") in self.hub.meta:
            self.body(self.hub.meta[path.removeprefix("/meta/")], head, fault)
        else:
            self.send(404, b"", {}, head)

    def model(self, rest: str, head: bool) -> None:
        identifier, _, revision = rest.partition("/revision/")
        if self.refused(identifier, revision or "main", head, page=True):
            return
        siblings = []
        for name, data in self.hub.repositories[identifier].items():
            one = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(LARGE):
                one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(one)
        content = {"id": identifier, "sha": self.hub.commit(identifier), "siblings": siblings, "private": False}
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, head)

    def resolve(self, path: str, head: bool) -> None:
        identifier, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if self.refused(identifier, revision, head):
            return
        data = self.hub.repositories[identifier].get(name)
        commit = {"X-Repo-Commit": self.hub.commit(identifier)}
        if data is None:
            self.send(404, b"", {**commit, "X-Error-Code": "EntryNotFound"}, head)
        elif name.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            self.send(302, b"", {**commit, **linked, "Location": f"{self.hub.cdn}/cdn/{digest}"}, head)
        else:
            self.send(200, data, {**commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, head)

    def refused(self, identifier: str, revision: str, head: bool, page: bool = False) -> bool:
        if identifier not in self.hub.repositories:
            self.send(401, b"", {"X-Error-Code": "RepoNotFound"}, head)
        elif revision not in ("main", self.hub.commit(identifier)):
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound"}, head)
        elif identifier in self.hub.gated and not page and self.headers.get("Authorization") != "Bearer good":
            self.send(403, b"", {"X-Error-Code": "GatedRepo"}, head)
        else:
            return False
        return True

    def body(self, data: bytes, head: bool, fault: Fault) -> None:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        start, wanted = 0, self.headers.get("Range")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(data) > 0:
            self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, head)
            return
        part = data[start:]
        if fault.flip:
            middle = len(part) // 2
            part = part[:middle] + bytes([part[middle] ^ 1]) + part[middle + 1 :]
        headers = {"ETag": etag, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.hub.unsized:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(part)
            self.close_connection = True
            return
        self.send(206 if start else 200, part, headers, head, fault)

    def send(self, status: int, data: bytes, headers: dict[str, str], head: bool, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if head:
            return
        if fault is None or fault.after is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: fault.after])
        self.wfile.flush()
        if fault.then == "stall":
            self.hub.stalled.set()
            self.hub.release.wait()
        self.close_connection = True
