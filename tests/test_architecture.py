"""Imports only go down, without circles, and each library, stream and variable has one owner.

The rules are about what a source says, so they are checked by reading it: imports inside functions and under
`TYPE_CHECKING` count, because a circle hidden there is still a circle. Every rule is shown here to be able to fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "mlops_cli"
ROOT = Path(__file__).parents[1] / PACKAGE

FLOORS = (
    {"words"},
    {"errors", "progress"},
    {"files", "hashing", "documents", "workers"},
    {"store", "records"},
    {"workspace"},
    {"pipeline", "tracking", "quality"},
    {"cli"},
)

# Where a library may be imported at all, as the beginnings of module names; nowhere for `click`, which typer holds
# within itself and may change without notice.
OWNERS: Mapping[str, tuple[str, ...]] = {
    "typer": ("cli",),
    "rich": ("cli",),
    "click": (),
    "git": ("workspace.git",),
    "fsspec": ("store.fsspec_bucket",),
    "obstore": ("store.object_store_bucket",),
    "botocore": ("store.multipart", "store.object_store_bucket"),
    "s3fs": (),
    "gcsfs": (),
    "adlfs": (),
    "httpx": ("store.webdav_bucket",),
    "paramiko": ("store.sftp_bucket",),
    "nbclient": ("pipeline.notebook_process",),
    "nbformat": ("pipeline.notebook_process",),
    "jupyter_client": ("pipeline.notebook_process",),
    "pandas": ("tracking", "quality"),
    "sklearn": ("tracking", "quality"),
    "scipy": ("tracking", "quality"),
    "joblib": ("tracking", "quality"),
}

# What is imported inside the functions that need it, never when a module is loaded.
HEAVY = frozenset({"adlfs", "fsspec", "gcsfs", "git", "joblib", "jsonschema", "numpy", "pandas", "paramiko", "rich"})
HEAVY |= {"botocore", "httpx", "jupyter_client", "nbclient", "nbformat", "obstore", "s3fs", "scipy", "sklearn"}

# What ties code to one process and its terminal.
TERMINAL = frozenset({"print", "input", "sys.argv", "sys.stdin", "sys.stdout", "sys.stderr", "sys.exit"})
ENVIRONMENT = frozenset({"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv"})
MAY_USE: Mapping[str, tuple[str, ...]] = {
    # A process of its own, whose output is that of a stage's command.
    **dict.fromkeys(TERMINAL, ("cli", "__main__", "pipeline.notebook_process")),
    **dict.fromkeys(ENVIRONMENT, ("cli", "records.config")),
}

Sources = Mapping[str, str]  # the text of each module by its name below the package; "" is the package itself


# --- reading --------------------------------------------------------------------------------------------------------


def read_sources(root: Path) -> Sources:
    """Return every module of the package at `root`."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(module: str, tree: ast.AST, sources: Sources) -> Iterator[tuple[int, str]]:
    """Yield line and full dotted name of everything imported anywhere; ours as the module that it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield node.lineno, submodule if own_name(submodule) in sources else str(node.module)


def own_name(imported: str) -> str | None:
    """Return the name below the package, or None for a module of others."""
    if imported == PACKAGE:
        return ""
    return imported.removeprefix(f"{PACKAGE}.") if imported.startswith(f"{PACKAGE}.") else None


def loaded_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and library of what is imported when the module is loaded: not in a function, not for types only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each use of `name` or `module.name` that MAY_USE speaks of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in MAY_USE:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (name := f"{node.value.id}.{node.attr}") in MAY_USE:
                yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "sys"}:
            for alias in node.names:
                if (name := f"{node.module}.{alias.name}") in MAY_USE:
                    yield node.lineno, name


# --- rules ----------------------------------------------------------------------------------------------------------


def check(sources: Sources) -> list[str]:
    """Return every broken rule, as `module:line: what is wrong`."""
    trees = {module: ast.parse(text) for module, text in sources.items()}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        graph[module] = set()
        if module and floor(module) is None:
            found.append(f"{module}:1: no floor is known for this module")
        for line, imported in imports(module, tree, sources):
            own = own_name(imported)
            if own is None:
                found += broken_owner(module, line, imported)
            elif own != module:
                graph[module].add(own)
                found += broken_floor(module, line, own)
        for line, library in loaded_imports(tree):
            if library in HEAVY:
                found.append(f"{module}:{line}: {library} is imported when the module is loaded")
        for line, name in uses(tree):
            if not lies_in(module, MAY_USE[name]):
                found.append(f"{module}:{line}: {name} belongs to {' and '.join(MAY_USE[name])}")
    found += [f"circle: {' <-> '.join(group)}" for group in circles(graph)]
    return found


def lies_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def floor(module: str) -> int | None:
    """Return how high a module stands; `__main__` stands above the command line."""
    top = module.partition(".")[0]
    if top == "__main__":
        return len(FLOORS)
    return next((level for level, names in enumerate(FLOORS) if top in names), None)


def broken_owner(module: str, line: int, imported: str) -> Iterator[str]:
    library = imported.partition(".")[0]
    if library in OWNERS and not lies_in(module, OWNERS[library]):
        yield f"{module}:{line}: {library} belongs to {' and '.join(OWNERS[library]) or 'nobody here'}"


def broken_floor(module: str, line: int, own: str) -> Iterator[str]:
    """Yield what is wrong with `module` importing `own`; the package itself holds names, and resolves them late."""
    if not own or not module or module.partition(".")[0] == own.partition(".")[0]:
        return
    here, there = floor(module), floor(own)
    if here is not None and there is not None and there >= here:
        yield f"{module}:{line}: {own} is not below it"


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return each group of modules that reach one another."""
    reached = {module: reach(graph, module) for module in graph}
    groups = {frozenset(other for other in reached[module] if module in reached.get(other, ())) for module in graph}
    return sorted(sorted(group) for group in groups if group)


