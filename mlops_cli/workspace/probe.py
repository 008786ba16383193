"""Whether a remote can be used from here: each thing that mlx does with one, tried on a key of its own.

Nothing that a remote holds is touched. What it cannot do by its nature (a web server takes nothing) is no failure.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from mlops_cli.errors import MlxError
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.judgement import safe_url
from mlops_cli.store.remote_marker import MARKER, layout_of
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remotes import choose_remote

PROBE = "tmp/probe-"  # with random digits a key of its own; what is killed leaves it where it is tidied up
SIZE = 1 << 16  # bytes of what is written, and read again
_NEVER = "such a remote does not do that"


class Outcome(StrEnum):
    """How one thing came out: `impossible` is what such a remote never does, `untried` what has no sense any more."""

    WORKS = "works"
    FAILED = "failed"
    IMPOSSIBLE = "impossible"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried: what it is for, how long it took (s), and what to do when it failed."""

    name: str
    outcome: Outcome
    seconds: float
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RemoteCheck:
    """What can be done with a remote from here, in the order in which it was tried."""

    remote: str
    url: str
    steps: tuple[Step, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing failed that such a remote can do."""
        return all(step.outcome is not Outcome.FAILED for step in self.steps)


class _Wrong(MlxError):
    """A remote answered, and not with what it holds."""


def check_remote(project: Project, name: str | None) -> RemoteCheck:
    """Try everything on the remote `name`, or the default one; UsageError when there is none of that name."""
    chosen = choose_remote(project, name)
    url = project.config.remotes[chosen].url
    bucket = open_bucket(chosen, url, project.root, durability=project.cache.durability)
    return RemoteCheck(chosen, safe_url(url), tuple(try_bucket(bucket)))


def try_bucket(bucket: Bucket) -> Iterator[Step]:
    """Yield how each verb of a bucket comes out; the probe is gone afterwards where it can be removed."""
    key, data = f"{PROBE}{os.urandom(16).hex()}", os.urandom(SIZE)
    reach = _step("reach", "answers", lambda: _ask(bucket))
    yield reach
    yield _step("list", "its keys can be listed", lambda: _list(bucket), reach, can=bucket.lists)
    written = _step("write", "a value can be stored", lambda: bucket.put(key, data), reach, can=bucket.writes)
    yield written
    if written.outcome is not Outcome.WORKS:
        for name in ("read", "range"):
            yield Step(name, Outcome.UNTRIED, 0.0, "there is nothing to try it on")
        outcome = Outcome.UNTRIED if bucket.writes else Outcome.IMPOSSIBLE
        yield Step("delete", outcome, 0.0, "there is nothing to try it on" if bucket.writes else _NEVER)
        return
    try:
        yield _step("read", "a value comes back as it was stored", lambda: _read(bucket, key, data))
        yield _step("range", "a part of a value can be read", lambda: _read_range(bucket, key, data))
    finally:
        removed = _step("delete", "a value can be removed", lambda: _remove(bucket, key))
    yield removed


def _step(name: str, detail: str, act: Callable[[], object], first: Step | None = None, *, can: bool = True) -> Step:
    """Try one thing; it counts as not tried when it fails for the very reason for which the `first` failed."""
    if not can:
        return Step(name, Outcome.IMPOSSIBLE, 0.0, _NEVER)
    start = time.perf_counter()
    try:
        act()
    except MlxError as error:
        if first is not None and first.detail == error.message:
            return Step(name, Outcome.UNTRIED, 0.0, "there is no use in trying")
        return Step(name, Outcome.FAILED, _since(start), error.message, error.marked_hint or "")
    return Step(name, Outcome.WORKS, _since(start), detail)


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _ask(bucket: Bucket) -> None:
    """Raise RemoteError where something else lies than a remote that this mlx understands, or an empty place."""
    _refuse_unmounted(bucket)
    with suppress(AbsentKey):
        layout_of(bucket.get(MARKER, 0, SIZE), bucket.label)


def _list(bucket: Bucket) -> None:
    _refuse_unmounted(bucket)
    for _ in bucket.list("index"):
        return


def _refuse_unmounted(bucket: Bucket) -> None:
    """Raise RemoteError for a folder that could not even be made: nothing in it is not the same as nothing there."""
    if isinstance(bucket, FolderBucket):
        bucket.refuse_unmounted()


def _read(bucket: Bucket, key: str, data: bytes) -> None:
    _compare(bucket, lambda: bucket.get(key), data)


def _read_range(bucket: Bucket, key: str, data: bytes) -> None:
    _compare(bucket, lambda: bucket.get(key, 100, 2000), data[100:2000])


def _compare(bucket: Bucket, get: Callable[[], bytes], expected: bytes) -> None:
    hint = "is there something between here and it that changes or keeps what passes, such as a proxy?"
    try:
        found = get()
    except AbsentKey:
        raise _Wrong(f"{bucket.label} does not know what was stored a moment ago", hint=hint) from None
    if found != expected:
        raise _Wrong(f"{bucket.label} gives other bytes than were stored", hint=hint)


def _remove(bucket: Bucket, key: str) -> None:
    bucket.delete([key])
    if bucket.size(key) is not None:
        raise _Wrong(f"{bucket.label} still has what was removed", hint=f"remove `{key}` there by hand")
