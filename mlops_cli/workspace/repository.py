"""Where a Git repository keeps records, whatever is checked out: its commits, its indices, its worktrees.

Everything that a collection asks of Git is asked here, of one Git directory at a time, and so that no setting, warning
or replaced object can hide a commit: what Git cannot read is an error that names it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import OutsideError

PATTERNS = (":(top,glob)**/*.mlx", ":(top,glob)**/mlx.lock/*.yaml")
_CHUNK = 2000  # blobs that are in memory at once,
_CHUNK_BYTES = 64 << 20  # and their bytes
_LARGEST = 16 << 20  # bytes; no record is larger
_NAME = re.compile(rb"\b[0-9a-f]{7,64}\b")  # also cut short, as a list of commits to pick has them
# Commits that a merge, a rebase or the like has in hand.
_IN_HAND = re.compile(r"[A-Z_]+HEAD|MERGE_AUTOSTASH|BISECT_[A-Z_]+")
_IN_HAND_FOLDERS = ("rebase-merge", "rebase-apply", "sequencer")
_REGULAR = b"100"
# A hook or an alias of Git's that runs us may speak of another repository, or have patterns read in another way.
_UNSET = (
    "ALTERNATE_OBJECT_DIRECTORIES ATTR_SOURCE COMMON_DIR CONFIG CONFIG_COUNT CONFIG_PARAMETERS DIR GLOB_PATHSPECS "
    "ICASE_PATHSPECS IMPLICIT_WORK_TREE INDEX_FILE LITERAL_PATHSPECS NAMESPACE NOGLOB_PATHSPECS OBJECT_DIRECTORY "
    "PREFIX REPLACE_REF_BASE SHALLOW_FILE TRACE TRACE2 TRACE_SETUP WORK_TREE"
)
_ENVIRONMENT = (
    "env",
    *(word for name in _UNSET.split() for word in ("-u", f"GIT_{name}")),
    "GIT_GRAFT_FILE=/dev/null/none",  # a graft cuts history off
    "GIT_NO_LAZY_FETCH=1",  # what a partial clone lacks would be fetched by whatever program it names
    "LC_ALL=C",
)
# A damaged commit graph hides history; a file system monitor is a program that a repository of somebody else's names.
_GIT = ("git", "--no-replace-objects", "-c", "core.commitGraph=false", "-c", "core.fsmonitor=false")


class Place(NamedTuple):
    """A record file in Git: its path from the top, and its blob."""

    path: str
    blob: str


@dataclass(frozen=True, slots=True)
class Worktree:
    """One checkout of a repository: its own Git directory, and the top of its files, None when it has none here.

    `missed` says why its files should be here all the same: its disk may come back.
    """

    git_dir: Path
    top: Path | None
    missed: str = ""


def list_worktrees(common_dir: Path) -> list[Worktree]:
    """Return the main worktree of a repository and all that Git knows to be linked to it."""
    found = [_main_worktree(common_dir)]
    with suppress(FileNotFoundError):
        linked = sorted((common_dir / "worktrees").iterdir())
        found.extend(_linked_worktree(git_dir) for git_dir in linked if (git_dir / "HEAD").is_file())
    return found


def _main_worktree(common_dir: Path) -> Worktree:
    if _config(common_dir, "--type=bool", "core.bare") == "true":
        return Worktree(common_dir, None)
    place = _config(common_dir, "core.worktree")
    if place:
        top = Path(os.path.normpath(common_dir / place))
        return Worktree(common_dir, top) if top.is_dir() else Worktree(common_dir, None, f"`{top}` is gone")
    return Worktree(common_dir, common_dir.parent if common_dir.name == ".git" else None)


def _linked_worktree(git_dir: Path) -> Worktree:
    missed = f"the worktree `{git_dir.name}` is locked" if (git_dir / "locked").exists() else ""
    try:
        marker = git_dir / (git_dir / "gitdir").read_text(encoding="utf-8", errors="surrogateescape").strip()
    except FileNotFoundError:  # nobody knows where its files are; its commits and its index count
        return Worktree(git_dir, None, missed)
    return Worktree(git_dir, marker.parent) if marker.exists() else Worktree(git_dir, None, missed)


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
    words = dict.fromkeys(_NAME.findall(b"\n".join(_in_hand(git_dir))))
    asked = b"".join(b"%s^{commit}\n" % word for word in words)
    kinds = _run(git_dir, "cat-file", "--batch-check=%(objecttype) %(objectname)", given=asked) if words else b""
    in_hand = [line.split()[1] for line in kinds.split(b"\n") if line.startswith(b"commit ")]
    return {word.decode() for word in (*named.split(), *logged.split(), *in_hand)}


def _in_hand(git_dir: Path) -> Iterator[bytes]:
    names = [path for path in git_dir.iterdir() if _IN_HAND.fullmatch(path.name)]
    for path in chain(names, *((git_dir / folder).glob("*") for folder in _IN_HAND_FOLDERS)):
        if path.is_file():
            yield path.read_bytes()


class Named(NamedTuple):
    """What names lead to: commits and trees that are here, and names of what is not."""

    commits: frozenset[str]
    trees: frozenset[str]
    absent: frozenset[str]


def list_upstream(common_dir: Path, top: Path) -> dict[str, dict[str, str]]:
    """Return, for each Git remote of a clone, its refs and what they name; OutsideError when one cannot be asked.

    `top` is where the paths of remotes begin: the top of a worktree.
    """
    found: dict[str, dict[str, str]] = {}
    for name in _run(common_dir, "remote").decode().split():
        try:
            lines = _run(common_dir, "ls-remote", name, folder=top).decode(errors="replace").splitlines()
        except OutsideError as error:
            raise OutsideError(
                f"Git remote `{name}` cannot be asked which commits it has: {error.message.rpartition(': ')[2]}",
                hint=f"`git ls-remote {name}` tells more; `git remote remove {name}` if it is gone for good",
            ) from error
        found[name] = {ref: commit for commit, _, ref in (line.partition("\t") for line in lines)}
    return found


def list_upstream_urls(common_dir: Path) -> list[str]:
    """Return the URLs of a clone's Git remotes, that of `origin` first."""
    out = _run(common_dir, "config", "--get-regexp", r"^remote\..*\.url$", fine=(0, 1)).decode(errors="replace")
    pairs = [line.partition(" ") for line in out.splitlines()]
    return [url for _, _, url in sorted(pairs, key=lambda pair: (pair[0] != "remote.origin.url", pair[0]))]


