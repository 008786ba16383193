"""Looking at tracked data without checkout: `mlx ls` and `mlx cat`, by the workspace's records or a revision's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import Digest, parse_digest
from mlops_cli.store.cache import Cache
from mlops_cli.store.trees import Entry, Kind, read_link, read_tree, walk
from mlops_cli.words import word
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.reach import damaged_at, find_part, naming_listing
from mlops_cli.workspace.scan import is_stored
from mlops_cli.workspace.snapshot import Snapshot, Tracked, select


@dataclass(frozen=True, slots=True)
class Listed:
    """One tracked path, file or folder; sizes in bytes, files counted through sub-folders.

    `source` is what its record says of where it was imported from, if it was.
    """

    path: str
    kind: str  # file, executable, symlink or folder
    size: int
    files: int
    digest: Digest
    stage: str = ""
    source: Mapping[str, object] | None = None


def list_tracked(cache: Cache, snapshot: Snapshot, target: str = "", *, recursive: bool = False) -> tuple[Listed, ...]:
    """Return what is tracked at or below `target` (none: every tracked path); a folder's entries when it names one.

    UsageError when nothing tracks `target`; MissingObject when its tree is in no local store.
    """
    chosen = select(snapshot.tracked(), [target] if target else [])
    if not target or len(chosen) > 1 or chosen[0][0].path.startswith(target + "/"):
        listed = [_imported(entry, _listed(entry.path, as_entry(entry), entry.stage)) for entry, _ in chosen]
        if recursive:
            return tuple(below for item in listed for below in _below(cache, item))
        return tuple(listed)
    tracked, part = chosen[0]
    entry = _entry(cache, snapshot, target)
    place = f"{tracked.path}/{part}" if part else tracked.path
    item = _listed(place, entry, tracked.stage)
    if entry.kind != Kind.FOLDER:
        return (item if part else _imported(tracked, item),)
    if recursive:
        return tuple(_below(cache, item))
    return tuple(_listed(f"{place}/{os.fsdecode(below.name)}", below) for below in _tree(cache, place, entry.digest))


def find_object(cache: Cache, snapshot: Snapshot, target: str) -> Entry:
    """Return the entry at `target`: a tracked path, a path inside one, or a digest (or its start) in the cache."""
    if target.startswith("blake3:"):
        digest = _complete(cache, target)
        with cache.open(digest) as stream:
            is_tree = stream.read(4) == b"MLXT"
            size = stream.seek(0, os.SEEK_END)
        return Entry(b"", Kind.FOLDER if is_tree else Kind.FILE, size, 1, digest)
    return _entry(cache, snapshot, target)


@contextmanager
def naming(path: str, revision: str | None = None) -> Iterator[None]:
    """Name the tracked `path`, and what brings it, in errors about its objects; a digest names itself.

    A pull brings what the checked out records name, a fetch also what those of `revision` do.
    """
    command = f"mlx pull {word(path)}" if revision is None else f"mlx fetch --rev {revision} {word(path)}"
    bringing = f"`{command}` brings it from a remote"
    try:
        yield
    except (MissingObject, CorruptObject) as error:
        if path.startswith("blake3:"):
            raise
        if isinstance(error, CorruptObject):
            raise damaged_at(path, error, bringing if revision else "") from error
        raise MissingObject(f"`{path}` is not in the cache", hint=bringing) from error


def write_copy(cache: Cache, entry: Entry, place: Path) -> None:
    """Write `entry` as a plain file or folder at `place`, where nothing may be yet."""
    if os.path.lexists(place):
        raise UsageError(f"`{place}` exists already", hint="name another place, or move it away")
    if entry.kind != Kind.FOLDER:
        _write(cache, entry, place)
        return
    if not is_stored(cache, entry):
        raise MissingObject("some of its objects are not in the cache", hint="`mlx fetch` brings them from a remote")
    place.mkdir(parents=True)
    for path, below in walk(cache, entry.digest):
        target = place / os.fsdecode(path)
        if below.kind == Kind.FOLDER:
            target.mkdir(exist_ok=True)
        else:
            _write(cache, below, target)


def _write(cache: Cache, entry: Entry, place: Path) -> None:
    if entry.kind == Kind.SYMLINK:
        os.symlink(read_link(cache, entry), os.fsencode(place))
    else:
        # Never a link, whatever `cache.link` is: what is written to the copy must not reach the cache.
        cache.copying().place(entry.digest, str(place), executable=entry.kind == Kind.EXECUTABLE)


def _entry(cache: Cache, snapshot: Snapshot, target: str) -> Entry:
    matches = [(t, part) for t, part in select(snapshot.tracked(), [target]) if not t.path.startswith(target + "/")]
    if not matches:
        raise UsageError(f"`{target}` is not tracked itself, only what it holds", hint=f"`mlx ls {word(target)}`")
    tracked, part = matches[0]
    if not part:
        return as_entry(tracked)
    with naming_listing(tracked.path, snapshot.revision):
        try:
            return find_part(cache, tracked, part)
        except UsageError as error:
            if snapshot.revision is None:
                raise
            hint = f"`mlx ls --rev {snapshot.revision} {word(tracked.path)}` lists what it had"
            raise UsageError(f"{error.message} at `{snapshot.revision}`", hint=hint) from error


def _complete(cache: Cache, text: str) -> Digest:
    if len(text) == len("blake3:") + 64:
        try:
            return parse_digest(text)
        except ValueError as error:
            raise UsageError(
                f"`{text}` is not a digest: {error}", hint="a digest is `blake3:` and 64 hex digits"
            ) from error
    if len(text) < len("blake3:") + 6:
        raise UsageError(f"`{text}` is too short to name an object", hint="give at least 6 digits")
    found = [digest for digest in cache.list() if digest.startswith(text)]
    if len(found) > 1:
        raise UsageError(f"`{text}` is the start of {len(found)} objects", hint="give more digits")
    if not found:
        raise MissingObject(f"no object in the cache begins with `{text}`", hint="`mlx fetch` brings what records name")
    return found[0]


def _below(cache: Cache, item: Listed) -> list[Listed]:
    if item.kind != "folder":
        return [item]
    with naming_listing(item.path):
        found = list(walk(cache, item.digest))
    return [_listed(f"{item.path}/{os.fsdecode(path)}", entry) for path, entry in found if entry.kind != Kind.FOLDER]


def _tree(cache: Cache, path: str, digest: Digest) -> tuple[Entry, ...]:
    with naming_listing(path):
        return read_tree(cache, digest)


def _imported(tracked: Tracked, item: Listed) -> Listed:
    return item if tracked.source is None else replace(item, source=tracked.source.to_value())


def _listed(path: str, entry: Entry, stage: str = "") -> Listed:
    return Listed(path, Kind(entry.kind).name.lower(), entry.size, entry.files, entry.digest, stage)
