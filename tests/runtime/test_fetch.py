"""Files fetched from a server on this machine: whole, gone on with, broken off, and with other bytes."""

import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark.runtime.fetch import fetch_file
from tests.conftest import user_error

ROOT = Path(__file__).resolve().parents[2]
CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serve CONTENT under any name but "missing"; `requests` are the ranges asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.requests = []
        self.knows_ranges = True
        self.stop_after = None  # bytes of the first answer, after which the connection ends
        self.hold = None  # an event: what is stopped waits for it instead of ending

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_ranges else 0
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        if start >= len(server.content):
            self.send_error(416)
            return
        content = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        stop, server.stop_after = server.stop_after, None
        self.wfile.write(content[:stop])
        if stop is not None and server.hold is not None:
            server.hold.wait(30)

    def log_message(self, *arguments): ...


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    for _ in range(2):
        fetch_file(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT and files(path.parent) == ["file.bin"]
    assert server.requests == [None]


def test_what_breaks_off_is_told_and_gone_on_with(server, tmp_path):
    server.stop_after = 1_000_000
    with pytest.raises(ConnectionError, match=r"file\.bin.*1,000,000 of 3,000,000"):
        fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert files(tmp_path) == ["file.bin.part"]
    fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and files(tmp_path) == ["file.bin"]
    assert server.requests == [None, "bytes=1000000-"]


def test_a_killed_process_is_gone_on_from(server, tmp_path):
    server.stop_after, server.hold = 1_000_000, threading.Event()
    code = (
        "import sys; from pathlib import Path; from benchmark.runtime.fetch import fetch_file\n"
        f"fetch_file({server.url!r}, Path({str(tmp_path / 'file.bin')!r}), {SHA256!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    part = tmp_path / "file.bin.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 900_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.hold.set()
    size = part.stat().st_size
    assert 900_000 < size <= 1_000_000
    fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and files(tmp_path) == ["file.bin"]
    assert server.requests == [None, f"bytes={size}-"]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_beginning_of_another_file_is_thrown_away(server, tmp_path, knows_ranges):
    server.knows_ranges = knows_ranges
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.requests == (["bytes=14-", None] if knows_ranges else ["bytes=14-"])


def test_a_whole_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert files(tmp_path) == ["file.bin"] and server.requests == ["bytes=3000000-"]


def test_other_bytes_are_never_put_in_place(server, tmp_path):
    server.content = b"an error page"
    other = hashlib.sha256(server.content).hexdigest()
    with user_error("download-differs", match=f"{other}.*{SHA256}.*file.bin"):
        fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert files(tmp_path) == []


def test_a_server_that_says_no_or_is_not_there_is_named(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"/missing.*404"):
        fetch_file(server.url.replace("file.bin", "missing"), tmp_path / "file.bin", SHA256)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"file\.bin.*Connection refused"):
        fetch_file(server.url, tmp_path / "file.bin", SHA256)
    assert files(tmp_path) == []
