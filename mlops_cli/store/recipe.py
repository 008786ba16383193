"""The bytes of a recipe: which chunks make a large file, in order.

    header    "MLXC", version u8, 3 zero bytes, count u32, bytes of the file u64, its digest 32 bytes
    chunks    lengths u32, digests 32 bytes, each `count` times
    end       checksum u64: xxh3-64 of everything before it                         all integers little-endian

The bytes are canonical: the same chunks of the same file have one encoding. A recipe is a statement that its file can
be made from those chunks, and no proof: whoever makes the file finds out (`assembly`). Recipes come from remotes, so
they are hostile until decoded: lengths are checked before anything is built, and none is longer than `RECIPE_LIMIT`.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import RAW_SIZE, Digest, digest_from_raw, raw_digest
from mlops_cli.store.chunking import Chunk, cut_file
from mlops_cli.store.pack_format import LARGEST

MAGIC = b"MLXC"
# Files are cut every 600 KiB: 1.8 million chunks for 1 TB, a recipe of 63 MiB. Whatever its bytes are, a file of
# 512 GiB has no more chunks than this; one of 2.3 TiB has as many if its bytes are as good as random.
MOST_CHUNKS = 2**22
LONGEST_CHUNK = LARGEST  # bytes; chunks are records of packs, and later versions may cut longer ones
_VERSION = 1
_HEADER = struct.Struct("<4sB3xIQ32s")
_ROW = 4 + RAW_SIZE
_CHECKSUM_SIZE = 8
RECIPE_LIMIT = _HEADER.size + MOST_CHUNKS * _ROW + _CHECKSUM_SIZE  # bytes of the longest recipe: 144 MiB


class RecipeError(CorruptObject):
    """Bytes that are asked for as the recipe of a file and are not it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The chunks of the file that `digest` names: their lengths (bytes), and their 32-byte digests, joined.

    Columns and not a chunk each: a file of 1 TB has two million.
    """

    digest: Digest
    size: int
    lengths: array[int]
    raws: bytes

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.lengths)

    def raw(self, number: int) -> bytes:
        """Return the 32-byte digest of the chunk with this number, counted from 0."""
        return self.raws[number * RAW_SIZE : (number + 1) * RAW_SIZE]

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk, in order."""
        offset = 0
        for number, length in enumerate(self.lengths):
            yield Chunk(offset, length, self.raw(number))
            offset += length


def make_recipe(descriptor: int) -> Recipe | None:
    """Return the recipe of an open file, from its position to its end; None when it has too many chunks for one.

    `Recipe.digest` names the bytes that were read, which is how to know that they are those that were meant. OSError
    passes through.
    """
    lengths, raws = array("I"), bytearray()
    cutting = cut_file(descriptor)
    for chunk in cutting:
        if len(lengths) == MOST_CHUNKS:
            return None
        lengths.append(chunk.length)
        raws += chunk.raw
    return Recipe(cutting.digest(), cutting.size, lengths, bytes(raws))


def encode_recipe(recipe: Recipe) -> bytes:
    """Return the bytes of a recipe; ValueError when `decode_recipe` would not take them."""
    problem = _problem_with(recipe)
    if problem or len(recipe) > MOST_CHUNKS or len(recipe.raws) != RAW_SIZE * len(recipe):
        raise ValueError(problem or "its chunks are too many, or more than their digests")
    header = _HEADER.pack(MAGIC, _VERSION, len(recipe), recipe.size, raw_digest(recipe.digest))
    data = b"".join((header, _little_endian(recipe.lengths).tobytes(), recipe.raws))
    return data + xxhash.xxh3_64_intdigest(data).to_bytes(_CHECKSUM_SIZE, "little")


def decode_recipe(data: bytes, digest: Digest) -> Recipe:
    """Return the recipe of the file that `digest` names.

    RecipeError unless the bytes are exactly a recipe of that file: whole, unchanged, with chunks that can be and that
    make as many bytes as it says.
    """
    if len(data) < _HEADER.size + _CHECKSUM_SIZE:
        raise _recipe_error(digest, "it is too short")
    magic, version, count, size, raw = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise _recipe_error(digest, "it does not begin as one")
    if version != _VERSION:
        hint = "upgrade mlx: `pip install --upgrade mlops-cli`"
        message = f"the recipe of object `{digest}` has version {version}, which this mlx does not understand"
        raise RecipeError(message, hint=hint)
    if count > MOST_CHUNKS:
        raise _recipe_error(digest, f"it lists more than {MOST_CHUNKS:,} chunks")
    end = _HEADER.size + count * _ROW
    if len(data) != end + _CHECKSUM_SIZE:
        raise _recipe_error(digest, "its length does not fit its count")
    view = memoryview(data)
    if xxhash.xxh3_64_intdigest(view[:end]) != int.from_bytes(view[end:], "little"):
        raise _recipe_error(digest, "its bytes have changed")
    if data[5:8] != b"\0\0\0":
        raise _recipe_error(digest, "its header is not canonical")
    if raw != raw_digest(digest):
        raise _recipe_error(digest, f"it is that of `{digest_from_raw(raw)}`")
    lengths = array("I")
    lengths.frombytes(view[_HEADER.size : _HEADER.size + 4 * count])
    recipe = Recipe(digest, size, _little_endian(lengths), data[_HEADER.size + 4 * count : end])
    problem = _problem_with(recipe)
    if problem:
        raise _recipe_error(digest, problem)
    return recipe


def _problem_with(recipe: Recipe) -> str:
    if recipe.lengths and not 0 < min(recipe.lengths) <= max(recipe.lengths) <= LONGEST_CHUNK:
        return f"a chunk has no bytes, or more than {LONGEST_CHUNK:,}"
    if sum(recipe.lengths) != recipe.size:
        return "its chunks do not make as many bytes as it says"
    return ""


def _little_endian(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":  # pragma: no cover
        numbers = numbers[:]
        numbers.byteswap()
    return numbers


def _recipe_error(digest: Digest, why: str) -> RecipeError:
    # Where it came from is not known here; the file itself, or another recipe of it, is as good as ever.
    hint = "`mlx push` from a clone that has the file writes it anew"
    return RecipeError(f"the recipe of object `{digest}` cannot be used: {why}", hint=hint)
