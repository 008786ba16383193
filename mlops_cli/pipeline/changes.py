"""In what a stage's inputs and outputs differ from those that its lock recorded, in words. Pure comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from mlops_cli.documents import flatten
from mlops_cli.pipeline.wanted import Present, Wanted
from mlops_cli.records.environment import EnvironmentRecord, differences
from mlops_cli.records.locks import Input, Lock, OutputRecord
from mlops_cli.records.pointers import SomeObject
from mlops_cli.records.stages import Stage, glob_pattern, has_magic
from mlops_cli.records.urls import UrlInput

Describe = Callable[[SomeObject, SomeObject], str]


def input_changes(stage: Stage, wanted: Wanted, lock: Lock | None, describe: Describe) -> list[str]:
    """Return every way in which the stage's inputs differ from those its lock recorded, in words; empty when fresh."""
    if lock is None:
        waits = [f"`{path}` will be made by stage `{maker}` first" for path, maker in wanted.waiting.items()]
        return ["it has not run yet (no lock)", *waits, *_absences(wanted)]
    changes: list[str] = []
    if stage.cmd != lock.cmd:
        changes.append(f"`cmd` changed: `{' && '.join(lock.cmd)}` → `{' && '.join(stage.cmd)}`")
    if stage.wdir != lock.wdir:
        changes.append(f"`wdir` changed: `{lock.wdir or '.'}` → `{stage.wdir or '.'}`")
    known = {file: values for file, values in lock.params.items() if not _is_unknown(file, wanted)}
    changes.extend(_param_changes(wanted.params, known))
    changes.extend(_env_changes(dict(stage.env), lock.env))
    changes.extend(_environment_changes(lock.environment, wanted.environment))
    deps = (*_dep_changes(wanted, lock, describe), *_absences(wanted))
    changes.extend(_named(change, stage.environment.files or ()) for change in deps)
    changes.extend(_url_changes(stage, wanted, lock))
    changes.extend(_declaration_changes(stage, lock))
    changes.extend(f"`{path}` changed while the stage last ran" for path in lock.changed_during_run)
    changes.extend(
        f"the last run went on from what `{out.path}` was before, and it is not `persist` now"
        for out in lock.started_from
        if out.path in {own.path for own in stage.outs if not own.persist}
    )
    return changes


def _declaration_changes(stage: Stage, lock: Lock) -> Iterator[str]:
    declared, made = {out.path: out.git for out in stage.outs}, {out.path: out.git for out in lock.outs}
    for path in sorted(declared.keys() | made.keys()):
        if path not in made:
            yield f"output `{path}` is newly declared"
        elif path not in declared:
            yield f"output `{path}` is no longer declared"
        elif declared[path] != made[path]:
            yield f"output `{path}` is now kept {'in Git' if declared[path] else 'by mlx, not in Git'}"
    for path in sorted(set(stage.metrics) ^ set(lock.metrics)):
        if path in declared and path in made:
            yield f"output `{path}` is {'now' if path in stage.metrics else 'no longer'} declared as metrics"


def is_unversioned(stage: Stage, wanted: Wanted) -> bool:
    """Say whether nobody can name the version of a URL that the stage reads."""
    return len(wanted.urls) != len(stage.urls) or any(entry.etag is None for entry in wanted.urls)


def _url_changes(stage: Stage, wanted: Wanted, lock: Lock) -> Iterator[str]:
    old, new = ({entry.url: entry for entry in entries} for entries in (lock.urls, wanted.urls))
    for url in sorted(old.keys() | set(stage.urls)):
        if url not in stage.urls:
            yield f"`{url}` is no longer a dependency"
        elif url not in old:
            yield f"`{url}` is a new dependency"
        elif new[url].etag is None:
            yield f"`{url}` may have changed: its place tells no version"
        elif new[url].etag != old[url].etag:
            yield f"`{url}` changed: {_describe_versions(old[url], new[url])}"


def _describe_versions(old: UrlInput, new: UrlInput) -> str:
    versions = f"version {old.etag or 'unknown'} → {new.etag}"
    if all(str(entry.etag).startswith("listing:") for entry in (old, new)):
        versions = "other files, or other versions of them"
    if old.size is None or new.size is None or old.size == new.size:
        return versions
    return f"{versions}, {old.size:,} → {new.size:,} bytes"


def _absences(wanted: Wanted) -> list[str]:
    unread = [f"`{path}` is not here, nor is the listing of what it holds" for path in wanted.unread]
    why = {path: f": stage `{maker}`, which makes it, is off" for path, maker in wanted.off.items()}
    lost = [f"`{path}` does not exist{why.get(path, '')}" for path in wanted.lost]
    return [*lost, *unread]


def _is_unknown(path: str, wanted: Wanted) -> bool:
    """Say whether nothing can be said about an input yet: a stage makes it first, or what holds it cannot be read."""
    if any(path == folder or path.startswith(folder + "/") for folder in wanted.unread):
        return True
    return any(path == dep or (has_magic(dep) and glob_pattern(dep).fullmatch(path)) for dep in wanted.waiting)


