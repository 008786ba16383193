"""The bytes of a tree: how a folder becomes one object.

A tree lists a folder's entries, sorted by the bytes of their names; a sub-folder's entry is the digest of its own tree,
so equal folders have equal digests. The bytes are canonical: a folder has one encoding, however it came to be. One of
more than 8,192 entries is cut into leaves after each name whose hash says so, and its tree is an index of leaves: one
more file changes one leaf and the index, wherever its name comes.

    header    "MLXT", version 1, form (0 entries, 1 index), count: u32           all integers little-endian
    entries   kinds u8, sizes u64, files u64, digests 32 bytes, each `count` times; names joined by NUL
    index     entry counts u32, sizes u64, files u64, leaf digests, each `count` times; first names joined by NUL

Trees come from remotes, so they are hostile until decoded: lengths are checked before anything is built, and none is
longer than `TREE_LIMIT`. `trees` reads, compares and changes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import partial
from itertools import pairwise, starmap
from operator import itemgetter
from typing import NamedTuple

import xxhash

from mlops_cli.errors import CorruptObject, UsageError
from mlops_cli.files import is_git_folder
from mlops_cli.hashing import PREFIX, RAW_SIZE, Digest, digest_from_raw, hash_bytes

SPLIT_ABOVE = 8192
LEAF_SIZE = 4096  # expected: a leaf ends after each name with hash % LEAF_SIZE == 0
# Of entries in a leaf, and of leaves: names that nobody has chosen for it fill a leaf this far once in e^64 leaves.
MOST_ENTRIES = 2**18
NAME_LIMIT = 255  # bytes; NAME_MAX of Linux
PATH_LIMIT = 4095  # bytes, of a symlink's target too; PATH_MAX of Linux, less the NUL that ends it

MAGIC = b"MLXT"
_VERSION = 1
_ENTRIES, _INDEX = 0, 1
_HEADER = struct.Struct("<4sBBI")
_AT_ONCE = 16  # digests that are compared as one before they are compared one by one
_MOST = 2**63 - 1  # bytes or files in one folder; more could not be added up in the folder above
_ENTRY_BYTES = 1 + 8 + 8 + RAW_SIZE
_LEAF_BYTES = 4 + 8 + 8 + RAW_SIZE
TREE_LIMIT = _HEADER.size + MOST_ENTRIES * (_LEAF_BYTES + NAME_LIMIT + 1)  # bytes of the longest tree: 77 MiB
# The first bytes of the UTF-8 of what HFS+ ignores in names; only where they occur is a name looked at more closely.
_IGNORED_STARTS = (b"\xe2\x80", b"\xe2\x81", b"\xef\xbb")
_TOO_MANY = "a folder cannot be stored: it holds more files than a tree can list"


class Kind(IntEnum):
    """What an entry is."""

    FILE = 0
    EXECUTABLE = 1
    SYMLINK = 2
    FOLDER = 3


class Entry(NamedTuple):
    """One name in a folder.

    A folder has the bytes and the number of all files beneath it; a symlink has the digest and the length of its
    target's bytes. `files` is 1 for all but folders. `kind` is a `Kind`, as a plain integer.
    """

    name: bytes
    kind: int
    size: int
    files: int
    digest: Digest


class Leaf(NamedTuple):
    """One leaf of an index: how many entries it has, its bytes and files in sum, and its first name."""

    first: bytes
    entries: int
    size: int
    files: int
    digest: Digest


class Index(NamedTuple):
    """The tree of a folder that is cut into leaves."""

    leaves: tuple[Leaf, ...]


class Columns(NamedTuple):
    """The tree of a folder that is not cut, or a leaf, as it is written: `raw` has the digests of all, joined.

    To make its entries takes most of the time of reading a tree, and who compares two trees needs few of them.
    """

    names: list[bytes]
    kinds: bytes
    sizes: tuple[int, ...]
    files: tuple[int, ...]
    raw: bytes

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries."""
        digits = self.raw.hex()
        step = 2 * RAW_SIZE
        spelled = [PREFIX + digits[at : at + step] for at in range(0, len(digits), step)]
        # `tuple.__new__` is what `Entry(...)` ends in; calling it at once halves the time for a large folder.
        columns = zip(self.names, self.kinds, self.sizes, self.files, spelled, strict=True)
        return tuple(map(partial(tuple.__new__, Entry), columns))

    def entry(self, number: int) -> Entry:
        """Return one entry."""
        digest = digest_from_raw(self.raw[RAW_SIZE * number : RAW_SIZE * (number + 1)])
        return Entry(self.names[number], self.kinds[number], self.sizes[number], self.files[number], digest)

    def unlike(self, other: Columns) -> list[int]:
        """Return the numbers of the entries that differ from those of a tree of the same names."""
        count = len(self.names)
        if (self.kinds, self.sizes, self.files) != (other.kinds, other.sizes, other.files):
            return [number for number in range(count) if self.entry(number) != other.entry(number)]
        mine, its, width = self.raw, other.raw, RAW_SIZE
        return [
            at // width
            for start in range(0, len(mine), _AT_ONCE * width)
            if mine[start : start + _AT_ONCE * width] != its[start : start + _AT_ONCE * width]
            for at in range(start, min(start + _AT_ONCE * width, len(mine)), width)
            if mine[at : at + width] != its[at : at + width]
        ]


