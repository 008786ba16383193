"""A bucket in front of another, that lets a test do something just before a request is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mlops_cli.store.bucket import Bucket, Stored


class Watched:
    """Passes everything on to `bucket`, one request at a time, and calls `before(verb, key)` first; `log` keeps both."""

    parallel = 1

    def __init__(self, bucket: Bucket, before: Callable[[str, str], None] = lambda verb, key: None) -> None:
        self._bucket = bucket
        self._before = before
        self.log: list[tuple[str, str]] = []
        self.name, self.url, self.label = bucket.name, bucket.url, bucket.label
        self.lists, self.writes, self.traffic = bucket.lists, bucket.writes, bucket.traffic

    def _ask(self, verb: str, key: str) -> None:
        self._before(verb, key)
        self.log.append((verb, key))

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._ask("get", key)
        return self._bucket.get(key, start, end)

    def get_file(self, key: str, path: str) -> int:
        self._ask("get", key)
        return self._bucket.get_file(key, path)

    def put(self, key: str, data: bytes) -> None:
        self._ask("put", key)
        self._bucket.put(key, data)

    def put_file(self, key: str, path: str) -> None:
        self._ask("put", key)
        self._bucket.put_file(key, path)

    def move_file(self, key: str, path: str) -> None:
        self._ask("put", key)
        self._bucket.move_file(key, path)

    def size(self, key: str) -> int | None:
        self._ask("size", key)
        return self._bucket.size(key)

    def list(self, folder: str) -> Iterator[Stored]:
        self._ask("list", folder)
        return iter([self.seen(stored) for stored in self._bucket.list(folder)])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ask("delete", key)
            self._bucket.delete([key])

    def seen(self, stored: Stored) -> Stored:
        """Return what this bucket tells of a value."""
        return stored


class Timeless(Watched):
    """A store that does not tell when something was written."""

    def seen(self, stored: Stored) -> Stored:
        return stored._replace(modified=None)


def at_request(number: int, act: Callable[[], object]) -> Callable[[str, str], None]:
    """Return what calls `act` before the request with this number, counted from 0, and never again."""
    left = [number]

    def before(verb: str, key: str) -> None:
        left[0] -= 1
        if left[0] == -1:
            act()

    return before