def _dep_changes(wanted: Wanted, lock: Lock, describe: Describe) -> list[str]:
    old, new = ({dep.path: dep for dep in deps} for deps in (lock.deps, wanted.deps))
    changes: list[str] = []
    for path in sorted(old.keys() | new.keys() | wanted.waiting.keys()):
        if path in wanted.waiting:
            changes.append(f"`{path}` may change: stage `{wanted.waiting[path]}` runs first")
        elif path in lock.without and path in new:
            changes.append(f"`{path}` is there now, and was not when the stage ran")
        elif path not in old:
            changes.append(f"`{path}` is a new dependency")
        elif path in wanted.without:
            changes.append(f"`{path}` is gone, which the stage ran with")
        elif path not in new:
            if path not in wanted.lost and not _is_unknown(path, wanted):
                changes.append(f"`{path}` is no longer a dependency")
        elif not new[path].counts_as(old[path]):
            changes.append(_word_change(old[path], new[path], wanted, describe))
        elif old[path].executable != new[path].executable:
            changes.append(f"`{path}` changed: it is {'now' if new[path].executable else 'no longer'} executable")
    return [*changes, *_absence_changes(wanted, lock)]


def _word_change(old: Input, new: Input, wanted: Wanted, describe: Describe) -> str:
    told, how = describe(old, new), wanted.normalized.get(new.path)
    if how is None:
        return f"`{new.path}` changed: {told}"
    fault = f" (its bytes count: {how.fault})" * bool(how.fault)
    if new.normal is None or old.normal is None:
        return f"`{new.path}` changed: {told}{fault or ' (its bytes count: no normal form is known)'}"
    return f"`{new.path}` changed in more than {how.by.passed_over}: {told}{fault}"


def passed_over(wanted: Wanted, lock: Lock) -> Iterator[str]:
    """Yield what differs and does not count."""
    then = {dep.path: dep for dep in lock.deps}
    for dep in wanted.deps if wanted.normalized else ():
        how = wanted.normalized.get(dep.path)
        if how is not None and dep.path in then and dep.digest != then[dep.path].digest:
            yield f"`{dep.path}` differs in {how.by.passed_over} only"


def _absence_changes(wanted: Wanted, lock: Lock) -> Iterator[str]:
    """Yield what became of optional dependencies that are not there, or were not."""
    then = {*(dep.path for dep in lock.deps), *lock.without}
    yield from (f"`{path}` is a new dependency, which is not there" for path in wanted.without if path not in then)
    now = {*(dep.path for dep in wanted.deps), *wanted.without, *wanted.waiting, *wanted.lost}
    yield from (f"`{path}` is no longer a dependency" for path in lock.without if path not in now)


def _param_changes(new: Mapping[str, Mapping[str, object]], old: Mapping[str, Mapping[str, object]]) -> list[str]:
    changes: list[str] = []
    for file in sorted(new.keys() | old.keys()):
        before, after = flatten(old.get(file, {})), flatten(new.get(file, {}))
        for key in sorted(before.keys() | after.keys()):
            if key not in before:
                changes.append(f"`{file}: {key}` is new: {spell(after[key])}")
            elif key not in after:
                changes.append(f"`{file}: {key}` is gone: it was {spell(before[key])}")
            elif spell(before[key]) != spell(after[key]):  # as text: 1, 1.0 and true differ
                changes.append(f"`{file}: {key}` changed {spell(before[key])} → {spell(after[key])}")
    return changes


def _env_changes(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    changes: list[str] = []
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            before, after = (spell(side[name]) if name in side else "unset" for side in (old, new))
            changes.append(f"`env: {name}` changed {before} → {after}")
    return changes


def _environment_changes(old: EnvironmentRecord, new: EnvironmentRecord) -> Iterator[str]:
    for name, before, after in differences(old, new):
        if before is None:
            yield f"`environment: {name}` is new: {after}"
        elif after is None:
            yield f"`environment: {name}` is gone: it was {before}"
        else:
            yield f"`environment: {name}` changed {before} → {after}"


def _named(change: str, files: Iterable[str]) -> str:
    """Return what is told of a dependency; of one of the `files` of an environment, with that said."""
    return f"environment: {change}" if change.startswith(tuple(f"`{path}` " for path in files)) else change


def output_changes(
    lock: Lock, there: Mapping[str, Present | OutputRecord | None], describe: Describe
) -> tuple[str, ...]:
    """Return every way in which the outputs that are `there` differ from those the lock recorded, in words."""
    changes: list[str] = []
    for out in lock.outs:
        present = there.get(out.path)
        if present is None:
            changes.append(f"output `{out.path}` is missing")
        elif present.digest != out.digest:
            changes.append(f"output `{out.path}` is not what the run made: {describe(out, present)}")
        elif present.executable != out.executable:
            changes.append(f"output `{out.path}` is {'no longer' if out.executable else 'now'} executable")
    return tuple(changes)


def spell(value: object) -> str:
    """Return a JSON value as text, by which values are compared: 1, 1.0 and true differ."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