class TreeError(CorruptObject):
    """An object that is asked for as a tree and is none, or says of its parts what they are not."""


def encode_tree(entries: Iterable[Entry]) -> tuple[tuple[Digest, bytes], ...]:
    """Return the objects of a folder's tree, leaves first and the tree itself last.

    UsageError for a name that cannot be in a folder (empty, too long, `.`, `..`, `.git`, with `/` or NUL) or occurs
    twice.
    """
    ordered = sorted(entries, key=itemgetter(0))
    check_entries(ordered)
    if len(ordered) <= SPLIT_ABOVE:
        data = encode_entries(ordered)
        return ((hash_bytes(data), data),)
    leaves = encode_leaves(ordered)
    index = encode_index([leaf for leaf, _ in leaves])
    return (*((leaf.digest, data) for leaf, data in leaves), (hash_bytes(index), index))


def encode_files(files: Iterable[tuple[bytes, int, int, bytes]]) -> tuple[Digest, bytes]:
    """Return the tree of a folder of files and symlinks: one to `SPLIT_ABOVE` names, kinds, sizes and raw digests.

    It is what `encode_tree` makes of their entries, without making entries. UsageError as there.
    """
    names, kinds, sizes, digests = zip(*sorted(files), strict=True)
    _check_columns(names, kinds, sizes, sum(sizes), len(names))
    data = _encode_columns(names, kinds, sizes, (1,) * len(names), b"".join(digests))
    return hash_bytes(data), data


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise UsageError unless sorted entries have names that a folder can have, each once, and sums a tree can say."""
    if entries:
        names, kinds, sizes, files, _ = zip(*entries, strict=True)
        _check_columns(names, kinds, sizes, sum(sizes), sum(files))


def _check_columns(names: Sequence[bytes], kinds: Sequence[int], sizes: Sequence[int], size: int, files: int) -> None:
    problem = _problem_with(names, b"\0".join(names))
    if max(size, files) > _MOST:
        problem = "its files are larger or more than a tree can say"
    if Kind.SYMLINK in kinds and any(
        kind == Kind.SYMLINK and not 0 < size <= PATH_LIMIT for kind, size in zip(kinds, sizes, strict=True)
    ):
        problem = "a symbolic link leads nowhere, or further than a path can"
    if problem:
        hint = "rename it, or list it in `.mlxignore`"
        raise UsageError(f"a folder cannot be stored: {problem}", hint=hint)


def totals(entries: Sequence[Entry] | Sequence[Leaf]) -> tuple[int, int]:
    """Return the bytes and the number of the files that entries or leaves stand for."""
    return sum(map(itemgetter(2), entries)), sum(map(itemgetter(3), entries))


def encoded_size(entries: Sequence[Entry]) -> int:
    """Return the length of what `encode_entries` would give."""
    names = sum(len(entry.name) for entry in entries)
    return _HEADER.size + _ENTRY_BYTES * len(entries) + names + max(len(entries) - 1, 0)


def encode_entries(entries: Sequence[Entry]) -> bytes:
    """Return the bytes of a tree that is not cut, or of one leaf; names must be sorted and good."""
    if not entries:
        return _HEADER.pack(MAGIC, _VERSION, _ENTRIES, 0)
    names, kinds, sizes, files, digests = zip(*entries, strict=True)
    return _encode_columns(names, kinds, sizes, files, _raw_digests(digests))


def _encode_columns(
    names: Sequence[bytes], kinds: Sequence[int], sizes: Sequence[int], files: Sequence[int], digests: bytes
) -> bytes:
    many = f"<{len(names)}Q"
    return b"".join(
        (
            _HEADER.pack(MAGIC, _VERSION, _ENTRIES, len(names)),
            bytes(kinds),
            struct.pack(many, *sizes),
            struct.pack(many, *files),
            digests,
            b"\0".join(names),
        )
    )


def encode_leaves(entries: Sequence[Entry]) -> list[tuple[Leaf, bytes]]:
    """Cut sorted entries into leaves; what is before the first and after the last does not matter to where."""
    return [encode_leaf(part) for part in cut(entries)]


def cut(entries: Sequence[Entry]) -> list[Sequence[Entry]]:
    """Return sorted entries leaf by leaf; the last leaf may be one that more entries belong to."""
    hash_name = xxhash.xxh3_64_intdigest
    ends = [position for position, entry in enumerate(entries, 1) if hash_name(entry[0]) % LEAF_SIZE == 0]
    return [entries[start:end] for start, end in pairwise(sorted({0, *ends, len(entries)}))]


def ends_leaf(name: bytes) -> bool:
    """Say whether a leaf ends after `name`, whatever comes next."""
    return xxhash.xxh3_64_intdigest(name) % LEAF_SIZE == 0


def encode_leaf(entries: Sequence[Entry]) -> tuple[Leaf, bytes]:
    """Return the leaf of these entries, of which there must be some, and its bytes."""
    if len(entries) > MOST_ENTRIES:
        raise UsageError(_TOO_MANY, hint="sort its files into sub-folders")
    data = encode_entries(entries)
    return Leaf(entries[0].name, len(entries), *totals(entries), hash_bytes(data)), data


def encode_index(leaves: Sequence[Leaf]) -> bytes:
    """Return the bytes of the tree of a folder that is cut into these leaves."""
    if len(leaves) > MOST_ENTRIES:
        raise UsageError(_TOO_MANY, hint="sort its files into sub-folders")
    names, counts, sizes, files, digests = zip(*leaves, strict=True)
    many = f"<{len(names)}Q"
    return b"".join(
        (
            _HEADER.pack(MAGIC, _VERSION, _INDEX, len(names)),
            struct.pack(f"<{len(names)}I", *counts),
            struct.pack(many, *sizes),
            struct.pack(many, *files),
            _raw_digests(digests),
            b"\0".join(names),
        )
    )


def _raw_digests(digests: Sequence[Digest]) -> bytes:
    # One conversion for all: 20,000 calls of `raw_digest` would take longer than everything else here.
    raw = bytes.fromhex("".join(digests).replace(PREFIX, ""))
    if len(raw) != RAW_SIZE * len(digests):
        raise ValueError("an entry's digest is not a digest")
    return raw


def _problem_with(names: Sequence[bytes], joined: bytes) -> str:
    """Return what is wrong with a folder's sorted names, or nothing; `joined` is all of them, joined by NUL."""
    if list(names) != sorted(names) or len(set(names)) != len(names):
        return f"`{_text(_first_unsorted(names))}` occurs twice or out of order"
    if b"" in names:
        return "a name is empty"
    if b"/" in joined or joined.count(b"\0") >= max(len(names), 1):
        return "a name holds `/` or NUL"
    if max(map(len, names), default=0) > NAME_LIMIT:
        return f"a name has more than {NAME_LIMIT} bytes"
    if not {b".", b".."}.isdisjoint(names):
        return "`.` and `..` cannot be names"
    if b"git" in joined.lower() or any(start in joined for start in _IGNORED_STARTS):
        for name in names:
            if is_git_folder(_text(name)):
                return f"`{_text(name)}` belongs to Git"
    return ""


