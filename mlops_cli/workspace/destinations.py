"""Which remote a tracked path belongs to: the one whose `paths` name it, else the default one.

This is the one place that says so, whoever sends or brings something. A tracked path goes to one remote as a whole,
with all that is below it. What belongs to a remote by its `paths` goes to no other, whatever a command is told: another
place may be one where it must not lie. Bringing is harmless, so a command may be told to bring it from elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.trees import Kind, TreeSource, read_tree
from mlops_cli.words import word
from mlops_cli.workspace.ignore import compile_patterns
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import resolve_part
from mlops_cli.workspace.remotes import choose_remote, default_remote
from mlops_cli.workspace.snapshot import Tracked

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_WILD = "*?[\\"


class Division(NamedTuple):
    """What goes to which remote (`shares`), and the tracked paths that a command leaves to other remotes."""

    shares: dict[str, list[tuple[Tracked, str]]]
    left: tuple[str, ...]


class _Rules:
    """The patterns of some remotes; they are compiled when they are first asked."""

    def __init__(self, patterns: Mapping[str, Sequence[str]]) -> None:
        self.patterns = patterns

    def owners(self, path: str, *, is_folder: bool) -> list[str]:
        """Return the remotes whose patterns name a path."""
        return [name for name in self.patterns if self.names(name, path, is_folder=is_folder)]

    def names(self, name: str, path: str, *, is_folder: bool) -> bool:
        """Say whether the last pattern of a remote that matches a path, or a folder above it, names it.

        A folder ends in a slash here, so that `data/private/**` names `data/private`, too: that is what is tracked.
        """
        place, verdict = f"{path}/" if is_folder else path, False
        for pattern in self._specs[name].patterns:
            if pattern.include is not None and pattern.match_file(place):
                verdict = pattern.include
        return verdict

    def may_name_below(self, name: str, folder: str) -> bool:
        """Say whether the `paths` of a remote might name something below `folder`, going by how patterns begin."""
        for pattern in self.patterns[name]:
            if pattern.startswith("!"):
                continue
            if "/" not in pattern.rstrip("/"):
                return True  # at any depth
            start = pattern.lstrip("/")
            wild = min((at for sign in _WILD if (at := start.find(sign)) >= 0), default=len(start))
            start = start[:wild]
            if f"{folder}/".startswith(start) or start.startswith(f"{folder}/"):
                return True
        return False

    @cached_property
    def _specs(self) -> dict[str, GitIgnoreSpec]:
        return {name: compile_patterns(lines, f"remotes.{name}.paths") for name, lines in self.patterns.items()}


class Destinations:
    """The remotes of a project and what belongs to each; no patterns are read where no remote has any.

    `elsewhere` are the patterns that the settings of other versions have, by revision: what they keep for one remote is
    not sent to another because the workspace's settings, older maybe, say nothing of it.
    """

    def __init__(self, project: Project, elsewhere: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> None:
        self._project = project
        self._rules = _Rules(project.config.remote_paths)
        self._elsewhere = {revision: _Rules(patterns) for revision, patterns in (elsewhere or {}).items()}

    def of(self, tracked: Tracked) -> str:
        """Return the remote of a tracked path; UsageError when the `paths` of two name it, or it is not known here."""
        return self._known(self._owner_of(tracked))

    def used(self, tracked: Iterable[Tracked]) -> tuple[str, ...]:
        """Return the remotes of some tracked paths, the default one first if it is among them; UsageError as for `of`.

        For no paths it is the default remote.
        """
        found = dict.fromkeys(map(self._owner_of, tracked)) or {None: None}
        return tuple(dict.fromkeys(self._known(name) for name in sorted(found, key=lambda name: name or "")))

    def divide(
        self, chosen: Iterable[tuple[Tracked, str]], asked: str | None, targets: Sequence[str] = (), *, sending: bool
    ) -> Division:
        """Return what of `chosen` goes to, or comes from, which remote; everything `asked` for when that is a name.

        What belongs to another remote than that is left, unless one of `targets` names it itself: then it may come from
        there, and `sending` it is refused (UsageError).
        """
        shares: dict[str, list[tuple[Tracked, str]]] = {}
        left = []
        if asked is not None:
            shares[choose_remote(self._project, asked)] = []
        for entry, part in chosen:
            owner = self._owner_of(entry)
            if sending and owner is None and (asked is None or self._takes_any(asked)):
                self._refuse_kept(entry, asked or self._known(None))
            if asked is None:
                shares.setdefault(self._known(owner), []).append((entry, part))
            elif owner == asked or (owner is None and self._takes_any(asked)):
                shares[asked].append((entry, part))
            elif not (part or entry.path in targets):
                left.append(entry.path)
            elif sending and owner is not None:
                raise _elsewhere(entry.path, owner, asked)
            else:
                shares[asked].append((entry, part))
        if not shares and not left:
            shares[choose_remote(self._project, None)] = []
        return Division(dict(sorted(shares.items())), tuple(sorted(set(left))))

    def refuse_split(
        self, trees: TreeSource, remote: str, chosen: Iterable[tuple[Tracked, str]], sent: Collection[Digest]
    ) -> None:
        """Refuse to send tracked folders in which something belongs to another remote than `remote` by its `paths`.

        Only folders that are among the objects `sent` are looked into.
        """
        for entry, part in chosen:
            said = [("", self._rules)]
            if self._owner_of(entry) is None:
                said += self._elsewhere.items()
            others = [(revision, rules, name) for revision, rules in said for name in rules.patterns if name != remote]
            for path, is_folder in self._sent_below(trees, entry, part, sent, others) if others else ():
                for revision, rules, name in others:
                    if rules.names(name, path, is_folder=is_folder):
                        if revision:
                            raise _kept(path, name, revision, remote)
                        raise _split(entry.path, path, remote, name)

    def _refuse_kept(self, tracked: Tracked, remote: str) -> None:
        is_folder = tracked.kind is ObjectKind.TREE
        for revision, rules in self._elsewhere.items():
            for name in rules.owners(tracked.path, is_folder=is_folder):
                if name != remote:
                    raise _kept(tracked.path, name, revision, remote)

    def _takes_any(self, name: str) -> bool:
        """Say whether a remote takes what no `paths` name: those that have some do only as the default."""
        return name not in self._rules.patterns or name == default_remote(self._project)

    def _known(self, name: str | None) -> str:
        if name is not None and name not in self._project.config.remotes:
            message = f"the settings say what belongs to remote `{name}`, and not where it is"
            raise UsageError(
                message, hint=f"`mlx remote add {name} URL`, with `--clone` if it is another for everybody"
            )
        return choose_remote(self._project, name)

    def _owner_of(self, tracked: Tracked) -> str | None:
        """Return the remote whose `paths` name a tracked path; None when none does, UsageError when those of two do."""
        is_folder = tracked.kind is ObjectKind.TREE
        owners = self._rules.owners(tracked.path, is_folder=is_folder)
        if len(owners) > 1:
            raise UsageError(
                f"`{tracked.path}` belongs to two remotes, `{owners[0]}` and `{owners[1]}`, by their `paths`",
                hint=f"`mlx config get remotes.{owners[0]}.paths` shows the one; let only one of them name it",
            )
        return owners[0] if owners else None

    def _sent_below(
        self, trees: TreeSource, entry: Tracked, part: str, sent: Collection[Digest], others: Sequence[_Other]
    ) -> Iterator[tuple[str, bool]]:
        """Yield every path that goes with `part` of a tracked path, and whether it is a folder, as far as needed."""
        try:
            kind, digest, _ = resolve_part(trees, entry, part)
        except MissingObject:
            return  # nobody here can send what is below
        waiting = [(f"{entry.path}/{part}" if part else entry.path, digest, kind is ObjectKind.TREE)]
        while waiting:
            path, digest, is_folder = waiting.pop()
            yield path, is_folder
            if not is_folder or digest not in sent:
                continue
            if not any(rules.may_name_below(name, path) for _, rules, name in others):
                continue
            with suppress(MissingObject):
                waiting += [
                    (f"{path}/{os.fsdecode(below.name)}", below.digest, below.kind == Kind.FOLDER)
                    for below in read_tree(trees, digest)
                ]


_Other = tuple[str, _Rules, str]  # a revision, its patterns, and one of the remotes that they are for


def _kept(path: str, owner: str, revision: str, remote: str) -> UsageError:
    revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
    return UsageError(
        f"`{path}` belongs to remote `{owner}` by the settings of `{revision}`, and those of the workspace would send "
        f"it to `{remote}`",
        hint=f"`git checkout {revision}` and push there, or name it in `remotes.{remote}.paths` if it may lie there",
    )


def _elsewhere(path: str, owner: str, asked: str) -> UsageError:
    return UsageError(
        f"`{path}` belongs to remote `{owner}`, whose `paths` name it, and is not sent to `{asked}`",
        hint=f"`mlx push {word(path)}` sends it there; "
        f"`mlx config set remotes.{owner}.paths …` changes what belongs there",
    )


def _split(tracked: str, path: str, remote: str, other: str) -> UsageError:
    message = f"`{path}` belongs to remote `{other}` by its `paths`"
    if path != tracked:
        message += f", and `{tracked}`, with which it is tracked, goes to `{remote}` as a whole"
    return UsageError(
        message,
        hint=f"track it apart from the rest, or let `remotes.{other}.paths` name all of `{tracked}`",
    )
