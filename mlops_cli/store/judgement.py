"""What an exception of a library that speaks to a server means, and what to tell of it: never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple


class Fault(StrEnum):
    """What an exception of a library means."""

    ABSENT = "absent"
    OUT_OF_RANGE = "out of range"
    PASSING = "passing"
    UNREACHABLE = "unreachable"  # no connection came about
    NO_PLACE = "no place"  # the bucket or folder of the URL is not there
    REFUSED = "refused"  # this is not allowed to whom the server knows
    UNKNOWN_USER = "unknown user"  # no credentials, or none that count
    OTHER = "other"


class Judgement(NamedTuple):
    """What an exception means, and what to tell of it."""

    fault: Fault
    words: str


def safe_url(url: str) -> str:
    """Return a URL without what may be secret: user, password and query."""
    if "://" not in url:
        return url
    protocol, _, rest = url.partition("://")
    rest = rest.partition("?")[0].partition("#")[0]
    place, slash, path = rest.partition("/")
    user, _, host = place.rpartition("@")
    if protocol.lower() in _CONTAINERS and ":" not in user:
        host = place
    return f"{protocol}://{host}{slash}{path}"


_CONTAINERS = frozenset({"abfs", "abfss"})  # what stands before an `@` is no user: abfs://CONTAINER@ACCOUNT


_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_STATUS = ("status", "status_code", "code", "http_status")


def judge_status(status: int, words: str = "") -> Judgement:
    """Return what an HTTP status means."""
    words = words or f"the server answers {status}"
    if status in (404, 410):
        return Judgement(Fault.ABSENT, "it does not exist")
    if status == 416:
        return Judgement(Fault.OUT_OF_RANGE, words)
    if status == 401:
        return Judgement(Fault.UNKNOWN_USER, "it asks for credentials (401)")
    if status in (403, 407):
        return Judgement(Fault.REFUSED, f"permission denied ({status})")
    return Judgement(Fault.PASSING if status in _PASSING else Fault.OTHER, words)


def judge_exception(error: BaseException) -> Judgement:
    """Return what an exception means, from what it, or what caused it, has in common with those of most libraries."""
    for cause in _causes(error):
        if (status := _status_of(cause)) is not None:
            return judge_status(status)
        if isinstance(cause, FileNotFoundError):
            return Judgement(Fault.ABSENT, "it does not exist")
        if isinstance(cause, PermissionError):
            return Judgement(Fault.REFUSED, "permission denied")
        if (found := _judge_kind(cause)) is not None:
            return found
    return Judgement(Fault.OTHER, first_line(error))


def _judge_kind(cause: BaseException) -> Judgement | None:
    kind = type(cause).__name__
    if any(word in kind for word in ("Credential", "Unauthorized", "Authentication", "RefreshError")):
        return Judgement(Fault.UNKNOWN_USER, f"no credentials that count ({kind})")
    if "Forbidden" in kind or "Permission" in kind:
        return Judgement(Fault.REFUSED, f"permission denied ({kind})")
    if "Connect" in kind and not isinstance(cause, ConnectionResetError | ConnectionAbortedError):
        return Judgement(Fault.UNREACHABLE, "no connection")
    if kind == "gaierror":
        return Judgement(Fault.UNREACHABLE, "its host is not known")
    if isinstance(cause, TimeoutError) or "Timeout" in kind:
        return Judgement(Fault.PASSING, "it does not answer")
    if isinstance(cause, ConnectionError | EOFError) or any(word in kind for word in _BROKEN):
        return Judgement(Fault.PASSING, "the connection broke")
    return None


_BROKEN = ("Disconnected", "Incomplete", "ProtocolError", "PayloadError", "ReadError", "WriteError", "NetworkError")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it came from, the nearest first."""
    seen: set[int] = set()
    waiting: BaseException | None = error
    while waiting is not None and id(waiting) not in seen:
        seen.add(id(waiting))
        yield waiting
        waiting = waiting.__cause__ or waiting.__context__


def _status_of(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for word in _STATUS:
            value = getattr(holder, word, None)
            if isinstance(value, int) and 300 <= value < 600:
                return value
    return None


def first_line(error: BaseException) -> str:
    """Return the beginning of what an exception says, with no URL in it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = [safe_url(word) if "://" in word else word for word in lines[0].split()]
    return " ".join(words)[:200]
