"""Which bucket an URL means."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.objects import Durability


def open_bucket(name: str, url: str, root: Path, *, durability: Durability) -> Bucket:
    """Return the bucket behind `url`; relative paths are taken from the project's `root`."""
    protocol = url.partition("://")[0].lower() if "://" in url else ""
    if protocol not in ("", "file", "local"):
        raise RemoteError(f"remote `{name}`: mlx does not know the protocol `{protocol}://`")
    return FolderBucket(name, url, _folder_of(url, root), durability)


def _folder_of(url: str, root: Path) -> Path:
    if "://" not in url:
        return Path(os.path.normpath(root / Path(url).expanduser()))
    parts = urlsplit(url)
    if parts.netloc in ("", "localhost"):
        return Path(os.path.normpath(root / unquote(parts.path)))
    return Path(os.path.normpath(root / unquote(parts.netloc + parts.path)))  # file://relative/folder
