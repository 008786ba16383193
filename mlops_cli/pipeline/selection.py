"""Which stages a command is about: what its targets name, and how far it goes from there.

Pure: it looks at the graph and at names, never at the disk. A target is looked for as a stage or a group, as a glob
over addresses, then as a path: an output, or a folder with stages. The same word means the same in every command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import translate
from functools import cached_property
from typing import NamedTuple

from mlops_cli.documents import nearest
from mlops_cli.errors import UsageError
from mlops_cli.files import folders_above
from mlops_cli.pipeline.graph import Graph
from mlops_cli.records.stages import Stage, has_magic
from mlops_cli.words import naming

_LIST = "`mlx stage list` lists the stages"


class Reach(NamedTuple):
    """How far a command goes from its targets, which are typed in `folder` of the project.

    Plainly: to everything they need. With `downstream` it is them and everything below instead, with `single` them
    alone. `begin` are the stages from which on everything is run anew, `until` those above which everything ends.
    """

    downstream: bool = False
    single: bool = False
    begin: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    folder: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it goes to the targets and what they need, no further and no less."""
        return not (self.downstream or self.single or self.begin or self.until)


PLAINLY = Reach()


class Selected(NamedTuple):
    """Stages by address, all in run order.

    `order` are to be brought up to date; `named` are those of them that targets name (without targets: all), `anew`
    those that run although nothing changed. `left` are needed by some of them and stay as they are.
    """

    order: tuple[str, ...]
    named: frozenset[str]
    anew: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()

    def forced(self, *, force: bool) -> dict[str, str]:
        """Return the stages that run although nothing changed, each with the flag that asks for it."""
        return dict.fromkeys(self.named if force else (), "--force") | dict.fromkeys(self.anew, "--from")


def select_stages(graph: Graph, targets: Sequence[str], reach: Reach = PLAINLY) -> Selected:
    """Return the stages that `targets` (none: all) and `reach` mean; UsageError when they mean nothing.

    What is left above stages that are taken alone, or with all below, is not brought up to date.
    """
    refuse_contradictions(targets, reach)
    names = _Names(graph, reach.folder)
    begin = names.choose(reach.begin)
    named = names.choose(targets) if targets else begin or tuple(graph.stages)
    anew = graph.below(begin)
    limit = frozenset(graph.above(names.choose(reach.until))) if reach.until else None
    if limit is not None and not targets and not begin:
        named = tuple(address for address in named if address in limit)
    if reach.single:
        order = frozenset(named)
    elif reach.downstream:
        order = graph.below(named) if limit is None else graph.below(named) & limit
    elif begin and not targets:
        order = frozenset(graph.above(anew if limit is None else anew & limit))
    else:
        order = frozenset(graph.above(named)) & (graph.stages.keys() if limit is None else limit)
    for target in (*targets, *reach.begin):
        if order.isdisjoint(names.choose([target])):
            raise _cut_off(target, reach.until or targets)
    needed = graph.above(order)
    return Selected(
        order=tuple(address for address in needed if address in order),
        named=frozenset(named) & order,
        anew=anew & order,
        left=tuple(address for address in needed if address not in order),
    )


def refuse_contradictions(targets: Sequence[str], reach: Reach) -> None:
    """Refuse, with a UsageError, what cannot be meant together."""
    flags = {
        "--single": reach.single,
        "--downstream": reach.downstream,
        "--from": bool(reach.begin),
        "--until": bool(reach.until),
    }
    for flag, others in (("--single", ("--downstream", "--from", "--until")), ("--downstream", ("--from",))):
        if flags[flag] and not targets and not reach.begin:
            raise UsageError(f"`{flag}` needs the name of a stage", hint=f"`mlx run {flag} STAGE`; {_LIST}")
        for other in others:
            if flags[flag] and flags[other]:
                raise UsageError(f"`{flag}` and `{other}` are two ways to choose stages", hint="choose one of them")


def _cut_off(target: str, ends: Sequence[str]) -> UsageError:
    return UsageError(
        f"`{target}` is not needed for {naming(ends)}: nothing leads from one to the other",
        hint="`mlx graph` shows which stage needs which",
    )


def choose(graph: Graph, targets: Sequence[str], folder: str = "") -> tuple[str, ...]:
    """Return the addresses that `targets`, typed in `folder`, name; none means all.

    UsageError for a name that means nothing.
    """
    return _Names(graph, folder).choose(targets) if targets else tuple(graph.stages)


