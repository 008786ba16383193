"""A proxy in front of a server, that counts requests and does to them what networks do.

It passes bytes on as they come, and reads along as far as it must to know where a request begins: HTTP/1.1 with a
length or chunks. In front of another protocol it counts connections alone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PIECE = 1 << 16


@dataclass
class Proxy:
    """Where a proxy listens, what passed it, and what it is to do from the next request on.

    `answer(status, times)` speaks for the server; `cut_upload` and `cut_download` end the connection after that many
    bytes of a request's or an answer's body, `times` times; `hold_upload` stops there, and `hold_download` once so many
    bytes have passed in all; `stall()` leaves requests unanswered until `heal()`; `stop_at` holds one request, or its answer.
    """

    target: tuple[str, int]
    http: bool = True
    port: int = 0
    connections: int = 0
    downloaded: int = 0  # bytes of answers, with their heads
    requests: list[str] = field(default_factory=list)  # "PUT /bucket/key"
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _status: int = 0
    _refusals: int = 0
    _refused_methods: frozenset[str] = frozenset()
    _cut_upload: int = -1
    _cut_download: int = -1
    _cuts: int = 0
    _stalled: bool = False
    _closing: bool = False
    _hold: int = -1
    _hold_download: int = -1
    _stop: tuple[int, bool] | None = None
    held: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where a client finds the server through this proxy."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, status: int, times: int = 1, methods: str = "") -> None:
        """Answer the next `times` requests (of `methods`, such as "PUT POST"; all when empty) with `status`."""
        with self._lock:
            self._status, self._refusals, self._refused_methods = status, times, frozenset(methods.split())

    def cut_upload(self, after: int, times: int = 1) -> None:
        """Reset the next `times` connections once `after` bytes of a request's body have passed."""
        with self._lock:
            self._cut_upload, self._cuts = after, times

    def cut_download(self, after: int, times: int = 1) -> None:
        """Reset the next `times` connections once `after` bytes of an answer have passed."""
        with self._lock:
            self._cut_download, self._cuts = after, times

    def hold_upload(self, after: int) -> None:
        """Pass no more than `after` bytes of a request's body, and say so in `held`; `heal()` ends the connection."""
        self._hold = after

    def hold_download(self, after: int) -> None:
        """Pass no more answers once `after` bytes have (`downloaded`), and say so in `held`; `heal()` ends that."""
        self._hold_download = after

    def stop_at(self, number: int, *, answered: bool) -> None:
        """Hold the request of that number, from now on and from 0, or (`answered`) its answer, and say so in `held`.

        Those after it are held too; `heal()` ends their connections.
        """
        with self._lock:
            self._stop = number, answered

    def stall(self) -> None:
        """Accept connections and requests, and never answer."""
        self._stalled = True

    def heal(self) -> None:
        """Do nothing to anything any more, and forget what was counted."""
        with self._lock:
            self._refusals = self._cuts = self.connections = self.downloaded = 0
            self._cut_upload = self._cut_download = -1
            self._stalled = False
            self.requests.clear()
            self._hold = self._hold_download = -1
            self._stop = None
            self.held.clear()

    def _refusal(self, line: str) -> int:
        """Note a request; return the status to answer it with, 0 for none."""
        method = line.partition(" ")[0]
        with self._lock:
            self.requests.append(" ".join(line.split(" ")[:2]))
            if self._refusals and (not self._refused_methods or method in self._refused_methods):
                self._refusals -= 1
                return self._status
        return 0

    def _limit(self, kind: str) -> int:
        """Take one cut of a kind; return after how many bytes, -1 for none."""
        with self._lock:
            limit = self._cut_upload if kind == "upload" else self._cut_download
            if limit < 0 or not self._cuts:
                return -1
            self._cuts -= 1
            return limit

    def _stops(self, *, answered: bool) -> bool:
        """Wait when the request that was noted last, or its answer, is to be held; then tell that it was so."""
        stop = self._stop
        return stop is not None and stop[1] is answered and len(self.requests) > stop[0] and self._wait()

    def _holds(self, passed: int) -> bool:
        """Wait when `passed` bytes are as many as may pass; then tell that it was so."""
        return 0 <= self._hold < passed and self._wait()

    def _wait(self) -> bool:
        self.held.set()
        while self.held.is_set() and not self._closing:
            time.sleep(0.01)
        return True


@contextmanager
def proxy(port: int, *, http: bool = True) -> Iterator[Proxy]:
    """Listen on a free port of loopback in front of `port` of loopback."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    found = Proxy(("127.0.0.1", port), http, listener.getsockname()[1])
    sockets: set[socket.socket] = set()
    thread = threading.Thread(target=_accept, args=(found, listener, sockets), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found._closing = True
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in list(sockets):
            reset(connection)
        thread.join(5)


def _accept(state: Proxy, listener: socket.socket, sockets: set[socket.socket]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        state.connections += 1
        sockets.add(client)
        threading.Thread(target=_serve, args=(state, client, sockets), daemon=True).start()


def _serve(state: Proxy, client: socket.socket, sockets: set[socket.socket]) -> None:
    try:
        server = socket.create_connection(state.target, 10)
    except OSError:
        reset(client)
        return
    sockets.add(server)
    server.settimeout(None)
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_download, args=(state, server, client), daemon=True)
    back.start()
    try:
        (_upload_http if state.http else _upload)(state, client, server)
    except OSError:
        pass
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)
        back.join(60)
        for end in (client, server):
            end.close()
            sockets.discard(end)


def _download(state: Proxy, server: socket.socket, client: socket.socket) -> None:
    passed, limit = 0, -1
    with contextlib.suppress(OSError):
        while data := server.recv(PIECE):
            if state._stalled:
                continue
            if state._stops(answered=True) or (0 <= state._hold_download <= state.downloaded and state._wait()):
                reset(client)
                reset(server)
                return
            if limit < 0 and (limit := state._limit("download")) >= 0:
                passed = 0
            if 0 <= limit < passed + len(data):
                client.sendall(data[: limit - passed])
                with state._lock:
                    state.downloaded += limit - passed
                break
            client.sendall(data)
            passed += len(data)
            with state._lock:
                state.downloaded += len(data)
    while state._stalled and not state._closing:  # a server that ends the connection is not to be seen either
        time.sleep(0.02)
    if state._closing or limit >= 0:
        reset(client)
        reset(server)
        return
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)


def _upload(state: Proxy, client: socket.socket, server: socket.socket) -> None:
    passed, limit = 0, -1
    while data := client.recv(PIECE):
        if limit < 0 and (limit := state._limit("upload")) >= 0:
            passed = 0
        passed += len(data)
        if 0 <= limit < passed or state._holds(passed):
            reset(client)
            reset(server)
            return
        server.sendall(data)


def _upload_http(state: Proxy, client: socket.socket, server: socket.socket) -> None:
    stream = client.makefile("rb", PIECE)
    while line := stream.readline(PIECE):
        head = [line]
        while (more := stream.readline(PIECE)) not in (b"\r\n", b"\n", b""):
            head.append(more)
        headers = {name.strip().lower(): value.strip() for name, _, value in (h.partition(b":") for h in head[1:])}
        status = state._refusal(line.decode("latin-1"))
        if state._stops(answered=False):
            reset(client)
            reset(server)
            return
        limit = state._limit("upload") if headers.get(b"content-length", b"0") != b"0" else -1
        if status:
            for _ in _body(stream, headers, client):
                pass
            text = f"HTTP/1.1 {status} Refused by the proxy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            client.sendall(text.encode())
            client.shutdown(socket.SHUT_WR)
            return
        server.sendall(b"".join(head) + b"\r\n")
        passed = 0
        for data in _body(stream, headers, client if limit >= 0 else None):
            passed += len(data)
            if 0 <= limit < passed or state._holds(passed):
                reset(client)
                reset(server)
                return
            server.sendall(data)


def _body(stream, headers: dict[bytes, bytes], asked: socket.socket | None) -> Iterator[bytes]:
    """Yield a request's body as it comes; tell a client that asks first (`Expect`) to go on, where we stand in."""
    if asked is not None and headers.get(b"expect", b"").lower() == b"100-continue":
        asked.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        while line := stream.readline(PIECE):
            size = int(line.split(b";")[0], 16)
            yield line + stream.read(size) + stream.readline(PIECE)
            if not size:
                return
    left = int(headers.get(b"content-length", b"0"))
    while left and (data := stream.read1(min(left, PIECE))):
        left -= len(data)
        yield data


def reset(connection: socket.socket) -> None:
    """End a connection so that the other side sees it reset, not finished."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
