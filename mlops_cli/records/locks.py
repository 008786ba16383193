"""Locks: `mlx.lock/<stage>.yaml`, what made a stage's outputs and what they were.

A lock holds nothing that a re-run with equal results would change: no time, no host, no absolute path. Parameter and
metric values are in it, so questions about them need Git only. In memory paths are relative to the project, in the file
to the folder of the stage's `mlx.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mlops_cli.documents import Fields, Inline, check_version, dump_yaml, parse_yaml
from mlops_cli.hashing import Digest, parse_digest
from mlops_cli.records.environment import NOTHING, EnvironmentRecord, read_environment_record
from mlops_cli.records.paths import path_below, project_folder, project_path, written_path
from mlops_cli.records.pointers import ObjectKind, read_details, read_object
from mlops_cli.records.urls import UrlInput, check_input_url, is_url, read_url_inputs

_KEYS = ("mlx", "cmd", "deps", "globs", "params", "env", "wdir", "outs", "metrics", "changed_during_run")
_LATER_KEYS = ("without", "started_from", "accepted", "urls", "environment")
MAX_REASON = 500

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Input(NamedTuple):
    """A dependency as it was when the stage ran; `size` in bytes, `normal` the digest of its normal form, if any."""

    path: str
    kind: ObjectKind
    digest: Digest
    size: int
    executable: bool = False
    normal: Digest | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What decides whether the stage takes this for what it had before, but for the executable bit."""
        return (self.digest,) if self.normal is None else (self.normal, "normal")

    def counts_as(self, other: Input) -> bool:
        """Whether the stage takes both for the same: equal bytes, or equal normal forms."""
        return self.digest == other.digest or (self.normal is not None and self.normal == other.normal)


class OutputRecord(NamedTuple):
    """An output as the stage left it; with `git` Git keeps the file itself, else `push` says whether remotes get it."""

    path: str
    kind: ObjectKind
    digest: Digest
    size: int
    files: int | None = None
    git: bool = False
    push: bool = True
    executable: bool = False


class Acceptance(NamedTuple):
    """That somebody said of the outputs, without running, that they belong to the inputs; `reason` is why.

    `replaced` is the digest of the lock file that was there before, None when there was none.
    """

    reason: str
    replaced: Digest | None = None


@dataclass(frozen=True, slots=True)
class Lock:
    """What one stage ran with and what came out; entries are kept sorted by path.

    `globs` are the patterns whose files are among `deps`. `params` maps a file to the values of the keys used,
    `metrics` a file to its values. `wdir` is where the command ran; it is written when that is not the stage's folder.
    `changed_during_run` lists the inputs that were edited meanwhile: which version made the outputs, nobody can tell.
    `without` lists the optional dependencies that were not there.
    `started_from` is what persisted outputs were before the command went on from them. `accepted` lists, oldest first,
    what people said of the outputs since the run that made them.
    `urls` are the inputs from outside the project; of the `environment` there is what the stage declares.
    """

    cmd: tuple[str, ...]
    deps: tuple[Input, ...] = ()
    globs: tuple[str, ...] = ()
    params: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    wdir: str = ""
    outs: tuple[OutputRecord, ...] = ()
    metrics: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    changed_during_run: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    started_from: tuple[OutputRecord, ...] = ()
    accepted: tuple[Acceptance, ...] = ()
    urls: tuple[UrlInput, ...] = ()
    environment: EnvironmentRecord = NOTHING

    def __post_init__(self) -> None:
        """Sort what has no order of its own, so that equal facts are equal records."""
        object.__setattr__(self, "deps", tuple(sorted(self.deps, key=lambda entry: entry.path)))
        object.__setattr__(self, "globs", tuple(sorted(self.globs)))
        object.__setattr__(self, "outs", tuple(sorted(self.outs, key=lambda entry: entry.path)))
        object.__setattr__(self, "changed_during_run", tuple(sorted(self.changed_during_run)))
        object.__setattr__(self, "without", tuple(sorted(self.without)))
        object.__setattr__(self, "started_from", tuple(sorted(self.started_from, key=lambda entry: entry.path)))
        object.__setattr__(self, "urls", tuple(sorted(self.urls, key=lambda entry: entry.url)))

    def to_bytes(self, folder: str) -> bytes:
        """Return the canonical file for a stage whose `mlx.yaml` is in `folder`."""
        values: dict[str, object] = {
            "cmd": self.cmd[0] if len(self.cmd) == 1 else list(self.cmd),
            "deps": _by_path(_input_entry(dep, folder) for dep in self.deps),
            "globs": sorted(written_path(pattern, folder) for pattern in self.globs),
            "urls": [entry.to_entry() for entry in self.urls],
            "params": _by_file(self.params, folder),
            "env": _sorted(self.env),
            "environment": self.environment.to_value(),
            "wdir": "" if self.wdir == folder else written_path(self.wdir, folder),
            "outs": _by_path(_output_entry(out, folder) for out in self.outs),
            "metrics": _by_file(self.metrics, folder),
            "changed_during_run": sorted(
                path if is_url(path) else written_path(path, folder) for path in self.changed_during_run
            ),
            "without": sorted(written_path(path, folder) for path in self.without),
            "started_from": _by_path(_output_entry(out, folder) for out in self.started_from),
            "accepted": [_acceptance_entry(each) for each in self.accepted],
        }
        return dump_yaml({"mlx": 1} | {key: value for key, value in values.items() if value})


