"""A bucket that is a folder of this machine, or of a file server mounted here: keys are paths below it.

    tmp/    files on their way in (`scratch`)

A value is written and synced under `tmp/` and gets its name by a rename, after which its folder is synced.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from mlops_cli.errors import RemoteError
from mlops_cli.files import sync_folder, translate_os_error, write_all
from mlops_cli.store.bucket import AbsentKey, Stored, Traffic
from mlops_cli.store.copying import copy_bytes
from mlops_cli.store.links import UNSUPPORTED
from mlops_cli.store.objects import Durability
from mlops_cli.store.scratch import CREATE_FLAGS, OBJECT_MODE, Scratch
from mlops_cli.store.sharing import grant, make_folder

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_GONE = (FileNotFoundError, NotADirectoryError)
_NO_FILE = frozenset({errno.EISDIR, errno.ELOOP})
_ATTEMPTS = 10  # at listing a folder from which files go meanwhile


class FolderBucket:
    """Values below `folder`, which is made by the first write when the folder above it is there."""

    parallel = 2
    lists = True
    writes = True

    def __init__(self, name: str, url: str, folder: Path, durability: Durability) -> None:
        self.name = name
        self.url = url
        self.label = f"remote `{name}`"
        self.folder = folder
        self.traffic = Traffic()
        self._durable = durability is not Durability.NONE

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes from `start` to before `end` (None: all), fewer where the value ends; AbsentKey."""
        self.traffic.count()
        try:
            descriptor = os.open(self._path(key), _READ_FLAGS)
            self._refuse_other(descriptor)
            with os.fdopen(descriptor, "rb", buffering=0) as stream:
                wanted = os.fstat(descriptor).st_size if end is None else end
                stream.seek(start)
                data = b"".join(iter(lambda: stream.read(max(wanted - stream.tell(), 0)), b""))
        except OSError as error:
            raise self._trouble(error, key, "read from") from error
        self.traffic.count(requests=0, received=len(data))
        return data

    def get_file(self, key: str, path: str) -> int:
        """Write a value to a new local file and return its bytes; AbsentKey, and then there is no file."""
        self.traffic.count()
        try:
            source = os.open(self._path(key), _READ_FLAGS)
            self._refuse_other(source)
        except OSError as error:
            raise self._trouble(error, key, "read from") from error
        try:
            size = _copied(source, path)
        except OSError as error:
            raise translate_os_error(error, f"copy from {self.label} (`{self.folder}`) to `{path}`") from error
        finally:
            os.close(source)
        self.traffic.count(requests=0, received=size)
        return size

    def put(self, key: str, data: bytes) -> None:
        """Store a value."""

        def write(path: str) -> None:
            descriptor = os.open(path, CREATE_FLAGS, OBJECT_MODE)
            try:
                write_all(descriptor, data)
                self._sync(descriptor)
            finally:
                os.close(descriptor)

        self._store(key, write)
        self.traffic.count(sent=len(data))

    def put_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file."""
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._store(key, lambda target: _copied(source, target, self._sync))
            self.traffic.count(sent=os.fstat(source).st_size)
        finally:
            os.close(source)

    def move_file(self, key: str, path: str) -> None:
        """Store the bytes of a local file of ours, which is gone then; on the same disk they are not copied."""
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise translate_os_error(error, f"read `{path}`") from error
        try:
            self._store(key, lambda target: self._moved(source, path, target))
            self.traffic.count(sent=os.fstat(source).st_size)
        finally:
            os.close(source)
        with suppress(FileNotFoundError):
            os.unlink(path)

    def _moved(self, source: int, path: str, target: str) -> None:
        try:
            os.chmod(path, OBJECT_MODE)
            os.rename(path, target)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            _copied(source, target, self._sync)
        else:
            self._sync(source)

    def size(self, key: str) -> int | None:
        """Return the bytes of a value, None when there is none."""
        found = self.stat(key)
        return None if found is None else found.size

    def stat(self, key: str) -> Stored | None:
        """Return what a listing would say of one key, None when there is no value."""
        self.traffic.count()
        try:
            info = os.stat(self._path(key), follow_symlinks=False)
            return None if S_ISDIR(info.st_mode) else Stored(key, info.st_size, info.st_mtime)
        except _GONE:
            return None
        except OSError as error:
            raise self._trouble(error, key, "look into") from error

    def list(self, folder: str) -> Iterator[Stored]:
        """Yield every key below `folder`, at any depth, in no order; nothing when there is no such folder."""
        self.traffic.count()
        waiting = [folder]
        while waiting:
            place = waiting.pop()
            try:
                folders, files = self._names_in(place)
            except _GONE:
                continue
            except OSError as error:
                raise self._trouble(error, place, "list") from error
            waiting += folders
            yield from files

    def _names_in(self, place: str) -> tuple[Sequence[str], Sequence[Stored]]:
        """Return the folders and the values directly in a folder.

        Where some go meanwhile, others may have come that have what they had: then this looks again.
        """
        for attempt in range(_ATTEMPTS):
            folders, files, changed = [], [], False
            with os.scandir(self._path(place)) as entries:
                for entry in entries:
                    key = f"{place}/{entry.name}" if place else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(key)
                        continue
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        changed = True
                    else:
                        files.append(Stored(key, info.st_size, info.st_mtime))
            if not changed or attempt == _ATTEMPTS - 1:
                break
        return folders, files

    def delete(self, keys: Iterable[str]) -> None:
        """Remove values; those that are not there already are no error."""
        for key in keys:
            self.traffic.count()
            try:
                os.unlink(self._path(key))
            except _GONE:
                continue
            except OSError as error:
                raise self._trouble(error, key, "remove from") from error

    def exists(self) -> bool:
        """Say whether the folder is there."""
        return self.folder.is_dir()

    def refuse_unmounted(self) -> None:
        """Raise RemoteError when neither the folder is there nor the one to make it in."""
        if not self.folder.is_dir() and not self.folder.parent.is_dir():
            raise RemoteError(
                f"{self.label} is `{self.folder}`, and there is no folder `{self.folder.parent}` to make it in",
                hint="mount it, or make that folder; `mlx remote list` shows the URL",
            )

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key}"

    def _store(self, key: str, write: Callable[[str], object]) -> None:
        """Let `write` make a file, which then appears under `key`."""
        path = self._path(key)
        try:
            self._make()
            scratch = Scratch(str(self.folder))
            try:
                temporary = scratch.next_path()
                write(temporary)
                grant([temporary], self.folder, OBJECT_MODE)
                parent = os.path.dirname(path)
                make_folder(parent, self.folder)
                os.rename(temporary, path)
                if self._durable:
                    sync_folder(parent)
            finally:
                scratch.close()
        except OSError as error:
            raise self._trouble(error, key, "write to", absent=False) from error

    def _make(self) -> None:
        if self.folder.is_dir():
            return
        self.refuse_unmounted()
        self.folder.mkdir(exist_ok=True)
        if self._durable:
            sync_folder(self.folder.parent)

    def _sync(self, descriptor: int) -> None:
        if self._durable:
            os.fsync(descriptor)

    def _refuse_other(self, descriptor: int) -> None:
        """Close what is no file, such as a pipe that nobody writes to: OSError."""
        if not S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _trouble(self, error: OSError, key: str, doing: str, *, absent: bool = True) -> Exception:
        if absent and isinstance(error, _GONE):
            return AbsentKey(key)
        if error.errno in _NO_FILE:
            hint = "move that away; `mlx push --repair` from a clone that has the data puts the file back"
            return RemoteError(
                f"in {self.label} something that is no file is in the way: `{self._path(key)}`", hint=hint
            )
        plain = translate_os_error(error, f"{doing} {self.label} (`{self.folder}`)")
        return RemoteError(plain.message, hint=plain.marked_hint)


def _copied(source: int, path: str, then: Callable[[int], None] = lambda _: None) -> int:
    """Copy an open file to a new one, let `then` see its descriptor, and return the bytes; what fails leaves none."""
    target = os.open(path, CREATE_FLAGS, OBJECT_MODE)
    try:
        size = copy_bytes(source, target)
        then(target)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(target)
    return size
