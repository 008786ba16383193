"""Records copied from packs into new packs, as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlops_cli.files import sync_paths
from mlops_cli.store.pack_format import SEALED_AT, Record
from mlops_cli.store.pack_writer import PackWriter


class Repacker:
    """Records on their way into new packs, each object once; with `durable` each pack is synced when it is full."""

    def __init__(self, new_path: Callable[[], str], *, durable: bool) -> None:
        self._new_path = new_path
        self._durable = durable
        self._writer: PackWriter | None = None
        self._written: set[bytes] = set()
        self._sealed: list[tuple[str, str]] = []

    def add(self, record: Record) -> None:
        """Append a record, unless its object is there already; OSError passes through."""
        if record.raw in self._written:
            return
        writer = self._writer
        if writer is None:
            writer = self._writer = PackWriter(self._new_path())
        writer.add(record)
        self._written.add(record.raw)
        if writer.size >= SEALED_AT:
            self._end_pack(writer)

    def full(self) -> list[tuple[str, str]]:
        """Return the file and the name of each pack that has become full since this was called last."""
        sealed, self._sealed = self._sealed, []
        return sealed

    def seal(self) -> list[tuple[str, str]]:
        """End the last pack; returns the file and the name of each since this was called last."""
        if self._writer is not None:
            self._end_pack(self._writer)
        sealed, self._sealed = self._sealed, []
        return sealed

    def close(self) -> None:
        """Close the file of a pack that was not sealed, which its owner removes."""
        if self._writer is not None:
            self._writer.close()

    def _end_pack(self, writer: PackWriter) -> None:
        name = writer.seal()
        if self._durable:
            sync_paths([writer.path], Path(writer.path).parent)
        self._sealed.append((writer.path, name))
        self._writer = None
