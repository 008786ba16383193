"""Every command's `--json` is one document of its schema, and a failure one error on standard error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.cli import demo
from mlops_cli.documents import schemas
from mlops_cli.documents.schemas import find_violations, load_schema
from tests.cli.conftest import LEAVES, Project
from tests.conftest import Result
from tests.objects import lose_all

SCHEMAS = Path(schemas.__file__).parents[1] / "schemas"
RECORDS = {"config", "lock", "pipeline", "pointer"}

# What each command is called with, and what it returns; several cases where its document has several shapes.
CASES: dict[str, list[tuple[list[str], int]]] = {
    "init": [([], 0), (["--dry-run"], 0)],
    "demo": [(["a-demo"], 0)],
    "doctor": [([], 0)],
    "config get": [(["cache.link"], 0), (["core.jobs"], 0)],
    "config set": [(["core.jobs", "4"], 0), (["--clone", "cache.link", "copy"], 0), (["core.jobs", "4", "-n"], 0)],
    "config unset": [(["core.remote"], 0), (["core.remote", "--dry-run"], 0)],
    "config list": [([], 0), (["--show-origin"], 0)],
    "install": [([], 0), (["--dry-run"], 0), (["--uninstall"], 0)],
    "resolve": [([], 0), (["--dry-run"], 0)],
    "add": [
        (["labels.csv"], 0),
        (["labels.csv", "--to-remote"], 0),
        (["data/raw", "labels.csv", "--dry-run"], 0),
        (["data/raw/7"], 0),
    ],
    "status": [([], 0), (["--check"], 0), (["--remote"], 0), (["--allow-missing"], 0)],
    "checkout": [([], 0), (["data/raw", "--dry-run"], 0), (["--relink"], 0)],
    "unprotect": [(["data/raw"], 0), (["data/labels.csv", "--dry-run"], 0)],
    "diff": [
        ([], 0),
        (["v1"], 0),
        (["v1", "HEAD", "--check"], 1),
        (["v1", "HEAD", "data/raw"], 0),
        (["--remote", "data/raw"], 0),
    ],
    "push": [
        ([], 0),
        (["data/raw", "-r", "backup"], 0),
        (["-r", "backup", "--dry-run"], 0),
        (["--rev", "v1", "--all-branches", "--all-tags"], 0),
        (["--verify"], 0),
        (["--repair", "--dry-run"], 0),
    ],
    "pull": [([], 0), (["data/raw", "--dry-run"], 0)],
    "fetch": [([], 0), (["data/raw", "--dry-run"], 0), (["--rev", "v1"], 0)],
    "remove": [(["data/raw"], 0), (["data/labels.csv.mlx", "--dry-run"], 0)],
    "ls": [([], 0), (["data/raw"], 0), (["--recursive"], 0), (["--rev", "v1", "data/raw"], 0)],
    "cat": [(["data/labels.csv"], 0), (["data/raw/a.png", "--rev", "v1"], 0), (["data/raw", "-o", "out"], 0)],
    "import": [
        (["../storage/mlx.json", "marker.json"], 0),
        ([".", "data/raw", "older", "--rev", "v1"], 0),
        ([".", "data/raw/5", "part", "--no-download"], 0),
        ([".", "data/labels.csv", "labels", "--dry-run"], 0),
    ],
    "update": [([], 0), (["--dry-run"], 0)],
    "get": [(["../storage/mlx.json"], 0), ([".", "data/raw", "-o", "older", "--rev", "v1"], 0)],
    "move": [(["data/raw", "images"], 0), (["data/labels.csv", "data/raw", "--dry-run"], 0)],
    "du": [([], 0), (["data/raw"], 0), (["--rev", "v1"], 0), (["--all-revisions"], 0)],
    "fsck": [
        ([], 0),
        (["--sample", "5", "--max-duration", "60"], 0),
        (["--repair", "--dry-run"], 0),
        (["--remote", "storage"], 0),
        (["--remote", "backup", "--sample", "50"], 4),
    ],
    "gc": [
        (["--dry-run"], 0),
        (["--yes", "--grace", "0s"], 0),
        (["--restore"], 0),
        (["--empty-trash", "--yes"], 0),
    ],
    "evict": [(["data/raw", "--yes"], 0), (["data/raw/a.png", "--cache-only", "--dry-run"], 0)],
    "remote add": [(["third", "s3://bucket/project"], 0), (["storage", "../x", "--force", "--dry-run"], 0)],
    "remote list": [([], 0)],
    "remote default": [(["backup"], 0), (["backup", "--dry-run"], 0)],
    "remote check": [(["scratch"], 0)],
    "remote gc": [([], 0), (["storage", "--yes", "--grace", "0s"], 0)],
    "remote optimize": [([], 0), (["storage", "--yes"], 0)],
    "remote remove": [(["storage"], 0), (["storage", "--dry-run"], 0)],
    "run": [([], 0), (["train", "--force"], 0), (["train@forest", "--dry-run"], 0)],
    "stage add": [(["new", "-c", "true", "-o", "x"], 0), (["new", "-c", "true", "--dry-run"], 0)],
    "stage list": [([], 0)],
    "stage freeze": [(["train"], 0)],
    "stage unfreeze": [(["prepare", "--dry-run"], 0)],
    "stage show": [(["train"], 0), (["prepare"], 0)],
    "graph": [([], 0)],
    "why": [([], 0), (["train@forest"], 0)],
    "logs": [([], 0), (["train"], 0), (["--list"], 0)],
    "accept": [(["prepare", "--reason", "r"], 0)],
    "job make": [(["prepare"], 0), (["train@forest", "-o", "train.yaml", "--remote", "backup"], 0)],
    "job run": [(["job.yaml"], 0), (["job.yaml", "--force", "--folder", "worker"], 0)],
    "reproduce": [(["v1"], 0), (["HEAD", "prepare", "--metrics-only"], 0)],
    "metrics show": [([], 0), (["v1"], 0)],
    "metrics diff": [(["v1"], 0), (["v1", "HEAD", "--all"], 0)],
    "params show": [([], 0), (["HEAD"], 0)],
    "params diff": [(["v1"], 0), (["v1", "HEAD", "--all"], 0)],
}


def document_of(result: Result) -> Any:
    """Return the document a command printed, which must be all it printed, and of the schema that it names."""
    assert result.stderr == ""
    document = json.loads(result.stdout)
    check_document(document)
    return document


def check_document(document: Any) -> None:
    kind = document["schema"].removeprefix("mlx/").removesuffix("/v1")
    assert find_violations(document, kind) == []


CALLS = [
    pytest.param(name, args, code, id=" ".join([name, *args])) for name, cases in CASES.items() for args, code in cases
]


@pytest.mark.parametrize(("name", "args", "code"), CALLS)
def test_the_result_is_a_document_of_the_commands_schema(
    name: str, args: list[str], code: int, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_two = demo._steps("a-demo")[:2]
    monkeypatch.setattr(demo, "_steps", lambda folder: first_two)  # all of it takes half a minute
    monkeypatch.setenv("HOME", str(project.home))

    if name == "remote check":
        project("remote", "add", "scratch", "../scratch")
    if name == "job run":
        project("job", "make", "prepare")
    if name == "remote gc":
        project("config", "set", "remotes.storage.owner", "single")

    result = project(*name.split(), *args, "--json")

    assert result.code == code, result.stderr
    assert document_of(result)["schema"] == f"mlx/{name.replace(' ', '-')}/v1"


def test_every_command_has_json_a_schema_and_a_test() -> None:
    names = [" ".join(path) for path in LEAVES]

    assert sorted(CASES) == sorted(names)
    assert {path.name for path in SCHEMAS.iterdir()} == {
        f"{kind}.v1.json" for kind in {name.replace(" ", "-") for name in names} | RECORDS | {"error"}
    }
    for command in LEAVES.values():
        assert any("--json" in parameter.opts for parameter in command.params), command.name


# What a document says when something is to be said -------------------------------------------------------------------


def test_status_tells_what_differs(project: Project) -> None:
    project.write("data/raw/a.png", "changed\n")
    project.write("data/raw/new.png", "new\n")
    project.write("params.yaml", (project.root / "params.yaml").read_text().replace("trees: 100", "trees: 5"))
    (project.root / "data" / "labels.csv").unlink()

    result = project("status", "--check", "--json")

    document = document_of(result)
    assert result.code == 1
    assert not document["clean"]
    common = {"source": "", "storable": True, "restorable": True, "away": 0, "files": 0}
    assert document["data"] == [
        {"path": "data/labels.csv", "state": "missing", "added": 0, "modified": 0, "deleted": 1, **common},
        {"path": "data/raw", "state": "modified", "added": 1, "modified": 1, "deleted": 0, **common},
    ]
    assert [stage["action"] for stage in document["stages"]] == ["run", "run", "run"]


def test_run_tells_actions_reasons_seconds_and_logs(project: Project) -> None:
    project.write("params.yaml", (project.root / "params.yaml").read_text().replace("trees: 100", "trees: 5"))

    planned = document_of(project("run", "--dry-run", "--json"))
    done = document_of(project("run", "--json"))

    forest = next(stage for stage in done["stages"] if stage["stage"] == "train@forest")
    assert forest["action"] == "run"
    assert forest["reasons"] == ["`params.yaml: train.forest.trees` changed 100 → 5"]
    assert (Path(done["logs"]) / "train@forest.log").read_text() == "training forest\n"
    assert planned["logs"] is None
    without_times = [
        [{key: stage[key] for key in ("stage", "action", "reasons")} for stage in document["stages"]]
        for document in (planned, done)
    ]
    assert without_times[0] == without_times[1]


def test_pull_tells_what_came_and_where_it_went(project: Project) -> None:
    lose_all(project.cache)
    (project.root / "data" / "labels.csv").unlink()

    document = document_of(project("pull", "data/labels.csv", "--json"))

    assert (document["remote"], document["url"], document["objects"]) == ("storage", "../storage", 1)
    assert document["restored"] == [{"path": "data/labels.csv", "added": 1, "modified": 0, "deleted": 0}]


def test_cat_spells_bytes_that_are_not_text_in_base64(project: Project) -> None:
    (project.root / "bytes.bin").write_bytes(b"\xff\x00")
    project.must("add", "bytes.bin")

    document = document_of(project("cat", "bytes.bin", "--json"))

    assert (document["encoding"], document["content"]) == ("base64", "/wA=")


def test_reproduce_tells_what_differs(project: Project) -> None:
    project.write("train.sh", (project.root / "train.sh").read_text() + "date +%N >> models/$1.txt\n")
    project.must("run")
    project.git("commit", "--all", "--quiet", "--message=Not the same twice")

    result = project("reproduce", "HEAD", "--json")

    document = document_of(result)
    assert result.code == 1
    assert [(stage["stage"], stage["same"]) for stage in document["stages"]] == [
        ("prepare", True),
        ("train@forest", False),
        ("train@logistic", False),
    ]


def test_doctor_says_what_is_wrong(project: Project) -> None:
    project.write("data/raw.mlx", "mlx: 1\npath: raw\ntree: nonsense\n")

    result = project("doctor", "--json")

    assert result.code == 1
    failed = [finding for finding in document_of(result)["findings"] if finding["health"] == "failed"]
    assert failed
    assert all(finding["hint"] for finding in failed)


def test_doctor_examines_a_project_whose_settings_are_broken(project: Project) -> None:
    project.write(".mlx/config.yaml", "mlx: 1\ncores: {}\n")

    result = project("doctor", "--json")

    assert (result.code, result.stderr) == (1, "")
    findings = {finding["name"]: finding for finding in document_of(result)["findings"]}
    assert findings["settings"]["health"] == "failed"
    assert findings["stages"]["health"] == findings["cache"]["health"] == "ok"


def test_what_one_should_know_is_in_the_document(project: Project) -> None:
    project.write("models/forest.txt", "made by hand\n")

    result = project("run", "--force", "--json")

    assert [note for note in document_of(result)["notes"] if "`models/forest.txt` held bytes" in note]


def test_names_are_as_they_are(project: Project) -> None:
    names = ["new\nline", "escape\x1b[31m", 'quote"', "tab\t", "ünïcode", os.fsdecode(b"not utf-8 \xff")]
    folder = project.root / "odd"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    project.must("add", "odd")

    listed = document_of(project("ls", "odd", "--json"))
    differing = document_of(project("diff", "HEAD", "odd", "--json"))

    assert {entry["path"] for entry in listed["entries"]} == {f"odd/{name}" for name in names}
    assert {change["path"] for change in differing["changes"]} == {f"odd/{name}" for name in names}


# Failures ------------------------------------------------------------------------------------------------------------

FAILURES: list[tuple[list[str], int]] = [
    (["nonsense"], 2),
    (["status", "--nonsense"], 2),
    (["add"], 2),
    (["add", "absent"], 2),
    (["init", "extra"], 2),
    (["-C", "nowhere", "status"], 2),
    (["--color", "blue", "status"], 2),
    (["remote", "nonsense"], 2),
    (["remote", "add", "storage", "../x"], 2),
    (["config", "get", "core.nonsense"], 2),
    (["config", "get", "cache.dir"], 1),
    (["config", "set", "core.jobs", "many"], 2),
    (["cat", "data/raw"], 2),
    (["diff", "no-such-revision"], 2),
    (["reproduce", "no-such-revision"], 2),
    (["stage", "show", "nonsense"], 2),
    (["push", "-r", "nonsense"], 2),
    (["checkout", "--relink", "--force"], 2),
    (["unprotect", "absent"], 2),
    (["move", "data/prepared", "elsewhere"], 2),
    (["du", "data/raw/a.png"], 2),
    (["fsck", "-r", "nowhere"], 2),
    (["fsck", "--sample", "0"], 2),
    (["import", "nowhere"], 2),
    (["import", ".", "data/raw", "x", "--rev", "nonsense"], 2),
    (["update", "data/raw"], 2),
    (["get", "../storage/mlx.json", "-o", "data"], 2),
    (["cat", "blake3:" + "0" * 64], 4),
]


def error_of(result: Result) -> Any:
    """Return the error a command printed, which must be all it printed."""
    assert result.stdout == ""
    document = json.loads(result.stderr)
    assert document["schema"] == "mlx/error/v1"
    check_document(document)
    return document


@pytest.mark.parametrize(("args", "code"), [pytest.param(*case, id=" ".join(case[0])) for case in FAILURES])
def test_a_failure_is_one_error_on_standard_error(args: list[str], code: int, project: Project) -> None:
    result = project(*args, "--json")

    assert (result.code, error_of(result)["exit_code"]) == (code, code)


def test_a_failing_stage_is_one_error_and_its_output_is_in_the_log(project: Project) -> None:
    project.write("train.sh", "echo this went wrong; exit 3\n")

    result = project("run", "--json")

    error = error_of(result)
    assert result.code == 1
    assert error["message"] == "stage `train@forest` failed: exit code 3"
    assert error["hint"] == "`mlx logs train@forest` shows its output"
    assert project.must("logs", "train@forest").stdout == "this went wrong\n"


def test_an_absent_object_is_one_error(project: Project) -> None:
    lose_all(project.cache)
    (project.root / "data" / "labels.csv").unlink()

    result = project("checkout", "data/labels.csv", "--json")

    assert result.code == 4
    assert error_of(result)["hint"] == "`mlx pull data/labels.csv` brings it from a remote"


def test_an_error_without_a_session_is_one_error(tmp_path: Path, project: Project) -> None:
    result = project("status", "--json", cwd=tmp_path)

    assert result.code == 2
    assert error_of(result)["hint"] == "`git init && mlx init` makes a project here"


@pytest.mark.parametrize("args", [["cat", "--", "--json"], ["remove", "--", "--json"]])
def test_after_two_dashes_json_is_a_name(args: list[str], project: Project) -> None:
    result = project(*args)

    assert result.code == 2
    assert result.stderr.startswith("error: ")


# The schemas themselves ----------------------------------------------------------------------------------------------


def parts(schema: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every subschema that says something about a value, with the place where it is."""
    yield at, schema
    for key, part in schema.get("properties", {}).items():
        yield from parts(part, f"{at}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from parts(schema[key], f"{at}[]")
    for key, part in schema.get("$defs", {}).items():
        yield from parts(part, f"{at}#{key}")


@pytest.mark.parametrize("kind", sorted({name.replace(" ", "-") for name in CASES} | {"error"}))
def test_a_schema_says_what_everything_is(kind: str, check_schema: Callable[[Any], None]) -> None:
    schema = load_schema(kind)

    check_schema(schema)
    assert schema["$id"] == schema["properties"]["schema"]["const"] == f"mlx/{kind}/v1"
    for at, part in parts(schema):
        assert part["title"], at
        assert part["description"].endswith("."), at
        if "properties" in part:
            assert part["additionalProperties"] is False, at
            assert set(part["required"]) <= set(part["properties"]), at


@pytest.fixture
def check_schema() -> Callable[[Any], None]:
    from jsonschema import Draft202012Validator

    return Draft202012Validator.check_schema