def _first_unsorted(names: Sequence[bytes]) -> bytes:
    return next(second for first, second in pairwise(names) if not first < second)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def decode_tree(data: bytes, digest: Digest) -> tuple[Entry, ...] | Index:
    """Return what a tree object holds; `digest` names it in messages. TreeError as for `decode_columns`."""
    tree = decode_columns(data, digest)
    return tree if isinstance(tree, Index) else tree.entries()


def decode_columns(data: bytes, digest: Digest) -> Columns | Index:
    """Return what a tree object holds, without making entries; `digest` names it in messages.

    TreeError unless the bytes are exactly a tree: whole, sorted, without duplicates and with names a folder can have.
    """
    if len(data) < _HEADER.size:
        raise tree_error(digest, "it is too short")
    magic, version, form, count = _HEADER.unpack_from(data)
    if magic != MAGIC or form not in (_ENTRIES, _INDEX):
        raise tree_error(digest, "it does not begin as one")
    if version != _VERSION:
        hint = "upgrade mlx: `pip install --upgrade mlops-cli`"
        raise TreeError(f"tree `{digest}` has version {version}, which this mlx does not understand", hint=hint)
    if count > MOST_ENTRIES:
        raise tree_error(digest, f"it lists more than {MOST_ENTRIES:,} names")
    fixed = count * (_ENTRY_BYTES if form == _ENTRIES else _LEAF_BYTES)
    joined = data[_HEADER.size + fixed :]
    # Every name has at least one byte and every one but the last a NUL: no count can ask for more than is there.
    if len(data) < _HEADER.size + fixed + max(2 * count - 1, 0) or (not count and joined):
        raise tree_error(digest, "its length does not fit its count")
    names = joined.split(b"\0") if count else []
    if len(names) != count:
        raise tree_error(digest, "its names do not fit its count")
    problem = _problem_with(names, joined)
    if problem:
        raise tree_error(digest, problem)
    return _decode_entries(data, digest, names) if form == _ENTRIES else _decode_index(data, digest, names)


