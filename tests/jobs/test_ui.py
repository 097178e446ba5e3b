"""`scaling ui` on a shared machine: its user's browser sees MLflow, every other account nothing."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from http.cookies import SimpleCookie
from pathlib import Path
from typing import NamedTuple

import pytest

from scaling.analysis.figures.export import find_browser
from scaling.errors import UserError
from scaling.study_folder import Study
from scaling.tracking import mlflow_copy
from tests.jobs.test_mlflow_copy import row, write
from tests.report.browser import Browser
from tests.shell import HANGS

pytestmark = pytest.mark.slow  # MLflow takes seconds to start
ROUTES = [
    *("/", "/health", "/version", "/metrics", "/index.html", "/static-files/favicon.ico"),
    *("/graphql", "/get-artifact?path=notes.txt&run_uuid=RUN", "/server-info"),
    *("/api/2.0/mlflow/experiments/search?max_results=9", "/api/2.0/mlflow-artifacts/artifacts"),
    *("/ajax-api/2.0/mlflow/runs/search", "/ajax-api/3.0/mlflow/assistant/config", "/gateway/x"),
    *("/v1/traces", "/%2e%2e/%2e%2e/etc/passwd", "//health", "/health/", "/HEALTH", "/?key="),
    *("/?key=%00", "/?KEY=x&key", "/a;b", "/" + "a" * 4000, "http://127.0.0.1/health"),
]


class Served(NamedTuple):
    process: subprocess.Popen[str]
    study: Path
    port: int
    address: str  # with the key


def start(study: Path) -> Served:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scaling.cli", "ui", str(study), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return Served(process, study, port, process.stdout.readline().strip())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ui") / "small"
    write(folder, "run0", [row("run0", 30, decayed=True, budget_macs=9e13)])
    assert mlflow_copy.sync(Study(folder)) == 1
    return folder


@pytest.fixture(scope="module")
def served(study: Path) -> Iterator[Served]:
    served = start(study)
    yield served
    served.process.kill()
    served.process.communicate()


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


def ask(served: Served, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request as written: no header but these and, unless it is given, Host."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=HANGS)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        body = None if method == "GET" else b"{}"
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def enter(served: Served) -> tuple[str, str]:
    """The room and the cookie that the printed address leads to."""
    answer = ask(served, served.address.removeprefix(f"http://127.0.0.1:{served.port}"))
    assert answer.status == 303
    cookie = SimpleCookie(answer.headers["Set-Cookie"])["scaling_ui"]
    room, _, page = answer.headers["Location"].partition("#")
    assert page == "/experiments/1/runs?compareRunsMode=CHART", "the study's"
    assert cookie["httponly"] and cookie["samesite"] == "Strict"
    assert cookie["path"] == room != "/", "or servers on other ports were sent the cookie"
    return room, f"scaling_ui={cookie.value}"


def test_without_the_key_no_request_is_answered(served: Served) -> None:
    room, cookie = enter(served)
    answers = [(path, ask(served, path)) for path in ROUTES]
    for method in ("HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "X"):
        answers += [(method, ask(served, "/ajax-api/2.0/mlflow/runs/search", method))]
    pretended: list[dict[str, str]] = [
        {"X_Forwarded_For": "127.0.0.1", "X_Forwarded_Host": f"127.0.0.1:{served.port}"},
        {"Authorization": "Basic YWRtaW46cGFzc3dvcmQ="},
        {"Authorization": f"Bearer {'a' * 43}"},
        {"Cookie": "scaling_ui="},
        {"Cookie": "scaling_ui=" + "\xff" * 43},
        {"Cookie": f"{cookie}x"},
        {"Cookie": cookie.replace("scaling_ui", "other")},
        {"Origin": f"http://127.0.0.1:{served.port}", "Sec_Fetch_Site": "same-origin"},
        {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
         "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    ]  # fmt: skip
    for headers in pretended:
        for path in (
            "/health",
            room,
            f"{room}ajax-api/2.0/mlflow/experiments/search?max_results=1",
        ):
            answers.append((str(headers), ask(served, path, **headers)))
    answers.append(("the cookie outside the room", ask(served, "/health", Cookie=cookie)))
    answers.append(("above the room", ask(served, f"{room}../health")))
    assert len(answers) > 60
    for what, answer in answers:
        assert answer.status == 403, what
        assert answer.body == b"" or answer.body.startswith(b"These pages are for one user."), what
        assert not {"Set-Cookie", "Location", "Server"} & set(answer.headers), what


def test_with_the_key_but_from_another_page_no_request_is_answered(served: Served) -> None:
    """What the user's own browser may be made to send by a page of somebody else."""
    room, cookie = enter(served)
    here = f"127.0.0.1:{served.port}"
    key = served.address.removeprefix(f"http://{here}")
    foreign: list[dict[str, str]] = [
        {"Host": f"evil.example:{served.port}"},  # a name that was bound to 127.0.0.1 since
        {"Host": f"127.0.0.1.evil.example:{served.port}"},
        {"Host": "127.0.0.1"},
        {"Host": ""},
        {"Host": f"[::1]:{served.port}"},
        {"Host": f"{here}@evil.example"},
        {"Host": f"evil.example:{served.port}", "X_Forwarded_Host": here},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},  # another account's server on this machine
        {"Origin": f"https://{here}"},
        {"Origin": f"http://localhost:{served.port}"},  # Host says 127.0.0.1
        {"Origin": "null"},
        {"Referer": "http://evil.example/"},
        {"Referer": f"http://{here}.evil.example/"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ]
    for headers in foreign:
        for method in ("GET", "POST"):
            for path in (key, room, f"{room}ajax-api/2.0/mlflow/runs/search"):
                answer = ask(served, path, method, Cookie=cookie, **headers)
                assert answer.status == 403, (headers, method, path)
    twice = [("Host", here), ("Host", "evil.example")]
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        lines = [f"GET {room} HTTP/1.1", *(f"{k}: {v}" for k, v in twice), f"Cookie: {cookie}"]
        raw.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        assert raw.makefile("rb").readline().split()[1] in (b"400", b"403")


