"""What a stage takes and what it made, as both are now."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mlops_cli.hashing import Digest
from mlops_cli.records.environment import NOTHING, EnvironmentRecord
from mlops_cli.records.locks import Input
from mlops_cli.records.normalizers import Normalizer
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.urls import UrlInput


class Normalized(NamedTuple):
    """What passes over edits of a dependency, and the `fault` for which the bytes of it, or of a file in it, count."""

    by: Normalizer
    fault: str = ""


class Wanted(NamedTuple):
    """A stage's inputs as they are now.

    `waiting` maps a dependency whose bytes cannot be known yet to the stage that will make it. `absent` are recorded
    paths that are not in the workspace: what the record says counts. `lost` are dependencies that nothing knows, and
    `unread` recorded folders whose listing is in no store here, so that nobody can say what is in them. `without` are
    optional dependencies that are not there. `off` maps those of `lost` that a stage would make to that stage, which is
    off. `urls` are what their places told; of those that are `unasked` it is what the lock recorded, if it did.
    `normalized` are the dependencies of which not every byte counts.
    """

    deps: tuple[Input, ...]
    params: Mapping[str, Mapping[str, object]]
    globs: tuple[str, ...] = ()
    waiting: Mapping[str, str] = MappingProxyType({})
    absent: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    off: Mapping[str, str] = MappingProxyType({})
    urls: tuple[UrlInput, ...] = ()
    unasked: tuple[str, ...] = ()
    environment: EnvironmentRecord = NOTHING
    normalized: Mapping[str, Normalized] = MappingProxyType({})


class Present(NamedTuple):
    """An output as it is in the workspace."""

    kind: ObjectKind
    digest: Digest
    size: int
    executable: bool = False
