"""What mlx asks of Git.

The everyday questions (where is the repository, which record files are there) are answered from the file system and one
`git ls-files`, because importing GitPython costs more than a whole `mlx status`. Revisions, scratch worktrees and
everything else that reads history go through GitPython, and nothing of it leaves this module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_cli.errors import OutsideError, UsageError

if TYPE_CHECKING:
    from git import Repo

READ_AT_MOST = 16 << 20  # bytes of one file: records are far smaller, and what is not one must not fill the memory


class Checkout(NamedTuple):
    """One working tree of a Git repository.

    `git_dir` belongs to this working tree alone; `common_dir` is shared by every worktree of the clone.
    """

    top: Path
    git_dir: Path
    common_dir: Path

    @property
    def name(self) -> str:
        """Empty for the main working tree, else the name Git gave the linked worktree (it survives a move)."""
        return "" if self.git_dir == self.common_dir else self.git_dir.name


def find_checkout(start: Path) -> Checkout | None:
    """Return the working tree that holds the folder `start`, or None; follows `.git` files (worktrees, submodules)."""
    for folder in (start, *start.parents):
        marker = folder / ".git"
        if marker.is_dir():
            return Checkout(folder, marker, marker)
        if marker.is_file():
            return _linked(folder, marker)
    return None


def make_checkout(folder: Path) -> Checkout:
    """Make the files in `folder` a working tree of their own, all of them in its index whatever is ignored."""
    _git(folder, "init", "--quiet", "--template=")
    _git(folder, "add", "--all", "--force", "--", ".")
    return Checkout(folder, folder / ".git", folder / ".git")


def is_bare(start: Path) -> bool:
    """Say whether `start` is in a bare repository: a Git directory that no working tree goes with."""
    return any(
        (folder / "HEAD").is_file() and (folder / "objects").is_dir() and (folder / "refs").is_dir()
        for folder in (start, *start.parents)
    )


def _linked(top: Path, marker: Path) -> Checkout:
    text = marker.read_text(encoding="utf-8").strip()
    if not text.startswith("gitdir: "):
        raise UsageError(f"`{marker}` does not say where its Git directory is", hint="run `git status` there")
    git_dir = (top / text.removeprefix("gitdir: ")).resolve()
    common = git_dir / "commondir"
    common_dir = (git_dir / common.read_text(encoding="utf-8").strip()).resolve() if common.is_file() else git_dir
    return Checkout(top, git_dir, common_dir)


def _git(folder: Path, *arguments: str, given: bytes = b"", fine: Sequence[int] = (0,)) -> bytes:
    return _ended(folder, *arguments, given=given, fine=fine).stdout


def _ended(
    folder: Path, *arguments: str, given: bytes = b"", fine: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False, input=given)
    except FileNotFoundError as error:
        raise OutsideError("`git` is not installed, or not on PATH", hint="install Git 2.25 or newer") from error
    if done.returncode not in fine:
        command = next(word for word in arguments if not word.startswith("--"))
        said = _complaint(done.stderr.decode(errors="replace")) or f"exit code {done.returncode}"
        raise OutsideError(f"`git {command}` failed: {said}", hint=f"run `git status` in `{folder}` to see why")
    return done


def _complaint(text: str) -> str:
    """Return the line of Git's words that says what is wrong; advice may follow it."""
    lines = text.strip().strip("'").splitlines()
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return (fatal or lines[-1:] or [""])[0].strip()


def version(folder: Path) -> str:
    """Return Git's version, as in `2.39.5`."""
    return _git(folder, "version").decode().split()[2]


