"""The environment that a stage's commands run in: what a stage declares of it, and what a lock recorded.

Only what is declared is recorded, as values that people read. Files of an environment, such as the lock file of a
package manager, are dependencies like others: they are hashed, and stand among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from mlops_cli.documents import Fields

_VALUE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]+\Z")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")


class PythonPart(StrEnum):
    """How much of the interpreter's version counts."""

    NONE = ""
    MINOR = "minor"  # 3.12
    FULL = "full"  # 3.12.1


class Environment(NamedTuple):
    """What a stage declares of its environment; None where it says nothing."""

    files: tuple[str, ...] | None = None
    python: PythonPart | None = None
    packages: tuple[str, ...] | None = None
    image: str | None = None

    def over(self, general: Environment) -> Environment:
        """Return what holds for a stage that declares this where `general` is said of all stages: key by key."""
        said = {key: value for key, value in self._asdict().items() if value is not None}
        return general._replace(**said)

    def to_value(self) -> dict[str, object]:
        """Return what it says, as plain values."""
        files, packages = list(self.files or ()), list(self.packages or ())
        values = {"files": files, "python": str(self.python or ""), "packages": packages, "image": self.image}
        return {key: value for key, value in values.items() if value}


UNSAID = Environment()


class EnvironmentRecord(NamedTuple):
    """What was declared, as it was when the stage ran: versions by name, sorted; empty where nothing was declared."""

    python: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    image: str = ""

    def to_value(self) -> dict[str, object]:
        """Return what a lock holds."""
        values = {"python": self.python, "packages": dict(self.packages), "image": self.image}
        return {key: value for key, value in values.items() if value}

    def named(self) -> dict[str, str]:
        """Return every value by the name that people know it by."""
        packages = {f"packages.{name}": version for name, version in self.packages}
        found = {"image": self.image, **packages, "python": self.python}
        return {name: value for name, value in found.items() if value}


NOTHING = EnvironmentRecord()


class Difference(NamedTuple):
    """One value of an environment that differs; None: it was not declared."""

    name: str
    old: str | None
    new: str | None


def differences(old: EnvironmentRecord, new: EnvironmentRecord) -> list[Difference]:
    """Return in what two environments differ, by name."""
    before, after = old.named(), new.named()
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [Difference(name, before.get(name), after.get(name)) for name in names]


def check_package(text: str) -> str:
    """Return the name of a package as indexes have it (`a-b` for `A_b`); ValueError."""
    if not _PACKAGE.match(text):
        raise ValueError(f"`{text}` cannot be the name of a package: a version does not belong here")
    return re.sub(r"[-_.]+", "-", text).lower()


def check_value(text: str) -> str:
    """Return a value of an environment; ValueError when it holds spaces or control characters, or nothing."""
    if not _VALUE.match(text):
        raise ValueError("it must not be empty, nor hold spaces or control characters")
    return text


def read_environment_record(fields: Fields) -> EnvironmentRecord:
    """Return the mapping `environment` of a lock; RecordError."""
    told = fields.mapping("environment")
    assert told is not None
    told.only(("python", "packages", "image"))
    packages = told.mapping("packages")
    return EnvironmentRecord(
        told.parsed("python", check_value) if told.has("python") else "",
        tuple(sorted(_read_packages(packages).items())) if packages is not None else (),
        told.parsed("image", check_value) if told.has("image") else "",
    )


def _read_packages(fields: Fields) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name in fields.values:
        try:
            key = check_package(name)
        except ValueError as error:
            raise fields.error(str(error), name) from error
        found[key] = fields.parsed(name, check_value)
    return found
