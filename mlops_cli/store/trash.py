"""Where `mlx gc` puts what nothing needs: `<cache>/trash/<seconds since the epoch>/`, laid out as the cache is.

Everything moves by one rename, so that a crash leaves each file in one place or the other. Nothing is served from the
trash; `restore` brings all of it back. Whoever calls holds the guard alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.hashing import Digest, digest_from_raw, raw_digest
from mlops_cli.store.objects import Durability
from mlops_cli.store.packed import PackedStore


class Thrown(NamedTuple):
    """What one collection put away: when (s since the epoch), how many files, their bytes."""

    time: int
    files: int
    size: int


class Trash:
    """The trash of one cache; no I/O before the first verb. OSError passes through."""

    def __init__(self, store: PackedStore) -> None:
        self._store = store
        self._root = f"{store.root}/trash"

    def thrown(self) -> tuple[Thrown, ...]:
        """Return what is in the trash, the oldest first."""
        found = []
        for time in self._times():
            sizes = [os.stat(path, follow_symlinks=False).st_size for path, _ in self._files(time)]
            found.append(Thrown(time, len(sizes), sum(sizes)))
        return tuple(found)

    def throw(self, time: int, raws: Sequence[bytes], packs: Sequence[str], runs: Sequence[str]) -> None:
        """Put loose objects, whole packs and run records away; what is gone already is passed over."""
        folder = f"{self._root}/{time}"
        for key in runs:
            self._move(f"{self._store.root}/runs/{key}.yaml", f"{folder}/runs/{key}.yaml")
        for name in packs:
            self._move(self._store.packs.path_of(name), f"{folder}/packs/{name}.pack")
        for raw in raws:
            path = self._store.object_path(digest_from_raw(raw))
            self._move(path, f"{folder}/objects/{path[-65:]}")
        self._store.packs.forget()

    def thin(self, time: int, names: Sequence[str], keep: Callable[[bytes], bool]) -> tuple[str, ...]:
        """Write packs anew without what `keep` does not want, and put the old files away.

        Returns those that stayed as they are because they are damaged: `mlx fsck` knows what to do. Packs must be held.
        """
        packs = self._store.packs
        sound = [name for name in names if packs.is_sound(name)]
        folder = f"{self._root}/{time}/packs"

        def wanted(digest: Digest) -> bool:
            return keep(raw_digest(digest))

        with self._store.scratch() as scratch:
            packs.rewrite(
                sound,
                scratch.next_path,
                durable=self._store.durability is not Durability.NONE,
                keep=wanted,
                dispose=lambda path: self._move(path, f"{folder}/{path.rpartition('/')[2]}"),
            )
        return tuple(name for name in names if name not in sound)

    def reindex(self) -> None:
        """Write the index of packs anew, for those that are there now. Packs must be held."""
        with self._store.scratch() as scratch:
            self._store.packs.reindex(scratch.next_path)

    def restore(self) -> Thrown:
        """Bring everything back, the newest first, as if it had just been stored; returns what came back."""
        files = size = 0
        for time in reversed(self._times()):
            for path, relative in self._files(time):
                target = f"{self._store.root}/{relative}"
                info = os.stat(path, follow_symlinks=False)
                if os.path.lexists(target):
                    os.unlink(path)
                    continue
                with suppress(PermissionError):  # somebody else's file: its name changes now, which counts too
                    os.utime(path)
                self._move(path, target)
                files, size = files + 1, size + info.st_size
            shutil.rmtree(f"{self._root}/{time}")
        self._store.packs.forget()
        return Thrown(0, files, size)

    def empty(self, before: float) -> Thrown:
        """Delete, for good, what was put away before `before` (s since the epoch); returns what that was."""
        gone = [each for each in self.thrown() if each.time < before]
        for each in gone:
            shutil.rmtree(f"{self._root}/{each.time}")
        return Thrown(0, sum(each.files for each in gone), sum(each.size for each in gone))

    def _times(self) -> list[int]:
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _files(self, time: int) -> Iterator[tuple[str, str]]:
        """Yield the path of every file that one collection put away, and where it was in the cache."""
        start = f"{self._root}/{time}"
        for folder, _, names in os.walk(start):
            for name in sorted(names):
                path = f"{folder}/{name}"
                yield path, path[len(start) + 1 :]

    @staticmethod
    def _move(source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except FileNotFoundError:
            if not os.path.lexists(source):
                return
            os.makedirs(target.rpartition("/")[0], exist_ok=True)
            os.rename(source, target)
