"""Disks as tests need them: so small that they can be filled, read-only, or somewhere else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(near: Path) -> Iterator[Path]:
    """Mount 1 MiB of memory for the length of the block; the test is skipped where mounting is not permitted."""
    place = near / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.decode().strip() or 'mount failed'}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def bound(source: Path, place: Path, *, read_only: bool = False) -> Iterator[Path]:
    """Let `place`, an empty folder, show what is at `source` for the length of the block; skips where that cannot be."""
    _mount("--bind", source, place)
    try:
        if read_only:
            _mount("-o", "remount,bind,ro", place)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.decode().strip()}")


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Let nothing be written below a folder for the length of the block, not even by root; skips where that cannot be."""
    with bound(place, place, read_only=True):
        yield
