"""The readers and the JSON Schemas of the committed files accept and refuse the same documents.

Left to the readers alone, since a schema cannot say it: that `mlx` comes first, that a pointer lies beside its data,
what `${name}` stands for, that paths stay in the project, and that nothing is named twice.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlops_cli import documents, records
from mlops_cli.documents import dump_yaml
from mlops_cli.errors import RecordError
from mlops_cli.records import config, locks, pipeline, pointers

SCHEMAS = Path(documents.__file__).parents[1] / "schemas"
KINDS = ("pointer", "config", "pipeline", "lock")
DIGEST = "blake3:" + "0123456789abcdef" * 4

READERS: dict[str, Callable[[bytes], object]] = {
    "pointer": lambda data: pointers.read_pointer(data, "some file"),
    "config": lambda data: config.read_config(data, "config.yaml"),
    "pipeline": lambda data: pipeline.read_pipeline(data, "mlx.yaml", folder="", read_file={"v.yaml": b"q: 1"}.get),
    "lock": lambda data: locks.read_lock(data, "mlx.lock/s.yaml", ""),
}

VALID: dict[str, list[dict[str, Any]]] = {
    "pointer": [
        {"mlx": 1, "path": "raw", "tree": DIGEST, "size": 1, "files": 2},
        {"mlx": 1, "path": "m.joblib", "blob": DIGEST, "size": 0},
        {"mlx": 1, "path": "a b é", "blob": DIGEST, "size": 2**63 - 1, "executable": True},
        {
            "mlx": 1,
            "path": "raw",
            "blob": DIGEST,
            "size": 1,
            "source": {"url": "s3://b/raw", "etag": "x y", "fetched": DIGEST},
        },
        {
            "mlx": 1,
            "path": "raw",
            "tree": DIGEST,
            "size": 1,
            "files": 2,
            "source": {
                "repo": "git@host:team/data.git",
                "path": "data/raw",
                "rev": "v1",
                "commit": "a" * 40,
                "remote": "s3://b",
                "fetched": DIGEST,
            },
        },
    ],
    "config": [
        {"mlx": 1},
        {"mlx": 1, "core": {}, "cache": {}, "remotes": {}},
        {
            "mlx": 1,
            "core": {"remote": "a", "lock_timeout": 1.5, "durability": "none", "jobs": 3},
            "cache": {"dir": "/x", "link": "copy"},
            "remotes": {
                "a": {"url": "s3://b"},
                "b.c": {"url": "ssh://me@host:22/x", "paths": ["data/private/**", "!*.txt"], "owner": "single"},
                "d": {"paths": ["/x y/"]},
            },
        },
    ],
    "pipeline": [
        {"mlx": 1},
        {"mlx": 1, "stages": None, "metrics": ["m.json"], "vars": {"a": 1}},
        {
            "mlx": 1,
            "vars": ["v.yaml", {"l": ["x"], "m": ["m.json"]}],
            "stages": {"s": {"cmd": "x", "deps": "${l}", "metrics": "${m}"}},
        },
        {
            "mlx": 1,
            "vars": {"seeds": [0, 1]},
            "environment": {"python": True},
            "stages": {
                "s-1.x_y": {
                    "desc": "d",
                    "cmd": ["x", "y"],
                    "wdir": "w",
                    "deps": ["x/*", "y", "s3://b/x"],
                    "params": ["a", "b.c", {"x.toml": ["d.e"]}, {"y.json": None}],
                    "outs": ["o", {"p": {"push": False, "desc": "e", "persist": True}}, {"q": None}],
                    "metrics": ["m.yml"],
                    "plots": ["p.csv", {"q.csv": {"x": "a", "y": "b", "title": "t"}}],
                    "env": {"A": "1"},
                    "always": True,
                    "frozen": False,
                    "environment": {
                        "files": ["uv.lock"],
                        "python": "minor",
                        "packages": ["a.b"],
                        "image": "i@sha256:1",
                    },
                },
                "m": {"matrix": {"a": [1, "b", {"c": 1}], "seed": "${seeds}"}, "cmd": "x ${seed}"},
            },
        },
        {
            "mlx": 1,
            "stages": {
                "s": {
                    "cmd": "x",
                    "deps": ["y", {"z": {"optional": True, "normalize": "notebook"}}, {"w": None}],
                    "params": [{"z.py": ["a.b"]}],
                    "when": True,
                    "pass_env": ["CUDA_*"],
                },
            },
        },
        {
            "mlx": 1,
            "stages": {
                "n": {"matrix": {"a": [1, "b"], "exclude": [{"a": "b"}], "include": [{"a": 1, "d": 2}]}, "cmd": "x"},
                "f": {"foreach": [1, "b"], "cmd": "x"},
            },
        },
        {
            "mlx": 1,
            "resources": {"gpus": 2},
            "stages": {
                "s": {
                    "cmd": "x",
                    "resources": {"memory": "1.5GiB"},
                    "mutex": ["m"],
                    "timeout": "2h",
                    "retries": {"times": 2, "delay": 5},
                },
            },
        },
        {"mlx": 1, "stages": {"g": {"foreach": {"a": None, "b": {"c": 1}}, "cmd": "x"}}},
    ],
    "lock": [
        {"mlx": 1, "cmd": "x"},
        {
            "mlx": 1,
            "cmd": ["x", "y"],
            "deps": [{"path": "a/../b", "blob": DIGEST, "size": 1}, {"path": "t", "tree": DIGEST, "size": 1}],
            "globs": ["*.py"],
            "params": {"params.yaml": {"a": {"b": [1, None]}}},
            "env": {"A": ""},
            "wdir": "w",
            "outs": [
                {"path": "o", "tree": DIGEST, "size": 1, "files": 3, "push": False},
                {"path": "p", "blob": DIGEST, "size": 1, "git": True, "executable": False},
            ],
            "metrics": {"m.json": {"a": 0.5}},
            "started_from": [
                {"path": "o", "tree": DIGEST, "size": 1, "files": 3},
                {"path": "p", "blob": DIGEST, "size": 1},
            ],
            "accepted": [{"reason": "only comments", "from": DIGEST}, {"reason": "é"}],
            "urls": [{"url": "https://h/x", "etag": "a b", "size": 1}],
            "changed_during_run": ["s3://b/x"],
            "environment": {"python": "3.12.1", "packages": {"torch": "2.1"}, "image": "i"},
        },
        {"mlx": 1, "cmd": "x", "deps": [{"path": "a", "blob": DIGEST, "size": 1, "normal": DIGEST}], "without": ["z"]},
    ],
}

# Values put in place of every value of every valid document.
REPLACEMENTS: list[Any] = [None, True, 3, -1, 1.5, "", "text", [], ["x"], [3], {}, {"x": 1}, {"x": None}]
PATHS = ["../x", "/x", "a/../../x", ".git/x", "a/.GIT", "C:/x", "a\0b", "a/b", "a/*.txt", "a?.json", "[a].yaml"]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(document: dict[str, Any], at: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    made = copy.deepcopy(document)
    inside: Any = made
    for key in at[:-1]:
        inside = inside[key]
    change(inside, at[-1])
    return made


def mutations(kind: str) -> Iterator[dict[str, Any]]:
    """Yield documents near the valid ones: a value replaced, a key removed, renamed or added."""
    for document in VALID[kind]:
        yield document
        for at in places(document):
            if at[0] == "vars" and (len(at) > 2 or isinstance(at[-1], str)) and at != ("vars",):
                continue  # what a name stands for, schemas do not follow
            for value in REPLACEMENTS + (PATHS if at[0] != "vars" else []):
                yield changed(document, at, lambda inside, key, value=value: inside.__setitem__(key, value))  # type: ignore[misc]
            yield changed(document, at, lambda inside, key: inside.pop(key))
            if isinstance(at[-1], str):
                yield changed(document, at, lambda inside, key: inside.update({f"{key}x": inside.pop(key)}))
                yield changed(document, at, lambda inside, key: inside.update(unknown=1))
                yield changed(document, at, lambda inside, key: inside.update({"../x": inside.pop(key)}))


def accepts(kind: str, document: dict[str, Any]) -> bool:
    ordered = {"mlx": document["mlx"]} | document if "mlx" in document else document
    try:
        READERS[kind](dump_yaml(ordered))
    except RecordError as error:
        if any(words in error.message for words in BEYOND_SCHEMAS):
            pytest.skip("beyond schemas")
        return False
    return True


# What readers refuse and schemas cannot.
BEYOND_SCHEMAS = (
    "leaves the project",
    "is the whole project",
    "twice",
    "is not defined",
    "does not exist",
    "that mlx uses itself",
    "would both be named",
    "which cannot stand within",
    "which is no axis",
    "matches nothing",
    "leaves no combination",
    "to name a stage by",
    "`foreach` holds an empty value",
    "`when`: ",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_describes_every_key(kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.v1.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)

    def check(part: Any, where: str) -> None:
        if isinstance(part, list):
            for index, item in enumerate(part):
                check(item, f"{where}[{index}]")
        if not isinstance(part, dict):
            return
        if part.get("type") == "object" and "properties" in part and "title" in part:
            assert part["additionalProperties"] is False, where
            for key, about in part["properties"].items():
                assert {"title", "description"} <= about.keys(), f"{where}.{key}"
        for key, inner in part.items():
            check(inner, f"{where}.{key}")

    assert {"title", "description", "$id"} <= schema.keys()
    assert schema["$id"] == f"mlx/{kind}/v1"
    check(schema, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_reader_and_schema_accept_and_refuse_the_same(kind: str) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.v1.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    counts = {True: 0, False: 0}
    differing = []
    for document in mutations(kind):
        try:
            read = accepts(kind, document)
        except pytest.skip.Exception:
            continue
        counts[read] += 1
        if read != validator.is_valid(document):
            differing.append((read, document))

    assert differing[:5] == []
    assert min(counts.values()) >= len(VALID[kind])
    assert sum(counts.values()) > 100


def test_every_record_module_is_documented() -> None:
    assert records.__doc__