def reach(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return what can be reached from `start` in one step or more; the package itself is not followed."""
    found: set[str] = set()
    waiting = set(graph[start]) if start else set()
    while waiting:
        module = waiting.pop()
        if module and module not in found:
            found.add(module)
            waiting |= graph.get(module, set())
    return found


# --- the package ----------------------------------------------------------------------------------------------------


def test_the_package_keeps_the_rules() -> None:
    assert check(read_sources(ROOT)) == []


def test_the_package_is_read() -> None:
    sources = read_sources(ROOT)

    assert {"", "errors", "store.cache", "cli.main"} <= sources.keys()


# --- the checker can fail -------------------------------------------------------------------------------------------

GOOD: Sources = {
    "": "def __getattr__(name):\n    from mlops_cli.workspace import project\n",
    "__main__": "import sys\nfrom mlops_cli.cli.main import main\nsys.exit(main(sys.argv[1:]))",
    "errors": "import os",
    "hashing": "import blake3\nfrom mlops_cli import errors",
    "store.cache": "from mlops_cli.hashing import Digest\nfrom mlops_cli.store import trees",
    "store.fsspec_bucket": "def open_remote():\n    import fsspec\n    from fsspec.core import url_to_fs",
    "store.trees": "from mlops_cli.errors import MlxError",
    "records.config": "import os\n\nHOME = os.environ",
    "workspace.git": "if TYPE_CHECKING:\n    from git import Repo\n\ndef read():\n    import git",
    "workspace.project": "from mlops_cli.records.config import Config\nfrom mlops_cli.store.cache import Cache",
    "tracking.metrics": "class Table:\n    def frame(self):\n        import pandas as pd",
    "cli.main": "import sys\nimport typer\nfrom mlops_cli.workspace import project\nprint(sys.argv)",
}


def test_a_package_that_keeps_the_rules_passes() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("errors", "import mlops_cli.store.trees", "errors:1: store.trees is not below it"),
        ("errors", "def f():\n    from mlops_cli import hashing", "errors:2: hashing is not below it"),
        ("store.new", "from mlops_cli.records.config import Config", "store.new:1: records.config is not below it"),
        ("files", "from mlops_cli.hashing import Digest", "files:1: hashing is not below it"),
        (
            "pipeline.plan",
            "from mlops_cli.tracking import metrics",
            "pipeline.plan:1: tracking.metrics is not below it",
        ),
        ("pipeline.plan", "import mlops_cli.cli.main", "pipeline.plan:1: cli.main is not below it"),
        ("cli.new", "from mlops_cli import __main__", "cli.new:1: __main__ is not below it"),
        ("helpers", "", "helpers:1: no floor is known for this module"),
        ("store.new", "import typer", "store.new:1: typer belongs to cli"),
        ("workspace.new", "def f():\n    from rich.table import Table", "workspace.new:2: rich belongs to cli"),
        (
            "workspace.new",
            "if TYPE_CHECKING:\n    from git import Repo",
            "workspace.new:2: git belongs to workspace.git",
        ),
        (
            "store.cache2",
            "def f():\n    import fsspec",
            "store.cache2:2: fsspec belongs to store.fsspec_bucket",
        ),
        (
            "store.remote_index",
            "def f():\n    import fsspec",
            "store.remote_index:2: fsspec belongs to store.fsspec_bucket",
        ),
        ("cli.new", "def f():\n    import click", "cli.new:2: click belongs to nobody here"),
        ("cli.new", "def f():\n    import sklearn.svm", "cli.new:2: sklearn belongs to tracking and quality"),
        ("cli.new", "from rich import box", "cli.new:1: rich is imported when the module is loaded"),
        (
            "documents",
            "try:\n    import jsonschema\nexcept ImportError:\n    pass",
            "documents:2: jsonschema is imported",
        ),
        ("tracking.new", "class A:\n    import pandas", "tracking.new:2: pandas is imported when the module is loaded"),
        (
            "store.new",
            "def f():\n    print(1)",
            "store.new:2: print belongs to cli and __main__ and pipeline.notebook_process",
        ),
        (
            "store.new",
            "import sys\nx = sys.argv",
            "store.new:2: sys.argv belongs to cli and __main__ and pipeline.notebook_process",
        ),
        (
            "store.new",
            "from sys import stderr",
            "store.new:1: sys.stderr belongs to cli and __main__ and pipeline.notebook_process",
        ),
        ("pipeline.new", "import os\nos.environ['A']", "pipeline.new:2: os.environ belongs to cli and records.config"),
        ("records.new", "from os import getenv", "records.new:1: os.getenv belongs to cli and records.config"),
        (
            "records.config",
            "print(1)",
            "records.config:1: print belongs to cli and __main__ and pipeline.notebook_process",
        ),
    ],
)
def test_a_broken_rule_is_named(module: str, source: str, expected: str) -> None:
    found = check({**GOOD, module: source})

    assert [line for line in found if line.startswith(expected)], found


@pytest.mark.parametrize(
    "source",
    [
        "from mlops_cli.store.cache import Cache",
        "def late():\n    from mlops_cli.store import cache",
        "if TYPE_CHECKING:\n    import mlops_cli.store.cache",
    ],
)
def test_a_circle_is_found_wherever_it_hides(source: str) -> None:
    assert check({**GOOD, "store.trees": source}) == ["circle: store.cache <-> store.trees"]


def test_a_longer_circle_is_found_once() -> None:
    sources = {
        "store.a": "from mlops_cli.store import b",
        "store.b": "from mlops_cli.store import c",
        "store.c": "from mlops_cli.store import a",
        "store.d": "from mlops_cli.store import a",
    }

    assert check(sources) == ["circle: store.a <-> store.b <-> store.c"]
