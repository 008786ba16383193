"""One collection at a time on a remote: a lease, in a place that cannot compare and swap.

    lease/<id>.json    who collects; renewed while it lives

Who wants it writes a lease under a name of its own, then lists: it holds when there is no other. Of two that come at
once the one that lists last sees both, so never do both hold; both may have to try again. A lease that was not renewed
for an hour is taken for that of a command that was killed, as is one of a process of this machine that is gone, and one
that is to be written in an hour: the clock there was set back. All times are the store's own, from one listing: whose
clock is wrong does not matter.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Event, Lock, Thread

from mlops_cli.errors import LockedError, MlxError, RemoteError
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored

FOLDER = "lease"
EXPIRES = 3600.0  # s without a sign of life after which a holder is taken for dead
ID_LENGTH = 16
_RENEW = 300.0  # s
_LARGEST = 4096


class Lease:
    """The right to change what a remote holds already; `now` is the time there when it was taken or renewed (s)."""

    def __init__(self, bucket: Bucket, doing: str) -> None:
        self._bucket = bucket
        self._doing = doing
        self._key = f"{FOLDER}/{os.urandom(ID_LENGTH // 2).hex()}.json"
        self._renewed = 0.0
        self._lock = Lock()
        self.now = 0.0

    @property
    def id(self) -> str:
        """A name that no other holder has."""
        return self._key.removeprefix(f"{FOLDER}/").removesuffix(".json")

    def take(self) -> None:
        """Become the holder: LockedError while somebody else is, RemoteError when the store tells no times.

        RemoteError, too, before anything is written, for who must not remove what is there.
        """
        self._bucket.delete([self._key])
        self._write()
        try:
            others = self._others()
            if stale := [other.key for other in others if not is_alive(self._bucket, other, self.now)]:
                self._bucket.delete(stale)
            if alive := [other for other in others if other.key not in stale]:
                raise self._taken(alive[0])
        except BaseException:
            with suppress(MlxError):
                self.give_back()
            raise

    def check(self) -> None:
        """Make sure of still being the holder, before what cannot be undone: LockedError."""
        with self._lock:
            self._check()
            if time.monotonic() - self._renewed > _RENEW:
                self._write()

    def renew(self) -> None:
        """Show a sign of life: LockedError when it is too late."""
        with self._lock:
            self._check()
            self._write()

    def _check(self) -> None:
        if time.monotonic() - self._renewed > EXPIRES:
            raise self._lost()
        self._others()

    def give_back(self) -> None:
        """Be the holder no more."""
        self._bucket.delete([self._key])

    def _write(self) -> None:
        value = {
            "mlx": 1,
            "holder": f"{_user()}@{socket.gethostname()}",
            "doing": self._doing,
            "machine": _machine(),
            "process": os.getpid(),
        }
        self._bucket.put(self._key, json.dumps(value).encode() + b"\n")
        self._renewed = time.monotonic()

    def _others(self) -> list[Stored]:
        """Return the leases of others, and note what time it is there."""
        listed = {stored.key: stored for stored in self._bucket.list(FOLDER) if stored.key.endswith(".json")}
        mine = listed.pop(self._key, None)
        if mine is None:
            raise self._lost()
        if mine.modified is None:
            raise RemoteError(
                f"{self._bucket.label} does not tell when something was written, so nobody can tell what is old there",
                hint="collect it where it lies, or copy it to a store that tells",
            )
        self.now = max(self.now, mine.modified)
        return list(listed.values())

    def _lost(self) -> LockedError:
        return LockedError(
            f"`{self._doing}` was stopped: another command has taken over {self._bucket.label}",
            hint="what was done is complete in itself; run it again when the other is through",
        )

    def _taken(self, other: Stored) -> LockedError:
        value = _read(self._bucket, other)
        holder, doing = (str(value.get(name, "somebody"))[:100] for name in ("holder", "doing"))
        seen = datetime.fromtimestamp(other.modified or 0, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return LockedError(
            f"`{holder}` is at work on {self._bucket.label} (`{doing}`), last heard of at {seen}",
            hint="wait until it is through; the lease of a command that was killed ends an hour after that",
        )


@contextmanager
def leased(bucket: Bucket, doing: str, every: float = _RENEW) -> Iterator[Lease]:
    """Hold the lease of a remote for the length of a block, renewing it `every` so many seconds meanwhile.

    LockedError while somebody else holds it.
    """
    lease = Lease(bucket, doing)
    lease.take()
    over = Event()
    thread = Thread(target=_keep, args=(lease, over, every), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()
        with suppress(MlxError):  # it ends by itself; what happened in the block says more
            lease.give_back()


def _keep(lease: Lease, over: Event, every: float) -> None:
    """Renew a lease until it is `over`: reading and copying packs may take longer than a lease lasts."""
    while not over.wait(every):
        with suppress(MlxError):  # whoever holds it looks before each removal
            lease.renew()


def is_held(bucket: Bucket, name: str, now: float | None) -> bool:
    """Say whether the holder whose lease has this `id` may still be at work at the time `now` there (s)."""
    key = f"{FOLDER}/{name}.json"
    found = next((stored for stored in bucket.list(FOLDER) if stored.key == key), None)
    return found is not None and is_alive(bucket, found, now)


def is_alive(bucket: Bucket, lease: Stored, now: float | None) -> bool:
    """Say whether the holder of a lease that is there may still be at work at the time `now` there (s)."""
    if now is not None and lease.modified is not None and abs(now - lease.modified) > EXPIRES:
        return False
    value = _read(bucket, lease)
    process = value.get("process")
    if not _machine() or value.get("machine") != _machine() or type(process) is not int or process <= 0:
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _read(bucket: Bucket, lease: Stored) -> dict[str, object]:
    with suppress(AbsentKey, ValueError, RecursionError):
        value = json.loads(bucket.get(lease.key, 0, _LARGEST))
        if isinstance(value, dict):
            return value
    return {}


def _machine() -> str:
    """Return what tells this running system, and the processes that see one another in it, from all others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
