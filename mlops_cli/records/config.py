"""Settings: `.mlx/config.yaml`, the clone's and the user's file of the same form, and `MLX_*` variables.

A file is a layer of flat keys (`core.remote`, `remotes.storage.url`). Layers stand from strongest to weakest, and each
key is decided by the first layer that has it. Where the files are is the workspace's to know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from mlops_cli.documents import Fields, check_version, describe, dump_yaml, nearest, parse_scalar, parse_yaml
from mlops_cli.errors import RecordError, UsageError
from mlops_cli.records.sources import LOGIN

DURABILITIES = ("batch", "strict", "none")
OWNERS = ("single",)
LINKS = ("copy", "reflink", "hardlink", "symlink")
MAX_JOBS = 1024
CACHE_REMOTE = "cache"
"""What a cache behind a URL is called as a remote."""

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)([smhdw]?)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_REMOTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_REMOTE_KEY = re.compile(r"remotes\.(.+)\.(url|paths|owner)\Z", re.DOTALL)
# A pattern of .gitignore that may name something: no comment, no blank, no `.` or `..` or nothing between slashes.
_PATTERN = re.compile(r"^(?:!(?=[^!])|(?=[^!#]))(?![ /]*$)(?!(?:.*/)?\.{1,2}(?:/|$))(?!.*//)[^\u0000-\u001f\u007f]+\Z")


class Remote(NamedTuple):
    """A store elsewhere; with the owner `single` the clone that collects it knows all that is needed there."""

    url: str
    owner: str | None = None


class Config(NamedTuple):
    """The settings in force; `None` means that nothing says. Times are in seconds.

    `remote_paths` are the patterns of what belongs to certain remotes, also to those that no URL is known of here.
    """

    core_remote: str | None
    core_lock_timeout: float
    core_durability: str
    core_jobs: int
    cache_dir: str | None
    cache_link: str
    remotes: Mapping[str, Remote]
    gc_grace: float
    remote_paths: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Layer(NamedTuple):
    """One source of settings: `origin` names it to people, `values` are its flat keys."""

    origin: str
    values: Mapping[str, object]


class Setting(NamedTuple):
    """One key as it is in force, and the layer that decided."""

    key: str
    value: object
    origin: str


class _Option(NamedTuple):
    """What a key may hold: `choices`, or a value of `kind`, not below zero when it is a number."""

    kind: str
    default: object = None
    choices: tuple[str, ...] = ()


_OPTIONS: Mapping[str, _Option] = {
    "core.remote": _Option("name"),
    "core.lock_timeout": _Option("number", 10),
    "core.durability": _Option("choice", "batch", DURABILITIES),
    "core.jobs": _Option("count", 0),
    "cache.dir": _Option("url"),
    "cache.link": _Option("choice", "reflink", LINKS),
    "gc.grace": _Option("duration", "14d"),
}
_OF_A_REMOTE: Mapping[str, _Option] = {
    "url": _Option("url"),
    "paths": _Option("patterns"),
    "owner": _Option("choice", None, OWNERS),
}
_ALL = (*_OPTIONS, *(f"remotes.NAME.{part}" for part in _OF_A_REMOTE))
_SECTIONS = ("core", "cache", "gc")
_VARIABLES = tuple(f"MLX_{section.upper()}_" for section in _SECTIONS)


def read_config(data: bytes, name: str) -> dict[str, object]:
    """Return the flat keys that the file sets; RecordError when it is anything but a configuration."""
    fields = Fields(parse_yaml(data, name), what="this configuration")
    check_version(fields)
    fields.only(("mlx", *_SECTIONS, "remotes"))
    values: dict[str, object] = {}
    for section in _SECTIONS:
        reader = fields.mapping(section)
        if reader is not None:
            values.update(_read_section(reader, section))
    remotes = fields.mapping("remotes")
    if remotes is not None:
        values.update(_read_remotes(remotes))
    return values


def _read_section(fields: Fields, section: str) -> Iterator[tuple[str, object]]:
    fields.only([key.partition(".")[2] for key in _OPTIONS if key.startswith(f"{section}.")])
    for name, value in fields.values.items():
        fault = _find_fault(f"{section}.{name}", value)
        if fault is not None:
            raise fields.error(fault, name)
        yield f"{section}.{name}", value


def _read_remotes(fields: Fields) -> Iterator[tuple[str, object]]:
    for name in fields.values:
        fault = _find_name_fault(name)
        if fault is not None:
            raise fields.error(fault, name)
        remote = Fields(fields.document, (*fields.at, name), what=f"remote `{name}`")
        remote.only(("url", "paths", "owner"))
        for part in ("url", "owner"):
            if part not in remote.values and (part == "owner" or len(remote.values)):
                continue  # one level may name the remote, another its owner or its paths
            text = remote.text(part)
            fault = _find_fault(f"remotes.{name}.{part}", text)
            if fault is not None:
                raise remote.error(fault, part, _LEAVE_IT_OUT if LOGIN.match(text) else None)
            yield f"remotes.{name}.{part}", text
        if "paths" in remote.values:
            paths = remote.texts("paths")
            fault = _find_fault(f"remotes.{name}.paths", paths)
            if fault is not None:
                raise remote.error(fault, "paths")
            yield f"remotes.{name}.paths", paths


def write_config(values: Mapping[str, object]) -> bytes:
    """Return the canonical file that sets the flat keys `values`."""
    document: dict[str, object] = {"mlx": 1}
    for section in _SECTIONS:
        keys = [key for key in _OPTIONS if key.startswith(f"{section}.") and key in values]
        if keys:
            document[section] = {key.partition(".")[2]: values[key] for key in keys}
    remotes: dict[str, dict[str, object]] = {}
    for key in sorted(values, reverse=True):  # the URL comes first, the owner last
        if match := _REMOTE_KEY.match(key):
            remotes.setdefault(match[1], {})[match[2]] = values[key]
    if remotes:
        document["remotes"] = dict(sorted(remotes.items()))
    return dump_yaml(document)


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Return what `MLX_CORE_*`, `MLX_CACHE_*` and `MLX_GC_*` variables set; an empty variable sets nothing.

    UsageError for an unknown variable of these, or a wrong value. Other `MLX_*` variables are not settings.
    """
    variables = {_variable(key): key for key in _OPTIONS}
    values: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(_VARIABLES) or not environ[variable]:
            continue
        if variable not in variables:
            raise UsageError(
                f"environment variable `{variable}` is not a setting", hint=_name_them(variable, variables)
            )
        key = variables[variable]
        values[key] = _parse(key, environ[variable], f"environment variable `{variable}`")
    return Layer("environment", values)


