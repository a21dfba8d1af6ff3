"""Who is let in, how much may be sent, and what the answers forbid the browser."""

import asyncio
import contextlib
import json
import socket

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import app_files

from ntt_jax.app import running
from ntt_jax.app.guard import HEADERS, Guard
from ntt_jax.app.metrics import Metrics

TOKEN = "a-token-for-the-tests"
HOST = "127.0.0.1:8765"


async def echo(scope, receive, send):
    """An application that says what it was sent."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def ask(path="/v1/classes", *, headers=None, body=(b"",), method="GET", wait=0.0, **limits):
    """Status, headers and body of one request through a guard."""
    metrics = Metrics()
    guard = Guard(echo, token=TOKEN, port=8765, hosts=[HOST, "localhost:8765"], metrics=metrics, **limits)
    given = {"host": HOST, "authorization": f"Bearer {TOKEN}"} | (headers or {})
    name, _, query = path.partition("?")
    listed = [(key.encode(), value.encode("utf-8")) for key, value in given.items() if value is not None]
    scope = {"type": "http", "method": method, "path": name, "query_string": query.encode(), "headers": listed}
    chunks, sent = list(body), []

    async def receive():
        await asyncio.sleep(wait)
        if not chunks:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    assert guard._buffered == 0
    status = sent[0]["status"]
    assert f'status="{status}"' in metrics.text(0)
    return (
        status,
        {k.decode(): v.decode() for k, v in sent[0]["headers"]},
        b"".join(m.get("body", b"") for m in sent[1:]),
    )


def test_the_token_lets_in():
    assert ask(body=[b"ab", b"c"], method="POST")[::2] == (200, b"abc")
    cookie = {"authorization": None, "cookie": f"other=1; ntt_jax_8765={TOKEN}"}
    assert ask(headers=cookie)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer ü"},
        {"authorization": None, "cookie": "ntt_jax_8765=wrong"},
        {"authorization": None, "cookie": f"ntt_jax_1234={TOKEN}"},
        {"authorization": None, "cookie": "\x01=;;="},
    ],
)
def test_nobody_else_is(headers):
    status, _, body = ask(headers=headers)
    assert status == 401 and "token" in json.loads(body)["detail"]
    assert ask("/v1/health", headers=headers)[0] == 200


def test_the_printed_address_becomes_a_cookie():
    status, headers, body = ask(f"/?token={TOKEN}", headers={"authorization": None})
    assert status == 200 and b'content="0; url=/"' in body and TOKEN.encode() not in body
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["set-cookie"].startswith(f"ntt_jax_8765={TOKEN};")
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
    assert ask("/?token=wrong", headers={"authorization": None})[0] == 401
    assert ask(f"/v1/classes?token={TOKEN}", headers={"authorization": None})[0] == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8765"}, 421),  # DNS rebinding: the name is the attacker's, the address ours
        ({"host": "127.0.0.1:1"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "http://127.0.0.1:8765"}, 200),
        ({"host": "LOCALHOST:8765", "origin": "http://localhost:8765"}, 200),
    ],
)
def test_only_our_own_pages_ask(headers, status):
    assert ask(headers=headers)[0] == status


def test_too_much_and_too_slow():
    assert ask(body=[b"x" * 10] * 3, method="POST", max_body=30)[0] == 200
    assert ask(body=[b"x" * 10] * 4, method="POST", max_body=30)[0] == 413
    assert ask(headers={"content-length": "31"}, max_body=30)[0] == 413
    assert ask(headers={"content-length": "9" * 30}, max_body=30)[0] == 413
    assert ask(headers={"content-length": "-1"}, max_body=30)[0] == 413
    assert ask(body=[b"x" * 10] * 3, method="POST", max_buffered=25)[0] == 429
    assert ask(body=[b"x"] * 100, method="POST", wait=0.01, body_seconds=0.1)[0] == 408
    assert ask(body=[], method="POST")[0] == 400  # cut off


def test_who_comes_at_a_busy_time_is_told_when_to_come_again():
    busy = {"/v1/predict": 7}.get
    status, headers, body = ask("/v1/predict", body=[b"x"] * 3, method="POST", busy=busy)
    assert (status, headers["retry-after"]) == (429, "7") and "waiting" in json.loads(body)["detail"]
    assert ask(busy=busy)[0] == 200


def test_what_the_browser_is_told():
    _, headers, _ = ask()
    assert {key: headers[key] for key in HEADERS} == HEADERS
    assert "'unsafe" not in headers["content-security-policy"]


@pytest.fixture
def served(monkeypatch):
    """A server on loopback with the guard before an application that echoes, little patience, and a client."""
    monkeypatch.setattr(running._Protocol, "head_seconds", 0.2)

    def make(address):
        limits = {"max_body": 1000, "body_seconds": 0.2}
        guard = Guard(echo, token=address.token, port=address.port, hosts=address.hosts, metrics=Metrics(), **limits)
        return contextlib.nullcontext(guard)

    with app_files.served(make) as client:
        yield client


def raw(client, text):
    """What comes back for bytes that are written to the socket, which stays open."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=20) as connection:
        connection.sendall(text.replace("\n", "\r\n").format(port=client.base_url.port, token=app_files.TOKEN).encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    return answer.partition(b"\r\n")[0].decode()


OURS = "Host: 127.0.0.1:{port}\nAuthorization: Bearer {token}\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("GET / HTTP/1.1\nHost:", ""),  # a head that never ends
        ("", ""),
        ("POST / HTTP/1.1\n" + OURS + "Content-Length: 10\n\nabc", "HTTP/1.1 408 Request Timeout"),
        ("POST / HTTP/1.1\n" + OURS + "Content-Length: 1001\n\n", "HTTP/1.1 413 "),
        ("POST / HTTP/1.1\n" + OURS + "Transfer-Encoding: chunked\n\n3e9\n" + "x" * 1001 + "\n", "HTTP/1.1 413 "),
        ("GET / HTTP/1.1\nX: " + "x" * 100_000 + "\n\n", "HTTP/1.1 400 Bad Request"),
        ("GET / HTTP/1.1\n" + OURS + "Host: 127.0.0.1:{port}\n\n", "HTTP/1.1 400 Bad Request"),
        ("GET / HTTP/1.1\nHost: evil.example\nAuthorization: Bearer {token}\nConnection: close\n\n", "HTTP/1.1 421 "),
        ("GET / HTTP/1.1\n" + OURS + "Origin: http://evil.example\nConnection: close\n\n", "HTTP/1.1 403 Forbidden"),
        ("GET /v1/x HTTP/1.1\nHost: 127.0.0.1:{port}\nConnection: close\n\n", "HTTP/1.1 401 Unauthorized"),
    ],
)
def test_over_a_socket(served, text, answer):
    """Each is answered or closed soon, and the next one who asks properly is answered."""
    assert raw(served, text).startswith(answer) and (answer or raw(served, text) == "")
    assert served.post("/v1/x", content=b"abc").content == b"abc"
