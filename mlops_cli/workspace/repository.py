"""Where a Git repository keeps records, whatever is checked out: its commits, its indices, its worktrees.

Everything that a collection asks of Git is asked here, of one Git directory at a time, and so that no setting, warning
or replaced object can hide a commit: what Git cannot read is an error that names it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import OutsideError

PATTERNS = (":(top,glob)**/*.mlx", ":(top,glob)**/mlx.lock/*.yaml")
_CHUNK = 2000  # blobs that are in memory at once
_LARGEST = 16 << 20  # bytes; no record is larger
_OBJECT = re.compile(rb"\b[0-9a-f]{40}(?:[0-9a-f]{24})?\b")
# Commits that a merge, a rebase or the like has in hand.
_IN_HAND = re.compile(r"[A-Z_]+HEAD|MERGE_AUTOSTASH|BISECT_[A-Z_]+")
_IN_HAND_FOLDERS = ("rebase-merge", "rebase-apply", "sequencer")
_REGULAR = b"100"
# A hook of Git's that runs us may speak of another index or worktree.
_ENVIRONMENT = ("env", "-u", "GIT_INDEX_FILE", "-u", "GIT_WORK_TREE", "-u", "GIT_DIR", "LC_ALL=C")


class Place(NamedTuple):
    """A record file in Git: its path from the top, and its blob."""

    path: str
    blob: str


@dataclass(frozen=True, slots=True)
class Worktree:
    """One checkout of a repository; `top` is None when it has no files here. `locked` ones are on a disk that goes."""

    git_dir: Path
    top: Path | None
    locked: bool = False


def list_worktrees(common_dir: Path) -> list[Worktree]:
    """Return the main worktree of a repository and all that Git knows to be linked to it."""
    found = [Worktree(common_dir, _main_top(common_dir))]
    with suppress(FileNotFoundError):
        for git_dir in sorted((common_dir / "worktrees").iterdir()):
            with suppress(FileNotFoundError, NotADirectoryError):
                marker = git_dir / (git_dir / "gitdir").read_text(encoding="utf-8", errors="surrogateescape").strip()
                top = marker.parent if marker.exists() else None
                found.append(Worktree(git_dir, top, (git_dir / "locked").exists()))
    return found


def _main_top(common_dir: Path) -> Path | None:
    if _config(common_dir, "--type=bool", "core.bare") == "true":
        return None
    place = _config(common_dir, "core.worktree")
    if place:
        return Path(os.path.normpath(common_dir / place))
    return common_dir.parent if common_dir.name == ".git" else None


def _config(git_dir: Path, *arguments: str) -> str:
    return os.fsdecode(_run(git_dir, "config", *arguments[:-1], "--get", arguments[-1], fine=(0, 1))).strip()


def find_incomplete(common_dir: Path) -> str | None:
    """Say what keeps a repository from knowing all of its history; None when it is whole."""
    with suppress(FileNotFoundError):
        if (common_dir / "shallow").stat().st_size:
            return "shallow"
    names = r"^(remote\..*\.promisor|extensions\.partialclone)$"
    partial = _run(common_dir, "config", "--get-regexp", names, fine=(0, 1))
    return "partial" if partial.strip() else None


def list_tips(git_dir: Path) -> set[str]:
    """Return every commit that a ref, a reflog or an unfinished merge of this worktree names.

    OutsideError for a ref that cannot be read. Reflogs may name commits that Git has pruned: those are no error.
    """
    named = _run(git_dir, "rev-list", "--no-walk=unsorted", "--all", quiet=True)
    logged = _run(git_dir, "rev-list", "--no-walk=unsorted", "--all", "--reflog")
    words = b"\n".join(dict.fromkeys(_OBJECT.findall(b"\n".join(_in_hand(git_dir)))))
    kinds = (
        _run(git_dir, "cat-file", "--batch-check=%(objecttype) %(objectname)", given=words + b"\n") if words else b""
    )
    in_hand = [line.split()[1] for line in kinds.split(b"\n") if line.startswith(b"commit ")]
    return {word.decode() for word in (*named.split(), *logged.split(), *in_hand)}


def _in_hand(git_dir: Path) -> Iterator[bytes]:
    names = [path for path in git_dir.iterdir() if _IN_HAND.fullmatch(path.name)]
    for path in chain(names, *((git_dir / folder).glob("*") for folder in _IN_HAND_FOLDERS)):
        if path.is_file():
            yield path.read_bytes()


def list_trees(git_dir: Path) -> list[str]:
    """Return the trees that refs name by themselves, not through a commit."""
    out = _run(git_dir, "for-each-ref", "--format=%(objecttype) %(objectname)%0a%(*objecttype) %(*objectname)")
    return [line.split()[1] for line in out.decode().split("\n") if line.startswith("tree ")]


def in_commits(git_dir: Path, tips: Iterable[str], known: Iterable[str] = ()) -> Iterator[Place]:
    """Yield the record files of every commit that `tips` can reach and `known` cannot, once for each change."""
    wanted = "".join([*(f"{tip}\n" for tip in tips), *(f"^{tip}\n" for tip in known)])
    commits = _run(git_dir, "rev-list", "--stdin", given=wanted.encode())
    if commits:
        arguments = ("--stdin", "--root", "-m", "-r", "-z", "--raw", "--no-commit-id", "--no-renames", "--no-abbrev")
        out = _run(git_dir, "diff-tree", *arguments, "--", *PATTERNS, given=commits)
        fields = iter(out.split(b"\0"))
        for meta in fields:
            if meta:
                old_mode, new_mode, old, new, _ = meta.lstrip(b":").split(b" ")
                path = os.fsdecode(next(fields))
                # The old side too: a graft or a shallow boundary may have cut off the commit that brought it.
                for mode, blob in ((old_mode, old), (new_mode, new)):
                    if mode.startswith(_REGULAR):
                        yield Place(path, blob.decode())


def in_tree(git_dir: Path, tree: str) -> Iterator[Place]:
    """Yield the record files of a tree."""
    out = _run(git_dir, "ls-tree", "-r", "-z", "--full-tree", tree)
    for line in filter(None, out.split(b"\0")):
        meta, _, path = line.partition(b"\t")
        mode, _, blob = meta.split(b" ")[:3]
        if mode.startswith(_REGULAR):
            yield Place(os.fsdecode(path), blob.decode())


def in_index(git_dir: Path) -> Iterator[Place]:
    """Yield the record files in the index of a worktree, all sides of those that a merge could not join."""
    out = _run(git_dir, "ls-files", "-s", "-z", "--", *PATTERNS)
    for line in filter(None, out.split(b"\0")):
        meta, _, path = line.partition(b"\t")
        mode, blob, _ = meta.split(b" ")
        if mode.startswith(_REGULAR):
            yield Place(os.fsdecode(path), blob.decode())


def read_blobs(git_dir: Path, blobs: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the bytes of each blob, None for one too large to be a record; OutsideError for what is not there."""
    for start in range(0, len(blobs), _CHUNK):
        chunk = blobs[start : start + _CHUNK]
        sizes = _run(git_dir, "cat-file", "--batch-check=%(objecttype) %(objectsize)", given=_lines(chunk))
        small = []
        for blob, line in zip(chunk, sizes.decode().splitlines(), strict=True):
            kind, _, size = line.partition(" ")
            if kind != "blob":
                raise _unreadable(git_dir, f"object `{blob}` is missing or damaged")
            if int(size) <= _LARGEST:
                small.append(blob)
        data = _run(git_dir, "cat-file", "--batch=%(objectsize)", given=_lines(small)) if small else b""
        read = {}
        at = 0
        for blob in small:
            end = data.index(b"\n", at)
            length = int(data[at:end])
            read[blob] = data[end + 1 : end + 1 + length]
            at = end + length + 2
        yield from map(read.get, chunk)


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def _run(git_dir: Path, *arguments: str, given: bytes = b"", fine: Sequence[int] = (0,), quiet: bool = False) -> bytes:
    """Run Git on a Git directory; with `quiet`, a warning is a failure too."""
    command = [*_ENVIRONMENT, "git", "--no-replace-objects", f"--git-dir={git_dir}", *arguments]
    try:
        done = subprocess.run(command, cwd=git_dir, capture_output=True, check=False, input=given)
    except FileNotFoundError as error:
        raise _unreadable(git_dir, "it is gone") from error
    if done.returncode not in fine or (quiet and done.stderr.strip()):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        fatal = [line for line in said if line.startswith("fatal: ")]
        first = (fatal or said or [f"`git {arguments[0]}` failed"])[0]
        raise _unreadable(git_dir, first.removeprefix("fatal: ").removeprefix("warning: "))
    return done.stdout


def _unreadable(git_dir: Path, said: str) -> OutsideError:
    return OutsideError(
        f"nobody can tell what the repository `{git_dir}` needs: {said}",
        hint=f"nothing was collected; `git --git-dir={git_dir} fsck` tells more",
    )
