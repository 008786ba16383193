from __future__ import annotations

from pathlib import Path

import pytest

from mlops_cli.workspace import scan, writing
from tests.workspace.projects import Sandbox, make_project


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """Return an empty project in its own repository."""
    return make_project(tmp_path / "project")


@pytest.fixture(params=["alone", "crew"])
def crew(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have every file looked at, read and written by this process, or by two copies of it, however few they are."""
    if request.param == "crew":
        for module in (scan, writing):
            monkeypatch.setattr(module, "crew_size", lambda: 2)
        monkeypatch.setattr(scan, "LOOKED_AT_BY_MANY", 0)
        monkeypatch.setattr(scan, "READ_BY_MANY", 0)
        monkeypatch.setattr(writing, "WRITTEN_BY_MANY", 0)
    return str(request.param)
