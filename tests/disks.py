"""A disk so small that a test can fill it."""

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
