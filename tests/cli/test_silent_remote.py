"""A remote that does not answer: the user is told that it is tried again, and where that belongs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlops_cli.store import outage
from tests.conftest import InProcess
from tests.servers.proxy import Proxy, proxy
from tests.servers.web import web_server

NOTE = "remote `public`: the server answers 503; trying again for up to 60 s"


@pytest.fixture
def door(repo: Path, tmp_path: Path, mlx_in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Return a proxy in front of a server that has all data of `repo`, where the cache has none, as remote `public`."""
    monkeypatch.setattr(outage, "TOLD_AFTER", 0.0)
    mlx = mlx_in_process
    for name in ("one", "two"):
        (repo / name).write_text(name * 100)
    storage = tmp_path / "storage"
    for words in (["init"], ["add", "one", "two"], ["remote", "add", "storage", str(storage)], ["push"]):
        assert mlx(*words).code == 0
    os.rename(repo / ".git" / "mlx" / "cache", tmp_path / "away")
    with ExitStack() as stack:
        found = stack.enter_context(proxy(stack.enter_context(web_server(storage))))
        assert mlx("remote", "add", "public", found.url).code == 0
        yield found


def test_a_note_tells_it_once(door: Proxy, mlx_in_process: InProcess) -> None:
    door.answer(503)
    done = mlx_in_process("fetch", "--remote", "public")
    assert done.code == 0
    assert done.stderr.count("note:") == 1
    assert " ".join(done.stderr.split()).startswith(f"note: {NOTE}")
    assert "fetched 2 objects" in done.stdout


def test_under_json_it_is_in_the_document(door: Proxy, mlx_in_process: InProcess) -> None:
    door.answer(503)
    done = mlx_in_process("fetch", "--remote", "public", "--json")
    assert done.code == 0
    assert done.stderr == ""
    assert done.json()["notes"] == [NOTE]


def test_quietly_nothing_is_told(door: Proxy, mlx_in_process: InProcess) -> None:
    door.answer(503)
    done = mlx_in_process("--quiet", "fetch", "--remote", "public")
    assert (done.code, done.stderr) == (0, "")
