"""A web server on this machine that has the files of a folder, and answers of other kinds by the first part of a path.

/a.png            the file; a folder is a page of links      /status/CODE/a.png    that answer
/after/N/CODE/a.png   CODE for the first N requests          /endless/a.png   bytes without an end or a length
/cut/a.png        half of what its length says               /silent/a.png    nothing, until the server ends
/circle/...       a page of links to two folders below it    /moved/a.png     moved to /a.png
/bomb/            an endless page of links that never end    /round/a.png     moved to where it is
"""

import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ImageServer:
    """Use as a context manager. requests: how often each path was asked for."""

    def __init__(self, folder: Path):
        self.requests: Counter[str] = Counter()
        self.ending = threading.Event()
        handler = type("Handler", (_Handler,), {"images": self, "folder": str(folder)})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ImageServer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who ask hang up."""


class _Handler(SimpleHTTPRequestHandler):
    images: ImageServer
    folder: str

    def __init__(self, *arguments: Any):
        super().__init__(*arguments, directory=self.folder)

    def do_GET(self) -> None:
        self.images.requests[self.path] += 1
        kind, *rest = self.path.lstrip("/").split("/")
        if kind == "status":
            self.send_error(int(rest[0]))
        elif kind == "after" and self.images.requests[self.path] <= int(rest[0]):
            self.send_error(int(rest[1]))
        elif kind == "after":
            self.path = f"/{rest[2]}"
            super().do_GET()
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.images.ending.is_set():
                self.wfile.write(bytes(2**16))
        elif kind == "cut":
            content = (Path(self.folder) / rest[0]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        elif kind == "circle":
            self._page(b'<a href="one/">1</a> <a href="two/">2</a>')
        elif kind in ("moved", "round"):
            self.send_response(302)
            self.send_header("Location", f"/{rest[0]}" if kind == "moved" else self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "bomb":
            self._page(b"<a " * 2**15, length=False)
            while not self.images.ending.is_set():
                self.wfile.write(b"<a " * 2**15)
        elif kind == "silent":
            self.images.ending.wait()
        else:
            super().do_GET()

    def _page(self, content: bytes, length: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=none-such")
        if length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""
