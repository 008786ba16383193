"""Which parts of a folder somebody keeps here: the folder as a whole, or by path, the longest path deciding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Extent:
    """Whether a folder is kept here, with the paths below it, which have no end in `/`, for which it is otherwise.

    What is not kept here is away: nothing follows from its not being there.
    """

    here: bool = True
    rules: Mapping[bytes, bool] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether all of the folder is kept here."""
        return self.here and not self.rules

    def has(self, path: bytes) -> bool:
        """Say whether the path, with an empty one the folder itself, is kept here."""
        while path:
            found = self.rules.get(path)
            if found is not None:
                return found
            path = path.rpartition(b"/")[0]
        return self.here

    def below(self, path: bytes) -> Extent:
        """Return the extent of the folder at `path`."""
        start = path + b"/"
        rules = {rule[len(start) :]: here for rule, here in self.rules.items() if rule.startswith(start)}
        return Extent(self.has(path), rules) if path else self

    def marked(self, paths: Iterable[bytes], *, here: bool) -> Extent:
        """Return the extent with all that is at and below `paths` kept here, or away."""
        marked = set(paths)
        if b"" in marked:
            return Extent(here)
        kept = {rule: old for rule, old in self.rules.items() if not any(at in marked for at in _and_above(rule))}
        return _plain(self.here, {**kept, **dict.fromkeys(marked, here)})

    def replaced(self, path: bytes, extent: Extent) -> Extent:
        """Return the extent with that of the folder at `path` replaced by another."""
        if not path:
            return extent
        cleared = self.marked([path], here=extent.here)
        return _plain(cleared.here, {**cleared.rules, **{path + b"/" + rule: h for rule, h in extent.rules.items()}})

    def without(self, path: bytes) -> Extent:
        """Return the extent with nothing said of `path` and what is below it."""
        start = path + b"/"
        rules = {rule: here for rule, here in self.rules.items() if rule != path and not rule.startswith(start)}
        return Extent(self.here, rules)


class Ruled:
    """Answers below which folders an extent says something of its own."""

    def __init__(self, extent: Extent) -> None:
        self._rules = sorted(extent.rules)

    def names(self, folder: bytes) -> set[bytes]:
        """Return the names in `folder` (empty: the whole) at or below which there are rules."""
        start = folder + b"/" if folder else b""
        found = set()
        at = bisect_left(self._rules, start)
        while at < len(self._rules) and self._rules[at].startswith(start):
            name = self._rules[at][len(start) :].partition(b"/")[0]
            found.add(name)
            is_own = self._rules[at] == start + name
            # `0` follows `/`: all that is below the name comes before it.
            at = at + 1 if is_own else bisect_left(self._rules, start + name + b"0", at)
        return found


def _and_above(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _plain(here: bool, rules: Mapping[bytes, bool]) -> Extent:
    """Return the extent without rules that say what is so without them."""
    said: dict[bytes, bool] = {}
    plain = Extent(here, said)
    for path in sorted(rules):  # what is above comes first
        if plain.has(path) != rules[path]:
            said[path] = rules[path]
    return plain
