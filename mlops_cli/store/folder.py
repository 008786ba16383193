"""A remote that is a folder: of this machine, or of a file server mounted here.

It is the same folder of loose objects as the cache, without links to a workspace and with a marker that says which
version of the layout it has. Whatever goes wrong is told as a trouble of the remote.

    mlx.json                 {"mlx": 1}
    objects/<aa>/<rest>      objects
    runs/<fingerprint>.yaml  run records
    tmp/                     files on their way in
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mlops_cli.errors import CorruptObject, MlxError, RemoteError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest
from mlops_cli.store.loose import LooseStore
from mlops_cli.store.objects import AbsentObjects, DamagedObjects, Durability, cut

LAYOUT_VERSION = 1
MARKER = "mlx.json"


def check_marker(data: bytes, name: str) -> None:
    """Refuse a remote whose layout is newer than this code, or that is no remote."""
    try:
        version = json.loads(data)["mlx"]
    except (ValueError, KeyError, TypeError):
        hint = "check that its URL names a remote of mlx"
        raise RemoteError(f"remote `{name}` holds a `{MARKER}` that mlx cannot read", hint=hint) from None
    if version != LAYOUT_VERSION:
        message = f"remote `{name}` has layout version {version}, and this mlx understands {LAYOUT_VERSION}"
        raise RemoteError(message, hint="upgrade mlx: `pip install --upgrade mlops-cli`")


def marker() -> bytes:
    """Return the bytes of a remote's marker."""
    return json.dumps({"mlx": LAYOUT_VERSION}).encode() + b"\n"


def damaged_object(digest: Digest, found: Digest, label: str, path: str) -> DamagedObjects:
    """Return what to raise for an object of a remote whose bytes hash to `found`."""
    message = f"object `{cut(digest)}` in {label} is damaged: its bytes hash to `{cut(found)}`"
    return DamagedObjects([digest], message, hint=f"move `{path}` away, then `mlx push` from a clone that has it")


class FolderRemote(LooseStore):
    """A remote in a folder of this machine, or of a file server mounted here."""

    def __init__(self, name: str, url: str, folder: Path, durability: Durability) -> None:
        super().__init__(folder, durability)
        self.name = name
        self.url = url
        self.label = f"remote `{name}`"
        self._looked = False

    def trouble(self, error: OSError, doing: str) -> MlxError:
        """Return what to raise when the system refuses, naming the remote and its folder."""
        where = f"`{self.root}`" if self.label in doing else f"{self.label} is `{self.root}`"
        plain = translate_os_error(error, f"{doing} ({where})")
        return RemoteError(plain.message, hint=plain.hint)

    def absent(self, digests: Sequence[Digest]) -> MlxError:
        """Return what to raise for objects that are not here: RemoteError when the folder itself is not."""
        if not self.root.is_dir():
            hint = "mount it, or check its URL: `mlx remote list`"
            return RemoteError(f"remote `{self.name}` (`{self.root}`) does not exist", hint=hint)
        return AbsentObjects(digests, self.label, hint="`mlx push` it from a clone that has it")

    def damaged(self, digest: Digest, found: Digest) -> CorruptObject:
        """Return what to raise for a damaged object; it stays where it is, since others share the remote."""
        return damaged_object(digest, found, self.label, self.object_path(digest))

    def look(self) -> None:
        """Check, once, that this code understands the remote's layout; one that is not there yet passes."""
        if self._looked:
            return
        try:
            check_marker((self.root / MARKER).read_bytes(), self.name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise self.trouble(error, f"read {self.label}") from error
        self._looked = True

    def prepare(self) -> None:
        """Make the folder a remote, when it is none yet."""
        self.look()
        path = self.root / MARKER
        if path.exists():
            return
        try:
            self.write_file(path, marker())
        except OSError as error:
            raise self.trouble(error, f"write to {self.label}") from error
