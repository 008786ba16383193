"""What mlx asks of Git about a repository that is not here: one commit, and of it no more files than are read.

Everything happens in a bare repository of its own, without templates, hooks or working tree, that is thrown away.
Git follows only the protocols that are named to it, whatever a URL, a redirect or a setting says: none that runs a
program, and this machine's own files only for whom has asked for them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlops_cli.errors import OutsideError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, list_folder
from mlops_cli.records.sources import check_rev, is_remote_repository
from mlops_cli.workspace.git import READ_AT_MOST
from mlops_cli.workspace.litter import is_alive

_UNSET = (
    "ALTERNATE_OBJECT_DIRECTORIES CEILING_DIRECTORIES COMMON_DIR DIR INDEX_FILE NAMESPACE OBJECT_DIRECTORY PREFIX "
    "QUARANTINE_PATH SHALLOW_FILE WORK_TREE"
)
_ENVIRONMENT = (
    "env",
    *(word for name in _UNSET.split() for word in ("-u", f"GIT_{name}")),
    "GIT_TERMINAL_PROMPT=0",
    "GIT_NO_LAZY_FETCH=1",
    "GIT_HTTP_LOW_SPEED_LIMIT=1",  # bytes/s: a server that says nothing for a minute is given up
    "GIT_HTTP_LOW_SPEED_TIME=60",
    "LC_ALL=C",
)
_PLAIN_REV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@-]*")
_FULL_NAME = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NO_SUCH = ("couldn't find remote ref", "not our ref", "unadvertised object", "no such ref", "invalid refspec")
_SIMPLE = ("dumb http transport", "does not support shallow", "does not support filter", "filtering not recognized")
_RECORD = 1 << 20  # bytes; no record that can be read is larger
_AT_ONCE = 500  # blobs that one fetch asks for by name
_SUFFIX = "-import"
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-gc")


class InGit(NamedTuple):
    """A file of a commit: its blob, and whether it may be run."""

    blob: str
    executable: bool


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, gone afterwards; what killed processes left there goes too."""
    for entry in list_folder(str(parent)):
        is_ours = entry.name.startswith(TEMPORARY_PREFIX) and entry.name.endswith(_SUFFIX)
        if is_ours and not is_alive(entry.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]):
            shutil.rmtree(entry.path, ignore_errors=True)
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}{_SUFFIX}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_commit(repo: str, rev: str | None) -> str | None:
    """Return the commit that a branch, a tag or its full name is now; None when only a fetch can tell.

    OutsideError when the repository cannot be reached.
    """
    if rev is not None and _FULL_NAME.fullmatch(rev):
        return rev
    if rev is not None and not _PLAIN_REV.fullmatch(rev):
        return None
    names = ["HEAD"] if rev is None else [f"refs/tags/{rev}^{{}}", f"refs/tags/{rev}", f"refs/heads/{rev}", rev]
    out = _run(Path("/"), repo, "ls-remote", "--quiet", "--", repo, *names)
    lines = (line.partition("\t") for line in out.decode("utf-8", "replace").splitlines())
    found = {name: commit for commit, _, name in lines}
    return next((found[name] for name in names if name in found), None)


def is_repository(url: str) -> bool:
    """Say whether Git finds a repository at a URL."""
    with suppress(OutsideError):
        _run(Path("/"), url, "ls-remote", "--quiet", "--", url, "HEAD")
        return True
    return False