def group_address(stage: Stage) -> str:
    """Return the address of a stage's group, which is its own when it has no matrix."""
    return f"{stage.folder}:{stage.group}" if stage.folder else stage.group


class _Names:
    """What names mean in one graph, typed in one folder."""

    def __init__(self, graph: Graph, folder: str) -> None:
        self._graph = graph
        self._folder = folder

    def choose(self, targets: Iterable[str]) -> tuple[str, ...]:
        """Return the addresses that targets name, each once; UsageError for one that means nothing."""
        chosen: dict[str, None] = {}
        for target in targets:
            found = self._find(target)
            if not found:
                what = "no stage matches" if has_magic(target) else "there is no stage"
                raise UsageError(f"{what} `{target}`", hint=self._nearest(target))
            chosen.update(dict.fromkeys(found))
        return tuple(chosen)

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        known: dict[str, list[str]] = {}
        for address, stage in self._graph.stages.items():
            for name in dict.fromkeys((address, group_address(stage))):
                known.setdefault(name, []).append(address)
        return known

    def _find(self, target: str) -> Sequence[str]:
        """Return the addresses that a target means; none when it means nothing."""
        if not target:
            return ()
        finders = (self._by_name, self._by_path, self._by_glob if has_magic(target) else self._by_folder)
        return next((found for finder in finders if (found := finder(target))), ())

    def _nearest(self, target: str) -> str:
        elsewhere = [address for address in self._known if address.endswith(f":{target}")]
        near = elsewhere or [address for address in (nearest(target, self._known),) if address is not None]
        return f"did you mean {' or '.join(f'`{address}`' for address in near[:3])}?" if near else _LIST

    def _by_name(self, target: str) -> Sequence[str]:
        """Find a stage or group: by its address, which means the same everywhere, or by its name in this folder."""
        if target.startswith(":"):
            return self._known.get(target[1:], ())
        separator = "/" if ":" in target else ":"
        here = self._known.get(f"{self._folder}{separator}{target}", ()) if self._folder else ()
        return self._known.get(target) or here

    def _by_path(self, target: str) -> Sequence[str]:
        """Find the maker of an output, by its path or one inside it."""
        makers = self._graph.maker
        for path in meant_paths(target, self._folder):
            for place in (path, *reversed(folders_above(path))):
                if place in makers:
                    return [makers[place]]
        return ()

    def _by_folder(self, target: str) -> Sequence[str]:
        """Find the stages declared in a folder and below it, in one `mlx.yaml`, or with `FOLDER:` in that folder."""
        if target.endswith(":") and target != ":":
            paths = meant_paths(target[:-1], self._folder)
            return next(filter(None, (self._declared(path.__eq__, bool) for path in paths)), ())
        for path in meant_paths(target, self._folder):
            below = f"{path}/" if path else ""
            found = [a for a, stage in self._graph.stages.items() if f"{stage.folder}/".startswith(below)]
            if found or (found := [a for a, stage in self._graph.stages.items() if stage.file == path]):
                return found
        return ()

    def _by_glob(self, target: str) -> Sequence[str]:
        """Find by a glob over addresses; without `:`, over the names of the root's stages, else of those here."""
        place, colon, name = target.rpartition(":")
        matches = re.compile(translate(name)).match
        if colon:
            is_meant = re.compile(translate(place)).match if has_magic(place) else place.__eq__
            return self._declared(is_meant, matches)
        return self._declared("".__eq__, matches) or self._declared(self._folder.__eq__, matches)

    def _declared(self, is_meant: Callable[[str], object], matches: Callable[[str], object]) -> Sequence[str]:
        stages = self._graph.stages.items()
        return [address for address, stage in stages if is_meant(stage.folder) and matches(stage.name)]


def meant_paths(target: str, folder: str) -> tuple[str, ...]:
    """Return what a path may mean that is typed in `folder`: seen from there, then from the project's root.

    One that begins with `.` or `..` is always seen from there.
    """
    seen = [normal_path(f"{folder}/{target}")]
    if target.partition("/")[0] not in (".", ".."):
        seen.append(normal_path(target))
    return tuple(dict.fromkeys(path for path in seen if path is not None))


def normal_path(path: str) -> str | None:
    """Return a path of the project without `.`, `..` and doubled slashes; None for one that leads out of it."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