def _variable(key: str) -> str:
    return "MLX_" + key.upper().replace(".", "_")


def explain(layers: Sequence[Layer]) -> tuple[Setting, ...]:
    """Return every key that is set or has a default, with the layer that decides; strongest layer first."""
    names = sorted({key for layer in layers for key in layer.values if _REMOTE_KEY.match(key)})
    return tuple(found for key in (*_OPTIONS, *names) if (found := _decide(key, layers)) is not None)


def _decide(key: str, layers: Sequence[Layer]) -> Setting | None:
    for layer in layers:
        if key in layer.values:
            return Setting(key, layer.values[key], layer.origin)
    default = _OPTIONS[key].default
    return None if default is None else Setting(key, default, "default")


def resolve(layers: Sequence[Layer]) -> Config:
    """Return the settings in force; strongest layer first."""
    values = {setting.key: setting.value for setting in explain(layers)}
    remotes: dict[str, Remote] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for key, value in values.items():
        match = _REMOTE_KEY.match(key)
        if match is not None and match[2] == "url":
            remotes[match[1]] = Remote(str(value), _text_or_none(values.get(f"remotes.{match[1]}.owner")))
        elif match is not None and match[2] == "paths":
            assert isinstance(value, tuple)
            paths[match[1]] = value
    timeout, jobs = values["core.lock_timeout"], values["core.jobs"]
    assert isinstance(timeout, int | float)
    assert isinstance(jobs, int)
    config = Config(
        core_remote=_text_or_none(values.get("core.remote")),
        core_lock_timeout=float(timeout),
        core_durability=str(values["core.durability"]),
        core_jobs=jobs,
        cache_dir=None,
        cache_link=str(values["cache.link"]),
        remotes=remotes,
        remote_paths=paths,
        gc_grace=parse_duration(str(values["gc.grace"])),
    )
    place = values.get("cache.dir")
    owner = _text_or_none(values.get(f"remotes.{CACHE_REMOTE}.owner"))
    return config if place is None else with_cache(config, str(place), owner)


