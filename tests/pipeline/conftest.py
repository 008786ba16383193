from __future__ import annotations

from tests.workspace.conftest import box

__all__ = ["box"]
