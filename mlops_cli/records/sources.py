"""Where imported data is from: the `source` of a pointer.

A record may be somebody else's. So a source names its place in forms that no program takes for an option or a command,
and whoever follows one asks `is_remote` first: what is of this machine is read only when the user has named it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mlops_cli.documents import Fields
from mlops_cli.files import check_relative
from mlops_cli.hashing import Digest, parse_digest

# `user:secret@`, but not `host:8080/path@version`.
LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/@:]*:(?!\d+(?:/|\Z))[^@]*@")

# As text: few records have a source, and to compile these takes longer than to read a pointer.
_AUTHORITY = r"(?!-)(?:[A-Za-z0-9._~%!$&'()*+,;=-]*@)?(?!-)[A-Za-z0-9._:\[\]%-]*"
_REST = r"[^\x00-\x1f\x7f]*"
_URL = rf"[A-Za-z][A-Za-z0-9+.-]*://{_AUTHORITY}/{_REST}"
_REPO = (
    rf"(?:https?|ssh|git|file)://{_AUTHORITY}/{_REST}"
    r"|(?:[A-Za-z0-9._][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*:(?![:-]|//)" + _REST
)
_REMOTE = rf"[A-Za-z][A-Za-z0-9+.-]*://{_AUTHORITY}(?:/{_REST})?"
_VERSION = r"[^\x00-\x1f\x7f]+"
_REV = r"(?!-)[^\x00-\x1f\x7f]+"
_COMMIT = r"[0-9a-f]{40}|[0-9a-f]{64}"
_TOKEN = r"(?i:https?)://(?:gh[a-z]_|github_|gl[a-z]{2,6}-|hf_|[^/@]{32,})[^/@]*@"  # which Git's hosts take for a user
_SECRETS = (
    r"(?i)[?&;](?:[^=&;#]*(?:token|secret|signature|credential|passw(?:or)?d|passphrase|(?:api|access|account)[_-]?key)"
    r"|sig|auth|key|hmac|jwt)="
)

# Protocols of places for which no other program of this machine, and none of its files, is asked.
NETWORK = frozenset(
    "http https s3 s3a gs gcs az abfs abfss adl ssh sftp webdav webdavs dav davs "
    "ftp hdfs webhdfs hf github oci oss smb".split()
)
# Of these, `::` is a part of an address; of the others it may lead on to any place, also on this machine.
_PLAIN = frozenset("http https s3 s3a ssh sftp webdav webdavs dav davs".split())
_LEAVE_IT_OUT = "leave it out: credentials come from the place's own tools, such as `~/.netrc` or `aws configure`"
_URL_SHAPE = "as in `https://host/data.csv`, `s3://bucket/folder` or `file:///folder/data`"
_REPO_SHAPE = "as in `https://host/team/data.git` or `git@host:team/data.git`"


class UrlSource(NamedTuple):
    """Data that was downloaded from `url`, where its version was `etag` (None: the place tells none).

    `fetched` is what came; the pointer names something else once the data was changed here.
    """

    url: str
    etag: str | None
    fetched: Digest

    @property
    def place(self) -> str:
        """What people call it."""
        return self.url

    @property
    def version(self) -> str | None:
        """What its place called the version that is recorded."""
        return self.etag

    @property
    def is_remote(self) -> bool:
        """Whether all that it names is somewhere else."""
        return is_remote(self.url)

    def to_value(self) -> dict[str, object]:
        """Return what a record holds."""
        return _without_none({"url": self.url, "etag": self.etag, "fetched": self.fetched})


class RepoSource(NamedTuple):
    """What `path` was at `commit` of the Git repository `repo`, which `rev` (None: its default branch) led to.

    `remote` is where its objects are when that is not what the repository says. `fetched` is as in `UrlSource`.
    """

    repo: str
    path: str
    rev: str | None
    commit: str
    remote: str | None
    fetched: Digest

    @property
    def place(self) -> str:
        """What people call it."""
        return f"{self.repo} {self.path}"

    @property
    def version(self) -> str | None:
        """The commit that is recorded."""
        return self.commit

    @property
    def is_remote(self) -> bool:
        """Whether all that it names is somewhere else."""
        return is_remote_repository(self.repo) and (self.remote is None or is_remote(self.remote))

    def to_value(self) -> dict[str, object]:
        """Return what a record holds."""
        where = {"repo": self.repo, "path": self.path, "rev": self.rev, "commit": self.commit, "remote": self.remote}
        return _without_none({**where, "fetched": self.fetched})


Source = UrlSource | RepoSource


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


def is_remote(url: str) -> bool:
    """Say whether a URL is certainly not of this machine."""
    protocol, separator, _ = url.partition("://")
    return separator != "" and protocol.lower() in NETWORK and ("::" not in url or protocol.lower() in _PLAIN)


def is_remote_repository(repo: str) -> bool:
    """Say whether a place that Git fetches from is certainly not of this machine."""
    return re.fullmatch(_REPO, repo) is not None and not repo.startswith("file:")


def read_source(fields: Fields) -> Source:
    """Return the source that the mapping holds; RecordError."""
    fields.what = "this source"
    if fields.has("url") == fields.has("repo"):
        raise fields.error("a source has either `url` or `repo`", hint="keep the one that says where the data is from")
    if fields.has("url"):
        fields.only(("url", "etag", "fetched"))
        etag = fields.parsed("etag", check_version_text) if fields.has("etag") else None
        return UrlSource(_checked(fields, "url", check_url), etag, fields.parsed("fetched", parse_digest))
    fields.only(("repo", "path", "rev", "commit", "remote", "fetched"))
    return RepoSource(
        _checked(fields, "repo", check_repo),
        fields.parsed("path", check_relative),
        fields.parsed("rev", check_rev) if fields.has("rev") else None,
        fields.parsed("commit", _check_commit),
        _checked(fields, "remote", check_remote) if fields.has("remote") else None,
        fields.parsed("fetched", parse_digest),
    )


def _checked(fields: Fields, key: str, check: Callable[[str], str]) -> str:
    text = fields.text(key)
    try:
        return check(text)
    except ValueError as error:
        hint = _LEAVE_IT_OUT if holds_password(text) else None
        raise fields.error(f"`{key}`: {error}", key, hint) from error


def holds_password(url: str) -> bool:
    """Say whether a URL has a user with a password, or one that is a token."""
    return LOGIN.match(url) is not None or re.match(_TOKEN, url) is not None


def holds_secret(url: str) -> bool:
    """Say whether the query of a URL has what looks like a signature or a token."""
    return re.search(_SECRETS, url) is not None


def check_url(text: str) -> str:
    """Return the URL of an import; ValueError, with a sentence, when it cannot be one."""
    return _check_place(text, _URL, _URL_SHAPE)


def check_repo(text: str) -> str:
    """Return the place of a Git repository; ValueError, with a sentence, when it cannot be one."""
    return _check_place(text, _REPO, _REPO_SHAPE)


def check_remote(text: str) -> str:
    """Return the URL of a remote; ValueError, with a sentence, when it cannot be one."""
    return _check_place(text, _REMOTE, _URL_SHAPE)


def _check_place(text: str, pattern: str, shape: str) -> str:
    if holds_password(text):
        raise ValueError("it holds a password, which must not be written down here")
    if not re.fullmatch(pattern, text):
        raise ValueError(f"`{text}` is no place that data can be imported from, {shape}")
    return text


def check_rev(text: str) -> str:
    """Return a revision of another repository; ValueError when Git could take it for something else."""
    if not re.fullmatch(_REV, text):
        raise ValueError(f"`{text!a}` cannot be a revision" if text else "a revision must not be empty")
    return text


def check_version_text(text: str) -> str:
    """Return the version of a place's data; ValueError when it holds what no server sends."""
    if not re.fullmatch(_VERSION, text):
        raise ValueError("a version must not be empty, nor hold control characters")
    return text


def _check_commit(text: str) -> str:
    if not re.fullmatch(_COMMIT, text):
        raise ValueError(f"`{text}` is not the full name of a commit: 40 hexadecimal digits")
    return text