def inputs_of(lock: Lock) -> dict[str, object]:
    """Return what decides the outputs, as a JSON value: the same for two runs that may share their outputs."""
    urls = {"urls": [[entry.url, entry.etag] for entry in lock.urls]} if lock.urls else {}
    environment = {"environment": lock.environment.to_value()} if lock.environment != NOTHING else {}
    return {
        "cmd": list(lock.cmd),
        "deps": [[dep.path, *dep.identity, *(["executable"] if dep.executable else [])] for dep in lock.deps],
        "params": {path: dict(values) for path, values in lock.params.items()},
        "env": dict(lock.env),
        "wdir": lock.wdir,
        "outs": [out.path for out in lock.outs],
        **({"without": list(lock.without)} if lock.without else {}),
        **({"started_from": [[out.path, out.digest] for out in lock.started_from]} if lock.started_from else {}),
        **urls,
        **environment,
    }


def _acceptance_entry(each: Acceptance) -> Inline:
    return Inline({"reason": each.reason} | ({"from": each.replaced} if each.replaced else {}))


def _entry(entry: Input | OutputRecord, folder: str) -> Inline:
    written: dict[str, object] = {"path": written_path(entry.path, folder), entry.kind.value: entry.digest}
    return Inline(written | {"size": entry.size} | ({"executable": True} if entry.executable else {}))


def _input_entry(dep: Input, folder: str) -> Inline:
    written = _entry(dep, folder)
    if dep.normal is not None:
        written["normal"] = dep.normal
    return written


def _output_entry(out: OutputRecord, folder: str) -> Inline:
    written = _entry(out, folder)
    if out.files is not None:
        written["files"] = out.files
    if out.git:
        written["git"] = True
    if not out.push:
        written["push"] = False
    return written


def _by_path(entries: Iterable[Inline]) -> list[Inline]:
    return sorted(entries, key=lambda entry: str(entry["path"]))


def _by_file(values: Mapping[str, object], folder: str) -> dict[str, object]:
    return {path: _sorted(value) for path, value in sorted((written_path(p, folder), v) for p, v in values.items())}


