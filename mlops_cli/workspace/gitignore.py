"""Keeping tracked data out of Git: one line per path in the `.gitignore` beside it.

Only whole lines that name the path exactly are added or taken away; every other line is the user's and stays.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlops_cli.files import write_atomic


def hide_from_git(root: Path, paths: Iterable[str]) -> tuple[str, ...]:
    """Make Git ignore each of `paths` (project-relative); returns the `.gitignore` files that changed."""
    changed = []
    for folder, names in _by_folder(paths).items():
        file = root / folder / ".gitignore"
        data = _read(file)
        known = _in_force(data)
        wanted = [line for line in map(pattern, names) if line not in known]
        if wanted:
            write_atomic(file, _with(data, wanted))
            changed.append(_name(folder))
    return tuple(changed)


def show_to_git(root: Path, paths: Iterable[str]) -> tuple[str, ...]:
    """Undo `hide_from_git`; a `.gitignore` left empty is removed. Returns the files that changed."""
    changed = []
    for folder, names in _by_folder(paths).items():
        file = root / folder / ".gitignore"
        data = _read(file)
        unwanted = set(map(pattern, names))
        kept = b"\n".join(line for line in data.split(b"\n") if line.removesuffix(b"\r") not in unwanted)
        if kept == data:
            continue
        if kept:
            write_atomic(file, kept)
        else:
            file.unlink()
        changed.append(_name(folder))
    return tuple(changed)


def merge_ignored(base: bytes, ours: bytes, theirs: bytes) -> bytes | None:
    """Return what two versions of a `.gitignore` come to; None when they differ in more than lines that name paths."""
    was, here, there = (data.split(b"\n") for data in (base, ours, theirs))
    added = [line for line in there if line not in was]
    removed = {line for line in was if line not in there}
    changed = [*added, *removed, *(set(here) ^ set(was))]
    if any(line.startswith(b"!") for line in (*here, *there)) or not all(line[:1] == b"/" for line in changed if line):
        return None
    kept = b"\n".join(line for line in here if line not in removed or not line)
    return _with(kept, [line for line in added if line and line not in here])


def find_hidden(root: Path, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield those of `paths` that a line of `hide_from_git` hides, each with its `.gitignore` file."""
    for folder, names in _by_folder(paths).items():
        try:
            known = _in_force(_read(root / folder / ".gitignore"))
        except OSError:  # a folder, say
            continue
        for name in names:
            if pattern(name) in known:
                yield (f"{folder}/{name}" if folder else name), _name(folder)


def pattern(name: str) -> bytes:
    """Return the gitignore line that matches exactly the file or folder `name` beside the `.gitignore`.

    gitignore cannot hold a newline: `?` stands for it.
    """
    escaped = "".join("\\" + character if character in "\\*?[]" else character for character in name)
    if escaped.endswith(" "):
        escaped = escaped[:-1] + "\\ "
    return b"/" + escaped.replace("\n", "?").replace("\r", "?").encode("utf-8", "surrogateescape")


def _with(data: bytes, wanted: Iterable[bytes]) -> bytes:
    """Return `data` with the lines `wanted`, sorted in among the last ones that name paths.

    So the file is the same whatever was hidden first, and two branches seldom add at one place.
    """
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    first = next((number for number in range(len(lines), 0, -1) if not lines[number - 1].startswith(b"/")), 0)
    for line in wanted:
        insort(lines, line, lo=first)
    return b"".join(line + b"\n" for line in lines)


def _in_force(data: bytes) -> set[bytes]:
    """Return the lines that no later line can take back: the last that matches a path wins, and `!` shows it again."""
    known: set[bytes] = set()
    for line in data.split(b"\n"):
        if line.startswith(b"!"):
            known.clear()
        known.add(line.removesuffix(b"\r"))
    return known


def _by_folder(paths: Iterable[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return folders


def _name(folder: str) -> str:
    return f"{folder}/.gitignore" if folder else ".gitignore"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
