"""A bucket: bytes under keys, behind a URL. It is all that a remote asks of the place it lies in.

Keys are relative posix paths. A value is visible whole or not at all, and replaces what was there; nothing is ever
appended. Implementations try again what may pass (a timeout, a server that is busy) and tell everything else as one
RemoteError that names the remote. Several threads may use one bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import NamedTuple, Protocol


class AbsentKey(LookupError):
    """There is nothing under a key. Never told to a user as it is: what it means is for the caller to say."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Stored(NamedTuple):
    """What a listing says of one key: bytes, and when it was written by the store's own clock (s since the epoch).

    `modified` is None where the store does not tell, and `etag` is its own name for this version, if it has one. Only
    a web server may not tell how many bytes there are: -1 then.
    """

    key: str
    size: int
    modified: float | None
    etag: str | None = None


def plain_etag(text: str | None) -> str | None:
    """Return an ETag as a server sent it without its quotes, a weak one as it is; None for none."""
    if text and len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return text if text and text.isprintable() else None


class Traffic:
    """How many requests were made, and how many bytes of values they sent and received.

    `watcher` hears of the files that are being brought, by the threads that bring them: how many bytes each has so far.
    What it raises ends the bringing. `under_way` says of files that are being sent how many bytes went. `listener`
    hears, from any thread, that a server has not answered for a while.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.sent = 0
        self.received = 0
        self.watcher: Callable[[str, int], None] | None = None
        self.listener: Callable[[str], None] | None = None
        self.under_way: dict[str, int] = {}
        self._lock = Lock()

    def count(self, *, requests: int = 1, sent: int = 0, received: int = 0) -> None:
        """Note what went over the wire."""
        with self._lock:
            self.requests += requests
            self.sent += sent
            self.received += received

    def arrived(self, path: str, size: int) -> None:
        """Note that the new file `path` has `size` bytes of a value so far."""
        if self.watcher is not None:
            self.watcher(path, size)

    def waits(self, message: str) -> None:
        """Tell that a server does not answer, and that it is tried again."""
        if self.listener is not None:
            self.listener(message)

    def departed(self, path: str, size: int) -> None:
        """Note that `size` bytes of the file `path` have been sent so far."""
        self.under_way[path] = size


class Bucket(Protocol):
    """Bytes under keys. Every verb but `get`'s and `get_file`'s AbsentKey raises RemoteError alone.

    `label` is what messages call it ("remote `storage`"), `parallel` how many requests at once pay here, `lists`
    whether `list` works (plain HTTP servers cannot) and `writes` whether anything can be changed.
    """

    name: str
    url: str
    label: str
    parallel: int
    lists: bool
    writes: bool
    traffic: Traffic

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end` (None: all), fewer where the value ends; AbsentKey."""

    def get_file(self, key: str, path: str) -> int:
        """Write a value to a new local file and return its bytes; AbsentKey, and then there is no file."""

    def put(self, key: str, data: bytes) -> None:
        """Store a value."""

    def put_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file."""

    def move_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file of ours, which is gone then; on the same disk they need not be copied."""

    def size(self, key: str) -> int | None:
        """Return the bytes of a value, None when there is none."""

    def stat(self, key: str) -> Stored | None:
        """Return what a listing would say of one key, None when there is no value."""

    def list(self, folder: str) -> Iterator[Stored]:
        """Yield every key below `folder`, at any depth, in no order; nothing when there is no such folder."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove values; those that are not there already are no error."""
