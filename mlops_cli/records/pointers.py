"""Pointers: `<path>.mlx`, the few lines that Git keeps in place of the data at `<path>`.

A pointer lies beside what it names, so moving both together needs no edit. It says what the bytes are, never where they
are stored; of imported data it also says where they are from.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple, Protocol

from mlops_cli.documents import Fields, check_version, dump_yaml, parse_yaml
from mlops_cli.errors import RecordError
from mlops_cli.files import check_relative
from mlops_cli.hashing import Digest, parse_digest
from mlops_cli.records.sources import Source, read_source
from mlops_cli.words import word

SUFFIX = ".mlx"

_FIRST_KEY = re.compile(rb"^mlx *:", re.MULTILINE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class ObjectKind(StrEnum):
    """What a digest names: a file's bytes, or a folder's tree."""

    TREE = "tree"
    BLOB = "blob"


class SomeObject(Protocol):
    """Whatever says which object is meant: a record, or what the workspace has; `size` in bytes."""

    @property
    def kind(self) -> ObjectKind: ...

    @property
    def digest(self) -> Digest: ...

    @property
    def size(self) -> int: ...


class Pointer(NamedTuple):
    """What lies at `path` (one name, beside the pointer): `size` in bytes; `files` counted for trees only.

    `executable` is about a lone file; within trees each file has its own mark. `source` is where it was imported from.
    """

    path: str
    kind: ObjectKind
    digest: Digest
    size: int
    files: int | None = None
    executable: bool = False
    source: Source | None = None

    def to_bytes(self) -> bytes:
        """Return the canonical file."""
        values: dict[str, object] = {"mlx": 1, "path": self.path, self.kind.value: self.digest, "size": self.size}
        if self.files is not None:
            values["files"] = self.files
        if self.executable:
            values["executable"] = True
        if self.source is not None:
            values["source"] = self.source.to_value()
        return dump_yaml(values)


def read_pointer(data: bytes, name: str) -> Pointer:
    """Read the pointer in `data`; `name` is the path of the file, for messages and to agree with what it names.

    RecordError when it is anything but a pointer to the path beside it.
    """
    if not is_meant(data) and not _is_yaml(data):
        raise RecordError(f"`{name}` is not a pointer of mlx", hint="rename it, or list it in `.mlxignore`")
    after_merge = f"`mlx checkout {word(name.removesuffix(SUFFIX))}` brings its bytes"
    fields = Fields(parse_yaml(data, name, after_merge=after_merge), what="this pointer")
    check_version(fields)
    fields.only(("mlx", "path", "tree", "blob", "size", "files", "executable", "source"))
    path = fields.parsed("path", check_relative)
    _check_place(fields, path, name)
    kind, digest = read_object(fields)
    size = fields.integer("size")
    files = fields.integer("files") if kind is ObjectKind.TREE else None
    executable = read_details(fields, kind)
    source = fields.mapping("source")
    return Pointer(path, kind, digest, size, files, executable, None if source is None else read_source(source))


def is_meant(data: bytes) -> bool:
    """Say whether `data` is a pointer, or the remains of one: other programs have files of this suffix too."""
    return _FIRST_KEY.search(data) is not None


def _is_yaml(data: bytes) -> bool:
    """Say whether `data` may be YAML at all: a MATLAB live script is a ZIP archive, a filter of MeshLab XML."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return _CONTROL.search(data) is None and not data.startswith((b"<!", b"<?"))


def read_object(fields: Fields) -> tuple[ObjectKind, Digest]:
    """Return the kind and digest of the one key of `tree` and `blob` that must be there."""
    tree, blob = fields.has("tree"), fields.has("blob")
    if tree and blob:
        raise fields.error(f"{fields.what} has both `tree` and `blob`", "blob", "keep the one that names the data")
    if not tree and not blob:
        raise fields.error(f"`tree` (a folder) or `blob` (a file) is missing in {fields.what}")
    kind = ObjectKind.TREE if tree else ObjectKind.BLOB
    return kind, fields.parsed(kind.value, parse_digest)


def read_details(fields: Fields, kind: ObjectKind) -> bool:
    """Return `executable`; RecordError for it with a folder, and for `files` with a file."""
    if kind is ObjectKind.BLOB and fields.has("files"):
        raise fields.error("`files` belongs to folders, and this is a file", "files", "remove it")
    if kind is ObjectKind.TREE and fields.has("executable"):
        raise fields.error("`executable` belongs to files, and this is a folder", "executable", "remove it")
    return fields.boolean("executable", default=False)


def _check_place(fields: Fields, path: str, name: str) -> None:
    if "/" in path:
        raise fields.error(
            f"`path` is `{path}`, and must be a single name: a pointer lies beside its data",
            "path",
            f"move the pointer to where `{path.rpartition('/')[2]}` is",
        )
    # At a revision, `name` may be spelled `REV:raw.mlx`.
    place = name.rpartition("/")[2]
    if place.endswith(SUFFIX) and place != path + SUFFIX and not place.endswith(f":{path}{SUFFIX}"):
        raise fields.error(
            f"`path` is `{path}`, but this file is `{place}`", "path", f"rename the file to `{path}{SUFFIX}`"
        )
