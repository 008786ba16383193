"""Digests of normal forms: what counts of a dependency that has a normaliser, worked out once for each content.

They are remembered by the digest of the bytes, in a file of the clone for each version of Python, since that decides
what can be parsed. The file is a cache: damaged, it is begun anew; of two commands that write it, one may win.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import NamedTuple

import xxhash

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.files import write_atomic
from mlops_cli.hashing import Digest, Hasher, hash_bytes
from mlops_cli.pipeline.notebook_form import notebook_form
from mlops_cli.pipeline.python_form import python_form
from mlops_cli.records.normalizers import Normalizer
from mlops_cli.store.trees import Entry, Kind, TreeSource, walk
from mlops_cli.workspace.project import Project

_MOST = 20_000  # forms that are remembered, the newest
_LARGEST = {Normalizer.PYTHON: 2 << 20, Normalizer.NOTEBOOK: 128 << 20}  # a syntax tree takes a hundred times as much
_HEAD = b"forms of a folder 1\n"


class Form(NamedTuple):
    """The digest of a normal form; None when bytes count, with the `fault` that keeps them from being parsed."""

    digest: Digest | None
    fault: str = ""


class NormalForms:
    """Finds the normal forms of files and folders; keeps what is new for the next command until `save`."""

    def __init__(self, project: Project) -> None:
        self._root = project.root
        self._cache = project.cache
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        self._file = project.local / f"normal-forms-{version}.json"
        self._known: dict[str, Form] | None = None
        self._new: dict[str, Form] = {}

    def of(self, by: Normalizer, path: str, entry: Entry, trees: TreeSource) -> Form:
        """Return the form of what is, or will be, at `path`; bytes count where they are not here to be read."""
        try:
            return self._find(by, path, entry, trees)
        except (MlxError, OSError):
            return Form(None)

    def _find(self, by: Normalizer, path: str, entry: Entry, trees: TreeSource) -> Form:
        key = f"{by}/{entry.digest}"
        if self._known is None:
            self._known = self._load()
        found = self._known.get(key) or self._new.get(key)
        if found is None:
            found = self._folder(by, path, entry, trees) if entry.kind == Kind.FOLDER else self._one(by, path, entry)
            self._new[key] = found
        return found

    def save(self) -> None:
        """Write what is new for the next command; failing to is not an error."""
        if self._new:
            forms = {**self._load(), **self._new}
            kept = dict(list(forms.items())[-_MOST:])
            body = json.dumps(kept, separators=(",", ":")).encode()
            with suppress(MlxError, OSError):
                write_atomic(self._file, _checksum(body) + b"\n" + body, durable=False)
            self._known, self._new = forms, {}

    def _load(self) -> dict[str, Form]:
        try:
            checksum, _, body = self._file.read_bytes().partition(b"\n")
        except OSError:
            return {}
        if checksum != _checksum(body):
            return {}
        try:
            return {key: Form(*form) for key, form in json.loads(body).items()}
        except (ValueError, TypeError, AttributeError):  # another version's
            return {}

    def _one(self, by: Normalizer, path: str, entry: Entry) -> Form:
        if entry.size > _LARGEST[by]:
            return Form(None, f"it has more than {_LARGEST[by]:,} bytes")
        data = self._read(path, entry)
        try:
            form = python_form(data, path) if by is Normalizer.PYTHON else notebook_form(data, path)
        except RecordError as error:
            return Form(None, "line " + error.message.removeprefix(f"{path}:"))
        return Form(hash_bytes(form))

    def _folder(self, by: Normalizer, path: str, entry: Entry, trees: TreeSource) -> Form:
        """Return the form of a folder: of the files that fit, their forms, of all others what the tree says."""
        hasher, fault, fits = Hasher(), "", False
        hasher.update(_HEAD)
        for name, child in list(walk(trees, entry.digest)):
            digest: str = "" if child.kind == Kind.FOLDER else child.digest
            below = os.fsdecode(name)
            if child.kind in (Kind.FILE, Kind.EXECUTABLE) and below.endswith(by.suffix):
                form = self._find(by, f"{path}/{below}", child, trees)
                digest = f"normal {form.digest}" if form.digest else digest
                fault = fault or (form.fault and f"`{path}/{below}`, {form.fault}")
                fits = True
            line = json.dumps([name.hex(), int(child.kind), digest])
            hasher.update(line.encode() + b"\n")
        return Form(hasher.digest() if fits else None, fault)

    def _read(self, path: str, entry: Entry) -> bytes:
        """Return the bytes that `entry` names: of the workspace if they are there, else of the cache; MissingObject."""
        with suppress(OSError):
            descriptor = os.open(self._root / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as stream:
                data = stream.read(entry.size + 1)
            if hash_bytes(data) == entry.digest:
                return data
        return self._cache.read(entry.digest, limit=None)


def _checksum(body: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(body).encode()
