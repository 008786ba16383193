"""Reading what a stage takes: its `deps`, `params` and `env`."""

from __future__ import annotations

import re

from mlops_cli.documents import Fields, Place
from mlops_cli.records.filling import PARAMS_SUFFIXES, Filled, ValueReader, spell_place
from mlops_cli.records.normalizers import Normalizer
from mlops_cli.records.paths import project_path
from mlops_cli.records.sources import holds_password, holds_secret
from mlops_cli.records.stages import PARAMS_FILE, Dependency, ParamsFile
from mlops_cli.records.urls import check_input_url, is_url

_ENV_NAME = re.compile(r"[^=\0]+\Z")
_NO_SECRETS = "leave it out: credentials come from the place's own tools, such as `~/.netrc` or `aws configure`"


def read_deps(reader: ValueReader, fields: Fields) -> tuple[tuple[Dependency, ...], tuple[str, ...]]:
    """Return the dependencies in the project, and the URLs, in the order of the file, each once."""
    found: dict[str, Dependency] = {}
    urls: dict[str, None] = {}
    for item, at in reader.items(fields, "deps"):
        raw, about = (item, None) if not isinstance(item, dict) else reader.single(item, at, "`path: {optional: true}`")
        text = raw if isinstance(raw, Filled) else reader.text(raw, at)
        if is_url(text):
            urls[_check_url(reader, text, at, about)] = None
            continue
        dep = Dependency(reader.path(text, at, project_path))
        if about is not None:
            dep = _read_options(dep, Fields(reader.document, (*at, str(raw))))
        if found.setdefault(dep.path, dep) != dep:
            raise reader.document.error(f"`{dep.path}` is in `deps` twice, with other options", at, "name it once")
    return tuple(found.values()), tuple(urls)


def _read_options(dep: Dependency, about: Fields) -> Dependency:
    about.only(("optional", "normalize"))
    normalize = about.parsed("normalize", _parse_normalizer) if about.has("normalize") else None
    return dep._replace(optional=about.boolean("optional", default=False), normalize=normalize)


def _parse_normalizer(text: str) -> Normalizer:
    if text not in tuple(Normalizer):
        raise ValueError(f"`{text}` is none of {', '.join(f'`{name}`' for name in Normalizer)}")
    return Normalizer(text)


def _check_url(reader: ValueReader, text: str, at: Place, about: object) -> str:
    try:
        url = check_input_url(text)
    except ValueError as error:
        hint = _NO_SECRETS if holds_password(text) or holds_secret(text) else None
        raise reader.document.error(f"{spell_place(at)}: {error}", at, hint) from error
    if about is not None:
        raise reader.document.error(f"{spell_place(at)}: a URL takes no options", at, f"write `- {url}`")
    return url


def read_env(reader: ValueReader, fields: Fields) -> tuple[tuple[str, str], ...]:
    """Return the variables that a stage sets, sorted."""
    env = fields.mapping("env")
    if env is None:
        return ()
    for key in env.values:
        if not _ENV_NAME.match(key):
            raise env.error(f"`{key}` cannot be the name of an environment variable", key)
    return tuple(sorted((key, reader.text(value, (*env.at, key))) for key, value in env.values.items()))


def read_pass_env(reader: ValueReader, fields: Fields) -> tuple[str, ...] | None:
    """Return the names and patterns of the variables that a stage inherits; None when it inherits all."""
    if not fields.has("pass_env"):
        return None
    named: dict[str, None] = {}
    for text, at in reader.listed(fields, "pass_env"):
        if not _ENV_NAME.match(text):
            hint = "`env` sets variables, `pass_env` only names them" if "=" in text else None
            raise reader.document.error(f"`{text}` cannot be the name of an environment variable", at, hint)
        named[text] = None
    return tuple(named)


def read_params(reader: ValueReader, fields: Fields) -> tuple[ParamsFile, ...]:
    """Return the files in the order they are first named, keys of one file together."""
    found: dict[str, dict[str, None] | None] = {}
    for item, at in reader.items(fields, "params"):
        text, keys = _read_params_item(reader, item, at)
        path = reader.params_file(text, at)
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
        if key.lower().endswith(PARAMS_SUFFIXES):
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
