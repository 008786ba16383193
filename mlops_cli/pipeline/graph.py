"""Who makes what, and in which order.

A stage comes after every stage that makes one of its dependencies: the path itself, a folder that holds it, something
inside it, or something its glob matches. The graph is pure: it looks at declarations, never at the disk.
"""

from __future__ import annotations

import graphlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.errors import RecordError
from mlops_cli.pipeline.globs import can_descend
from mlops_cli.records.stages import Stage, glob_pattern, has_magic
from mlops_cli.words import word


class Graph(NamedTuple):
    """Stages by address, in an order in which they can run; `upstream` maps each to the makers of its inputs."""

    stages: Mapping[str, Stage]
    upstream: Mapping[str, tuple[str, ...]]
    maker: Mapping[str, str]

    def above(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return `addresses` and everything they need, in run order; one that is off or frozen needs nothing."""
        wanted: set[str] = set()
        pending = list(addresses)
        while pending:
            address = pending.pop()
            if address not in wanted:
                wanted.add(address)
                pending.extend(self._needs(address))
        return tuple(address for address in self.stages if address in wanted)

    def below(self, addresses: Iterable[str]) -> frozenset[str]:
        """Return `addresses` and everything that needs one of them; one that is off or frozen needs nothing."""
        found = set(addresses)
        for address in self.stages if found else ():
            if not found.isdisjoint(self._needs(address)):
                found.add(address)
        return frozenset(found)

    def _needs(self, address: str) -> tuple[str, ...]:
        stage = self.stages[address]
        return () if stage.is_off or stage.frozen else self.upstream[address]


def build_graph(stages: Sequence[Stage], pointers: Collection[str] = ()) -> Graph:
    """Return the graph of `stages`; `pointers` are the paths that have a pointer.

    RecordError, naming both sides, when two stages share an output, an output lies inside another or inside tracked
    data, two stages have one address, or stages wait for one another.
    """
    by_address: dict[str, Stage] = {}
    for stage in stages:
        if stage.address in by_address:
            raise _error(stage, f"stage `{stage.address}` is declared twice", "rename one of them")
        by_address[stage.address] = stage
    maker = _makers(stages)
    _refuse_overlap(by_address, maker, pointers)
    _refuse_own_inputs(stages)
    outs = sorted(maker)
    upstream = {stage.address: _upstream(stage, maker, outs) for stage in stages}
    sorter = graphlib.TopologicalSorter(upstream)
    try:
        order = list(sorter.static_order())
    except graphlib.CycleError as error:
        circle = list(reversed(error.args[1]))
        path = " → ".join(f"`{address}`" for address in circle)
        raise _error(
            by_address[circle[0]],
            f"stages wait for one another: {path}",
            f"`{circle[0]}` and `{circle[1]}` each need what the other makes: drop one of the dependencies",
        ) from None
    return Graph({address: by_address[address] for address in order}, upstream, maker)


def _makers(stages: Iterable[Stage]) -> dict[str, str]:
    maker: dict[str, str] = {}
    for stage in stages:
        for out in stage.outs:
            if out.path in maker:
                other = maker[out.path]
                both = (
                    f"stages `{other}` and `{stage.address}` both make"
                    if other != stage.address
                    else (f"stage `{stage.address}` declares twice")
                )
                first = next(each for each in stages if each.address == other)
                places = _place(first) if first is stage else f"{_place(first)} or {_place(stage)}"
                hint = f"an output belongs to one stage: take it out at {places}"
                raise _error(stage, f"{both} `{out.path}`", hint)
            maker[out.path] = stage.address
    return maker


def _refuse_overlap(stages: Mapping[str, Stage], maker: Mapping[str, str], pointers: Collection[str]) -> None:
    for path, address in maker.items():
        stage = stages[address]
        for above in _ancestors(path):
            if above in maker:
                other = stages[maker[above]]
                raise _error(
                    stage,
                    f"output `{path}` of stage `{address}` lies inside output `{above}` of stage `{other.address}`",
                    _sharing(stage, path, other, above),
                )
            if above in pointers:
                raise _error(
                    stage,
                    f"output `{path}` of stage `{address}` lies inside `{above}`, which `{above}.mlx` tracks",
                    "write it somewhere else",
                )
        if path in pointers:
            raise _error(
                stage,
                f"output `{path}` of stage `{address}` is also tracked by `{path}.mlx`",
                f"`mlx remove {word(path)}` leaves it to the stage",
            )
    for pointer in sorted(pointers):
        for above in _ancestors(pointer):
            if above in maker:
                raise _error(
                    stages[maker[above]],
                    f"output `{above}` of stage `{maker[above]}` holds `{pointer}`, which `{pointer}.mlx` tracks",
                    "give the stage a folder of its own",
                )


def _sharing(stage: Stage, path: str, other: Stage, above: str) -> str:
    """Return the edit that lets the output `path` of `stage` be in the folder `above`, which is all of `other`'s."""
    if stage.address != other.address:
        return (
            "stages may share a folder when each names its own files: in `outs` of "
            f"`{other.address}` ({_place(other)}) name the files that it writes to `{above}`, instead of the folder"
        )
    if any(out.path == path and out.git for out in stage.outs):
        return f"Git keeps `{path}`, and not `{above}`: write it elsewhere, or name the files of `{above}` one by one"
    return f"take `{path}` out: it comes with `{above}`"


def _place(stage: Stage) -> str:
    return f"{stage.file}:{stage.line}"


def _refuse_own_inputs(stages: Iterable[Stage]) -> None:
    for stage in stages:
        for dep in stage.reads:
            for out in stage.outs:
                if has_magic(dep) or not _overlap(dep, out.path):
                    continue
                goes_on = f"with `{dep}: {{persist: true}}` in `outs`, and not in `deps`, it goes on from what is there"
                raise _error(
                    stage,
                    f"stage `{stage.address}` depends on `{dep}` and makes `{out.path}`: it would wait for itself",
                    goes_on if dep == out.path else "name only what it reads, or write the output elsewhere",
                )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def _upstream(stage: Stage, maker: Mapping[str, str], outs: Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for dep in stage.reads:
        found.update(dict.fromkeys(makers_of(dep, maker, outs)))
    found.pop(stage.address, None)  # a glob that matches what the stage makes itself does not mean that
    return tuple(found)


def makers_of(dep: str, maker: Mapping[str, str], outs: Sequence[str]) -> tuple[str, ...]:
    """Return the stages that make (part of) the dependency `dep`; `outs` is `maker`'s keys, sorted."""
    if has_magic(dep):
        matches = glob_pattern(dep).fullmatch
        parts = tuple(dep.split("/"))
        return tuple(dict.fromkeys(maker[out] for out in outs if matches(out) or _reaches_into(parts, out)))
    found = [maker[path] for path in (dep, *_ancestors(dep)) if path in maker]
    prefix = f"{dep}/" if dep else ""
    for out in outs[bisect_left(outs, prefix) :]:
        if not out.startswith(prefix):
            break
        found.append(maker[out])
    return tuple(dict.fromkeys(found))


def _reaches_into(glob: Sequence[str], out: str) -> bool:
    """Say whether a glob, split at `/`, can match something inside `out`; a name with a suffix is taken for a file.

    That is unless the glob spells the name out: then it must be a folder.
    """
    names = out.split("/")
    if glob[: len(names)] == tuple(names):
        return len(glob) > len(names)
    return "." not in names[-1].lstrip(".") and can_descend(glob, names)


def _ancestors(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _error(stage: Stage, message: str, hint: str) -> RecordError:
    return RecordError(f"{stage.file}:{stage.line}: {message}", hint=hint)
