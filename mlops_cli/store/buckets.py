"""Which bucket a remote's URL names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlops_cli.store.bucket import Bucket
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.objects import Durability


def open_bucket(name: str, url: str, root: Path, *, durability: Durability) -> Bucket:
    """Return the bucket of the remote `name`; relative paths are taken from the project's `root`.

    Nothing is contacted before the first verb, which also tells when a protocol is unknown or its package missing.
    """
    protocol = url.partition("://")[0].lower() if "://" in url else ""
    if protocol in ("", "file", "local"):
        return FolderBucket(name, url, folder_of(url, root), durability)
    # What speaks over a network loads more than a command on a folder needs.
    if protocol in ("s3", "s3a"):
        from mlops_cli.store.object_store_bucket import S3Bucket  # noqa: PLC0415

        return S3Bucket(name, url)
    if protocol in ("http", "https"):
        from mlops_cli.store.object_store_bucket import HttpBucket  # noqa: PLC0415

        return HttpBucket(name, url)
    if protocol in ("ssh", "sftp"):
        from mlops_cli.store.sftp_bucket import SftpBucket  # noqa: PLC0415

        return SftpBucket(name, url)
    if protocol in ("webdav", "webdavs", "dav", "davs"):
        from mlops_cli.store.webdav_bucket import WebdavBucket  # noqa: PLC0415

        return WebdavBucket(name, url)
    from mlops_cli.store.fsspec_bucket import FsspecBucket  # noqa: PLC0415

    return FsspecBucket(name, url)


def folder_of(url: str, root: Path) -> Path:
    """Return the folder that a path or a `file://` URL names; relative ones are taken from `root`."""
    if "://" not in url:
        return Path(os.path.normpath(root / Path(url).expanduser()))
    parts = urlsplit(url)
    if parts.netloc in ("", "localhost"):
        return Path(os.path.normpath(root / _unquoted(parts.path)))
    return Path(os.path.normpath(root / _unquoted(parts.netloc + parts.path)))  # file://relative/folder


def _unquoted(path: str) -> str:
    return unquote(path, errors="surrogateescape")  # names of files are bytes
