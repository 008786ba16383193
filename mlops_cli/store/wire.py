"""A bucket over a network: tries again what may pass, and tells everything else in one sentence.

A `Wire` speaks with one kind of server and lets its library's exceptions out; it says of each what it means (`judge`).
`WireBucket` makes a `Bucket` of it. So that the count of requests is true and nothing waits twice, the libraries
behind wires try nothing again themselves where they can be told so.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from os import remove
from os.path import getsize
from threading import Lock
from typing import NamedTuple, Protocol, TypeVar

from mlops_cli.errors import MlxError, OutsideError, RemoteError
from mlops_cli.store.bucket import AbsentKey, Stored, Traffic
from mlops_cli.store.judgement import Fault, Judgement, safe_url
from mlops_cli.store.outage import Outage
from mlops_cli.store.pace import Pace

T = TypeVar("T")

PATIENCE = 60.0  # s without any answer for which what may pass is tried again
UNREACHED = 6.0  # s, when nothing ever answered: more likely a wrong address than a hiccup
SILENCE = 30.0  # s without a byte after which a connection is given up
CONNECT = 5.0  # s to wait for a connection
FIRST_PAUSE = 0.2  # s
LONGEST_PAUSE = 8.0  # s
_WORTH_TELLING = 5.0  # s
DELETE_AT_ONCE = 1000  # keys: S3 takes no more in one request


class Wire(Protocol):
    """The verbs of a bucket as one library speaks them; each counts its requests, and raises what it likes.

    `get` is never asked for no bytes at all. `put_file` returns how many bytes it had to send: all, unless it went on
    with what an attempt before it had sent.
    """

    def get(self, key: str, start: int, end: int | None) -> bytes: ...

    def get_file(self, key: str, path: str) -> int: ...

    def put(self, key: str, data: bytes) -> None: ...

    def put_file(self, key: str, path: str) -> int: ...

    def stat(self, key: str) -> Stored | None: ...

    def list(self, folder: str) -> Iterable[Stored]: ...

    def delete(self, keys: Sequence[str]) -> None: ...

    def judge(self, error: Exception) -> Judgement: ...


class Hints(NamedTuple):
    """What to do when the place of a URL is not there, cannot be reached, or fails in another way (`{}`: its name)."""

    no_place: str
    unreachable: str
    other: str


OF_REMOTES = Hints(
    "check its URL: `mlx remote list`; mlx makes folders, but no buckets",
    "check its URL (`mlx remote list`) and the network",
    "`mlx remote check {}` tells what works",
)


class WireBucket:
    """A bucket over a wire that is made when it is first needed; OutsideError where a local file cannot be used.

    `refusal_hint` says what to set when the server does not let this user in.
    """

    def __init__(
        self,
        name: str,
        url: str,
        connect: Callable[[Traffic], Wire],
        *,
        refusal_hint: str,
        parallel: int = 8,
        lists: bool = True,
        writes: bool = True,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self.url = safe_url(url)
        self.label = f"remote `{name}`"
        self.parallel = parallel
        self.lists = lists
        self.writes = writes
        self.traffic = Traffic()
        self.hints = OF_REMOTES
        self._connect = connect
        self._refusal_hint = refusal_hint
        self.patience = patience
        self._lock = Lock()
        self._pace = Pace()
        self._outage = Outage()
        self._wire: Wire | None = None
        self._reached = False
        self._turned_away: RemoteError | None = None

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end` (None: all), fewer where the value ends; AbsentKey."""
        if end is not None and end <= start:
            if self.size(key) is None:
                raise AbsentKey(key)
            return b""
        data = self._try("read from", key, lambda wire: wire.get(key, start, end))
        self.traffic.count(requests=0, received=len(data))
        return data

    def get_file(self, key: str, path: str) -> int:
        """Write a value to a new local file and return its bytes; AbsentKey, and then there is no file."""
        try:
            size = self._try(
                "read from",
                key,
                lambda wire: _telling_local(path, lambda: wire.get_file(key, path)),
                reached=lambda: _size_of(path),
            )
        except BaseException:
            with suppress(FileNotFoundError):
                remove(path)
            raise
        self.traffic.count(requests=0, received=size)
        return size

    def put(self, key: str, data: bytes) -> None:
        """Store a value."""
        self._refuse_writing()
        self._try("write to", None, lambda wire: wire.put(key, data))
        self.traffic.count(requests=0, sent=len(data))

    def put_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file, which must not change meanwhile."""
        self._refuse_writing()
        try:
            sent = self._try(
                "write to",
                None,
                lambda wire: _telling_local(path, lambda: wire.put_file(key, path)),
                reached=lambda: self.traffic.under_way.get(path, 0),
            )
        finally:
            self.traffic.under_way.pop(path, None)
        self.traffic.count(requests=0, sent=sent)

    def move_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file of ours, which is gone then."""
        self.put_file(key, path)
        remove(path)

    def size(self, key: str) -> int | None:
        """Return the bytes of a value, None when there is none."""
        found = self.stat(key)
        return None if found is None else found.size

    def stat(self, key: str) -> Stored | None:
        """Return what a listing would say of one key, None when there is no value."""
        try:
            return self._try("read from", key, lambda wire: wire.stat(key))
        except AbsentKey:
            return None

    def list(self, folder: str) -> Iterator[Stored]:
        """Yield every key below `folder`, at any depth, in no order; nothing when there is no such folder."""
        if not self.lists:
            raise RemoteError(f"{self.label} (`{self.url}`) cannot be listed", hint=_NO_LISTING)
        with suppress(AbsentKey):
            yield from self._try("list", folder, lambda wire: [*wire.list(folder.strip("/"))])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove values; those that are not there already are no error."""
        self._refuse_writing()
        waiting = iter(keys)
        while batch := [*islice(waiting, DELETE_AT_ONCE)]:
            with suppress(AbsentKey):
                self._try("remove from", "", lambda wire, batch=batch: wire.delete(batch))  # type: ignore[misc]

    def _refuse_writing(self) -> None:
        if not self.writes:
            raise RemoteError(f"{self.label} (`{self.url}`) can only be read", hint=_READ_ONLY)

    def _try(self, doing: str, key: str | None, call: Callable[[Wire], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Return what `call` returns, within the patience of this bucket; AbsentKey where there may be no `key`.

        The patience begins anew whenever more bytes are `reached` than ever were.
        """
        if self._turned_away is not None:
            raise self._turned_away
        start, pause, furthest = time.monotonic(), FIRST_PAUSE, 0
        while True:
            wire = self._open()
            begun = time.monotonic()
            try:
                with self._pace.turn() as turn:
                    done = call(wire)
            except (MlxError, AbsentKey):
                raise
            except Exception as error:
                fault, words = wire.judge(error)
                if fault is Fault.ABSENT and key is not None:
                    self._answered()
                    raise AbsentKey(key) from None
                if fault is Fault.PASSING:
                    self._pace.slow(turn)
                if (size := reached()) > furthest:
                    start, pause, furthest = time.monotonic(), FIRST_PAUSE, size
                patience = self._patience_for(fault)
                if start > begun:  # something came
                    self._outage.begin_anew(start)
                if time.monotonic() + pause > self._end_of(patience, start, begun, words):
                    self._outage.give_up()
                    raise self._tell(doing, fault, words) from error
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - so that clients do not come in step
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            self._answered()
            self._pace.quicken()
            return done

    def _answered(self) -> None:
        self._reached = True
        self._outage.end(time.monotonic())

    def _end_of(self, patience: float, start: float, begun: float, words: str) -> float:
        """Return until when a request is tried again that began at `start`, its last attempt at `begun`.

        One that waits tells it, once in an outage; where other requests have failed for longer, there is less patience.
        """
        now = time.monotonic()
        if not patience:
            return now
        end = min(start, self._outage.go_on(begun, now)) + patience
        if end - now > _WORTH_TELLING and self._outage.is_news(now, silent=now - begun >= SILENCE):
            self.traffic.waits(f"{self.label}: {words}; trying again for up to {end - now:.0f} s")
        return end

    def _open(self) -> Wire:
        with self._lock:
            if self._wire is None:
                self._wire = self._connect(self.traffic)
            return self._wire

    def _patience_for(self, fault: Fault) -> float:
        if fault is Fault.PASSING:
            return self.patience
        if fault is Fault.UNREACHABLE:
            return self.patience if self._reached else min(UNREACHED, self.patience)
        return 0.0

    def _tell(self, doing: str, fault: Fault, words: str) -> RemoteError:
        place = f"{self.label} (`{self.url}`)"
        if fault is Fault.UNKNOWN_USER:
            self._turned_away = RemoteError(f"{place} does not let you in: {words}", hint=self._refusal_hint)
            return self._turned_away
        if fault is Fault.REFUSED:
            return RemoteError(f"{place} does not let you {doing} it: {words}", hint=self._refusal_hint)
        if fault in (Fault.NO_PLACE, Fault.ABSENT):
            return RemoteError(f"cannot {doing} {place}: {words}", hint=self.hints.no_place)
        if fault is Fault.UNREACHABLE:
            error = RemoteError(f"cannot reach {place}: {words}", hint=self.hints.unreachable)
            if not self._reached:  # nor would it be for the next verb: waiting once is enough
                self._turned_away = error
            return error
        return RemoteError(f"cannot {doing} {place}: {words}", hint=self.hints.other.format(self.name))


def _size_of(path: str) -> int:
    try:
        return getsize(path)
    except OSError:
        return 0


def _telling_local(path: str, call: Callable[[], T]) -> T:
    """Return what `call` returns; OutsideError for what is wrong with the local file, not with a server."""
    try:
        return call()
    except OSError as error:
        if error.errno not in _FULL and error.filename != path:
            raise
        raise OutsideError(f"cannot use `{path}`: {error.strerror}") from error


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LISTING = "a web server tells no names: list it at the place that the server shows"
_READ_ONLY = "a web server only gives: write to the place that it shows"
