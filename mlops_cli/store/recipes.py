"""What this machine knows of how its large files are cut: `<cache>/recipes/<aa>/<rest>`, named like the objects.

The one idea: it is knowledge only, of what can be found out again by reading a file. So a recipe that is damaged or of
another version is removed and was never there, none is synced, and a disk that takes no more of them is no error. An
object that is in the cache and has a recipe is a source of chunks for the files that are pulled next; whether its bytes
are still those is found out by whoever copies them (`assembly`).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, overload

from mlops_cli.hashing import RAW_SIZE, Digest, parse_digest
from mlops_cli.store.loose import READ_FLAGS
from mlops_cli.store.packed import PackedStore
from mlops_cli.store.recipe import RECIPE_LIMIT, Recipe, RecipeError, decode_recipe, encode_recipe
from mlops_cli.store.scratch import OBJECT_MODE
from mlops_cli.store.sharing import grant, make_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_INDEXED = 2**21  # chunks in an index: of 1.2 TB, in 50 MB, and three times that while it is made
_PREFIX = 8  # bytes of a digest that an index keeps


class Place(NamedTuple):
    """Where a chunk is: in which object of the cache, from which offset, and its length (bytes)."""

    digest: Digest
    offset: int
    length: int


class Recipes:
    """The recipes that one cache keeps; no I/O before the first verb."""

    def __init__(self, store: PackedStore) -> None:
        self._store = store
        self._root = f"{store.root}/recipes"

    def keep(self, recipe: Recipe) -> None:
        """Remember how a file is cut; a disk that is full or read-only is no error. The store must be prepared."""
        path = self._path(recipe.digest)
        with suppress(OSError), self._store.scratch() as scratch:
            temporary = scratch.write(encode_recipe(recipe))
            grant([temporary], self._store.root, OBJECT_MODE)
            make_folder(os.path.dirname(path), self._store.root)
            os.rename(temporary, path)

    def get(self, digest: Digest) -> Recipe | None:
        """Return how the file that `digest` names is cut, whether or not it is here; None when that is not known.

        A recipe that is damaged is removed.
        """
        path = self._path(digest)
        try:
            descriptor = os.open(path, READ_FLAGS)
            with open(descriptor, "rb") as stream:
                data = stream.read(RECIPE_LIMIT + 1)
            return decode_recipe(data, digest)
        except RecipeError:
            with suppress(OSError):
                os.unlink(path)
        except OSError:
            pass
        return None

    def list(self) -> Iterator[Digest]:
        """Yield the digest of every file whose recipe is here, in no order; other names are passed over."""
        for shard in _names(self._root):
            for rest in _names(f"{self._root}/{shard}") if len(shard) == 2 else ():
                with suppress(ValueError):
                    yield parse_digest(f"blake3:{shard}{rest}")

    def drop(self, digests: Iterable[Digest]) -> None:
        """Forget some recipes; what is not here, or cannot be removed, is passed over."""
        for digest in digests:
            with suppress(OSError):
                os.unlink(self._path(digest))

    def drop_orphans(self) -> None:
        """Forget the recipes of objects that are not in the store."""
        known = list(self.list())
        if known:
            self.drop(self._store.missing(known))

    def index(self) -> ChunkIndex:
        """Return where the chunks of the objects in the store are, of those whose recipe came last first."""
        return ChunkIndex(self._present())

    def _present(self) -> Iterator[Recipe]:
        known = list(self.list())
        absent = self._store.missing(known) if known else set()
        ages = []
        for digest in known:
            if digest not in absent:
                with suppress(OSError):
                    ages.append((os.stat(self._path(digest)).st_mtime_ns, digest))
        for _, digest in sorted(ages, reverse=True):
            recipe = self.get(digest)
            if recipe is not None:
                yield recipe

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/{digest[7:9]}/{digest[9:]}"


class ChunkIndex:
    """Where chunks are, by their digests: of a chunk that is in several files, in the first of them.

    A chunk is known by eight bytes of its digest and its length. That is enough to go and look: whoever copies it
    hashes it. Recipes that would make it larger than `MOST_INDEXED` chunks, and those after them, are left out.
    """

    def __init__(self, recipes: Iterable[Recipe] = ()) -> None:
        import numpy as np

        self._objects: list[Digest] = []
        keys = [np.zeros(0, np.uint64)]
        lengths = [np.zeros(0, np.uint32)]
        offsets = [np.zeros(0, np.uint64)]
        owners = [np.zeros(0, np.uint32)]
        total = 0
        for recipe in recipes:
            total += len(recipe)
            if total > MOST_INDEXED:
                break
            keys.append(_keys(recipe.raws))
            lengths.append(np.array(recipe.lengths, np.uint32))
            ends = np.cumsum(lengths[-1], dtype=np.uint64)
            offsets.append(ends - lengths[-1])
            owners.append(np.full(len(recipe), len(self._objects), np.uint32))
            self._objects.append(recipe.digest)
        # Of equal keys the first is returned, and recipes come in the order that was asked for.
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._lengths = np.concatenate(lengths)[first]
        self._offsets = np.concatenate(offsets)[first]
        self._owners = np.concatenate(owners)[first]

    def __len__(self) -> int:
        """Return how many different chunks are known."""
        return len(self._keys)

    def places(self, recipe: Recipe) -> Places:
        """Return where each chunk of a recipe is."""
        import numpy as np

        if not len(self):
            return Places((), recipe.lengths, array("i", [-1]) * len(recipe), array("Q", [0]) * len(recipe))
        keys = _keys(recipe.raws)
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        found = (self._keys[rows] == keys) & (self._lengths[rows] == np.array(recipe.lengths, np.uint32))
        owners = np.where(found, self._owners[rows], -1).astype(np.int32)
        return Places(
            tuple(self._objects),
            recipe.lengths,
            array("i", owners.tobytes()),
            array("Q", self._offsets[rows].tobytes()),
        )


class Places(Sequence[Place | None]):
    """Where the chunks of one recipe are, in order; None for those that are not here.

    Columns, as in the recipe: there may be millions.
    """

    __slots__ = ("_lengths", "_objects", "_offsets", "_owners")

    def __init__(
        self, objects: tuple[Digest, ...], lengths: array[int], owners: array[int], offsets: array[int]
    ) -> None:
        self._objects = objects
        self._lengths = lengths
        self._owners = owners
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._owners)

    @overload
    def __getitem__(self, number: int) -> Place | None: ...
    @overload
    def __getitem__(self, number: slice) -> list[Place | None]: ...
    def __getitem__(self, number: int | slice) -> Place | list[Place | None] | None:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(len(self)))]
        owner = self._owners[number]
        return None if owner < 0 else Place(self._objects[owner], self._offsets[number], self._lengths[number])


def _keys(raws: bytes) -> NDArray[np.uint64]:
    import numpy as np

    return np.ascontiguousarray(np.frombuffer(raws, "<u8")[:: RAW_SIZE // _PREFIX]).astype(np.uint64, copy=False)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
