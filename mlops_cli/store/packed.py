"""A folder of objects in which small ones share packs; the rest are loose.

Whether an object is in a pack shows nowhere outside: every verb finds it in either place. Trees are always in packs,
which appear in the order of adding and after all that is loose: a tree that is seen has beneath it all that it names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import Digest
from mlops_cli.store.damage import quarantine_place
from mlops_cli.store.loose import LooseStore
from mlops_cli.store.objects import DamagedObjects, Durability, cut, too_large
from mlops_cli.store.pack_folder import SUFFIX
from mlops_cli.store.pack_format import LARGEST, RECORD_SIZE, PackError
from mlops_cli.store.pack_index import read_footer
from mlops_cli.store.packs import Packs
from mlops_cli.store.scratch import Scratch
from mlops_cli.store.tree_format import MAGIC, TREE_LIMIT

_ATTEMPTS = 10  # at finding packs before they are replaced again


class PackedStore(LooseStore):
    """Objects below `root`, those of up to `pack_below` bytes in packs."""

    def __init__(self, root: Path, durability: Durability, *, pack_below: int, packs: Packs | None = None) -> None:
        super().__init__(root, durability)
        self.packs: Packs = packs or Packs(str(root))
        self.pack_below = pack_below

    def is_packed(self, data: bytes | memoryview) -> bool:
        """Say whether an object with these bytes belongs into a pack."""
        return len(data) <= self.pack_below or (len(data) <= LARGEST and data[: len(MAGIC)] == MAGIC)

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """Yield a place for temporary files; what is left in it when the block ends goes."""
        scratch = Scratch(str(self.root))
        try:
            yield scratch
        finally:
            scratch.close()

    def publish_packs(self, sealed: Sequence[tuple[str, str]]) -> None:
        """Make packs (file, name), durable by now, visible."""
        self.packs.publish(sealed, durable=self.durability is not Durability.NONE)

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here."""
        try:
            for _ in range(_ATTEMPTS):
                lacking, packs = self._look_for(digests)
                if all(os.access(self.packs.path_of(pack), os.F_OK) for pack in packs):
                    break
                self.packs.forget()  # what was known of is gone, or in another pack now
        except OSError as error:
            raise self.trouble(error, f"look into {self.label}") from error
        return lacking

    def _look_for(self, digests: Collection[Digest]) -> tuple[set[Digest], set[str]]:
        """Return those of `digests` that are not here, as far as is known, and the packs that have the others."""
        packs: set[str] = set()
        lacking = set(digests)
        while lacking:
            for found in self.packs.find_in_turn(lacking):
                packs.update(place.pack for place in found.values())
                lacking.difference_update(found)
            lacking = super().missing(lacking) if lacking else lacking
            if not lacking or not (self.packs.look_again() or self.packs.doubt()):
                break
        return lacking, packs

    def open(self, digest: Digest) -> BinaryIO:
        """Return a stream of an object's bytes; MissingObject."""
        data = self.packed(digest)
        return super().open(digest) if data is None else io.BytesIO(data)

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject, or CorruptObject, also for more than `limit` bytes."""
        data = self.packed(digest)
        if data is None:
            return super().read(digest, limit=limit)
        if limit is not None and len(data) > limit:
            raise too_large(digest, limit)
        return data

    def check(self, digest: Digest) -> None:
        """Read an object to its end; MissingObject or CorruptObject unless its bytes hash to `digest`."""
        if self.packed(digest) is None:
            super().check(digest)

    def list(self) -> Iterator[Digest]:
        """Yield every digest here, in no order."""
        try:
            for digest, _ in self.packs.rows():
                yield digest
        except OSError as error:
            raise self.trouble(error, f"look into {self.label}") from error
        yield from (digest for digest in super().list() if self.packs.find(digest) is None)

    def delete(self, digests: Iterable[Digest]) -> None:
        """Remove objects; those that are not here already are no error."""
        doomed = set(digests)
        super().delete(doomed)
        try:
            while places := {place.pack for digest in doomed if (place := self.packs.find(digest)) is not None}:
                with self.scratch() as scratch, self.packs.replacing(wait=True):
                    damaged = {self.packs.path_of(name) for name in places if not self.packs.is_sound(name)}
                    self.packs.rewrite(
                        sorted(places),
                        scratch.next_path,
                        durable=True,
                        keep=lambda digest: digest not in doomed,
                        dispose=lambda path: self._set_aside(path) if path in damaged else os.unlink(path),  # noqa: B023
                    )
                    self.packs.reindex(scratch.next_path)
        except OSError as error:
            raise self.trouble(error, f"remove objects from {self.label}") from error

    def stored_size(self, digest: Digest, size: int) -> int | None:
        """Return the bytes that an object of `size` bytes takes here, None when it is not here."""
        place = self.packs.find(digest)
        if place is not None:
            return place.stored + RECORD_SIZE
        return size if os.access(self.object_path(digest), os.F_OK) else None

    def packed(self, digest: Digest) -> bytes | None:
        """Return the verified bytes of an object that is in a pack; None when it is in none.

        CorruptObject when it is damaged; then it is in no pack any more.
        """
        try:
            data = self._packed(digest)
            if data is None and not os.access(self.object_path(digest), os.F_OK):
                if self.packs.doubt():
                    data = self._packed(digest)
                if data is None and digest in self.packs.lost:
                    raise self._in_quarantine(digest, "its record is not what was written")
        except OSError as error:
            raise self.trouble(error, f"read object `{digest}`") from error
        return data

    def _packed(self, digest: Digest) -> bytes | None:
        try:
            return self.packs.read(digest)
        except PackError as error:
            damaged = self._put_away(digest, str(error))
            if (data := self._spare(digest)) is None:
                raise damaged from error
            return data

    def _spare(self, digest: Digest) -> bytes | None:
        """Return a good object that another one hid, if there is one."""
        try:
            return self.packs.read(digest)
        except PackError:
            return None

    def damaged(self, digest: Digest, found: Digest) -> CorruptObject:
        """Move a damaged object out of the way and return what to raise for it."""
        return self._put_away(digest, f"its bytes hash to `{cut(found)}`")

    def _put_away(self, digest: Digest, why: str) -> CorruptObject:
        place = self.packs.find(digest)
        try:
            self.quarantine(digest)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = f"it could not be moved away ({reason}); remove `{self.object_path(digest)}`, then `mlx pull`"
            if place is not None:
                where = self.packs.path_of(place.pack)
                hint = f"it could not be moved out of `{where}` ({reason}); see to that, then `mlx fsck` and `mlx pull`"
            return DamagedObjects([digest], _is_damaged(digest, why), hint=hint)
        return self._in_quarantine(digest, why)

    def _in_quarantine(self, digest: Digest, why: str) -> CorruptObject:
        hint = "it is in `quarantine/` of the cache now; `mlx pull` brings a good one from a remote"
        return DamagedObjects([digest], _is_damaged(digest, why), hint=hint)

    def quarantine(self, digest: Digest) -> Path:
        """Move an object to `quarantine/`, where nothing is served from, and return its new path.

        Of a pack, everything else that is good goes to a new one first, and the old file is moved.
        """
        target = self.root / quarantine_place(self.root, digest.removeprefix("blake3:"))
        if self.packs.find(digest) is not None:
            return self._quarantine_packed(digest, target.with_name(target.name + SUFFIX))
        with suppress(FileNotFoundError):  # another process did it first
            Path(self.object_path(digest)).rename(target)
        return target

    def _set_aside(self, path: str) -> None:
        """Keep a pack that has damage besides what is to go: nothing damaged vanishes unseen."""
        os.rename(path, self.root / quarantine_place(self.root, os.path.basename(path)))

    def _quarantine_packed(self, digest: Digest, target: Path) -> Path:
        with self.scratch() as scratch, self.packs.replacing(wait=True):
            place = self.packs.find(digest)  # again: another process may have done it first
            if place is None or self._spare(digest) is not None:
                return target
            with suppress(PackError):
                self.packs.lost.update(read_footer(self.packs.path_of(place.pack), place.pack).digests())
            self.packs.rewrite(
                [place.pack],
                scratch.next_path,
                durable=True,
                keep=lambda kept: kept != digest,
                dispose=lambda path: os.rename(path, target),
            )
            self.packs.reindex(scratch.next_path)
            self.packs.lost = {lost for lost in self.packs.lost if self.packs.find(lost) is None}
        return target

    def tidy(self, scratch: Scratch) -> None:
        """Gather packs when there are too many; a failure to is not one of whoever has just added to them."""
        with suppress(OSError, PackError):
            self.packs.tidy(scratch.next_path, durable=True)


def _is_damaged(digest: Digest, why: str) -> str:
    return f"object `{cut(digest)}` in the cache is damaged: {why}"
