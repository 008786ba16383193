"""`mlx install`: Git is told to merge mlx's files with mlx.

Which files those are stands in `.gitattributes`, which is committed; the program that does it is a setting of the
clone, since Git takes none from a repository. Where the program cannot be found, files are merged as without all this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from mlops_cli.errors import UsageError
from mlops_cli.files import write_atomic
from mlops_cli.workspace.git import read_setting, remove_settings, write_setting
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.record_merge import PATTERNS

ATTRIBUTES = ".gitattributes"
_SECTION = "merge.mlx"
_LINES = tuple(f"{pattern} merge=mlx".encode() for pattern in PATTERNS)
_NAME = "pointers and locks of mlx"
# Whatever else ends with than these codes has not begun: an environment that is gone, or another program called mlx.
_DRIVER = (
    "for mlx in {programs}; do"
    ' command -v "$mlx" >/dev/null 2>&1 || continue;'
    ' "$mlx" merge-file %O %A %B %L %P; ended=$?;'
    " [ $ended = 0 ] && exit 0;"
    " [ $ended = 3 ] || [ $ended -gt 128 ] && exit 1;"
    " done;"
    " git merge-file -q -L ours -L base -L theirs --marker-size=%L %A %O %B || exit 1"
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What `mlx install` did: whether either part changed, and the lines that say otherwise and were left."""

    attributes_changed: bool
    driver_changed: bool
    others: tuple[str, ...] = ()


def driver_command(program: Path | None) -> str:
    """Return what Git's shell runs: `program` first, which may be gone one day, then whatever `mlx` is on PATH."""
    programs = [*([quote(str(program)).replace("%", "%%")] if program else []), "mlx"]
    return _DRIVER.format(programs=" ".join(programs))


def install(project: Project, program: Path | None, *, dry_run: bool = False) -> Setup:
    """Tell Git to merge the project's records with mlx; lines of `.gitattributes` that are there stay."""
    data = _read(project)
    lines = [line.strip() for line in data.split(b"\n")]
    others = [line for line in lines if _says_otherwise(line)]
    taken = {line.split()[0] for line in others}
    wanted = [line for line in _LINES if line not in lines and line.split()[0] not in taken]
    settings = {f"{_SECTION}.name": _NAME, f"{_SECTION}.driver": driver_command(program)}
    unset = {name: value for name, value in settings.items() if read_setting(project.root, name) != value}
    if not dry_run:
        if wanted:
            start = data if not data or data.endswith(b"\n") else data + b"\n"
            write_atomic(project.root / ATTRIBUTES, start + b"".join(line + b"\n" for line in wanted))
        for name, value in unset.items():
            write_setting(project.root, name, value)
    return Setup(bool(wanted), bool(unset), tuple(line.decode("utf-8", "surrogateescape") for line in others))


def uninstall(project: Project, *, dry_run: bool = False) -> Setup:
    """Undo `install`; a `.gitattributes` left empty is removed."""
    data = _read(project)
    kept = b"".join(line for line in data.splitlines(keepends=True) if line.strip() not in _LINES)
    names = [f"{_SECTION}.{name}" for name in ("name", "driver")]
    is_set = any(read_setting(project.root, name) is not None for name in names)
    if not dry_run:
        if not kept and data:
            (project.root / ATTRIBUTES).unlink()
        elif kept != data:
            write_atomic(project.root / ATTRIBUTES, kept)
        if is_set:
            remove_settings(project.root, _SECTION)
    return Setup(kept != data, is_set)


def is_installed(project: Project) -> bool | None:
    """Say whether this clone has the driver that `.gitattributes` asks for; None when it asks for none."""
    lines = [line.strip() for line in _read(project).split(b"\n")]
    if not any(line in lines for line in _LINES):
        return None
    return read_setting(project.root, f"{_SECTION}.driver") is not None


def _says_otherwise(line: bytes) -> bool:
    """Say whether a line of `.gitattributes` has files of mlx merged in another way."""
    pattern, *attributes = line.split() or [b""]
    ours = {each.split()[0] for each in _LINES}
    merges = [word for word in attributes if word.lstrip(b"-!").partition(b"=")[0] == b"merge"]
    return pattern in ours and bool(merges) and line not in _LINES and merges != [b"merge=mlx"]


def _read(project: Project) -> bytes:
    place = project.root / ATTRIBUTES
    if place.is_symlink():
        raise UsageError(f"`{ATTRIBUTES}` is a link, which Git does not follow", hint="put a file in its place")
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return b""