def _decode_entries(data: bytes, digest: Digest, names: list[bytes]) -> Columns:
    count = len(names)
    start = _HEADER.size
    kinds = data[start : start + count]
    if kinds.translate(None, b"\0\1\2\3"):
        raise tree_error(digest, "an entry has an unknown kind")
    sizes, files, raw = _columns(data, digest, start + count, count)
    if files.count(1) != count and any(
        number != 1 for kind, number in zip(kinds, files, strict=True) if kind != Kind.FOLDER
    ):
        raise tree_error(digest, "a file counts as more or less than one")
    if Kind.SYMLINK in kinds and any(
        not 0 < size <= PATH_LIMIT for kind, size in zip(kinds, sizes, strict=True) if kind == Kind.SYMLINK
    ):
        raise tree_error(digest, f"a symbolic link's target has no bytes, or more than {PATH_LIMIT:,}")
    return Columns(names, kinds, sizes, files, raw)


def _decode_index(data: bytes, digest: Digest, names: Sequence[bytes]) -> Index:
    count = len(names)
    start = _HEADER.size
    counts = struct.unpack_from(f"<{count}I", data, start)
    if not count or 0 in counts:
        raise tree_error(digest, "a leaf is empty")
    if sum(counts) <= SPLIT_ABOVE:
        raise tree_error(digest, "it is cut into leaves and has too few entries for that")
    sizes, files, raw = _columns(data, digest, start + 4 * count, count)
    digests = [digest_from_raw(raw[at : at + RAW_SIZE]) for at in range(0, len(raw), RAW_SIZE)]
    return Index(tuple(starmap(Leaf, zip(names, counts, sizes, files, digests, strict=True))))


def _columns(data: bytes, digest: Digest, start: int, count: int) -> tuple[tuple[int, ...], tuple[int, ...], bytes]:
    sizes = struct.unpack_from(f"<{count}Q", data, start)
    files = struct.unpack_from(f"<{count}Q", data, start + 8 * count)
    if sum(sizes) > _MOST or sum(files) > _MOST:
        raise tree_error(digest, "its files are larger or more than a tree can say")
    start += 16 * count
    return sizes, files, data[start : start + RAW_SIZE * count]


def tree_error(digest: Digest, why: str) -> TreeError:
    """Return what to raise for an object that is not a tree it should be."""
    # No other copy can be better: these are the very bytes that the digest names.
    hint = "what names it is wrong: `git log` tells who wrote the record"
    return TreeError(f"object `{digest}` is not a tree: {why}", hint=hint)
