"""Fetches images that rows name by a web address into the cache, where the run allows it; in preparation only.

An address comes from whoever wrote the rows. So what it names is fetched once, with a bound on bytes and on seconds,
and a server may not send the run on to an address of the local network or of this machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import socket
import threading
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from sftcore.core.errors import RowError
from sftcore.util.disk import cache_folder, writing

MAX_BYTES = 64 * 2**20
"""The most bytes of one image."""
MAX_SECONDS = 30.0
"""The most seconds for one image, from the first connection to the last byte."""
_SILENCE = 10.0
"""How many seconds a server may say nothing."""
_MAX_REDIRECTS = 5
_SENT_ON = (301, 302, 303, 307, 308)
_CHUNK = 2**16
_NAME_IT = "Name in the row where the image is, or drop it."
_HEADERS = {"User-Agent": "sftcore", "Accept": "image/*", "Accept-Encoding": "identity"}


def images_folder() -> Path:
    """The folder of fetched images."""
    return cache_folder() / "images"


def place_of(address: str) -> Path:
    """The file in which the image of this address is kept once it is fetched."""
    return images_folder() / hashlib.sha256(address.encode()).hexdigest()[:40]


def shown(address: str) -> str:
    """The address without a password or signature in it, for errors."""
    try:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return address[:100]


def fetch(address: str) -> Path:
    """The file with what this address holds, fetched unless it is there already.

    Raises:
        RowError: it cannot be fetched, is too large or too slow, or leads to an address that is not public.
        WriteError: the cache cannot be written to.
    """
    place = place_of(address)
    if place.is_file():
        return place
    try:
        data = _Fetching(time.monotonic() + MAX_SECONDS).read(address)
    except _RefusedError as error:
        raise RowError(f"the image {shown(address)} was not fetched: {error}.", fix=error.fix) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RowError(
            f"the image {shown(address)} cannot be fetched ({said}).",
            fix="Try again later, download it and give the path of the file, or drop the row.",
        ) from error
    with writing("fetched images", place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f"{place.name}-{uuid.uuid4().hex[:8]}")
        try:
            aside.write_bytes(data)
            os.replace(aside, place)
        finally:
            aside.unlink(missing_ok=True)
    return place


class _RefusedError(Exception):
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


class _Fetching:
    """One fetch, which ends at its deadline, whatever the server does; a `urllib` opener reads no file and no FTP."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._sockets: list[socket.socket] = []
        self._late = False
        self.is_sent_on = False
        self._opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler(), _Http(self), _Https(self)):
            self._opener.add_handler(handler)

    def read(self, address: str) -> bytes:
        """What the address holds, with all that its servers send on to."""
        watch = threading.Timer(max(self._deadline - time.monotonic(), 0.0), self._stop)
        watch.daemon = True
        watch.start()
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                found = self._answer(address)
                if isinstance(found, bytes):
                    return found
                address, self.is_sent_on = found, True
            raise http.client.HTTPException(f"it is sent on more than {_MAX_REDIRECTS} times")
        except (OSError, http.client.HTTPException, ValueError):
            if self._late:
                raise self._too_slow() from None
            raise
        finally:
            watch.cancel()
            for one in self._sockets:
                one.close()

    def _answer(self, address: str) -> bytes | str:
        """The bytes of the answer, or the address that it sends on to."""
        request = urllib.request.Request(address, headers=_HEADERS)
        with self._opener.open(request, timeout=_SILENCE) as answer:
            if answer.status in _SENT_ON and answer.headers.get("Location"):
                return _sent_on(urljoin(address, answer.headers["Location"]))
            if answer.status != 200:
                raise http.client.HTTPException(f"{answer.status} {answer.reason}")
            return self._body(answer)

    def _body(self, answer: Any) -> bytes:
        length = answer.headers.get("Content-Length") or ""
        data = bytearray()
        while max(len(data), int(length) if length.isdecimal() else 0) <= MAX_BYTES:
            chunk = answer.read1(_CHUNK)
            if self._late:
                raise self._too_slow()
            data += chunk
            if not chunk:
                if length.isdecimal() and int(length) != len(data):
                    raise http.client.HTTPException(f"{len(data):,} of {int(length):,} bytes came")
                return bytes(data)
        fix = "Shrink it, download it and give the path of the file, or drop the row."
        raise _RefusedError(f"it has more than {MAX_BYTES / 2**20:.0f} MiB", fix)

    def connected(self, connection: socket.socket, *, by_proxy: bool) -> None:
        """Note a connection, so that it can be ended, and look where it leads before anything is sent."""
        self._sockets.append(connection.dup())  # TLS takes the socket itself over
        if not by_proxy:
            _refuse(connection.getpeername()[0], private=self.is_sent_on)

    def _stop(self) -> None:
        self._late = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _too_slow(self) -> _RefusedError:
        fix = "Download it and give the path of the file, or drop the row."
        return _RefusedError(f"it took more than {MAX_SECONDS:.0f} seconds", fix)


def _connecting(kind: type[Any], fetching: _Fetching, request: Any) -> Any:
    """A kind of connection that is looked at as soon as it is made."""
    by_proxy = request.has_proxy() or getattr(request, "_tunnel_host", None) is not None

    class Connection(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._create_connection = self._noted

        def _noted(self, *args: Any, **kwargs: Any) -> socket.socket:
            found = socket.create_connection(*args, **kwargs)
            try:
                fetching.connected(found, by_proxy=by_proxy)
            except BaseException:
                found.close()
                raise
            return found

    return Connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, fetching: _Fetching) -> None:
        super().__init__()
        self._fetching = fetching

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connecting(http.client.HTTPConnection, self._fetching, req), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, fetching: _Fetching) -> None:
        super().__init__()
        self._fetching = fetching

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connecting(http.client.HTTPSConnection, self._fetching, req), req)


def _sent_on(address: str) -> str:
    """The address that a server sends on to.

    Raises:
        _RefusedError: it is not an address of the web, or not a public one.
    """
    target = urlsplit(address)
    if target.scheme.lower() not in ("http", "https"):
        raise _RefusedError(f"its server sends on to a {target.scheme} address", _NAME_IT)
    with contextlib.suppress(OSError):  # where a proxy alone knows names
        for found in socket.getaddrinfo(target.hostname or "", None):
            _refuse(str(found[4][0]), private=True)
    return address


def _refuse(host: str, *, private: bool) -> None:
    """Refuse an IP address that no image is at; where it must not be `private`, one of this machine or its network too.

    Link-local addresses are where clouds keep the credentials of their machines.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_link_local or address.is_multicast or (private and not address.is_global):
        what = f"its server sends on to {address}, which" if private else f"it is at {address}, which"
        raise _RefusedError(f"{what} is not a public address", _NAME_IT if private else "Drop the row.")
