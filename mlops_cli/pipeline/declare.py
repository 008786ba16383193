"""Writing stages into `mlx.yaml`, and showing them as mlx understands them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlops_cli.errors import UsageError
from mlops_cli.files import write_atomic
from mlops_cli.pipeline.graph import build_graph
from mlops_cli.pipeline.selection import choose, group_address
from mlops_cli.records.conduct_reading import parse_amount
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stage_text import add_stage, mark_stage
from mlops_cli.records.stages import NewStage, ParamsFile, Stage
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import workspace_snapshot


class Frozen(NamedTuple):
    """The stages that were not frozen before and are now, or the reverse, and the files that were written."""

    stages: tuple[str, ...]
    files: tuple[str, ...]


def declare_stage(project: Project, folder: str, stage: NewStage, *, dry_run: bool = False) -> str:
    """Add `stage` to the `mlx.yaml` in `folder` (project-relative) and return that file's path.

    Nothing is written unless the result is a valid pipeline: RecordError names what is wrong, with the line it would
    stand on.
    """
    name = f"{folder}/mlx.yaml" if folder else "mlx.yaml"
    with project.editing("mlx stage add"):
        snapshot = workspace_snapshot(project)
        data = add_stage(snapshot.files.read(name), name, stage)
        mine = read_pipeline(data, name, folder=folder, read_file=snapshot.files.read)
        others = [other for pipeline in snapshot.pipelines if pipeline.file != name for other in pipeline.stages]
        build_graph([*mine.stages, *others], snapshot.pointer_paths)
        if not dry_run:
            write_atomic(project.root / name, data)
    return name


def freeze_stages(project: Project, target: str, *, frozen: bool, folder: str = "", dry_run: bool = False) -> Frozen:
    """Write into each `mlx.yaml` that the stages at `target`, typed in `folder`, are frozen, or are no more.

    UsageError for some of the stages of a matrix: a file says it of all of them.
    """
    with project.editing("mlx stage freeze" if frozen else "mlx stage unfreeze"):
        snapshot = workspace_snapshot(project)
        graph = build_graph(snapshot.stages, snapshot.pointer_paths)
        chosen = {address: graph.stages[address] for address in choose(graph, [target], folder)}
        groups = {(stage.file, stage.folder, stage.group) for stage in chosen.values()}
        for stage in graph.stages.values():
            if (stage.file, stage.folder, stage.group) in groups and stage.address not in chosen:
                group = group_address(stage)
                raise UsageError(
                    f"`{target}` is not all of `{group}`, which is frozen as a whole or not at all",
                    hint=f"`mlx stage freeze {group}`" if frozen else f"`mlx stage unfreeze {group}`",
                )
        texts: dict[str, bytes] = {}
        for file, place, group in sorted(groups):
            data = mark_stage(texts.get(file) or snapshot.files.read(file) or b"", file, group, "frozen", on=frozen)
            read_pipeline(data, file, folder=place, read_file=snapshot.files.read)
            texts[file] = data
        changed = {file: data for file, data in texts.items() if data != snapshot.files.read(file)}
        for file, data in changed.items() if not dry_run else ():
            write_atomic(project.root / file, data)
    return Frozen(tuple(a for a, stage in chosen.items() if stage.frozen != frozen), tuple(changed))


def parse_params(texts: Sequence[str]) -> tuple[ParamsFile, ...]:
    """Return what `[FILE:]KEY` texts name; without a file it is `params.yaml`, and `FILE:` alone is the whole file."""
    files: dict[str, list[str]] = {}
    for text in texts:
        file, colon, key = text.rpartition(":")
        keys = files.setdefault(file if colon else "params.yaml", [])
        if key:
            keys.append(key)
    return tuple(ParamsFile(file, tuple(keys)) for file, keys in files.items())


def parse_env(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return what `NAME=VALUE` texts set; UsageError for one without `=`."""
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise UsageError(f"`{name}` is not NAME=VALUE", hint="for instance `--env OMP_NUM_THREADS=2`")
    return tuple((name, value) for name, _, value in pairs)


def describe_stage(stage: Stage) -> dict[str, object]:
    """Return a stage as plain values, every path relative to the project and every name filled in."""
    values: dict[str, object] = {
        "stage": stage.address,
        "file": f"{stage.file}:{stage.line}",
        "desc": stage.desc,
        "cmd": list(stage.cmd),
        "wdir": stage.wdir,
        "deps": [dep.path for dep in stage.deps],
        "urls": list(stage.urls),
        "params": {file.path: list(file.keys) for file in stage.params},
        "outs": [out.path for out in stage.outs if not out.git],
        "metrics": list(stage.metrics),
        "plots": [plot.path for plot in stage.plots],
        "env": dict(stage.env),
        "environment": stage.environment.to_value(),
        "resources": dict(stage.conduct.resources),
        "mutex": list(stage.conduct.mutex),
        "timeout": stage.conduct.timeout,
        "retries": stage.conduct.retries,
        "delay": stage.conduct.delay,
        "when": stage.when._asdict() | {"values": dict(stage.when.values)} if stage.when else None,
        "optional": [dep.path for dep in stage.deps if dep.optional],
        "normalize": {dep.path: dep.normalize.value for dep in stage.deps if dep.normalize},
        "persist": [out.path for out in stage.outs if out.persist],
        "always": stage.always,
        "frozen": stage.frozen,
    }
    passed = {} if stage.pass_env is None else {"pass_env": list(stage.pass_env)}  # empty: it inherits next to nothing
    return {key: value for key, value in values.items() if value} | passed


def parse_resources(words: Sequence[str]) -> dict[str, float]:
    """Return what `NAME=AMOUNT` words say of resources; UsageError."""
    found: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            found[name] = parse_amount(name, text)
        except ValueError as error:
            raise UsageError(f"`--resource {word}`: {error}", hint="such as `gpus=2` or `memory=8GiB`") from None
    return found
