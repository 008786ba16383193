"""A disk that forgets: what a power cut would take, told at the moment that counts.

`Disk` watches every call that changes files and keeps the set of what no sync has made durable yet: bytes of files, and
names in folders. Whatever is in it when a record is renamed into place, a power cut right after could take, while the
record stays: then the record names lost bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from mlops_cli import files
from mlops_cli.store import loose

File = tuple[int, int]  # device and inode: a file stays itself whatever it is called


class Disk:
    """Watches below `root` until the test ends; `commits` says, for each record, what was not durable when it came."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root = os.path.realpath(root)
        self._patch = patch
        self._bytes: dict[File, str] = {}
        self._names: dict[File, set[str]] = {}
        self.commits: dict[str, list[str]] = {}

    def watch(self) -> Self:
        """Begin."""
        for name in ("write", "writev", "pwrite", "ftruncate"):
            self._after(name, lambda descriptor, *_: self._wrote(descriptor))
        for name in ("fsync", "fdatasync"):
            self._after(name, lambda descriptor, *_: self._synced(descriptor))
        for name in ("rename", "replace", "link"):
            self._after(name, lambda source, target, *_, **more: self._named(target, more.get("dst_dir_fd")))
        self._after("mkdir", lambda path, *_, **more: self._named(path, more.get("dir_fd")))
        self._after("symlink", lambda source, path, *_, **more: self._named(path, more.get("dir_fd")))
        for module in (files, loose):
            whole = module.sync_filesystem
            self._patch.setattr(module, "sync_filesystem", lambda path, whole=whole: (whole(path), self._forget()))
        return self

    def _after(self, name: str, then: Callable[..., object]) -> None:
        call = getattr(os, name)

        def run(*args: object, **options: object) -> object:
            result = call(*args, **options)
            then(*args, **options)
            return result

        self._patch.setattr(os, name, run)

    def _wrote(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(self._root):
            self._bytes[_file(os.fstat(descriptor))] = path

    def _synced(self, descriptor: int) -> None:
        file = _file(os.fstat(descriptor))
        self._bytes.pop(file, None)
        self._names.pop(file, None)

    def _forget(self) -> None:
        self._bytes.clear()
        self._names.clear()

    def _named(self, target: object, folder: int | None) -> None:
        path = os.fspath(target)  # type: ignore[call-overload]
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not path.startswith(self._root):
            return
        if path.endswith(".mlx") or "/mlx.lock/" in path:
            self.commits[os.path.relpath(path, self._root)] = self.at_risk(path)
        self._names.setdefault(_file(os.stat(os.path.dirname(path))), set()).add(path)

    def at_risk(self, record: str = "") -> list[str]:
        """Return what a power cut would take now: of the cache's objects and packs, and the bytes of `record` itself."""
        own = _file(os.stat(record)) if record else None
        places = ("/cache/objects", "/cache/packs")
        names = [name for names in self._names.values() for name in names]
        names += [_now(file, path) for file, path in self._bytes.items() if file != own]
        lost = [os.path.relpath(name, self._root) for name in names if any(place in name for place in places)]
        return sorted(lost) + (["the record"] if own in self._bytes else [])


def _file(stat: os.stat_result) -> File:
    return stat.st_dev, stat.st_ino


def _now(file: File, path: str) -> str:
    """Return where a file is that was written at `path`: an object is renamed out of `tmp/`."""
    if os.path.exists(path) and _file(os.stat(path)) == file:
        return path
    cache = Path(path.partition("/tmp/")[0])
    found = (place for folder in ("objects", "packs") for place in (cache / folder).rglob("*"))
    return next((str(place) for place in found if _file(place.stat()) == file), path)
