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
    assert ask(headers={"authorization": f"bearer {TOKEN}"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": None},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer ü"},
        {"authorization": "Bearer"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": None, "cookie": "ntt_jax_8765="},
        {"authorization": None, "x-token": TOKEN, "referer": f"http://{HOST}/?token={TOKEN}"},
        {"authorization": None, "cookie": "ntt_jax_8765=wrong"},
        {"authorization": None, "cookie": f"ntt_jax_1234={TOKEN}"},
        {"authorization": None, "cookie": "\x01=;;="},
    ],
)
def test_nobody_else_is(headers):
    status, _, body = ask(headers=headers)
    assert status == 401 and "token" in json.loads(body)["detail"]
    assert ask("/v1/health", headers=headers)[0] == 200


@pytest.mark.parametrize("site", [None, "none", "cross-site"])
def test_the_printed_address_becomes_a_cookie(site):
    """Typed, or as a link in another page: from there a redirect would carry no strict cookie, so a page goes on."""
    come = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"} if site else {}
    status, headers, body = ask(f"/?token={TOKEN}", headers={"authorization": None, **come})
    if site == "cross-site":
        assert status == 200 and b'content="0; url=/"' in body
    else:
        assert status == 303 and headers["location"] == "/"
    assert TOKEN.encode() not in body and headers["referrer-policy"] == "no-referrer"
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
        ({"host": "127.0.0.1"}, 421),
        ({"host": "localhost.:8765"}, 421),
        ({"host": "127.1:8765"}, 421),
        ({"host": "2130706433:8765"}, 421),
        ({"host": f"{HOST}@evil.example"}, 421),
        ({"host": f"{HOST}, evil.example"}, 421),
        ({"host": "evil.example", "x-forwarded-host": HOST, "forwarded": f"host={HOST}"}, 421),
        ({"x-forwarded-host": "evil.example", "x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "x"}, 200),
        ({"origin": f"http://{HOST}.evil.example"}, 403),
        ({"origin": "http://localhost:8765"}, 403),  # its page is another one, with another cookie
        ({"origin": f"ftp://{HOST}"}, 403),
        ({"origin": f"https://{HOST}"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),  # another program's page on this machine
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
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
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert ask(headers=form, body=[b"x" * 20], method="POST", max_body=30, max_text=10)[0] == 200
    assert ask(body=[b"x" * 20], method="POST", max_body=30, max_text=10)[0] == 413
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
    monkeypatch.setattr(running._Protocol, "most_waiting", 5)

    def make(address):
        limits = {"max_body": 1000, "body_seconds": 0.2}
        guard = Guard(echo, token=address.token, port=address.port, hosts=address.hosts, metrics=Metrics(), **limits)
        return contextlib.nullcontext(guard)

    with app_files.served(make) as client:
        yield client


def connect(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def answers(client, text):
    """What comes back for bytes that are written to the socket, which stays open: the first line of each answer."""
    with connect(client) as connection:
        connection.sendall(text.replace("\n", "\r\n").format(port=client.base_url.port, token=app_files.TOKEN).encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    return [line.decode() for line in answer.split(b"\r\n") if line.startswith(b"HTTP/")]


def raw(client, text):
    """The first line of the answer, nothing where there is none."""
    return (answers(client, text) or [""])[0]


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


BEFORE, END = "POST /v1/x HTTP/1.1\n" + OURS, "Connection: close\n"
SECOND = "GET /v1/y HTTP/1.1\n" + OURS + END + "\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (BEFORE + "Content-Length: 3\nContent-Length: 4\n\nabc" + SECOND, "400"),
        (BEFORE + "Content-Length: 3\nContent-Length : 4\n\nabc" + SECOND, "400"),
        (BEFORE + END + "Content-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n" + SECOND, "200"),
        (BEFORE + "Transfer-Encoding: chunked, identity\n\n0\n\n" + SECOND, "400"),
        (BEFORE + "Transfer-Encoding: xchunked\n\n0\n\n" + SECOND, "400"),
        (BEFORE + "Transfer-Encoding: chunked\n\n-1\n\n" + SECOND, "400"),
        (BEFORE + "Transfer-Encoding: chunked\n\n" + "0" * 40 + "1\nx\n0\n\n" + SECOND, "400"),
        (BEFORE + END + "Content-Length: 0\nOrigin: http://127.0.0.1:{port}\nOrigin: null\n\n" + SECOND, "400"),
        (BEFORE + "Authorization: Bearer x\n" + END + "Content-Length: 0\n\n" + SECOND, "400"),
        ("GET /v1/x HTTP/1.1\n X: y\n" + OURS + "\n" + SECOND, "400"),
        ("GET /v1/x\n" + SECOND, "400"),
        ("GET http://evil.example/v1/x HTTP/1.1\n" + OURS + END + "\n" + SECOND, "200"),  # a path: the Host is ours
        ("GET /v1/x HTTP/1.1\n" + OURS + "Upgrade: websocket\nConnection: Upgrade, close\n\n" + SECOND, "200"),
        ("PRI * HTTP/2.0\n\nSM\n\n" + SECOND, "421"),
    ],
)
def test_a_request_is_one_request(served, text, status):
    """What may be read as two requests in one is refused, or read as one; and nobody leaves HTTP for a web socket."""
    found = answers(served, text)
    assert len(found) == 1 and found[0].startswith(f"HTTP/1.1 {status} ")


def test_half_open_connections_shut_nobody_out(served, monkeypatch):
    monkeypatch.setattr(running._Protocol, "head_seconds", 30.0)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(served)) for _ in range(40)]
        assert served.post("/v1/x", content=b"abc").content == b"abc"
        with contextlib.suppress(ConnectionError):
            assert held[0].recv(1) == b""  # the oldest went first


def test_the_browser_is_not_started_with_the_token(tmp_path, monkeypatch):
    """All users of a machine can read what a program was started with."""
    opened, path = [], tmp_path / running.DOOR
    path.write_text("of an earlier start")

    def browser(url):
        opened.append((url, path.read_text(), path.stat().st_mode & 0o777))
        server[0].should_exit = True

    server, make = [], running.make_server
    monkeypatch.setattr(running.webbrowser, "open", browser)
    monkeypatch.setattr(running, "make_server", lambda guard: server.append(make(guard)) or server[0])
    address = running.listen("127.0.0.1", 0, TOKEN)
    guard = Guard(echo, token=TOKEN, port=address.port, hosts=address.hosts, metrics=Metrics())
    running.run(guard, address, started=lambda: None, browser=tmp_path)
    ((url, text, mode),) = opened
    assert url == path.as_uri() and TOKEN not in url and mode == 0o600
    assert f'content="0; url={address.url}/?token={TOKEN}"' in text and not path.exists()
