"""`.mlxignore`: gitignore patterns that keep files out of tracked folders, and name other programs' `*.mlx` files.

Each file speaks for its own folder and below; the deepest that has an opinion wins. Matching is `pathspec`'s, loaded
only when a project has such a file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_cli.errors import UsageError
from mlops_cli.files import folders_above

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

NAME = ".mlxignore"
_STAR = "[^/]*"  # what pathspec makes of a `*`
_FOLDERS = "(?:/.+)?/"  # of `/**/`
_ANYWHERE = "^(?:.+/)?"  # of `**/` at the start
_CLASS = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)  # `[a-z]` in what it makes, or an escaped character
_NO_SLASH = "(?!/)"


class IgnoreRules(NamedTuple):
    """The rules in force in one folder: (the folder a file speaks for, its patterns), outermost first."""

    specs: tuple[tuple[str, GitIgnoreSpec], ...] = ()

    def enter(self, root: Path, folder: str) -> IgnoreRules:
        """Return the rules in `folder` (project-relative, empty for the root), given those of its parent."""
        path = root / folder / NAME
        return self.add(folder, path.read_bytes()) if path.is_file() else self

    def add(self, folder: str, data: bytes) -> IgnoreRules:
        """Return these rules and those of the `.mlxignore` in `folder` that holds `data`; UsageError."""
        name = f"{folder}/{NAME}" if folder else NAME
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"`{name}` is not UTF-8 text", hint="save it as UTF-8") from error
        return IgnoreRules((*self.specs, (folder, compile_patterns(text.split("\n"), name))))

    def hides(self, path: str, *, is_folder: bool) -> bool:
        """Say whether `path` (project-relative) is to be left out."""
        for folder, spec in reversed(self.specs):
            relative = path[len(folder) + 1 :] if folder else path
            verdict = spec.check_file(relative + "/" if is_folder else relative).include
            if verdict is not None:
                return verdict
        return False


def rules_above(root: Path, folder: str) -> IgnoreRules:
    """Return the rules that the folders from the root down to the parent of `folder` set for it."""
    rules = IgnoreRules().enter(root, "")
    for above in folders_above(folder):
        rules = rules.enter(root, above)
    return rules


def leaves_out(root: Path, path: str, *, below: str) -> bool:
    """Say whether the rules keep `path`, or a folder on the way to it, out of the tracked folder `below`."""
    for place in (*folders_above(path), path):
        if not place.startswith(f"{below}/"):
            continue
        is_folder = (root / place).is_dir() and not (root / place).is_symlink()
        if rules_above(root, place).hides(place, is_folder=is_folder):
            return True
    return False


def compile_patterns(lines: Iterable[str], name: str) -> GitIgnoreSpec:
    """Return what matches as gitignore patterns do; UsageError, naming where they are from, for one that is none."""
    from pathspec import GitIgnoreSpec
    from pathspec.patterns.gitignore import GitIgnorePatternError
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    class Pattern(GitIgnoreSpecPattern):
        """A pattern that costs few steps however it is written, and whose `[!a]` is no `/`, as Git has it."""

        @classmethod
        def pattern_to_regex(cls, pattern: Any) -> Any:
            regex, include = super().pattern_to_regex(pattern)
            return (regex if regex is None else _without_retries(_CLASS.sub(_no_slash, regex))), include

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `[[` and `--` in a class: they are characters there
            return GitIgnoreSpec.from_lines([line.removesuffix("\r") for line in lines], Pattern, backend="simple")
    except (GitIgnorePatternError, re.error) as error:
        why = error.msg if isinstance(error, re.error) else error  # a place in it is none in the pattern
        raise UsageError(f"`{name}` holds a pattern that is not valid: {why}", hint="see `man gitignore`") from error


def _no_slash(token: re.Match[str]) -> str:
    return token[0] if token[0] == "[^/]" or token[0].startswith("\\") else f"{_NO_SLASH}{token[0]}"


def _without_retries(regex: str) -> str:
    """Return an equal pattern in which what stands between two `**` is looked for once, and never again further right.

    The first place is as good as any, for the `**` behind it takes whatever follows. Without this, `**/a/**/a/**/b`
    from a repository of somebody else would keep a scan busy for years.
    """
    first, *rest = regex.split(_FOLDERS)
    if not rest:
        return _without_star_retries(regex)
    start = first.removeprefix(_ANYWHERE)
    found = [f"^(?>{'' if start == first else '(?:.+?/)??'}{_without_star_retries(start.removeprefix('^'))}(?=/))"]
    found += [f"(?>(?:/.+?)??/{_without_star_retries(part)}(?=/))" for part in rest[:-1]]
    return "".join((*found, _FOLDERS, _without_star_retries(rest[-1])))


def _without_star_retries(regex: str) -> str:
    """Return an equal pattern without retries at each `*`, in the same way."""
    first, *rest = regex.split(_STAR)
    if len(rest) < 2:
        return regex
    between = "".join(f"(?>{_STAR}?{part})" if _is_plain(part) else f"{_STAR}{part}" for part in rest[:-1])
    return f"{first}{between}{_STAR}{rest[-1]}"


def _is_plain(part: str) -> bool:
    """Say whether a part of a pattern always has one length, and no character that may or may not be a `/`."""
    plain = _CLASS.sub("", part).replace(_NO_SLASH, "")
    return not ("(" in plain or ")" in plain)
