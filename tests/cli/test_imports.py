"""What `import`, `update` and `get` say, and how they end, as a user sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def shared(project: Project) -> Path:
    """Return a folder of files beside the project."""
    folder = project.root.parent / "shared"
    folder.mkdir()
    (folder / "prices.csv").write_text("a,1\n", encoding="utf-8")
    return folder


def test_an_import_and_its_updates(project: Project, shared: Path) -> None:
    done = project.must("import", "../shared/prices.csv", "data/prices.csv")
    assert done.stdout.startswith(f"imported data/prices.csv (1 file, 4 B) from file://{shared}/prices.csv at 20")
    assert done.stderr == "next: git add data/prices.csv.mlx data/.gitignore\n"

    again = project.must("import", "../shared/prices.csv", "data/prices.csv")
    assert again.stdout == f"unchanged data/prices.csv: file://{shared}/prices.csv is what it was\n"

    left = project("update")
    assert (left.code, left.stdout) == (0, "left       data/prices.csv\n")
    assert "`mlx update --local` follows it" in left.stderr

    named = project("update", "data/prices.csv")
    assert (named.code, named.stdout) == (2, "")
    assert "hint: `--local` follows it" in named.stderr

    (shared / "prices.csv").write_text("a,22\n", encoding="utf-8")
    assert project.must("update", "--local", "-n").stdout.startswith("would update data/prices.csv: 20")
    assert project.must("update", "--local").stdout.startswith("updated    data/prices.csv: 20")
    assert (project.root / "data/prices.csv").read_text() == "a,22\n"


def test_a_name_that_looks_like_an_option(project: Project, shared: Path) -> None:
    done = project.must("import", "../shared/prices.csv", "--", "-rf")
    assert done.stderr == "next: git add ./-rf.mlx .gitignore\n"


def test_a_url_without_a_name_asks_for_one(project: Project) -> None:
    for command, hint in (("import", "`mlx import URL PATH`"), ("get", "`mlx get URL -o PATH`")):
        refused = project(command, "http://127.0.0.1:1/")
        assert refused.code == 2
        assert refused.stderr == f"error: `http://127.0.0.1:1/` ends in no name\nhint: say where to put it: {hint}\n"


def test_an_update_that_fails_in_part_ends_with_the_code_of_that(project: Project, shared: Path) -> None:
    project.must("import", "../shared/prices.csv", "one.csv")
    project.must("import", ".", "data/labels.csv", "two.csv")
    (shared / "prices.csv").unlink()

    result = project("update", "--local")

    assert result.code == 6
    assert result.stdout.splitlines()[0].startswith("failed     one.csv: there is nothing at")
    assert result.stdout.splitlines()[1] == "unchanged  two.csv"
    assert "hint: check its spelling" in result.stderr
    document = project("update", "--local", "--json").json()
    assert [item["outcome"] for item in document["updates"]] == ["failed", "unchanged"]
    assert document["updates"][0]["error"]["message"].startswith("there is nothing at")


def test_a_part_of_another_revision_of_a_project(project: Project) -> None:
    done = project.must("import", ".", "data/raw", "older", "--rev", "v1")
    assert " from file://" in done.stdout
    assert (project.root / "older/a.png").read_text() == "pixels\n"
    assert project.must("update", "older", "--rev", "main", "--local").stdout.startswith("updated    older: ")
    assert (project.root / "older/a.png").read_text() == "other pixels\n"


def test_what_is_only_recorded_is_told_as_pinned(project: Project) -> None:
    arguments = (".", "data/raw", "older", "--rev", "v1", "--no-download")
    assert project("import", *arguments, "--dry-run").stdout.startswith("would pin older ")
    assert project.must("import", *arguments).stdout.startswith("pinned older (")
    assert not (project.root / "older").exists()


def test_ls_and_status_tell_what_is_imported(project: Project, shared: Path) -> None:
    assert "from" not in project.must("ls").stdout.splitlines()[0].split()
    project.must("import", "../shared/prices.csv", "prices.csv")
    project.must("import", ".", "data/raw/5", "part", "--rev", "v1")

    listed = {entry["path"]: entry["source"] for entry in project.must("ls", "--json").json()["entries"]}
    assert listed["data/raw"] is None
    assert listed["prices.csv"]["url"] == f"file://{shared}/prices.csv"
    assert (listed["part"]["path"], listed["part"]["rev"]) == ("data/raw/5", "v1")
    assert project.must("ls", "--json", "prices.csv").json()["entries"][0]["source"] == listed["prices.csv"]
    row = next(line for line in project.must("ls").stdout.splitlines() if " part " in line)
    assert row.endswith(f"file://{project.root} data/raw/5")

    (project.root / "prices.csv").write_text("mine\n")
    assert f"  modified   prices.csv  (1 modified)  (imported from file://{shared}/prices.csv)" in (
        project.must("status").stdout.splitlines()
    )
    states = {item["path"]: item for item in project.must("status", "--json").json()["data"]}
    assert states["prices.csv"]["source"] == f"file://{shared}/prices.csv"
    assert states["data/raw"]["source"] == ""


def test_get_works_outside_of_projects(project: Project, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outside"
    folder.mkdir()

    done = project("get", str(project.root), "data/raw", "-o", "raw", "--rev", "v1", cwd=folder)
    also = project("get", str(shared / "prices.csv"), cwd=folder)

    assert (done.code, also.code) == (0, 0), done.stderr + also.stderr
    assert (folder / "raw/a.png").read_text() == "pixels\n"
    assert sorted(path.name for path in folder.iterdir()) == ["prices.csv", "raw"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["import", "a", "b", "c", "d"], 2, "`mlx import` has no use for `d`"),
        (["get", "a", "b", "c"], 2, "`mlx get` has no use for `c`"),
        (["import", "--rev", "v1", "https://host/x"], 2, "`https://host/x` alone is a URL"),
        (["update", "--rev", "v1"], 2, "`--rev` is about imports that are named"),
        (["import", "https://a:b@127.0.0.1:1/x"], 2, "`https://127.0.0.1:1/x` has a password"),
        (["import", "ext::sh -c x", "y"], 2, "`ext::sh -c x` is no place"),
        (["import", "http://127.0.0.1:1/x", "--no-download"], 2, "`http://127.0.0.1:1/x` cannot be pinned"),
        (["import", ".", "data/raw", "../outside"], 2, "outside the project"),
        (["import", ".", "data/nothing"], 2, "`data/nothing` of"),
        (["import", "git://127.0.0.1:1/x", "y"], 6, "Git cannot read `git://127.0.0.1:1/x`"),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], code: int, message: str, project: Project) -> None:
    result = project(*args)

    assert result.code == code
    assert message in result.stderr.partition("\nhint:")[0]
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_hostile_record_is_refused_with_its_line(project: Project) -> None:
    pointer = project.root / "data/raw.mlx"
    digest = next(line for line in pointer.read_text().splitlines() if line.startswith("tree"))[6:]
    lines = f"source:\n  repo: ext::sh -c touch% pwned\n  path: x\n  commit: {'a' * 40}\n  fetched: {digest}\n"
    pointer.write_text(pointer.read_text() + lines)

    result = project("update", "--local")

    assert result.code == 2
    assert "data/raw.mlx:7: `repo`: `ext::sh -c touch% pwned` is no place" in result.stderr
    assert not list(project.root.rglob("pwned"))
