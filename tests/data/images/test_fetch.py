"""Images at web addresses: fetched once into the cache, within bounds, and never from an address of a local network."""

import base64
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image as Pillow

from sftcore.core.errors import RowError
from sftcore.data.images import fetch
from sftcore.data.images.given import source_of
from sftcore.data.images.reference import open_image


def _picture():
    buffer = io.BytesIO()
    Pillow.new("RGB", (32, 24), "red").save(buffer, "PNG")
    return buffer.getvalue()


RED = _picture()
LINKS = {
    "/to-file": "file:///etc/hostname",
    "/to-ftp": "ftp://example.com/a.png",
    "/to-itself": "/red.png",
    "/to-localhost": "http://localhost:1/red.png",
    "/to-loopback": "http://127.0.0.1:1/red.png",
    "/to-private": "http://10.0.0.1/red.png",
    "/to-shared": "http://100.64.0.1/red.png",
    "/to-mapped": "http://[::ffff:192.168.0.1]/red.png",
    "/to-ipv6": "http://[fd00::1]/red.png",
    "/to-credentials": "http://169.254.169.254/latest/meta-data",
    "/to-decimal": "http://2130706433/red.png",
}


ASKED = []
"""The paths that the server was asked for."""


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        ASKED.append(self.path)
        path = self.path.partition("?")[0]
        if path in LINKS:
            self.send_response(302)
            self.send_header("Location", LINKS[path])
            self.end_headers()
        elif path == "/red.png":
            self._send(RED)
        elif path == "/page":
            self._send(b"<html>Not here</html>")
        elif path == "/half":
            self._send(RED[:-20], len(RED))
        elif path == "/said-too-large":
            self._send(b"", fetch.MAX_BYTES + 1)
        elif path in ("/endless", "/slow"):
            self.send_response(200)
            self.end_headers()
            step = (b"\0" * 2**16, 0.0) if path == "/endless" else (b"\0", 0.02)
            try:
                for _ in range(5000):
                    self.wfile.write(step[0])
                    time.sleep(step[1])
            except OSError:
                pass
        else:
            self.send_error(404)

    def _send(self, data, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    ASKED.clear()
    return tmp_path / "cache"


def test_an_address_is_refused_by_name_unless_the_run_allows_it(server, cache):
    secret = server.replace("://", "://me:hidden@") + "/red.png?signature=abc"
    with pytest.raises(RowError, match=r"127.0.0.1:\d+/red.png is not on this machine.*allow_remote_images") as error:
        source_of(secret)
    assert "hidden" not in str(error.value)
    assert "abc" not in str(error.value)
    with pytest.raises(RowError, match=r"s3://bucket/a\.png is not on this machine, and no run can fetch it"):
        source_of("s3://bucket/a.png", remote=True)
    assert ASKED == []
    assert not cache.exists()


def test_an_image_is_fetched_once_into_the_cache(server, cache):
    for value in (f"{server}/red.png", {"url": f"{server}/red.png"}, {"image_url": {"url": f"{server}/red.png"}}):
        source = source_of(value, remote=True)
        assert source["bytes"] is None
        assert source["path"].startswith(str(cache / "images"))
        assert open_image(source).getpixel((0, 0)) == (255, 0, 0)
    assert ASKED == ["/red.png"]
    assert source_of(f"{server}/red.png?again", remote=True)["path"] != source["path"]
    assert len(list((cache / "images").iterdir())) == 2


@pytest.mark.parametrize("path", LINKS)
def test_a_server_may_not_send_on_to_a_file_or_into_the_local_network(server, cache, path):
    with pytest.raises(RowError, match=f"{path} was not fetched: its server sends on to"):
        source_of(server + path, remote=True)
    assert [path] == ASKED
    assert not cache.exists()


def test_a_name_that_turns_out_to_be_private_is_refused_before_anything_is_sent(server, monkeypatch):
    # what a name resolves to may change between the look at it and the connection
    monkeypatch.setitem(LINKS, "/to-itself", f"http://public.example:{server.rpartition(':')[2]}/red.png")
    public = [(2, 1, 6, "", ("93.184.216.34", 80))]
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda _, *rest: real(("127.0.0.1", made_port), *rest))
    made_port, resolve = int(server.rpartition(":")[2]), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest: public if "public" in host else resolve(host, *rest))
    with pytest.raises(RowError, match=r"sends on to 127\.0\.0\.1, which is not a public address"):
        source_of(f"{server}/to-itself", remote=True)
    assert ASKED == ["/to-itself"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/none", "cannot be fetched .*404"),
        ("/half", "cannot be fetched .*bytes came"),
        ("/page", "holds is not an image"),
        ("/said-too-large", "more than 64 MiB"),
    ],
)
def test_what_is_not_there_not_whole_or_not_an_image_is_refused(server, cache, path, said):
    with pytest.raises(RowError, match=said):
        source_of(server + path, remote=True)
    assert not cache.exists() or not list((cache / "images").iterdir())


@pytest.mark.parametrize(("path", "said"), [("/endless", "more than 0 MiB"), ("/slow", "more than 0 seconds")])
def test_an_endless_answer_ends_at_a_bound_on_bytes_or_seconds(server, cache, monkeypatch, path, said):
    monkeypatch.setattr(fetch, "MAX_BYTES", 2**18)
    monkeypatch.setattr(fetch, "MAX_SECONDS", 30.0 if path == "/endless" else 0.3)
    with pytest.raises(RowError, match=said):
        source_of(server + path, remote=True)
    assert not cache.exists()


@pytest.mark.parametrize("address", ["http://", "http://[::1", "http://127.0.0.1:1/a.png", "http://a b/c.png"])
def test_an_address_that_leads_nowhere_is_refused(address):
    with pytest.raises(RowError, match="cannot be fetched"):
        source_of(address, remote=True)


def test_an_address_in_base64_needs_no_network():
    assert source_of(f"data:image/png;base64,{base64.b64encode(RED).decode()}", remote=True)["bytes"] == RED