class Clone:
    """One commit of `repo`, in the new folder `folder`; blobs come when they are read, many at once."""

    def __init__(self, repo: str, rev: str | None, folder: Path) -> None:
        self._repo = repo
        self._folder = folder
        folder.mkdir()
        self._git("init", "--quiet", "--bare", "--template=", ".")
        self._git("config", "remote.origin.url", repo)
        self.commit = self._fetch(rev)
        self._records: dict[str, bytes] = {}
        self._missing = self._list_missing()
        self.files = self._list_files()

    def _git(self, *arguments: str, given: bytes = b"") -> bytes:
        return _run(self._folder, self._repo, *arguments, given=given)

    def _fetch(self, rev: str | None) -> str:
        if rev is None or _PLAIN_REV.fullmatch(rev):
            with suppress(_NoSuchRevision):
                self._fetch_refs(("--depth=1",), f"{rev or 'HEAD'}:refs/mlx/wanted")
                return self._resolve("refs/mlx/wanted", rev)
        with suppress(_NoSuchRevision):
            self._fetch_refs((), "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        return self._resolve(check_rev(rev or "HEAD"), rev)

    def _fetch_refs(self, options: Sequence[str], *refs: str) -> None:
        """Fetch `refs` without blobs; with all of them, and all of the history, where the server can do no less."""
        try:
            self._git(*_FETCH, *options, "--filter=blob:none", "origin", *refs)
        except OutsideError as error:
            if any(words in error.message for words in _NO_SUCH):
                raise _NoSuchRevision from error
            if not any(words in error.message for words in _SIMPLE):
                raise
            self._git(*_FETCH, "origin", *refs)

    def _resolve(self, name: str, rev: str | None) -> str:
        with suppress(OutsideError):
            found = self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").decode().strip()
            if _FULL_NAME.fullmatch(found):
                return found
        what = f"revision `{rev}`" if rev else "commit"
        hint = f"`git ls-remote {self._repo}` lists its branches and tags"
        raise UsageError(f"`{self._repo}` has no {what}", hint=hint)

    def _list_missing(self) -> set[str]:
        out = self._git("rev-list", "--objects", "--missing=print", "--max-count=1", self.commit)
        return {line[1:] for line in out.decode("utf-8", "replace").splitlines() if line.startswith("?")}

    def _list_files(self) -> dict[str, InGit]:
        """Return the regular files of the commit; links and other repositories are none."""
        found = {}
        for entry in self._git("ls-tree", "-r", "-z", "--full-tree", self.commit).split(b"\0"):
            facts, _, name = entry.partition(b"\t")
            if facts.startswith(b"100"):
                mode, _, blob = facts.decode().split()
                found[name.decode("utf-8", "surrogateescape")] = InGit(blob, mode == "100755")
        return found

    def bring(self, blobs: Collection[str]) -> None:
        """Fetch those of `blobs` that are not here yet."""
        wanted = sorted(set(blobs) & self._missing)
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            self._git("-c", "fetch.negotiationAlgorithm=noop", *_FETCH, "--filter=blob:none", "origin", *part)
            self._missing.difference_update(part)

    def read_ahead(self, blobs: Collection[str]) -> None:
        """Fetch and keep the bytes of records that will be read; of those that are far too large for one, nothing."""
        self.bring(blobs)
        listed = self._git("cat-file", "--batch-check=%(objectname) %(objectsize)", given=_lines(blobs)).decode()
        sizes = {name: int(size) for name, size in (line.split() for line in listed.splitlines())}
        small = [blob for blob, size in sizes.items() if size <= _RECORD]
        out = self._git("cat-file", "--batch=%(objectname) %(objectsize)", given=_lines(small)) if small else b""
        at = 0
        for blob in small:
            at = out.index(b"\n", at) + 1
            self._records[blob] = out[at : at + sizes[blob]]
            at += sizes[blob] + 1

    def read(self, blob: str) -> bytes:
        """Return a record's bytes; UsageError for a file that is far too large for one."""
        if blob in self._records:
            return self._records[blob]
        self.bring([blob])
        size = int(self._git("cat-file", "-s", blob))
        if size > READ_AT_MOST:
            raise UsageError(f"`{self._repo}` has a record of {size:,} bytes", hint="no record is that large")
        return self._git("cat-file", "blob", blob)

    def write(self, blob: str, path: Path) -> None:
        """Write a blob to a new file."""
        self.bring([blob])
        with path.open("xb") as file:
            _start(self._folder, self._repo, "cat-file", "blob", blob, stdout=file)


def _lines(names: Collection[str]) -> bytes:
    return b"".join(name.encode() + b"\n" for name in dict.fromkeys(names))


class _NoSuchRevision(Exception):
    """The server has nothing of that name."""


def _run(folder: Path, repo: str, *arguments: str, given: bytes = b"") -> bytes:
    done = _start(folder, repo, *arguments, given=given)
    assert isinstance(done.stdout, bytes)
    return done.stdout


def _start(
    folder: Path, repo: str, *arguments: str, given: bytes = b"", stdout: int | BinaryIO = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    allowed = "http:https:ssh:git" + ("" if is_remote_repository(repo) else ":file")
    command = [*_ENVIRONMENT, f"GIT_ALLOW_PROTOCOL={allowed}", "git", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        input=given,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 127:
        raise OutsideError("`git` is not installed, or not on PATH", hint="install Git 2.25 or newer")
    if done.returncode:
        said = _complaint(done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
        hint = f"see that `git ls-remote {repo}` works here: mlx asks Git, and Git knows who you are"
        raise OutsideError(f"Git cannot read `{repo}`: {said}", hint=hint)
    return done


def _complaint(text: str) -> str:
    """Return the lines of Git's words that say what is wrong."""
    lines = [line.strip() for line in text.splitlines()]
    told = [line.partition(": ")[2] for line in lines if line.startswith(("fatal: ", "error: ", "ERROR: "))]
    told += [line.removeprefix("remote: ") for line in lines if line.startswith("remote: ") and "our ref" in line]
    return "; ".join(dict.fromkeys(filter(None, told))) or (lines[-1] if lines else "")
