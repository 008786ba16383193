"""Measure what the system itself takes for the work of `mlx`: plain calls, one process, nothing kept in mind.

    python benchmarks/floor.py --work /disk/bench-floor --files 20000

The one idea: nobody who does this work with system calls can be faster on one core, so a figure of `compare.py` is read
against these. Run it right before or after, on the same disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3
from compare import PIECE, Settings, make_work, parse_size, write_files


def timed(what: str, work: Callable[[], object]) -> None:
    """Print what some work takes: wall time, then processor time of the program and of the system for it."""
    os.sync()
    begin, before = time.perf_counter(), os.times()
    work()
    seconds, after = time.perf_counter() - begin, os.times()
    user = after.user - before.user + after.children_user - before.children_user
    system = after.system - before.system + after.children_system - before.children_system
    print(f"{what:48} {seconds:8.3f} s wall {user:8.3f} s user {system:8.3f} s system", flush=True)


def found(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from found(entry.path)
            else:
                yield entry


def scan(folder: str) -> None:
    for entry in found(folder):
        entry.stat(follow_symlinks=False)


def read(paths: Sequence[str]) -> Iterator[bytes]:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        yield os.read(descriptor, size + 1)
        os.close(descriptor)


def pack(paths: Sequence[str], target: str) -> None:
    """Read and hash all, and write it to one file that is on disk in the end."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    waiting, size = [], 0
    for data in read(paths):
        blake3(data).digest()
        waiting.append(data)
        size += len(data)
        if size >= PIECE:
            os.write(descriptor, b"".join(waiting))
            waiting, size = [], 0
    os.write(descriptor, b"".join(waiting))
    os.fsync(descriptor)
    os.close(descriptor)


def create(data: str, paths: Sequence[str], target: str) -> None:
    """Write every file out again, in folders of the same names."""
    made: set[str] = set()
    for path, content in zip(paths, read(paths), strict=True):
        place = target + path[len(data) :]
        folder = place.rpartition("/")[0]
        if folder not in made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            made.add(folder)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        os.write(descriptor, content)
        os.close(descriptor)


def copy_large(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)


def copy_durably(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--file-size", type=parse_size, default="4KiB")
    parser.add_argument("--large", type=parse_size, default="1GiB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="a new folder on the disk to measure (default: a temporary one)")
    arguments = parser.parse_args()
    settings = Settings(arguments.files, arguments.file_size, arguments.large, 0, 1, arguments.seed)
    work = make_work(arguments.work, 5 * settings.files * settings.file_size + 3 * settings.large)
    if settings.files:
        data = work / "data"
        write_files(data, settings)
        timed("look at every file", lambda: scan(str(data)))
        paths = [entry.path for entry in found(str(data))]
        timed("read every file", lambda: list(map(len, read(paths))))
        timed("read and hash all, write one file, sync it", lambda: pack(paths, str(work / "pack")))
        timed("write every file out again", lambda: create(str(data), paths, str(work / "written")))
        timed("cp -r", lambda: subprocess.run(["cp", "-r", data, work / "copied"], check=True))
    if settings.large:
        large = work / "large"
        numbers = random.Random(settings.seed)
        with large.open("wb") as file:
            for _ in range(settings.large // PIECE):
                file.write(numbers.randbytes(PIECE))
        timed("cp of the large file", lambda: copy_large(large, work / "large-copied"))
        timed("the same, and sync it", lambda: copy_durably(large, work / "large-synced"))
    free = shutil.disk_usage(work).free
    print(f"nothing was deleted: {work} (the disk has {free >> 20:,} MiB left)")


if __name__ == "__main__":
    main()