def _sorted(value: object) -> object:
    """Return `value` with the keys of every mapping in it sorted."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value


def read_lock(data: bytes, name: str, folder: str) -> Lock:
    """Read the lock in `data` of a stage whose `mlx.yaml` is in `folder`; RecordError when it is anything else."""
    fields = Fields(parse_yaml(data, name, after_merge="`mlx run`"), what="this lock")
    check_version(fields)
    fields.only((*_KEYS, *_LATER_KEYS))
    return Lock(
        cmd=_read_cmd(fields),
        deps=tuple(_read_input(entry, path) for entry, path in _entries(fields, "deps", folder, project_path)),
        globs=_read_paths(fields, "globs", folder),
        params=_read_values(fields, "params", folder),
        env=_read_env(fields),
        wdir=fields.parsed("wdir", lambda text: project_folder(text, folder)) if fields.has("wdir") else folder,
        outs=tuple(_read_output(entry, path) for entry, path in _entries(fields, "outs", folder, path_below)),
        metrics=_read_values(fields, "metrics", folder),
        changed_during_run=_read_paths(fields, "changed_during_run", folder),
        without=_read_paths(fields, "without", folder),
        started_from=tuple(
            _read_start(entry, path) for entry, path in _entries(fields, "started_from", folder, path_below)
        ),
        accepted=tuple(_read_acceptances(fields)),
        urls=read_url_inputs(fields) if fields.has("urls") else (),
        environment=read_environment_record(fields) if fields.has("environment") else NOTHING,
    )


def _read_cmd(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("cmd")
    lines = fields.texts("cmd") if isinstance(value, list) else (fields.text("cmd"),)
    if not lines or not all(lines):
        raise fields.error("`cmd` must not be empty", "cmd")
    return lines


def _entries(fields: Fields, key: str, folder: str, resolve: Callable[[str, str], str]) -> Iterator[tuple[Fields, str]]:
    """Yield a reader of each entry of a list of paths, and its path as `resolve` has it, no path twice."""
    seen: set[str] = set()
    for index in range(len(fields.items(key))):
        entry = Fields(fields.document, (*fields.at, key, index), what=f"`{key}[{index}]`")
        path = entry.parsed("path", lambda text: resolve(text, folder))
        if path in seen:
            raise entry.error(f"`{path}` is in `{key}` twice", "path", "`mlx run` writes the lock anew")
        seen.add(path)
        yield entry, path


def _read_input(fields: Fields, path: str) -> Input:
    fields.only(("path", "tree", "blob", "size", "executable", "normal"))
    kind, digest = read_object(fields)
    normal = fields.parsed("normal", parse_digest) if fields.has("normal") else None
    return Input(path, kind, digest, fields.integer("size"), read_details(fields, kind), normal)


def _read_output(fields: Fields, path: str) -> OutputRecord:
    fields.only(("path", "tree", "blob", "size", "files", "executable", "git", "push"))
    kind, digest = read_object(fields)
    executable, size = read_details(fields, kind), fields.integer("size")
    files = fields.integer("files", default=None)
    git, push = fields.boolean("git", default=False), fields.boolean("push", default=True)
    return OutputRecord(path, kind, digest, size, files, git, push, executable)


def _read_start(fields: Fields, path: str) -> OutputRecord:
    fields.only(("path", "tree", "blob", "size", "files", "executable"))
    return _read_output(fields, path)


def _read_acceptances(fields: Fields) -> Iterator[Acceptance]:
    for index in range(len(fields.items("accepted"))):
        entry = Fields(fields.document, (*fields.at, "accepted", index), what=f"`accepted[{index}]`")
        entry.only(("reason", "from"))
        yield Acceptance(
            entry.parsed("reason", check_reason), entry.parsed("from", parse_digest) if entry.has("from") else None
        )


def check_reason(text: str) -> str:
    """Return the reason of an acceptance without blanks around it; ValueError unless it is one line of text."""
    reason = text.strip()
    if not reason:
        raise ValueError("a reason must not be empty")
    if len(reason) > MAX_REASON:
        raise ValueError(f"a reason is one line of at most {MAX_REASON} characters, not {len(reason):,}")
    if _CONTROL.search(reason):
        raise ValueError("a reason is one line of text, without tabs and other control characters")
    return reason


def _read_paths(fields: Fields, key: str, folder: str) -> tuple[str, ...]:
    return tuple(_path(fields, text, folder, key, index) for index, text in enumerate(fields.texts(key, ())))


def _path(fields: Fields, text: str, folder: str, key: str, index: int) -> str:
    try:
        return check_input_url(text) if key == "changed_during_run" and is_url(text) else project_path(text, folder)
    except ValueError as error:
        raise fields.error(f"`{key}`: {error}", key, index=index) from error


def _read_values(fields: Fields, key: str, folder: str) -> dict[str, Mapping[str, object]]:
    """Return the mapping from files to mappings at `key`, with the files' paths relative to the project."""
    reader = fields.mapping(key)
    found: dict[str, Mapping[str, object]] = {}
    for text in reader.values if reader is not None else ():
        values = Fields(fields.document, (*fields.at, key, text)).values
        try:
            path = project_path(text, folder)
        except ValueError as error:
            raise fields.document.error(f"`{key}`: {error}", (*fields.at, key, text)) from error
        if path in found:
            raise fields.document.error(f"`{path}` is in `{key}` twice", (*fields.at, key, text))
        found[path] = values
    return found


def _read_env(fields: Fields) -> dict[str, str]:
    reader = fields.mapping("env")
    return {key: reader.text(key) for key in reader.values} if reader is not None else {}
