"""Where `mlx gc` puts what nothing needs: `<cache>/trash/<seconds since the epoch>/`, laid out as the cache is.

Everything moves by one rename, so that a crash leaves each file in one place or the other. Nothing is served from the
trash, but `read` tells what a tree there names, and what is needed after all comes back. Whoever moves anything holds
the guard: alone, unless it is only `bring_back`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import PREFIX, Digest, digest_from_raw, hash_bytes, hash_file, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.contents import read_contents, scan_pack
from mlops_cli.store.damage import quarantine_place
from mlops_cli.store.links import rename_new
from mlops_cli.store.objects import Durability
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.pack_format import PackError
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.sharing import make_folder
from mlops_cli.store.tree_format import TREE_LIMIT

_TOGETHER = 16  # packs that are written anew before the old ones go
_DIGITS = re.compile("[0-9a-f]{64}")


class Thrown(NamedTuple):
    """What one collection put away: when (s since the epoch), how many files, their bytes."""

    time: int
    files: int
    size: int


class Trash:
    """The trash of one cache; no I/O before the first verb. OSError passes through."""

    def __init__(self, store: PackedStore, reporter: Reporter = SILENT) -> None:
        self._store = store
        self._root = f"{store.root}/trash"
        self._reporter = reporter

    # What is in it ---------------------------------------------------------------------------------------------------

    def thrown(self) -> tuple[Thrown, ...]:
        """Return what is in the trash, the oldest first."""
        return tuple(Thrown(time, *_measure(path for path, _ in self._files(time))) for time in self._times())

    def read(self, digest: Digest) -> bytes:
        """Return the verified bytes of a tree in the trash; MissingObject when no good one is there."""
        for store in self._stores:
            with suppress(PackError, OSError):
                data = store.packs.read(digest)
                if data is None:
                    with open(store.object_path(digest), "rb") as stream:
                        data = stream.read(TREE_LIMIT + 1)
                if hash_bytes(data) == digest:
                    return data
        raise MissingObject(f"object `{digest}` is not in the trash")

    def find(self, wanted: Collection[bytes]) -> dict[Digest, str]:
        """Return which objects of `wanted` (32-byte digests) are in the trash, each with its file, relative to it.

        Of an object that was thrown away twice, the newest file counts.
        """
        places: dict[Digest, str] = {}
        for store in reversed(self._stores):
            folder = str(store.root).rpartition("/")[2]
            contents = read_contents(store)
            for pack in contents.packs:
                path = store.packs.path_of(pack.name)
                for raw in scan_pack(path) if pack.objects is None else (raw for raw, _ in pack.objects):
                    if raw in wanted:
                        places[digest_from_raw(raw)] = f"{folder}/packs/{pack.name}{SUFFIX}"
            for loose in contents.loose:
                if loose.raw in wanted:
                    digest = digest_from_raw(loose.raw)
                    places[digest] = f"{folder}/objects/{store.object_path(digest)[-65:]}"
        return places

    def holding(self, wanted: Collection[bytes]) -> tuple[str, ...]:
        """Return the files in the trash, relative to it, that have objects of `wanted` which the store lacks."""
        places = self.find(wanted)
        absent = self._store.missing(places.keys()) if places else ()
        return tuple(sorted({places[digest] for digest in absent}))

    def measure(self, files: Sequence[str]) -> Thrown:
        """Return the number and the bytes of some files in the trash."""
        return Thrown(0, *_measure(f"{self._root}/{name}" for name in files))

    @cached_property
    def _stores(self) -> tuple[PackedStore, ...]:
        """What each collection put away, as a store to look into, the newest first."""
        times = reversed(self._times())
        return tuple(PackedStore(Path(self._root, str(time)), Durability.NONE, pack_below=0) for time in times)

    # Into it ---------------------------------------------------------------------------------------------------------

    def throw(self, time: int, raws: Sequence[bytes], packs: Sequence[str], runs: Sequence[str]) -> None:
        """Put loose objects, whole packs and run records away; what is gone already is passed over."""
        folder = f"{self._root}/{time}"
        for key in runs:
            self._move(f"{self._store.root}/runs/{key}.yaml", f"{folder}/runs/{key}.yaml")
        for name in packs:
            self._move(self._store.packs.path_of(name), f"{folder}/packs/{name}{SUFFIX}")
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

        def dispose(path: str) -> None:
            self._move(path, f"{folder}/{path.rpartition('/')[2]}")

        for start in range(0, len(sound), _TOGETHER):
            with self._store.scratch() as scratch:
                packs.rewrite(
                    sound[start : start + _TOGETHER],
                    scratch.next_path,
                    durable=self._store.durability is not Durability.NONE,
                    keep=wanted,
                    dispose=dispose,
                )
        return tuple(name for name in names if name not in sound)

    def reindex(self) -> None:
        """Write the index of packs anew, for those that are there now. Packs must be held."""
        with self._store.scratch() as scratch:
            self._store.packs.reindex(scratch.next_path)

    # Out of it -------------------------------------------------------------------------------------------------------

    def bring_back(self, files: Sequence[str]) -> Thrown:
        """Bring some files (relative to the trash) back, as if they had just been stored; returns what came."""
        count = size = 0
        for name in files:
            source, target = f"{self._root}/{name}", f"{self._store.root}/{name.partition('/')[2]}"
            with suppress(FileNotFoundError, FileExistsError):  # somebody else did, or stored it again
                found = os.stat(source, follow_symlinks=False).st_size
                self._age(source)
                make_folder(target.rpartition("/")[0], self._store.root)
                rename_new(source, target)
                count, size = count + 1, size + found
        self._store.packs.forget()
        return Thrown(0, count, size)

    def restore(self) -> Thrown:
        """Bring everything back, the newest first, as if it had just been stored; returns what came back.

        What is in the store already stays as it is there, unless it is damaged: then it goes to `quarantine/`.
        """
        files = size = 0
        self._reporter.start("bringing back", sum(each.files for each in self.thrown()), "files")
        for time in reversed(self._times()):
            for path, relative in self._files(time):
                target = f"{self._store.root}/{relative}"
                if os.path.lexists(target) and self._is_good(relative):
                    os.unlink(path)
                    self._reporter.advance(1)
                    continue
                size += os.stat(path, follow_symlinks=False).st_size
                files += 1
                self._age(path)
                self._move(path, target)
            shutil.rmtree(f"{self._root}/{time}")
        self._store.packs.forget()
        return Thrown(0, files, size)

    def _is_good(self, relative: str) -> bool:
        """Say whether a file of the store is as it was written; a damaged one is put away."""
        kind, _, name = relative.partition("/")
        digits = name.removesuffix(SUFFIX).replace("/", "")
        if kind not in ("objects", "packs") or not _DIGITS.fullmatch(digits):
            return True
        path = f"{self._store.root}/{relative}"
        with suppress(OSError):
            if hash_file(path) == PREFIX + digits:
                return True
        os.rename(path, self._store.root / quarantine_place(self._store.root, name.replace("/", "")))
        return False

    def empty(self, before: float) -> Thrown:
        """Delete, for good, what was put away before `before` (s since the epoch); returns what that was."""
        gone = [each for each in self.thrown() if each.time < before]
        self._reporter.start("deleting", sum(each.files for each in gone), "files")
        for each in gone:
            for path, _ in self._files(each.time):
                os.unlink(path)
                self._reporter.advance(1)
            shutil.rmtree(f"{self._root}/{each.time}")
        return Thrown(0, sum(each.files for each in gone), sum(each.size for each in gone))

    # How -------------------------------------------------------------------------------------------------------------

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

    def _move(self, source: str, target: str) -> None:
        self._reporter.advance(1)
        try:
            os.rename(source, target)
        except FileNotFoundError:
            if not os.path.lexists(source):
                return
            make_folder(target.rpartition("/")[0], self._store.root)
            os.rename(source, target)

    @staticmethod
    def _age(path: str) -> None:
        """Make a file count as new; of one that somebody else has too, the name changes now, which counts as well."""
        with suppress(PermissionError):
            if os.stat(path, follow_symlinks=False).st_nlink == 1:
                os.utime(path)


def _measure(paths: Iterable[str]) -> tuple[int, int]:
    """Return the number of files and their bytes."""
    sizes = []
    for path in paths:
        with suppress(FileNotFoundError):
            sizes.append(os.stat(path, follow_symlinks=False).st_size)
    return len(sizes), sum(sizes)
