from __future__ import annotations

from pathlib import Path

import pytest

from tests.workspace.projects import Sandbox, make_project


@pytest.fixture
def box(tmp_path: Path) -> Sandbox:
    """Return an empty project in its own repository."""
    return make_project(tmp_path / "project")
