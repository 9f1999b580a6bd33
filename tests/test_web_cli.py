"""`hemolens web`: its options, where it listens, and what its routes refuse; over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hemolens.cli import web
from hemolens.cli.exits import WrongUsage
from hemolens.web.server import is_loopback, static_file
from web_server import served


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hemolens", "web", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(max_upload_bytes=2**20) as address:
        yield address


class Caller:
    """A browser's cookie and nothing else of it."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc
        answer, _ = self.ask("GET", "/", {"accept": "text/html"}, cookie=False)
        self.cookie = (answer.getheader("set-cookie") or "").split(";")[0]
        self.set_cookie = answer.getheader("set-cookie") or ""

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        cookie: bool = True,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        sent = {**({"cookie": self.cookie} if cookie else {}), **(headers or {})}
        connection.request(method, path, body=body, headers=sent)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content


def test_a_page_gets_a_room_whose_cookie_scripts_cannot_read(url: str) -> None:
    one, two = Caller(url), Caller(url)
    assert one.cookie
    assert one.cookie != two.cookie
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in one.set_cookie.split(";")}
    again, _ = one.ask("GET", "/", {"accept": "text/html"})
    assert again.getheader("set-cookie") is None or "hemolens_room" not in str(again.getheader("set-cookie"))


def test_an_upload_needs_a_room_a_name_and_room_on_the_disk(url: str) -> None:
    caller = Caller(url)
    path = "/hemolens/upload/abcdefgh12?name=a.dcm"
    answer, body = caller.ask("POST", path, body=b"x", cookie=False)
    assert answer.status == 403
    assert "Reload the page" in json.loads(body)["error"]
    assert caller.ask("POST", path, body=b"x")[0].status == 200
    assert caller.ask("POST", "/hemolens/upload/abcdefgh12", body=b"x")[0].status == 400
    assert caller.ask("POST", "/hemolens/upload/a..b?name=a", body=b"x")[0].status in {400, 404}
    answer, body = caller.ask("POST", path, body=b"x" * (2**20 + 1))
    assert answer.status == 413
    assert "larger than" in json.loads(body)["error"]
    assert caller.ask("DELETE", "/hemolens/upload/abcdefgh12")[0].status == 204


def test_analyses_are_told_to_their_own_room_only(url: str) -> None:
    caller = Caller(url)
    answer, body = caller.ask("GET", "/hemolens/jobs")
    assert (answer.status, json.loads(body)) == (200, {"jobs": []})
    assert caller.ask("GET", "/hemolens/jobs", cookie=False)[0].status == 403
    assert caller.ask("DELETE", "/hemolens/jobs/abcdef")[0].status == 404
    assert caller.ask("GET", "/hemolens/jobs", {"origin": "http://evil.example"})[0].status == 403


def test_a_page_elsewhere_cannot_upload_or_read(url: str) -> None:
    caller = Caller(url)
    path = "/hemolens/upload/abcdefgh12?name=a.dcm"
    assert caller.ask("POST", path, {"origin": "http://evil.example"}, b"x")[0].status == 403
    assert caller.ask("GET", "/", {"host": "evil.example"})[0].status == 400


@pytest.mark.parametrize(
    "path", ["scan/abc/0-1", "shelf/abc-view-found", "static/../server.py", "static/..%2fserver.py"]
)
def test_what_is_not_there_is_404(url: str, path: str) -> None:
    assert Caller(url).ask("GET", f"/hemolens/{path}")[0].status in {400, 404}


def test_nothing_but_the_viewers_own_files_is_static() -> None:
    assert static_file("viewer.js") is not None
    packed = static_file("niivue.js")
    assert packed is not None
    assert packed[1]
    for name in ("../component.py", "component.py", ".viewer.js", "NIIVUE-LICENSE.txt", "..\\x.js", "nothing.js"):
        assert static_file(name) is None, name


def test_the_library_of_the_3d_view_is_small_and_licensed() -> None:
    folder = Path(web.__file__).parents[1] / "web" / "viewer" / "static"
    assert (folder / "niivue.js.gz").stat().st_size < 3 * 2**20
    assert "BSD 2-Clause" in (folder / "NIIVUE-LICENSE.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "x"], "--port"),
        (["--max-upload", "0"], "--max-upload must be a number of GiB above 0"),
        (["--runs", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode in {1, 2}
    (line,) = done.stderr.splitlines()
    assert line.startswith("hemolens: ")
    assert said in line


def test_a_port_that_is_taken_is_told_and_the_default_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WrongUsage, match=f"port {port}"):
            web.free_port("127.0.0.1", port)
        monkeypatch.setattr(web, "FIRST_PORT", port)
        assert port < web.free_port("127.0.0.1", None) <= port + web.TRIED_PORTS
    assert web.free_port("127.0.0.1", 0) > 0


LOOPBACK = ("127.0.0.1", "localhost", "::1", "127.8.8.8")
OPEN = ("0.0.0.0", "::", "10.0.0.5", "ct.example")


@pytest.mark.parametrize("host", [*LOOPBACK, *OPEN])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host) is (host in LOOPBACK)


@pytest.mark.slow
def test_the_verb_serves_on_this_machine_alone_and_ends_politely() -> None:
    with served(command=[sys.executable, "-m", "hemolens", "web", "--port", "PORT"]) as url:
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.status == 200
        port = urlsplit(url).port
        assert port is not None
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        places = [line.split()[1] for line in listening.splitlines() if f":{port:04X} " in line and " 0A " in line]
        assert places == [f"0100007F:{port:04X}"]
