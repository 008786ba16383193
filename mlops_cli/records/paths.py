"""Paths in records: written relative to the folder of the file that holds them, kept relative to the project.

`folder` is that folder, relative to the project, empty for the project's root.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlops_cli.files import check_relative

# What mlx and Git keep beside the data; never data themselves.
OWN_NAMES = frozenset({"mlx.yaml", ".gitignore", ".mlxignore"})
OWN_FOLDERS = frozenset({".mlx", "mlx.lock"})


def is_record(path: str) -> bool:
    """Say whether a path from the top of a repository is that of a pointer or a lock."""
    parts = path.split("/")
    if path.endswith(".mlx"):
        return ".mlx" not in parts
    return len(parts) > 1 and parts[-2] == "mlx.lock" and path.endswith(".yaml")


def project_path(text: str, folder: str) -> str:
    """Return `text`, written in a file in `folder`, relative to the project; `..` may not leave the project.

    ValueError with a sentence otherwise, and for the project as a whole.
    """
    parts = _join(text, folder)
    if not parts:
        raise ValueError(f"path `{text}` is the whole project")
    return check_relative("/".join(parts))


def project_folder(text: str, folder: str) -> str:
    """Return what `project_path` does, or the empty text for the project's root."""
    return project_path(text, folder) if _join(text, folder) else ""


def path_below(text: str, folder: str) -> str:
    """Return what `project_path` does for a path that does not go up: ValueError when it holds `..`."""
    if ".." in text.split("/"):
        raise ValueError(f"path `{text}` must not hold `..`")
    return project_path(text, folder)


def written_path(path: str, folder: str) -> str:
    """Return the project's `path` as a file in `folder` writes it; the opposite of `project_path`."""
    parts, base = _split(path), _split(folder)
    common = 0
    while common < min(len(parts), len(base)) and parts[common] == base[common]:
        common += 1
    return "/".join([".."] * (len(base) - common) + list(parts[common:])) or "."


def _split(path: str) -> Sequence[str]:
    return path.split("/") if path else ()


def _join(text: str, folder: str) -> list[str]:
    if not text:
        raise ValueError("a path must not be empty")
    if text.startswith("/"):
        raise ValueError(f"path `{text}` must be relative")
    parts = list(_split(folder))
    for part in text.split("/"):
        if part == "..":
            if not parts:
                raise ValueError(f"path `{text}` leaves the project")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts
