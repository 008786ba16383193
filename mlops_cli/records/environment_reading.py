"""Reading `environment` in `mlx.yaml`: at the top for all stages of the file, and of a stage, which goes before."""

from __future__ import annotations

from collections.abc import Callable

from mlops_cli.documents import Fields, describe
from mlops_cli.records.environment import UNSAID, Environment, PythonPart, check_package, check_value
from mlops_cli.records.filling import ValueReader, spell_place
from mlops_cli.records.paths import project_path
from mlops_cli.records.stages import has_magic

_KEYS = ("files", "python", "packages", "image")


def read_environment(reader: ValueReader, fields: Fields) -> Environment:
    """Return what the mapping at `fields` says in `environment`; RecordError."""
    told = fields.mapping("environment")
    if told is None:
        return UNSAID
    told.only(_KEYS)
    return Environment(
        files=_listed(reader, told, "files", lambda text: _check_file(text, reader.folder)),
        python=_read_python(reader, told),
        packages=_listed(reader, told, "packages", check_package),
        image=_read_image(reader, told) if told.has("image") else None,
    )


def _listed(reader: ValueReader, told: Fields, key: str, check: Callable[[str], str]) -> tuple[str, ...] | None:
    if not told.has(key):
        return None
    found: dict[str, None] = {}
    for text, at in reader.listed(told, key):
        try:
            found[check(text)] = None
        except ValueError as error:
            raise reader.document.error(f"{spell_place(at)}: {error}", at) from error
    return tuple(found)


def _check_file(text: str, folder: str) -> str:
    if has_magic(text):
        raise ValueError(f"`{text}` is a pattern, and only `deps` may hold patterns")
    return project_path(text, folder)


def _read_python(reader: ValueReader, told: Fields) -> PythonPart | None:
    if not told.has("python"):
        return None
    value = reader.value(told.raw("python"), (*told.at, "python"))
    if isinstance(value, bool):
        return PythonPart.FULL if value else PythonPart.NONE
    if value == PythonPart.MINOR:
        return PythonPart.MINOR
    hint = "`python: true` counts all of its version, `python: minor` only the 3.12 of 3.12.1"
    raise told.error(f"`python` must be `true`, `false` or `minor`, not {describe(value)}", "python", hint)


def _read_image(reader: ValueReader, told: Fields) -> str:
    at = (*told.at, "image")
    try:
        return check_value(reader.text(told.raw("image"), at))
    except ValueError as error:
        raise told.error(f"`image`: {error}", "image", "as in `ghcr.io/team/train@sha256:…`") from error
