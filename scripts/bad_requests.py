"""Requests that are not as they should be, made from a random generator: what scripts/fuzz_uploads.py sends."""

import json
import random
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bad_images import bad_image, spoiled


@dataclass
class Request:
    """One request. broken: it is not HTTP, so that it may be cut off without an answer.

    replaced: headers that take the place of those that a sound request has (Host, Content-Length, ...), None: left out.
    """

    program: str
    kind: str
    method: str
    path: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    replaced: dict[str, str | None] = field(default_factory=dict)
    broken: bool = False

    def head(self) -> str:
        """The request in one line, for people."""
        return f"{self.program} {self.method} {self.path[:200]} {self.headers} {self.replaced} {self.body[:120]!r}"

    def bytes(self, host: str, token: str) -> bytes:
        """What is written to the socket."""
        own: dict[str, str | None] = {
            "Host": host,
            "Authorization": f"Bearer {token}",
            "Content-Length": str(len(self.body)),
            "Connection": "close",
        }
        rows = [(k, v) for k, v in (own | self.replaced).items() if v is not None] + self.headers
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in rows)]
        return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + self.body


Part = tuple[str, str | None, str | None, bytes]
"""Of a form: name, file name, content type, content."""


def form(parts: Sequence[Part], boundary: str = "b0undary") -> tuple[str, bytes]:
    """A form: its content type and bytes."""
    body = b""
    for name, file_name, kind, content in parts:
        head = f'Content-Disposition: form-data; name="{name}"'
        head += "" if file_name is None else f'; filename="{file_name}"'
        head += "" if kind is None else f"\r\nContent-Type: {kind}"
        body += f"--{boundary}\r\n{head}\r\n\r\n".encode("utf-8", "surrogatepass") + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def bad_request(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """One request of some kind. photos: ids that the app knows. sound: an image that can be read."""
    makers: list[tuple[int, Callable[..., Request]]] = [(9, _upload), (4, _form), (8, _body), (3, _path), (3, _header)]
    maker = generator.choices([m for _, m in makers], [weight for weight, _ in makers])[0]
    return maker(generator, photos, sound)


# Images


def _upload(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """A spoiled image, in a sound form."""
    kind, data = bad_image(generator, sound)
    name = generator.choice(["photo.png", "../../etc/passwd", "<script>.jpg", "x" * 5000, "a\x00b", "\ud800", ""])
    image = ("image", name, generator.choice(["image/png", "text/html", "", "x" * 3000]), data)
    roll = generator.random()
    if roll < 0.75:
        content_type, body = form([image])
        return Request("serve", f"image {kind}", "POST", "/v1/predict", [("Content-Type", content_type)], body)
    if roll < 0.9:
        parts: list[Part] = [("image", "a.png", "image/png", sound), ("mask", *image[1:])]
    else:
        parts = [image, ("box", None, None, b"[1, 2, 30, 30]")]
    if generator.random() < 0.3:
        parts.append(("kind", None, None, generator.choice([b"negative", b"other", b"\xff", b""])))
    content_type, body = form(parts)
    path = f"/v1/classes/{generator.choice(['bird', 'new', '%00', '%3Cb%3E', 'x' * 300])}/references"
    return Request("serve", f"reference {kind}", "POST", path, [("Content-Type", content_type)], body)


# Forms


def _form(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """A form that is not one, or holds other things than it should."""
    content_type, body = form([("image", "a.png", "image/png", sound)])
    kind = generator.choice(list(_FORMS))
    content_type, body = _FORMS[kind](generator, content_type, body, sound)
    path = generator.choice(["/v1/predict", "/v1/classes/bird/references"])
    return Request("serve", f"form {kind}", "POST", path, [("Content-Type", content_type)], body)


_numbers = [
    "[1, 2",
    "[1,2,3]",
    "NaN",
    "[NaN,1,2,3]",
    "[1e999,0,1,1]",
    "{}",
    "[[1]]",
    "[" * 3000,
    "null",
    "[-1,-1,-1,-1]",
]
_numbers += ['["a",1,2,3]', "[true,1,2,3]", "9" * 4000, "[1,2,3,4]", "[[1e308,1e308]]", "[[1,2,3]]", "\udc80", ""]

_FORMS: dict[str, Callable[..., tuple[str, bytes]]] = {
    "cut": lambda g, t, b, s: (t, b[: g.randrange(len(b))]),
    "other boundary": lambda g, t, b, s: (t.replace("b0undary", g.choice(["other", "b" * 300, '""', "\t"])), b),
    "no boundary": lambda g, t, b, s: (g.choice(["multipart/form-data", "multipart/form-data;", "multipart/mixed"]), b),
    "other type": lambda g, t, b, s: (
        g.choice(["text/plain", "application/x-www-form-urlencoded", "image/png", "/"]),
        b,
    ),
    "spoiled head": lambda g, t, b, s: (t, spoiled(g, b[:120]) + b[120:]),
    "line ends": lambda g, t, b, s: (t, b.replace(b"\r\n", g.choice([b"\n", b"\r", b"\r\n\r\n"]))),
    "text for a file": lambda g, t, b, s: form([("image", None, None, b"text")]),
    "file for text": lambda g, t, b, s: form([("image", "a", None, s), ("box", "b", None, b"[1,2,3,4]")]),
    "twice": lambda g, t, b, s: form([("image", "a.png", "image/png", s)] * g.choice([2, 50])),
    "many parts": lambda g, t, b, s: form([(f"f{i}", None, None, b"") for i in range(g.choice([900, 5000]))]),
    "other names": lambda g, t, b, s: form([(g.choice(["", "image[]", "\ud800", "IMAGE", "x" * 9000]), "a", None, s)]),
    "numbers": lambda g, t, b, s: form(
        [
            ("image", "a", None, s),
            (g.choice(["box", "points"]), None, None, g.choice(_numbers).encode("utf-8", "replace")),
        ]
    ),
    "box and points": lambda g, t, b, s: form(
        [("image", "a", None, s)]
        + [(n, None, None, g.choice(_numbers).encode("utf-8", "replace")) for n in ("box", "points", "mask")]
    ),
    "odd charset": lambda g, t, b, s: (t + g.choice(["; charset=utf-7", "; charset=x\x7f", "; charset=utf-16"]), b),
    "long head": lambda g, t, b, s: form([("image", "a" * 20_000, "b" * 20_000, s)]),
    "transfer encoding": lambda g, t, b, s: (
        t,
        b.replace(b"Content-Type", b"Content-Transfer-Encoding: base64\r\nContent-Type"),
    ),
    "odd disposition": lambda g, t, b, s: (
        t,
        b.replace(b"form-data; name", g.choice([b"attachment; name", b"form-data; name*=utf-8''", b"\xff; name"])),
    ),
    "empty": lambda g, t, b, s: (t, b""),
}


# JSON


def _body(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """A JSON body in which something is of another type, or which is not JSON."""
    id = generator.choice([*photos, *photos, "nothing"])
    mask = {"size": [370, 320], "counts": generator.choice(["01", "", "PPYo0", "\ud800", "0" * 5000, "oooo", "_" * 30])}
    bodies: list[tuple[str, str, Any]] = [
        ("POST", f"/v1/photos/{id}/masks", {"points": [[10, 10]], "labels": [1], "box": None}),
        ("POST", f"/v1/photos/{id}/masks", {"points": [], "labels": [], "box": [1, 2, 30, 30]}),
        ("POST", f"/v1/photos/{id}/references", {"class_name": "bird", "kind": "reference", "mask": mask}),
        ("POST", f"/v1/photos/{id}/references", {"class_name": "b", "kind": "negative", "detection": 0}),
        ("POST", f"/v1/photos/{id}/references", {"class_name": "b", "prompt": {"points": [[9, 9]]}, "choice": 0}),
        ("POST", "/v1/search", {"photos": [id]}),
        ("PUT", "/v1/thresholds", {"thresholds": {"bird": 0.5}}),
        ("POST", "/v1/exports", {"formats": ["coco"]}),
        ("POST", f"/v1/photos/{id}/encoding", {}),
        ("DELETE", "/v1/references/1", {}),
    ]
    method, path, content = generator.choice(bodies)
    name = path.rsplit("/", 1)[-1]
    for _ in range(generator.choice([1, 1, 2, 3])):
        content = _changed(generator, content)
    text = json.dumps(content).encode()
    if generator.random() < 0.25:
        text = generator.choice(_NOT_JSON)(generator, text)
    types = ["application/json"] * 8 + ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""]
    return Request("app", f"json {name}", method, path, [("Content-Type", generator.choice(types))], text)


def _changed(generator: random.Random, value: Any) -> Any:
    """The value with one thing in it replaced."""
    inside = isinstance(value, (dict, list)) and len(value) and generator.random() < 0.85
    if inside and isinstance(value, dict):
        name = generator.choice(list(value))
        action = generator.random()
        if action < 0.12:
            return {other: value[other] for other in value if other != name}
        if action < 0.24:
            return value | {
                generator.choice(["", "\ud800", "__proto__", "x" * 500, "\0", "a\nb"]): generator.choice(_VALUES)
            }
        return value | {name: _changed(generator, value[name])}
    if inside and isinstance(value, list):
        place = generator.randrange(len(value))
        action = generator.random()
        if action < 0.15:
            return value * generator.choice([0, 2, 70, 2000])
        return [*value[:place], _changed(generator, value[place]), *value[place + 1 :]]
    return generator.choice(_VALUES)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 4, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    2**31, 2**63, 2**64, -(2**63), 10**400, "", "1", "nan", "bird", "new class", "x" * 150,
    "x" * 100_000, "\0", "\ud800", "a\nb",
    "<img src=x onerror=alert(1)>", "../../etc/passwd", "\u202e", "coco", "png", "parquet",
    "yolo", [], {}, [[]], [1], [1, 2, 3, 4], [[1, 2]], {"size": [1, 1], "counts": "01"}, {"a": {}}, [None] * 300,
    _nested(90), _nested(400),
]  # fmt: skip
_NOT_JSON: list[Callable[[random.Random, bytes], bytes]] = [
    lambda g, text: text[: g.randrange(len(text) + 1)],
    lambda g, text: spoiled(g, text),
    lambda g, text: b"[" * g.choice([1000, 200_000]),
    lambda g, text: b'{"a":' * g.choice([1000, 100_000]),
    lambda g, text: text.decode().encode("utf-16"),
    lambda g, text: b"\xff\xfe" + text,
    lambda g, text: text.replace(b"1", b"1" * 6000),
    lambda g, text: text.replace(b"1", g.choice([b"1e999", b"-1e999", b"01", b"1.", b"0x1", b"Infinity"])),
    lambda g, text: text * 2,
    lambda g, text: b"",
]


# Paths and headers


def _path(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """Another path, query or method."""
    odd = [
        "..",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%00",
        "%ff",
        "%ed%a0%80",
        "x" * 3000,
        "-1",
        "1e5",
        "9" * 5000,
        "",
        "%",
    ]
    odd += ["<script>", "%0d%0aX: y", "a;b", "ü", "*", "\\..\\", urllib.parse.quote("\u202e"), *photos[:1]]
    one, two = generator.choice(odd), generator.choice(odd)
    program, path = generator.choice(
        [
            ("app", f"/v1/photos/{one}/thumbnail"),
            ("app", f"/v1/photos/{one}/picture"),
            ("app", f"/v1/photos/{photos[0]}/detections?side={one}"),
            ("app", f"/v1/photos/{one}/detections?side=64&side={two}"),
            ("app", f"/v1/references/{one}"),
            ("app", f"/v1/project?since={one}"),
            ("app", f"/static/{one}"),
            ("app", f"/static/{one}/{two}"),
            ("app", f"/{one}?token={two}"),
            ("serve", f"/v1/classes/{one}"),
            ("serve", f"/v1/classes/{one}/references"),
            ("serve", f"/v1/predict?score_threshold={one}&max_detections={two}"),
            ("serve", f"/v1/predict?classes={one}&classes={two}"),
            ("serve", f"/v1/{one}/{two}"),
            ("serve", f"/docs{one}"),
        ]
    )
    methods = [
        "GET",
        "GET",
        "GET",
        "POST",
        "DELETE",
        "DELETE",
        "PUT",
        "HEAD",
        "OPTIONS",
        "PATCH",
        "TRACE",
        "CONNECT",
        "X",
    ]
    method = generator.choice(methods)
    headers, body = [], b""
    if "predict" in path or "references" in path:
        method = generator.choice(["POST", "POST", method])
        content_type, body = form([("image", "a.png", "image/png", sound)])
        headers = [("Content-Type", content_type)]
    safe = path.isascii() and path.isprintable() and " " not in path
    return Request(program, "path", method, path, headers, body, broken=not safe)


def _header(generator: random.Random, photos: Sequence[str], sound: bytes) -> Request:
    """Other headers, or what is no HTTP at all."""
    content_type, body = form([("image", "a.png", "image/png", sound)])
    request = Request("serve", "header", "POST", "/v1/predict", [("Content-Type", content_type)], body)
    name, value = generator.choice(_HEADERS)
    if name in ("Host", "Authorization", "Content-Length", "Connection"):
        request.replaced[name] = value
    else:
        request.headers.append((name, value or ""))
    if generator.random() < 0.1:
        request.headers += [(f"X-{i}", "y" * generator.choice([1, 300])) for i in range(generator.choice([50, 400]))]
    request.broken = True  # most of these are no HTTP, or promise more than they send
    return request


_HEADERS: list[tuple[str, str | None]] = [
    *[("Content-Length", v) for v in ("0", "1", "-1", "9" * 9, "9" * 40, "1e3", "", "abc", "5, 5", "+7", "\u0662")],
    *[("Transfer-Encoding", v) for v in ("chunked", "gzip", "identity", "chunked, chunked", "\x0b")],
    ("Content-Length", None),
    *[("Host", v) for v in ("evil.example", "", "127.0.0.1", "[::1", "127.0.0.1:1, x", "\udc80", "x" * 5000, None)],
    *[("Authorization", v) for v in ("Bearer x", "Basic YTpi", "", "Bearer " + "x" * 9000, "Bearer \u00fc", None)],
    *[("Origin", v) for v in ("null", "http://evil.example", "", "file://", "http://127.0.0.1:1", "\u00e9")],
    *[("Cookie", v) for v in ("a=b; =; ;;", "ntt_jax_1=x", "x" * 9000, '"\\', "a=\u00fc", "=;" * 500)],
    *[("Content-Type", v) for v in ("multipart/form-data; boundary=", "a/b; " + "c=d;" * 900, "\u00e9/x", "x" * 9000)],
    *[("Expect", v) for v in ("100-continue", "200-ok")],
    *[("Range", v) for v in ("bytes=0-", "bytes=-1", "x")],
    *[("Upgrade", v) for v in ("websocket", "h2c", "x")],
    *[("Connection", v) for v in ("keep-alive, close", "upgrade", "x" * 900)],
    *[("Accept-Encoding", v) for v in ("gzip", "*;q=nan")],
    ("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Host", "evil.example"), ("X\u00e9", "1"), ("A b", "1"), ("", "1"),
]  # fmt: skip