def with_cache(config: Config, place: str, owner: str | None = None) -> Config:
    """Return `config` with the cache at `place`, a folder or a URL.

    Behind a URL it is a remote too; as the last of them, it is the default when there is no other.
    """
    remotes = config.remotes
    named = remotes.get(CACHE_REMOTE)
    if "://" in place and (named is None or named.url == config.cache_dir):
        remotes = {**remotes, CACHE_REMOTE: Remote(place, owner)}
    return config._replace(cache_dir=place, remotes=remotes)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def parse_duration(text: str) -> float:
    """Return the seconds that `14d`, `12h` or `90` (seconds) mean; ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text}` is not a duration such as 12h, 14d or 2w")
    return float(match[1]) * _SECONDS[match[2]]


def set_value(values: Mapping[str, object], key: str, value: str | Sequence[str]) -> dict[str, object]:
    """Return `values` with `key` set to what `value`, a text or a list of texts, spells.

    UsageError for an unknown key or a wrong value.
    """
    check_key(key)
    if isinstance(value, str):
        return {**values, key: _parse(key, value, f"`{key}`")}
    fault = _find_fault(key, tuple(value))
    if fault is not None:
        raise UsageError(fault)
    return {**values, key: tuple(value)}


def unset_value(values: Mapping[str, object], key: str) -> dict[str, object]:
    """Return `values` without `key`; UsageError when it is unknown or not set there."""
    check_key(key)
    if key not in values:
        raise UsageError(f"`{key}` is not set here", hint="`mlx config list --show-origin` tells where it is set")
    return {known: value for known, value in values.items() if known != key}


def check_key(key: str) -> None:
    match = _REMOTE_KEY.match(key)
    if match is not None:
        fault = _find_name_fault(match[1])
        if fault is not None:
            raise UsageError(fault)
    elif key not in _OPTIONS:
        raise UsageError(f"`{key}` is not a setting", hint=_name_them(key, _ALL))


def _name_them(word: str, names: Sequence[str] | Mapping[str, str]) -> str:
    near = nearest(word, names)
    return f"did you mean `{near}`?" if near else "the settings are " + ", ".join(f"`{name}`" for name in names)


def _parse(key: str, text: str, what: str) -> object:
    """Return `text`, which came from a terminal or the environment, as a value of `key`."""
    option = _option(key)
    value: object = text
    if option.kind == "patterns":
        value = _parse_list(text, what)
    elif option.kind in ("number", "count"):
        try:
            value = parse_scalar(text)
        except ValueError as error:
            raise UsageError(f"{what}: {error}") from error
    fault = _find_fault(key, value)
    if fault is None:
        return value
    near = nearest(text, option.choices)
    hint = _LEAVE_IT_OUT if LOGIN.match(text) else f"did you mean `{near}`?" if near else None
    raise UsageError(fault if what == f"`{key}`" else f"{what}: {fault}", hint=hint)


def _option(key: str) -> _Option:
    """Return what the known `key` may hold."""
    match = _REMOTE_KEY.match(key)
    return _OPTIONS[key] if match is None else _OF_A_REMOTE[match[2]]


def _parse_list(text: str, what: str) -> tuple[str, ...]:
    """Return the texts of a YAML list on one line; any other text is the only one."""
    if not (text.startswith("[") and text.endswith("]")):
        if "," in text:
            raise UsageError(f"{what} is no list, and has a comma", hint=_A_LIST)
        return (text,)
    try:
        return Fields(parse_yaml(f"paths: {text}\n".encode(), what)).texts("paths")
    except RecordError as error:
        raise UsageError(f"{what} is no list: {error.message}", hint=_A_LIST) from error


_A_LIST = 'a list is `["data/a/**", "data/b/**"]`'


_LEAVE_IT_OUT = "leave it out: credentials come from the storage's own tools, such as `aws configure` or its variables"


def _find_fault(key: str, value: object) -> str | None:
    """Say why `value` cannot be the value of the known `key`, or return None."""
    option = _option(key)
    if option.kind == "patterns":
        return _find_patterns_fault(key, value)
    if option.kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            return f"`{key}` must be a number of seconds, 0 or more, not {describe(value)}"
    elif option.kind == "count":
        if type(value) is not int or not 0 <= value <= MAX_JOBS:
            return f"`{key}` must be a whole number from 0 to {MAX_JOBS}, not {describe(value)}"
    elif option.kind == "duration":
        return _find_duration_fault(key, value)
    elif not isinstance(value, str) or not value or "\0" in value:
        return f"`{key}` must be text, not {'an empty text' if value == '' else describe(value)}"
    elif option.kind == "choice" and value not in option.choices:
        return f"`{key}` must be one of {', '.join(f'`{choice}`' for choice in option.choices)}, not `{value}`"
    elif option.kind == "name":
        return _find_name_fault(value)
    elif option.kind == "url" and LOGIN.match(value):
        return f"`{key}` holds a password, which must not be written down here"
    return None


def _find_patterns_fault(key: str, value: object) -> str | None:
    """Say why `value` cannot be patterns: one that names nothing would let what it was meant for go elsewhere."""
    if not isinstance(value, tuple) or not value:
        return f"`{key}` must be a list of patterns, with one or more"
    wrong = next((pattern for pattern in value if not _PATTERN.match(pattern)), None)
    if wrong is None and value[0].startswith("!"):
        return f"`{key}` begins with `{value[0]}`, which takes out of what patterns before it name, and there are none"
    if wrong is None:
        return None
    return f"`{key}` holds `{wrong}`, which names no path: patterns are as in .gitignore, from the project's root"


def _find_duration_fault(key: str, value: object) -> str | None:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError):
            parse_duration(str(value))
            return None
    return f"`{key}` must be a duration such as 12h, 14d or 2w, not {describe(value)}"


def _find_name_fault(name: str) -> str | None:
    if _REMOTE_NAME.match(name):
        return None
    return f"`{name}` cannot be the name of a remote: it may hold letters, digits, `.`, `_` and `-`"
