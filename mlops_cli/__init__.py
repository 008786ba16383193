"""mlx: data, models, pipelines and metrics, versioned with Git.

The public names are `Project`, `find_project`, `MlxError` and `__version__`; they are loaded when first asked for.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "MlxError": "mlops_cli.errors",
    "Project": "mlops_cli.workspace.project",
    "find_project": "mlops_cli.workspace.project",
}

__all__ = ["MlxError", "Project", "__version__", "find_project"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module `mlops_cli` has no attribute `{name}`")
    return getattr(importlib.import_module(_HOMES[name]), name)
