"""Reading what a stage takes: its `deps`, `params` and `env`."""

from __future__ import annotations

import re

from mlops_cli.documents import Fields, Place
from mlops_cli.records.filling import VALUE_SUFFIXES, Filled, ValueReader, spell_place
from mlops_cli.records.paths import project_path
from mlops_cli.records.sources import holds_password, holds_secret
from mlops_cli.records.stages import PARAMS_FILE, Dependency, ParamsFile
from mlops_cli.records.urls import check_input_url, is_url

_ENV_NAME = re.compile(r"[^=\0]+\Z")
_NO_SECRETS = "leave it out: credentials come from the place's own tools, such as `~/.netrc` or `aws configure`"


def read_deps(reader: ValueReader, fields: Fields) -> tuple[Dependency, ...]:
    """Return the dependencies in the project in the order of the file, each once."""
    listed = [(text, at) for text, at in reader.listed(fields, "deps") if not is_url(text)]
    paths = dict.fromkeys(reader.path(text, at, project_path) for text, at in listed)
    return tuple(Dependency(path) for path in paths)


def read_urls(reader: ValueReader, fields: Fields) -> tuple[str, ...]:
    """Return the dependencies outside the project in the order of the file, each once."""
    found: dict[str, None] = {}
    for text, at in reader.listed(fields, "deps"):
        if not is_url(text):
            continue
        try:
            found[check_input_url(text)] = None
        except ValueError as error:
            hint = _NO_SECRETS if holds_password(text) or holds_secret(text) else None
            raise reader.document.error(f"{spell_place(at)}: {error}", at, hint) from error
    return tuple(found)


def read_env(reader: ValueReader, fields: Fields) -> tuple[tuple[str, str], ...]:
    """Return the variables that a stage sets, sorted."""
    env = fields.mapping("env")
    if env is None:
        return ()
    for key in env.values:
        if not _ENV_NAME.match(key):
            raise env.error(f"`{key}` cannot be the name of an environment variable", key)
    return tuple(sorted((key, reader.text(value, (*env.at, key))) for key, value in env.values.items()))


def read_params(reader: ValueReader, fields: Fields) -> tuple[ParamsFile, ...]:
    """Return the files in the order they are first named, keys of one file together."""
    found: dict[str, dict[str, None] | None] = {}
    for item, at in reader.items(fields, "params"):
        text, keys = _read_params_item(reader, item, at)
        path = reader.value_file(text, at)
        known = found.setdefault(path, {})
        if keys is None or known is None:
            found[path] = None
        else:
            known.update(dict.fromkeys(keys))
    return tuple(ParamsFile(path, tuple(keys or ())) for path, keys in found.items())


def _read_params_item(reader: ValueReader, item: object, at: Place) -> tuple[str, list[str] | None]:
    """Return the file (as written) and the keys of one item of `params`; None for the whole file."""
    if isinstance(item, str):
        key = item if isinstance(item, Filled) else reader.text(item, at)
        if key.lower().endswith(VALUE_SUFFIXES):
            hint = f"a file is written `{key}: [key]`, or `{key}:` for all of it"
            raise reader.document.error(
                f"`{key}` looks like a file, and a key of `{PARAMS_FILE}` stands here", at, hint
            )
        return PARAMS_FILE, [_check_key(reader, key, at)]
    raw, value = reader.single(item, at, "`file: [keys]`")
    if value is None:
        return reader.text(raw, at), None
    within = Fields(reader.document, at)
    keys = [_check_key(reader, text, place) for text, place in reader.listed(within, raw)]
    if not keys:
        raise within.error(f"`{raw}` has no keys", raw, f"write `{raw}:` alone for the whole file")
    return reader.text(raw, at), keys


def _check_key(reader: ValueReader, key: str, at: Place) -> str:
    if not all(key.split(".")):
        raise reader.document.error(f"`{key}` is not a key: it has an empty part", at)
    return key
