"""What a stage reads from outside the project: a URL among its dependencies, and what a lock records of it.

A lock names the URL and the version that its place told; nothing of it is downloaded. A committed file must not hold a
secret, so a URL with a password, a token or a signature is refused wherever it stands.
"""

from __future__ import annotations

from typing import NamedTuple

from mlops_cli.documents import Fields, Inline
from mlops_cli.records.sources import NETWORK, check_url, check_version_text, holds_password, holds_secret, is_remote

_PROTOCOLS = "`https://`, `s3://`, `sftp://`, `file:///` and the like"


class UrlInput(NamedTuple):
    """A URL as it was when the stage ran: its version (`etag`) and bytes, None where its place tells none."""

    url: str
    etag: str | None = None
    size: int | None = None

    def to_entry(self) -> Inline:
        """Return what a lock holds."""
        values = {"url": self.url, "etag": self.etag, "size": self.size}
        return Inline({key: value for key, value in values.items() if value is not None})


def is_url(text: str) -> bool:
    """Say whether a dependency is a URL; paths in a project hold no `//`."""
    return "://" in text


def check_input_url(text: str) -> str:
    """Return the URL of a dependency; ValueError, with a sentence that tells no secret, when it cannot be one."""
    if holds_password(text):
        raise ValueError("a URL has a password in it, which must not be written down here")
    if holds_secret(text):
        raise ValueError("a URL has a signature or token in it, which must not be written down here")
    if "*" in text:
        raise ValueError(f"`{text}` is a pattern, and a URL cannot be one: name the folder, or one file")
    if not (is_remote(text) and text.partition("://")[0] in NETWORK) and not text.startswith("file:///"):
        raise ValueError(f"`{text}` is not a URL that can be asked for its version: these are {_PROTOCOLS}")
    try:
        return check_url(text)
    except ValueError:
        raise ValueError(f"`{text}` is not a URL, as in `https://host/data.csv` or `s3://bucket/folder`") from None


def read_url_inputs(fields: Fields) -> tuple[UrlInput, ...]:
    """Return the list `urls` of a lock; RecordError."""
    found: dict[str, UrlInput] = {}
    for index in range(len(fields.items("urls"))):
        entry = Fields(fields.document, (*fields.at, "urls", index), what=f"`urls[{index}]`")
        entry.only(("url", "etag", "size"))
        url = entry.parsed("url", check_input_url)
        if url in found:
            raise entry.error(f"`{url}` is in `urls` twice", "url", "`mlx run` writes the lock anew")
        etag = entry.parsed("etag", check_version_text) if entry.has("etag") else None
        found[url] = UrlInput(url, etag, entry.integer("size", default=None))
    return tuple(found.values())