def list_files(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Return the files below `folder` that Git tracks or would track, relative to it and sorted.

    `patterns` are Git pathspecs. A file that was deleted but is still in the index is listed: the reader finds out.
    """
    out = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns)
    return sorted({name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name})


def untracked_files(folder: Path, *patterns: str) -> list[str]:
    """Return the files below `folder` that match a pathspec and are not in Git's index, ignored ones too."""
    out = _git(folder, "ls-files", "-z", "--others", "--", *patterns)
    return [name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name]


def tracked_files(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return the files in Git's index at or below each of `paths` (literal, relative to `folder`)."""
    out = _git(folder, "--literal-pathspecs", "ls-files", "-z", "--cached", "--", *paths)
    return [name.decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name]


def ignored_files(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return those of `paths` (relative to `folder`) that Git does not track and that its ignore rules hide."""
    given = b"".join(b"./%s\0" % os.fsencode(path) for path in paths)  # `./`: a leading colon would be magic
    out = _git(folder, "check-ignore", "-z", "--stdin", given=given, fine=(0, 1))
    return [name[2:].decode("utf-8", "surrogateescape") for name in out.split(b"\0") if name]


def is_committed(folder: Path, path: str) -> bool:
    """Say whether what is at `path` (literal, relative to `folder`) is what HEAD has there."""
    if not tracked_files(folder, [path]):
        return False
    return not _git(folder, "--literal-pathspecs", "status", "--porcelain", "-z", "--", path).strip(b"\0")


def unpublished_files(folder: Path, paths: Sequence[str]) -> list[str]:
    """Return those of `paths` (literal, relative to `folder`) of which no Git remote is known to have what is here.

    None where there is no Git remote. What the remotes have is what the last fetch or push said.
    """
    if not _git(folder, "remote").strip():
        return []
    changed = _git(folder, "--literal-pathspecs", "ls-files", "-z", "--modified", "--others", "--", *paths)
    staged = ("diff", "-z", "--name-only", "--relative", "--cached")
    waiting = ("log", "-z", "--format=", "--name-only", "--relative", "HEAD", "--not", "--remotes")
    for command in (staged, waiting):
        changed += _git(folder, "--literal-pathspecs", *command, "--", *paths, fine=(0, 128))  # 128: no commit yet
    found = set(changed.split(b"\0"))
    return [path for path in paths if os.fsencode(path) in found]


class Unmerged(NamedTuple):
    """A version of a file in Git's index: stage 1 is the base of a merge, 2 is ours, 3 is theirs."""

    path: str
    stage: int
    mode: str
    blob: str


def unmerged_files(folder: Path) -> list[Unmerged]:
    """Return every version of the files below `folder` that a merge could not join, relative to it."""
    found = []
    for line in filter(None, _git(folder, "ls-files", "-z", "--unmerged").split(b"\0")):
        meta, _, path = line.partition(b"\t")
        mode, blob, stage = meta.decode().split(" ")
        found.append(Unmerged(path.decode("utf-8", "surrogateescape"), int(stage), mode, blob))
    return found


def stage_files(folder: Path, paths: Sequence[str]) -> None:
    """Put files (relative to `folder`) into Git's index as they are, or out of it when they are gone."""
    given = b"".join(os.fsencode(path) + b"\0" for path in paths)
    _git(folder, "update-index", "--add", "--remove", "-z", "--stdin", given=given)


def merge_lines(folder: Path, files: tuple[str, str, str], marker_size: int) -> tuple[bytes, bool]:
    """Return what Git makes of the lines of three files (ours, base, theirs), and whether that is without a conflict.

    OutsideError for what is no text.
    """
    labels = (word for name in ("ours", "base", "theirs") for word in ("-L", name))
    command = ("merge-file", "-p", f"--marker-size={marker_size}", *labels, "--", *files)
    done = _ended(folder, *command, fine=range(128))
    return done.stdout, done.returncode == 0


def read_setting(folder: Path, name: str) -> str | None:
    """Return a setting of this clone, not of its user; None when it has none."""
    value = _git(folder, "config", "--local", "-z", "--get", name, fine=(0, 1))
    return value.decode("utf-8", "surrogateescape").removesuffix("\0") if value else None


def write_setting(folder: Path, name: str, value: str) -> None:
    """Set a setting of this clone."""
    _git(folder, "config", "--local", "--replace-all", name, value)


def remove_settings(folder: Path, section: str) -> None:
    """Remove a section of this clone's settings, which must be there."""
    _git(folder, "config", "--local", "--remove-section", section)


def list_refs(folder: Path, kind: str) -> list[str]:
    """Return the full names of the refs below `kind`, as in `refs/heads`, that lead to a commit."""
    out = _git(folder, "for-each-ref", "--format=%(refname)%00%(objecttype)%00%(*objecttype)", kind)
    words = (line.split("\0") for line in out.decode("utf-8", "surrogateescape").splitlines())
    return [name for name, *types in words if "commit" in types]


def record_history(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (commit, path, bytes) for each file below `folder` that a commit wrote, newest commit first.

    Every commit that a ref, a stash or a reflog of this clone names counts. `patterns` are Git pathspecs.
    """
    every = ("--all", "--reflog", "--date-order", "-m", "--no-renames", "--relative", "--raw", "--no-abbrev")
    words = iter(_git(folder, "log", "-z", "--format=%x01%H", *every, "--", *patterns).split(b"\0"))
    written: list[tuple[str, str, bytes]] = []
    commit = ""
    for word in (word.lstrip(b"\n") for word in words):
        if word.startswith(b"\x01"):
            commit = word[1:].decode()
        elif word.startswith(b":"):
            blob, path = word.split()[3], next(words)
            if blob.strip(b"0"):
                written.append((commit, path.decode("utf-8", "surrogateescape"), blob))
    blobs = dict.fromkeys(blob for _, _, blob in written)
    out = _git(folder, "cat-file", "--batch", given=b"".join(blob + b"\n" for blob in blobs)) if blobs else b""
    contents: dict[bytes, bytes] = {}
    at = 0
    for blob in blobs:
        end = out.index(b"\n", at)
        facts = out[at:end].split()
        at = end + 1
        if len(facts) == 3:  # else it is missing: a clone may be partial
            size = int(facts[2])
            contents[blob] = out[at : at + size] if facts[1] == b"blob" else b""
            at += size + 1
    yield from ((commit, path, contents[blob]) for commit, path, blob in written if blob in contents)


class Commit:
    """The files of one revision, below `prefix` (the project's folder in the repository, posix, empty for its top)."""

    def __init__(self, repo: Repo, commit: Any, prefix: str) -> None:
        self._repo = repo
        self._tree = commit.tree
        self._prefix = f"{prefix}/" if prefix else ""
        self.id: str = commit.hexsha

    def paths(self) -> list[str]:
        """Return every file's path, relative to the project, sorted."""
        out: str = self._repo.git.ls_tree("-r", "-z", "--name-only", self.id, "--", self._prefix or ".")
        return sorted(name.removeprefix(self._prefix) for name in out.split("\0") if name)

    def read(self, path: str) -> bytes | None:
        """Return the bytes of `path` (at most `READ_AT_MOST`), or None when this revision has no such file."""
        try:
            blob = self._tree / (self._prefix + path)
        except KeyError:
            return None
        if blob.type != "blob":
            return None
        data: bytes = blob.data_stream.read(READ_AT_MOST)
        return data


@contextmanager
def open_commit(top: Path, revision: str, prefix: str) -> Iterator[Commit]:
    """Yield the revision's files; UsageError when Git does not know `revision`."""
    with _repository(top) as repo:
        yield Commit(repo, _resolve(repo, revision), prefix)


@contextmanager
def scratch_worktree(top: Path, revision: str, folder: Path) -> Iterator[Path]:
    """Yield `folder` as a detached worktree of `revision`; it is removed afterwards, whatever happens."""
    with _repository(top) as repo:
        commit = _resolve(repo, revision)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            repo.git.worktree("add", "--detach", "--force", str(folder), commit.hexsha)
            yield folder
        finally:
            _remove_worktree(repo, folder)


def remove_worktree(top: Path, folder: Path) -> None:
    """Remove a worktree that a killed process left behind, as far as it had come to be one."""
    with _repository(top) as repo:
        _remove_worktree(repo, folder)


def _remove_worktree(repo: Repo, folder: Path) -> None:
    import git

    with suppress(git.exc.GitCommandError):  # not one yet, when `git worktree add` was cut short
        repo.git.worktree("remove", "--force", "--force", str(folder))
        return
    with suppress(git.exc.GitCommandError):
        repo.git.worktree("unlock", str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    repo.git.worktree("prune")


@contextmanager
def _repository(top: Path) -> Iterator[Repo]:
    import git

    repo = git.Repo(top)
    try:
        yield repo
    except git.exc.GitCommandError as error:
        said = _complaint(str(error.stderr).removeprefix("\n  stderr: '"))
        raise OutsideError(f"Git refused: {said or error}", hint="run `git status`") from error
    finally:
        repo.close()


def _resolve(repo: Repo, revision: str) -> Any:
    import git

    try:
        # By Git itself: it knows `@{yesterday}`, `:/words` and whatever else a revision may be; but never an option.
        found = repo.git.rev_parse("--verify", "--quiet", "" if revision.startswith("-") else revision)
        return repo.commit(repo.git.rev_parse("--verify", "--quiet", f"{found}^{{commit}}"))
    except git.exc.GitCommandError as error:
        if revision.startswith(("HEAD", "@")) and not repo.head.is_valid():
            raise UsageError("there is no commit yet", hint='`git commit -m "…"` makes the first one') from error
        shallow = Path(repo.common_dir, "shallow").exists()
        hint = "this clone is shallow: `git fetch --unshallow`" if shallow else "`git log --oneline` lists what is here"
        raise UsageError(f"Git knows no revision `{revision}`", hint=hint) from error
