"""Reading, writing and copying parts of open files, where they are said to be."""

from __future__ import annotations

import os

from mlops_cli.files import write_all
from mlops_cli.store.copying import PIECE
from mlops_cli.store.links import UNSUPPORTED

_BLOCK = 4096  # bytes: file systems share whole blocks


def copy_range(source: int, start: int, target: int, offset: int, size: int) -> None:
    """Copy a part of a file into another place, or as much as the source has.

    Where both ends lie alike in their blocks the system copies, for it may be able to share them. Measured on ext4,
    1 GiB: 0.38 s; where they do not, 0.53 s, and 0.42 s this way.
    """
    done = 0
    if start % _BLOCK == offset % _BLOCK and hasattr(os, "copy_file_range"):
        done = _copy_by_system(source, start, target, offset, size)
    buffer = memoryview(bytearray(min(size - done, PIECE)))
    while done < size and (count := os.preadv(source, [buffer[: size - done]], start + done)):
        write_at(target, buffer[:count], offset + done)
        done += count


def _copy_by_system(source: int, start: int, target: int, offset: int, size: int) -> int:
    """Copy within the system as far as it can; return how many bytes that was.

    The bytes before the first whole block are copied by themselves: only then can the others be shared.
    """
    done = 0
    head = min(-start % _BLOCK, size)
    copied = size
    while done < size and copied:  # none where the source ends, and from some systems that should have refused
        many = (head if done < head else size) - done
        try:
            copied = os.copy_file_range(source, target, many, start + done, offset + done)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            break
        done += copied
    return done


def write_at(target: int, data: bytes | memoryview, offset: int) -> None:
    """Write bytes at an offset; the position is behind them then."""
    os.lseek(target, offset, os.SEEK_SET)
    write_all(target, data)


def read_at(source: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from an offset on; return how many bytes there were."""
    filled = 0
    while filled < len(buffer) and (count := os.preadv(source, [buffer[filled:]], offset + filled)):
        filled += count
    return filled