def test_the_user_is_answered(served: Served) -> None:
    room, cookie = enter(served)
    asked = ask(
        served, f"{room}ajax-api/2.0/mlflow/experiments/search?max_results=9", Cookie=cookie
    )
    assert asked.status == 200 and b'"small"' in asked.body
    assert asked.headers["Referrer-Policy"] == "same-origin"
    for host in ("127.0.0.1", "LOCALHOST"):
        named = {"Host": f"{host}:{served.port}", "Origin": f"http://{host}:{served.port}"}
        assert ask(served, f"{room}health", Cookie=f"a=1; {cookie}; b", **named).status == 200
    spelt = f"/%{ord(room[1]):02x}{room[2:]}health"
    assert ask(served, spelt, Cookie=cookie).status == 200
    with pytest.raises(UserError, match=f"port {served.port}: .*choose another with --port"):
        mlflow_copy.ui(Study(served.study), served.port)
    with pytest.raises(UserError, match=r"no mlflow.db here; run the study first"):
        mlflow_copy.ui(Study(served.study / "nowhere"))


def test_the_key_stands_nowhere_but_in_the_address(served: Served) -> None:
    """Any account may list the processes, and their children may outlive the command."""
    key, pid = served.address.rpartition("=")[2], served.process.pid
    assert len(key) >= 43  # 256 bits
    assert key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert key.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        assert (thread / "children").read_text() == "", "it serves by itself"
    found = [f for f in served.study.rglob("*") if f.is_file() and key.encode() in f.read_bytes()]
    assert found == []


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome found (set BROWSER_PATH)")
def test_in_a_browser(served: Served, tmp_path: Path) -> None:
    executable = find_browser()
    assert executable
    browser = Browser(executable, tmp_path)
    try:
        browser.open(served.address)
        browser.wait_for("document.body.innerText.includes('2^-6')")
        assert "key" not in browser.evaluate("location.href")
        assert browser.evaluate("document.cookie") == ""
        assert browser.evaluate("location.hash").startswith("#/experiments/1/runs")
        assert "row.0000" not in browser.evaluate("document.body.innerText")
        answers = [e["params"]["response"] for e in browser.events if "response" in e["params"]]
        assert len(answers) > 10
        assert [a["url"] for a in answers if a["status"] in (401, 403)] == []
        inside = browser.evaluate("location.href")
        browser.open(f"http://localhost:{served.port}/")  # a page of somebody else
        assert browser.evaluate("document.body.innerText").startswith("These pages are for one")
        path = inside.removeprefix(f"http://127.0.0.1:{served.port}")
        browser.open(f"http://localhost:{served.port}{path}")
        assert browser.evaluate("document.body.innerText").startswith("These pages are for one")
    finally:
        browser.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_command(study: Path, number: signal.Signals) -> None:
    served = start(study)
    with socket.create_connection(("127.0.0.1", served.port), timeout=HANGS) as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\n")  # a client that never finishes keeps nothing alive
        os.kill(served.process.pid, number)
        served.process.communicate(timeout=HANGS)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", served.port), timeout=5):
        pass
    assert served.process.returncode in (0, -number)