def find_named(git_dir: Path, names: Iterable[str]) -> Named:
    """Return what each of the Git objects `names` (full, 40 or 64 digits) is here; of tags, what they lead to."""
    found: dict[str, set[str]] = {"commit": set(), "tree": set(), "missing": set()}
    names = sorted(set(names))
    for start in range(0, len(names), _CHUNK):
        asked = names[start : start + _CHUNK]
        out = _run(git_dir, "cat-file", "--batch-check=%(objecttype) %(objectname)", given=_lines(asked))
        for name, line in zip(asked, out.decode().splitlines(), strict=True):
            found.setdefault(line.split()[1] if line.endswith(" missing") else line.split()[0], set()).add(name)
    return Named(frozenset(found["commit"]), frozenset(found["tree"]), frozenset(found["missing"]))


def list_first_commits(git_dir: Path, *, everywhere: bool = False) -> list[str]:
    """Return the commits without parents that HEAD (or any ref) leads to: they tell one repository from another."""
    start = "--all" if everywhere else "HEAD"
    return sorted(_run(git_dir, "rev-list", "--max-parents=0", start, "--", fine=(0, 128, 129)).decode().split())


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


def in_files(git_dir: Path, top: Path) -> list[str]:
    """Return the record files below the top of a worktree that Git tracks or would track, relative to it."""
    which = ("--cached", "--others", "--exclude-standard")
    out = _run(git_dir, f"--work-tree={top}", "ls-files", "-z", *which, "--", *PATTERNS, folder=top)
    return sorted({os.fsdecode(name) for name in out.split(b"\0") if name})


def read_blobs(git_dir: Path, blobs: Sequence[str]) -> Iterator[bytes | None]:
    """Yield the bytes of each blob, None for one too large to be a record; OutsideError for what is not there."""
    for start in range(0, len(blobs), _CHUNK):
        chunk = blobs[start : start + _CHUNK]
        lines = _run(git_dir, "cat-file", "--batch-check=%(objecttype) %(objectsize)", given=_lines(chunk))
        sizes = {}
        for blob, line in zip(chunk, lines.decode().splitlines(), strict=True):
            kind, _, size = line.partition(" ")
            if kind != "blob":
                raise _unreadable(git_dir, f"object `{blob}` is missing or damaged")
            sizes[blob] = int(size)
        yield from _read_sized(git_dir, chunk, sizes)


def _read_sized(git_dir: Path, blobs: Sequence[str], sizes: Mapping[str, int]) -> Iterator[bytes | None]:
    """Yield the bytes of each blob, of so many at once as the memory is to hold."""
    part: list[str] = []
    total = 0
    for blob in blobs:
        if total + sizes[blob] > _CHUNK_BYTES and part:
            yield from _read_part(git_dir, part, sizes)
            part, total = [], 0
        part.append(blob)
        total += sizes[blob] if sizes[blob] <= _LARGEST else 0
    yield from _read_part(git_dir, part, sizes)


def _read_part(git_dir: Path, blobs: Sequence[str], sizes: Mapping[str, int]) -> Iterator[bytes | None]:
    small = [blob for blob in blobs if sizes[blob] <= _LARGEST]
    data = _run(git_dir, "cat-file", "--batch=%(objectsize)", given=_lines(small)) if small else b""
    read = {}
    at = 0
    for blob in small:
        start = data.find(b"\n", at) + 1
        if data[at:start] != b"%d\n" % sizes[blob]:
            raise _unreadable(git_dir, f"object `{blob}` went while it was read")
        read[blob] = data[start : start + sizes[blob]]
        at = start + sizes[blob] + 1
    yield from map(read.get, blobs)


def _lines(words: Iterable[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def _run(
    git_dir: Path,
    *arguments: str,
    given: bytes = b"",
    fine: Sequence[int] = (0,),
    quiet: bool = False,
    folder: Path | None = None,
) -> bytes:
    """Run Git on a Git directory, in `folder` (None: there); with `quiet`, a warning is a failure too."""
    command = [*_ENVIRONMENT, *_GIT, f"--git-dir={git_dir}", *arguments]
    try:
        done = subprocess.run(command, cwd=folder or git_dir, capture_output=True, check=False, input=given)
    except FileNotFoundError as error:
        raise _unreadable(git_dir, "it is gone") from error
    if done.returncode not in fine or (quiet and done.stderr.strip()):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        fatal = [line for line in said if line.startswith("fatal: ")]
        verb = next(word for word in arguments if not word.startswith("-"))
        first = (fatal or said or [f"`git {verb}` failed"])[0]
        raise _unreadable(git_dir, first.removeprefix("fatal: ").removeprefix("warning: "))
    return done.stdout


def _unreadable(git_dir: Path, said: str) -> OutsideError:
    return OutsideError(
        f"nobody can tell what the repository `{git_dir}` needs: {said}",
        hint=f"nothing was collected; `git --git-dir={git_dir} fsck` tells more",
    )
