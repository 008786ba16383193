"""Bad input as users meet it: the exact sentence, the hint, the exit code, and nothing lost or written."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mlops_cli.hashing import Digest, hash_bytes, parse_digest
from mlops_cli.workspace.project import find_project
from tests.cli.conftest import LEAVES, Project
from tests.conftest import Result, make_result
from tests.disks import small_disk
from tests.objects import cache_at, contents, damage, lose, lose_all

DEADLINE = 60  # seconds; only a test that fails waits so long
PIPELINE = """\
mlx: 1
vars: {rate: 0.1}
stages:
  train:
    cmd: cat data.csv > model.txt
    deps: [data.csv]
    outs: [model.txt]
"""
# What only helps the program on: locks, the state index and its clock, and the logs of runs.
NO_DATA = re.compile(r"\.git/mlx/(locks/|state\.db|clock|runs/|remotes/[^/]+/[^/]+\.idx)")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small project that is committed, run and pushed: to be copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "home").mkdir()
    (folder / "repo").mkdir()
    project = Project(folder / "repo", folder / "home")
    project.git("init", "--quiet", "--initial-branch=main", "--template=")
    project.must("init")
    project.write("data.csv", "a,1\n")
    project.write("images/1.png", "pixels\n")
    project.write("images/2.png", "other pixels\n")
    project.must("add", "data.csv", "images")
    project.must("remote", "add", "storage", "../storage")
    project.write("mlx.yaml", PIPELINE)
    project.must("run")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=First result")
    project.must("push")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """Return a copy of the small project, with its remote."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    return Project(folder / "repo", folder / "home")


def picture(root: Path) -> dict[str, object]:
    """Return everything that is below `root` and is not only there for the program's own ease."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if NO_DATA.match(relative):
                continue
            if path.is_symlink():
                found[relative] = path.readlink()
            elif path.is_file():
                found[relative] = path.read_bytes()
            elif not relative.startswith(".git/"):
                found[relative] = path.lstat().st_mode
    return found


def refuse(
    project: Project,
    *args: str | Path,
    error: str,
    hint: str | None,
    code: int = 2,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run `mlx`, which must say exactly this and leave every byte as it was."""
    before = picture(project.root)

    result = project(*args, env=env, cwd=cwd)

    assert result.stderr == said(error, hint)
    assert (result.code, result.stdout) == (code, "")
    assert picture(project.root) == before


def report(project: Project, *, error: str, hint: str | None) -> None:
    """Run `mlx status`, which must tell exactly this as its first problem, and leave every byte as it was."""
    before = picture(project.root)
    hint = usual_hint(error, hint)

    result, document = project("status"), project("status", "--json")

    assert result.code == document.code == 2
    assert f"problems:\n  {error}\n" in result.stdout
    assert result.stderr.endswith(f"next: {hint}\n" if hint else "")
    assert document.json()["problems"][0] == {"message": error, "hint": hint}
    assert document.json()["clean"] is False
    assert picture(project.root) == before


def said(error: str, hint: str | None) -> str:
    """Return what is told; an invalid record without a hint of its own has the usual one."""
    hint = usual_hint(error, hint)
    return f"error: {error}\n" + (f"hint: {hint}\n" if hint else "")


def usual_hint(error: str, hint: str | None) -> str | None:
    place = re.match(r"([^\s:]+):\d+: ", error)
    return f"mend it there, or `git restore {place[1]}` takes back the committed one" if place and not hint else hint


def last_said(result: Result) -> str:
    """Return the error and the hint, which come after the conversation."""
    return result.stderr[result.stderr.index("error: ") :]


def real(project: Project, *args: str, prefix: tuple[str, ...] = ()) -> Result:
    """Run the real program, which must end before the deadline."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "mlops_cli", *args],
        cwd=project.root,
        env={**os.environ, "HOME": str(project.home)},
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        stdin=subprocess.DEVNULL,
    )
    return make_result(done.returncode, done.stdout, done.stderr)


# Where there is no project -------------------------------------------------------------------------------------------

EVERYWHERE = [
    ["status"],
    ["add", "x"],
    ["checkout"],
    ["push"],
    ["run"],
    ["why"],
    ["metrics", "show"],
    ["config", "list"],
]


@pytest.mark.parametrize("args", EVERYWHERE, ids=" ".join)
def test_outside_a_git_repository(args: list[str], tmp_path: Path) -> None:
    refuse(
        Project(tmp_path, tmp_path),
        *args,
        error=f"`{tmp_path}` is not in a Git repository",
        hint="`git init && mlx init` makes a project here",
    )


def test_a_project_needs_a_git_repository(tmp_path: Path) -> None:
    refuse(
        Project(tmp_path, tmp_path),
        "init",
        error=f"`{tmp_path}` is not in a Git repository",
        hint="run `git init` first",
    )


@pytest.mark.parametrize("args", [["init"], ["status"]], ids=" ".join)
def test_a_bare_repository(args: list[str], tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path / "bare"], check=True)
    refuse(
        Project(tmp_path / "bare", tmp_path),
        *args,
        error=f"`{tmp_path / 'bare'}` is in a bare Git repository, which has no files checked out",
        hint="`git clone` it, and work in the clone",
    )


@pytest.mark.parametrize("args", EVERYWHERE, ids=" ".join)
def test_a_repository_that_is_no_project(args: list[str], repo: Path) -> None:
    refuse(
        Project(repo, repo),
        *args,
        error=f"no mlx project in `{repo}` or above it",
        hint="`mlx init` makes one here",
    )


# Records that are not what they must be ------------------------------------------------------------------------------

POINTER, LOCK, CONFIG = "data.csv.mlx", "mlx.lock/train.yaml", ".mlx/config.yaml"
# The commands that must refuse a bad file of each kind; any of them may write or delete.
READERS = {
    POINTER: [["checkout", "--force"], ["push"], ["pull"], ["ls"], ["cat", "data.csv"]],
    LOCK: [["checkout", "--force"], ["push"], ["pull"], ["run", "--force"], ["why"]],
    CONFIG: [*EVERYWHERE, ["config", "set", "core.jobs", "2"], ["remote", "add", "other", "/other"]],
    "mlx.yaml": [["run"], ["checkout", "--force"], ["push"], ["graph"], ["stage", "list"], ["add", "new"]],
}
BY_HAND = "keep the lines that are right, and remove those that Git added (`<<<<<<<`, `=======`, `>>>>>>>`)"
DEEP, LARGE = "[" * 50_000, "# " + "x" * 2_000_000 + "\n"


def spoiled(
    file: str, old: str, new: str, line: int, error: str, hint: str | None
) -> tuple[str, str, str, int, str, str | None]:
    return file, old, new, line, error, hint


RECORDS = {
    # mlx.yaml
    "pipeline, unknown key": spoiled(
        "mlx.yaml", "deps:", "dep:", 6, "unknown key `dep` in stage `train`", "did you mean `deps`?"
    ),
    "pipeline, unknown key at the top": spoiled(
        "mlx.yaml", "stages:", "stage:", 3, "unknown key `stage` in `mlx.yaml`", "did you mean `stages`?"
    ),
    "pipeline, wrong type": spoiled(
        "mlx.yaml", "deps: [data.csv]", "deps: 7", 6, "`deps` must be a list (`[a, b]`), not the number `7`",
        'write `deps: ["7"]`',
    ),
    "pipeline, text in place of a list": spoiled(
        "mlx.yaml", "deps: [data.csv]", "deps: data.csv", 6, "`deps` must be a list (`[a, b]`), not text",
        "write `deps: [data.csv]`",
    ),
    "pipeline, output that is a pattern": spoiled(
        "mlx.yaml", "outs: [model.txt]", 'outs: ["*.txt"]', 7,
        "`outs[0]`: `*.txt` is a pattern, and only `deps` may hold patterns",
        "name the file, or the folder that holds the files",
    ),
    "pipeline, matrix that makes one output twice": spoiled(
        "mlx.yaml", "    cmd", "    matrix: {kind: [a, b], seed: [1, 2], only: [x]}\n    cmd", 4,
        "stages `train@a-1-x` and `train@a-2-x` both make `model.txt`", "put `${kind}` and `${seed}` in it",
    ),
    "pipeline, matrix with an axis forgotten": spoiled(
        "mlx.yaml", "    cmd: cat data.csv > model.txt\n    deps: [data.csv]\n    outs: [model.txt]",
        "    matrix: {kind: [a, b], seed: [1, 2]}\n    cmd: x\n    outs: ['${kind}.txt']", 4,
        "stages `train@a-1` and `train@a-2` both make `a.txt`", "put `${seed}` in it",
    ),
    "pipeline, duplicate key": spoiled(
        "mlx.yaml", "    deps", "    cmd: x\n    deps", 6,
        "key `cmd` is here twice, first on line 5", "keep one of them"
    ),
    "pipeline, tab": spoiled(
        "mlx.yaml", "    deps", "\tdeps", 6, "a tab is used as indentation", "indent with spaces"
    ),
    "pipeline, unclosed quote": spoiled(
        "mlx.yaml", "cmd: cat", 'cmd: "cat', 5, "a quote is opened and never closed", "close it on the same line"
    ),
    "pipeline, 50,000 brackets": spoiled(
        "mlx.yaml", "[data.csv]", DEEP, 6, "nested more than 32 levels deep", None
    ),
    "pipeline, 2 MB": spoiled(
        "mlx.yaml", "stages:", LARGE + "stages:", 1, "the file is larger than 1 MiB (SIZE bytes)", None
    ),
    "pipeline, undefined variable": spoiled(
        "mlx.yaml", "> model", "> ${rat} > model", 5, "`${rat}` is not defined", "did you mean `${rate}`?"
    ),
    "pipeline, output outside": spoiled(
        "mlx.yaml", "[model.txt]", "[../model.txt]", 7, "`outs[0]`: path `../model.txt` must not hold `..`", None
    ),
    "pipeline, double output in one stage": spoiled(
        "mlx.yaml",
        "[model.txt]",
        "[model.txt, model.txt]",
        4,
        "stage `train` names output `model.txt` twice",
        "name it once",
    ),
    # A pointer
    "pointer, unknown key": spoiled(
        POINTER, "size:", "sise: 4\nsize:", 4, "unknown key `sise` in this pointer", "did you mean `size`?"
    ),
    "pointer, wrong type": spoiled(POINTER, "size: 4", "size: big", 4, "`size` must be a whole number, not text", None),
    "pointer, duplicate key": spoiled(
        POINTER, "size: 4", "size: 4\nsize: 5", 5, "key `size` is here twice, first on line 4", "keep one of them"
    ),
    "pointer, tab": spoiled(POINTER, "size:", "\tsize:", 4, "a tab is used as indentation", "indent with spaces"),
    "pointer, unclosed quote": spoiled(
        POINTER, "path: ", 'path: "', 2, "a quote is opened and never closed", "close it on the same line"
    ),
    "pointer, 50,000 brackets": spoiled(
        POINTER, "size: 4", f"size: {DEEP}", 4, "nested more than 32 levels deep", None
    ),
    "pointer, 2 MB": spoiled(POINTER, "size:", LARGE + "size:", 1, "the file is larger than 1 MiB (SIZE bytes)", None),
    "pointer, to its parent": spoiled(
        POINTER,
        "path: ",
        "path: ../",
        2,
        "`path`: path `../data.csv` must not hold empty parts, `.` or `..`",
        None,
    ),
    "pointer, absolute": spoiled(
        POINTER, "path: data.csv", "path: /etc/passwd", 2, "`path`: path `/etc/passwd` must be relative", None
    ),
    "pointer, into Git": spoiled(
        POINTER,
        "path: data.csv",
        "path: .git/hooks",
        2,
        "`path`: path `.git/hooks` reaches into `.git`, which belongs to Git",
        None,
    ),
    "pointer, into Git in disguise": spoiled(
        POINTER,
        "path: data.csv",
        "path: .GIT",
        2,
        "`path`: path `.GIT` reaches into `.GIT`, which belongs to Git",
        None,
    ),
    "pointer, elsewhere": spoiled(
        POINTER,
        "path: data.csv",
        "path: images/1.png",
        2,
        "`path` is `images/1.png`, and must be a single name: a pointer lies beside its data",
        "move the pointer to where `1.png` is",
    ),
    "pointer, of another name": spoiled(
        POINTER,
        "path: data.csv",
        "path: images",
        2,
        "`path` is `images`, but this file is `data.csv.mlx`",
        "rename the file to `images.mlx`",
    ),
    "pointer, unknown digest": spoiled(
        POINTER, "blake3:", "md5:", 3, "`blob`: `md5` is not a digest algorithm mlx knows: it must be `blake3`", None
    ),
    "pointer, newer": spoiled(
        POINTER,
        "mlx: 1",
        "mlx: 2",
        1,
        "format version 2 is newer than this mlx understands",
        "upgrade: `pip install --upgrade mlops-cli`",
    ),
    # A lock
    "lock, unknown key": spoiled(LOCK, "outs:", "outz:", 5, "unknown key `outz` in this lock", "did you mean `outs`?"),
    "lock, unknown key inside": spoiled(
        LOCK, "{path: model", "{sise: 4, path: model", 6, "unknown key `sise` in `outs[0]`", "did you mean `size`?"
    ),
    "lock, wrong type": spoiled(LOCK, "size: 4", "size: big", 4, "`size` must be a whole number, not text", None),
    "lock, duplicate key": spoiled(
        LOCK, "deps:", "cmd: x\ndeps:", 3, "key `cmd` is here twice, first on line 2", "keep one of them"
    ),
    "lock, tab": spoiled(LOCK, "  - ", "\t- ", 4, "a tab is used as indentation", "indent with spaces"),
    "lock, unclosed quote": spoiled(
        LOCK, "path: data", 'path: "data', 4, "a quote is opened and never closed", "close it on the same line"
    ),
    "lock, 50,000 brackets": spoiled(LOCK, "cmd: ", f"cmd: {DEEP}", 2, "nested more than 32 levels deep", None),
    "lock, 2 MB": spoiled(LOCK, "outs:", LARGE + "outs:", 1, "the file is larger than 1 MiB (SIZE bytes)", None),
    "lock, output outside": spoiled(
        LOCK, "path: model", "path: ../model", 6, "`path`: path `../model.txt` must not hold `..`", None
    ),
    "lock, unknown digest": spoiled(
        LOCK, "blake3:", "sha256:", 4, "`blob`: `sha256` is not a digest algorithm mlx knows: it must be `blake3`", None
    ),
    # The configuration
    "config, unknown key": spoiled(
        CONFIG, "remote: ", "jobs: 2\n  remot: ", 4, "unknown key `remot` in `core`", "did you mean `remote`?"
    ),
    "config, unknown section": spoiled(
        CONFIG, "core:", "cores:", 2, "unknown key `cores` in this configuration", "did you mean `core`?"
    ),
    "config, wrong type": spoiled(
        CONFIG,
        "core:\n",
        "core:\n  lock_timeout: soon\n",
        3,
        "`core.lock_timeout` must be a number of seconds, 0 or more, not text",
        None,
    ),
    "config, duplicate key": spoiled(
        CONFIG, "core:\n", "core:\n  remote: x\n", 4, "key `remote` is here twice, first on line 3", "keep one of them"
    ),
    "config, tab": spoiled(CONFIG, "  remote:", "\tremote:", 3, "a tab is used as indentation", "indent with spaces"),
    "config, unclosed quote": spoiled(
        CONFIG, "remote: ", "remote: '", 3, "a quote is opened and never closed", "close it on the same line"
    ),
    "config, 50,000 brackets": spoiled(
        CONFIG, "remote: ", f"remote: {DEEP}", 3, "nested more than 32 levels deep", None
    ),
    "config, 2 MB": spoiled(CONFIG, "core:", LARGE + "core:", 1, "the file is larger than 1 MiB (SIZE bytes)", None),
}  # fmt: skip


@pytest.mark.parametrize("case", RECORDS)
def test_a_bad_record_is_refused_by_every_command_that_reads_it(case: str, project: Project) -> None:
    file, old, new, line, error, hint = RECORDS[case]
    text = (project.root / file).read_text()
    assert old in text
    size = project.write(file, text.replace(old, new, 1)).stat().st_size
    project.write("new", "x\n")

    told = f"{file}:{line}: {error.replace('SIZE', f'{size:,}')}"
    for args in READERS[file]:
        refuse(project, *args, error=told, hint=hint)
    if file != CONFIG:  # without which nothing can be asked
        report(project, error=told, hint=hint)


def test_the_committed_record_is_offered_where_git_has_one_as_seen_from_here(project: Project) -> None:
    (project.root / "images" / "deep").mkdir()
    project.write(POINTER, "mlx: 1\npath: data.csv\nblob: x\nsize: 4\n")

    result = project("ls", cwd=project.root / "images")
    assert result.code == 2
    assert result.stderr.startswith(f"error: {POINTER}:3: ")
    assert result.stderr.endswith(f"`git restore ../{POINTER}` takes back the committed one\n")
    project.git("restore", POINTER)
    project.write("new.mlx", "mlx: 1\npath: new\nblob: x\nsize: 4\n")
    result = project("ls")
    assert result.stderr.startswith("error: new.mlx:3: ")
    assert result.stderr.endswith("\nhint: mend it there\n")


def test_a_file_of_another_program_is_told_and_can_be_ignored(project: Project) -> None:
    (project.root / "analysis.mlx").write_bytes(b"PK\x03\x04")

    told = {"error": "`analysis.mlx` is not a pointer of mlx", "hint": "rename it, or list it in `.mlxignore`"}
    for args in (["checkout"], ["pull"], ["ls"]):
        refuse(project, *args, **told)
    report(project, **told)
    project.write(".mlxignore", "*.mlx\n")
    assert '"clean": true' in project.must("status", "--json").stdout
    project.must("checkout")


def test_the_side_at_fault_is_named(project: Project) -> None:
    text = (project.root / POINTER).read_text()
    project.write(POINTER, text.replace("size: 4", "size: big"))
    fault = f"{POINTER}:4: `size` must be a whole number, not text"

    refuse(project, "diff", error=fault, hint=None)
    project.git("commit", "--quiet", "--all", "--message=Bad")
    project.git("branch", "branch")
    for args in (["branch", "main"], ["main", "branch"]):
        refuse(project, "diff", *args, error=f"at revision `{args[0]}`: {fault}", hint=None)
    refuse(project, "diff", "HEAD~1", "branch", error=f"at revision `branch`: {fault}", hint=None)


def test_a_pipeline_that_is_no_file(project: Project) -> None:
    hint = "stages are declared in a file of this name: move what is there away, or mend the link"
    (project.root / "mlx.yaml").unlink()
    (project.root / "mlx.yaml").symlink_to("gone.yaml")
    project.write("new", "x\n")
    for args in READERS["mlx.yaml"]:
        refuse(project, *args, error="`mlx.yaml` is not a file", hint=hint)
    report(project, error="`mlx.yaml` is not a file", hint=hint)
    (project.root / "mlx.yaml").unlink()
    (project.root / "mlx.yaml").mkdir()
    report(project, error="`mlx.yaml` is not a file", hint=hint)


def merge(project: Project, change: Callable[[str], object]) -> None:
    """Make `change` as one thing on a branch and as another here, and merge the two, which Git cannot."""
    project.git("checkout", "--quiet", "-b", "other")
    change("2")
    project.git("commit", "--quiet", "--all", "--message=Theirs")
    project.git("checkout", "--quiet", "main")
    change("3")
    project.git("commit", "--quiet", "--all", "--message=Ours")
    done = subprocess.run(["git", "merge", "other"], cwd=project.root, capture_output=True, text=True, check=False)
    assert "Automatic merge failed" in done.stdout


def test_a_conflict_in_what_people_write_is_named(project: Project) -> None:
    text = (project.root / "mlx.yaml").read_text()
    merge(project, lambda number: project.write("mlx.yaml", text.replace("0.1", number)))

    for args in READERS["mlx.yaml"]:
        refuse(project, *args, error="mlx.yaml:2: the file has merge conflict markers of Git", hint=BY_HAND)
    report(project, error="mlx.yaml:2: the file has merge conflict markers of Git", hint=BY_HAND)

    ours = (project.root / "mlx.yaml").read_text().replace("<<<<<<< HEAD\n", "").partition("=======\n")[0]
    project.write("mlx.yaml", ours + ">>>>>>> other\n" + text.partition("}\n")[2])  # mended, but for one line
    report(project, error="mlx.yaml:3: the file has merge conflict markers of Git", hint=BY_HAND)
    project.write("mlx.yaml", ours + text.partition("}\n")[2])
    project.must("status")


def test_a_conflict_in_the_settings_is_named(project: Project) -> None:
    merge(project, lambda number: project.must("config", "set", "core.jobs", number))

    for args in READERS[CONFIG]:
        refuse(project, *args, error=f"{CONFIG}:4: the file has merge conflict markers of Git", hint=BY_HAND)


def test_a_conflict_in_a_pointer_and_a_lock_ends_as_the_hints_say(project: Project) -> None:
    def change(number: str) -> None:
        project.write("data.csv", f"a,{number}\n")
        project.must("add", "data.csv")
        project.must("run")

    merge(project, change)

    told = {
        "error": f"{POINTER}:3: the file has merge conflict markers of Git",
        "hint": f"`mlx resolve {POINTER}` merges both sides, or says what is to be decided; "
        "then `mlx checkout data.csv` brings its bytes",
    }
    for args in READERS[POINTER]:
        refuse(project, *args, **told)
    report(project, **told)
    undecided = project("resolve", POINTER)
    assert undecided.code == 1
    assert undecided.stdout == "conflict: data.csv was changed on both sides\n"
    assert undecided.stderr == (
        "next: `mlx resolve --ours data.csv`, or `--theirs`; ours is `HEAD`, theirs is the branch that you merge\n"
    )
    project.must("resolve", "--theirs", "data.csv")
    told = {
        "error": f"{LOCK}:4: the file has merge conflict markers of Git",
        "hint": f"`mlx resolve {LOCK}` merges both sides, or says what is to be decided; then `mlx run`",
    }
    for args in (["checkout"], ["run"]):
        refuse(project, *args, **told)
    report(project, **told)
    done = project.must("resolve")
    kept = "ours is kept; nobody ran it with the inputs of the merge yet: `mlx run` does"
    assert done.stdout == f"took ours {LOCK}: {kept}\n"
    assert done.stderr == "next: `git commit`, then `mlx run`\n"
    project.must("checkout", "data.csv")
    project.must("run")
    assert (project.root / "data.csv").read_text() == (project.root / "model.txt").read_text() == "a,2\n"
    assert '"clean": true' in project.must("status", "--json").stdout


def test_a_bad_record_at_a_revision_is_named_with_the_revision(project: Project) -> None:
    text = (project.root / POINTER).read_text()
    project.write(POINTER, text.replace("size: 4", "size: big"))
    project.git("commit", "--quiet", "--all", "--message=Bad")
    project.write(POINTER, text)

    refuse(
        project,
        "ls",
        "--rev",
        "HEAD",
        error=f"at revision `HEAD`: {POINTER}:4: `size` must be a whole number, not text",
        hint=None,
    )


@pytest.mark.parametrize("name", [POINTER, LOCK, "mlx.yaml", CONFIG, "params.yaml"])
def test_a_fifo_in_place_of_a_record_hangs_nothing(name: str, project: Project) -> None:
    (project.root / name).unlink(missing_ok=True)
    os.mkfifo(project.root / name)

    result = real(project, "status")

    assert result.code in (0, 2)
    assert "Traceback" not in result.stderr


# Pipelines that cannot be --------------------------------------------------------------------------------------------

TWO_STAGES = """\
mlx: 1
stages:
  prepare:
    cmd: touch {marker}
    deps: [{first_dep}]
    outs: [{first}]
  train:
    cmd: touch {marker}
    deps: [{second_dep}]
    outs: [{second}]
"""


@pytest.mark.parametrize(
    ("deps", "outs", "error", "hint"),
    [
        (
            ("b.txt", "a.txt"),
            ("a.txt", "b.txt"),
            "mlx.yaml:3: stages wait for one another: `prepare` → `train` → `prepare`",
            "`prepare` and `train` each need what the other makes: drop one of the dependencies",
        ),
        (
            ("out/b/deep", "out/a/*.txt"),
            ("out/a", "out/b"),
            "mlx.yaml:3: stages wait for one another: `prepare` → `train` → `prepare`",
            "`prepare` and `train` each need what the other makes: drop one of the dependencies",
        ),
        (
            ("a.txt", "data.csv"),
            ("a.txt", "b.txt"),
            "mlx.yaml:3: stage `prepare` depends on `a.txt` and makes `a.txt`: it would wait for itself",
            "with `a.txt: {persist: true}` in `outs`, and not in `deps`, it goes on from what is there",
        ),
        (
            ("data.csv", "data.csv"),
            ("a.txt", "a.txt"),
            "mlx.yaml:7: stages `prepare` and `train` both make `a.txt`",
            "an output belongs to one stage: take it out at mlx.yaml:3 or mlx.yaml:7",
        ),
        (
            ("data.csv", "data.csv"),
            ("out", "out/b.txt"),
            "mlx.yaml:7: output `out/b.txt` of stage `train` lies inside output `out` of stage `prepare`",
            (
                "stages may share a folder when each names its own files: in `outs` of `prepare` (mlx.yaml:3) name the "
                "files that it writes to `out`, instead of the folder"
            ),
        ),
        (
            ("data.csv", "data.csv"),
            ("out/deep/a.txt", "out"),
            "mlx.yaml:3: output `out/deep/a.txt` of stage `prepare` lies inside output `out` of stage `train`",
            (
                "stages may share a folder when each names its own files: in `outs` of `train` (mlx.yaml:7) name the "
                "files that it writes to `out`, instead of the folder"
            ),
        ),
        (
            ("data.csv", "data.csv"),
            ("a.txt", "images/b.txt"),
            "mlx.yaml:7: output `images/b.txt` of stage `train` lies inside `images`, which `images.mlx` tracks",
            "write it somewhere else",
        ),
        (
            ("data.csv", "data.csv"),
            ("a.txt", "images"),
            "mlx.yaml:7: output `images` of stage `train` is also tracked by `images.mlx`",
            "`mlx remove images` leaves it to the stage",
        ),
    ],
)
def test_stages_that_get_in_each_others_way_are_both_named(
    deps: tuple[str, str], outs: tuple[str, str], error: str, hint: str, project: Project
) -> None:
    text = TWO_STAGES.format(marker="ran", first_dep=deps[0], second_dep=deps[1], first=outs[0], second=outs[1])
    project.write("mlx.yaml", text)

    for args in (["run"], ["run", "--dry-run"], ["graph"]):
        refuse(project, *args, error=error, hint=hint)
    report(project, error=error, hint=hint)
    assert not (project.root / "ran").exists()


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("${rat}", "mlx.yaml:4: `${rat}` is not defined", "did you mean `${rate}`?"),
        ("${rate.low}", "mlx.yaml:4: `${rate.low}` is not defined", None),
    ],
)
def test_a_name_that_is_not_defined(text: str, error: str, hint: str | None, project: Project) -> None:
    project.write("mlx.yaml", f'mlx: 1\nvars: {{rate: 0.1}}\nstages: {{train: {{\n  cmd: "touch {text}"}}}}\n')

    result = project("run")

    assert result.code == 2
    assert result.stderr.splitlines()[0] == f"error: {error}"
    assert hint is None or f"hint: {hint}\n" in result.stderr


def test_a_dependency_that_nothing_knows(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("[data.csv]", "[dta.csv]"))
    before = picture(project.root)

    result = project("run")

    assert result.code == 2
    assert last_said(result) == said(
        "mlx.yaml:4: dependency `dta.csv` of stage `train` does not exist",
        "create it, mend `deps`, or `mlx pull dta.csv` if a remote has it",
    )
    assert picture(project.root) == before


def test_a_stage_of_a_folder_asked_for_by_its_name(project: Project) -> None:
    project.write("sub/mlx.yaml", "mlx: 1\nstages: {test: {cmd: echo}}\n")
    error = "there is no stage `test`"

    assert project("why", "test", cwd=project.root / "sub").code == 0  # names are seen from where one is
    refuse(project, "why", "test", error=error, hint="did you mean `sub:test`?")
    project.write("deep/sub/mlx.yaml", "mlx: 1\nstages: {test: {matrix: {m: [a]}, cmd: echo}}\n")
    refuse(project, "run", "test", error=error, hint="did you mean `sub:test` or `deep/sub:test`?")
    refuse(project, "run", "trian", error="there is no stage `trian`", hint="did you mean `train`?")
    refuse(project, "run", "xyz", error="there is no stage `xyz`", hint="`mlx stage list` lists the stages")


def test_a_project_inside_a_project(project: Project) -> None:
    inner = project.root / "inner"
    inner.mkdir()

    for args in (["init", "--dry-run"], ["init"]):
        result = project(*args, cwd=inner)
        assert result.code == 0
        assert result.stderr.splitlines()[0] == (
            f"note: it is inside the project `{project.root}`, which does not see what is below `{inner}`"
        )
    assert project("init", cwd=inner).stderr == ""
    assert project("init").stderr == ""


# Words that are empty ------------------------------------------------------------------------------------------------


def words_with_empty() -> Iterator[tuple[list[str], str]]:
    """Yield, for each text that a command takes, a call in which that one is empty, and what the error calls it."""
    for path, command in LEAVES.items():
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            if is_option and (parameter.is_flag or parameter.count or parameter.type.name.startswith(("int", "float"))):
                continue
            words = list(path)
            for other in command.params:
                if other is parameter or other.required:
                    given = "" if other is parameter else "x"
                    words += [other.opts[0], given] if other.param_type_name == "option" else [given]
            what = f"`{parameter.opts[0]}`" if is_option else "an argument"
            yield words, f"{what} of `mlx {' '.join(path)}` is empty"


UNSET = "give it a value, or leave it out; perhaps a variable of the shell is not set"


def test_an_empty_word_means_nothing_and_never_everything(project: Project) -> None:
    cases = list(words_with_empty())
    for words, error in cases:
        refuse(project, *words, error=error, hint=UNSET)
    assert len(cases) > 40
    refuse(project, "push", "data.csv", "", error="an argument of `mlx push` is empty", hint=UNSET)
    refuse(project, "ls", "--rev=", error="`--rev` of `mlx ls` is empty", hint=UNSET)
    refuse(project, "-C", "", "checkout", "--force", error="`-C` of `mlx` is empty", hint=UNSET)


def test_the_project_itself_has_no_bytes_to_print(project: Project) -> None:
    for here in (".", "images/..", str(project.root)):
        refuse(project, "cat", here, error=f"`{here}` is a folder", hint="`mlx ls` lists what is tracked in it")


@pytest.mark.parametrize("text", ["blake3:zz", "blake3:0G", f"blake3:{'z' * 64}"])
def test_what_is_no_digest(text: str, project: Project) -> None:
    hint = "a digest is `blake3:` and 64 digits of 0-9 and a-f"
    refuse(project, "cat", text, error=f"`{text}` is not a digest", hint=hint)


@pytest.mark.parametrize("command", ["diff", "metrics diff", "params diff"])
@pytest.mark.parametrize(
    ("text", "two"), [("HEAD~1..HEAD", "HEAD~1 HEAD"), ("main...v1.2", "main v1.2"), ("v1.0..", "v1.0 HEAD")]
)
def test_a_range_of_revisions(command: str, text: str, two: str, project: Project) -> None:
    hint = f"give two revisions: `mlx {command} {two}`"
    refuse(project, *command.split(), text, error=f"`{text}` is a range", hint=hint)


# Paths that cannot be added ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["../outside.csv", "{parent}/outside.csv", "images/../../outside.csv"])
def test_a_path_outside_the_project(spelling: str, project: Project) -> None:
    outside = project.root.parent / "outside.csv"
    outside.write_text("x\n")

    refuse(
        project,
        "add",
        "data.csv",
        spelling.format(parent=project.root.parent),
        error=f"`{outside}` is outside the project `{project.root}`",
        hint="copy or move it into the project first",
    )


def test_a_path_that_git_tracks(project: Project) -> None:
    project.write("code/train.py", "x\n")
    project.git("add", "code")

    for path in ("code/train.py", "code"):
        refuse(
            project,
            "add",
            path,
            error="Git already tracks `code/train.py`",
            hint="`git rm -r --cached code/train.py` takes it out of Git and leaves the file; then add it again",
        )


def test_the_hint_for_a_path_that_git_tracks_mends_it(project: Project) -> None:
    project.write("code/train.py", "x\n")
    project.git("add", "code")

    hint = project("add", "code").stderr.splitlines()[1]
    project.git(*hint.removeprefix("hint: `git ").partition("`")[0].split())

    assert project("add", "code").code == 0


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's whole path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("make", "kind"), [(make_fifo, "FIFO"), (make_socket, "socket")])
def test_what_holds_no_bytes_is_refused_at_once(make: Callable[[Path], None], kind: str, project: Project) -> None:
    make(project.root / "strange")
    project.write("folder/file", "x\n")
    make(project.root / "folder" / "strange")
    make(project.root / "images" / "strange")
    before = picture(project.root)

    for path, named in (("strange", "strange"), ("folder", "folder/strange"), ("images", "images/strange")):
        result = real(project, "add", "data.csv", path)

        assert result.stderr == said(
            f"`{named}` is a {kind}, which holds no bytes to store", "remove it, or name it in a `.mlxignore`"
        )
        assert (result.code, result.stdout) == (2, "")
        assert picture(project.root) == before


def test_a_fifo_inside_tracked_data_hangs_nothing(project: Project) -> None:
    (project.root / "data.csv").unlink()
    make_fifo(project.root / "data.csv")
    before = picture(project.root)

    for args in (["checkout"], ["run"], ["diff"]):
        result = real(project, *args)

        assert result.code == 2, args
        assert "`data.csv` is a FIFO" in last_said(result)
    assert picture(project.root) == before


def make_repository(path: Path) -> None:
    (path / ".git").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (make_fifo, "`images/odd` is a FIFO, which holds no bytes to store", "remove it, or name it in a `.mlxignore`"),
        (
            make_repository,
            "`images/odd` holds a Git repository of its own (`images/odd/.git`)",
            "`echo .git >> images/odd/.mlxignore` leaves it out",
        ),
    ],
)
def test_status_tells_what_cannot_be_stored_and_goes_on(
    make: Callable[[Path], None], message: str, hint: str, project: Project
) -> None:
    make(project.root / "images" / "odd")
    project.write("data.csv", "another\n")

    result = real(project, "status")
    document = project("status", "--json")

    assert result.code == document.code == 2
    assert "  unstorable images\n" in result.stdout
    assert "  modified   data.csv" in result.stdout
    assert "  run        train\n" in result.stdout
    assert f"problems:\n  {message}\n" in result.stdout
    assert f"next: {hint}\n" in result.stderr
    value = document.json()
    assert {item["path"]: item["state"] for item in value["data"]} == {"data.csv": "modified", "images": "unstorable"}
    assert value["problems"] == [{"message": message, "hint": hint}]
    assert real(project, "add", "images").stderr == said(message, hint)

    project.write(".mlxignore", "odd\n")
    assert project("status").code == 0


def test_status_tells_a_stage_that_cannot_be_judged(project: Project) -> None:
    (project.root / "data.csv").unlink()
    make_fifo(project.root / "data.csv")
    before = picture(project.root)

    result = real(project, "status")

    assert result.code == 2
    assert "  unstorable data.csv\n" in result.stdout
    assert "  run        train\n               `data.csv` is a FIFO, which holds no bytes to store\n" in result.stdout
    assert result.stdout.endswith("problems:\n  `data.csv` is a FIFO, which holds no bytes to store\n")
    assert picture(project.root) == before


# What status tells where a record is bad -----------------------------------------------------------------------------


def test_a_bad_pointer_hides_no_other_path(project: Project) -> None:
    project.write(POINTER, "mlx: 1\n")
    project.write("images/1.png", "edited\n")
    problem = f"{POINTER}:1: `path` is missing in this pointer"

    result = project("status")
    value = project("status", "--json").json()

    assert "  modified   images  (1 modified)\n" in result.stdout
    assert f"  run        train\n               {problem}\n" in result.stdout
    assert "next: `mlx add images` records it" in result.stderr
    assert [item["path"] for item in value["data"]] == ["images"]
    assert [item["message"] for item in value["problems"]] == [problem]


def test_every_bad_record_is_told(project: Project) -> None:
    project.write(POINTER, "mlx: 1\n")
    project.write("images.mlx", "mlx: 1\n")
    project.write(LOCK, "mlx: 1\n")

    problems = project("status", "--json").json()["problems"]

    assert [item["message"].partition(":")[0] for item in problems] == [POINTER, "images.mlx", LOCK]
    assert all("git restore" in item["hint"] for item in problems)


def test_a_bad_lock_is_a_problem_of_its_stage_only(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE + "  count:\n    cmd: wc -l images.csv > n\n    outs: [n]\n")
    project.write(LOCK, "mlx: 1\n")

    result = project("status")

    assert result.code == 2
    assert "  run        train\n               mlx.lock/train.yaml:" in result.stdout
    assert "  run        count\n               it has not run yet (no lock)\n" in result.stdout
    assert "problems:\n  mlx.lock/train.yaml:" in result.stdout
    assert "untracked" not in result.stdout  # nobody knows whether a run recorded `model.txt`


def test_where_a_pipeline_cannot_be_read_nothing_is_said_of_any_stage(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("deps:", "dep:"))
    project.write("more/mlx.yaml", "mlx: 1\nstages: {after: {cmd: cat ../model.txt, deps: [../model.txt]}}\n")
    project.write("data.csv", "edited\n")

    result = project("status")

    assert result.code == 2
    assert "  modified   data.csv" in result.stdout
    assert "stages:" not in result.stdout
    assert "problems:\n  mlx.yaml:6: unknown key `dep` in stage `train`\n" in result.stdout


def test_remotes_are_not_asked_where_a_record_cannot_be_read(project: Project) -> None:
    project.write(POINTER, "mlx: 1\n")

    result = project("status", "--remote")
    value = project("status", "--remote", "--json").json()

    assert result.code == 2
    assert "note: the remotes were not asked, for a record cannot be read\n" in result.stderr
    assert value["remotes"] == []
    assert value["notes"] == ["the remotes were not asked, for a record cannot be read"]


# What status offers --------------------------------------------------------------------------------------------------


def test_a_link_in_place_of_data_is_not_to_be_added(project: Project) -> None:
    (project.root / "data.csv").unlink()
    (project.root / "data.csv").symlink_to("images/1.png")

    result = project("status")
    item = next(item for item in project("status", "--json").json()["data"] if item["path"] == "data.csv")

    assert "next: `mlx checkout --force data.csv` undoes it, `mlx diff` lists it\n" in result.stderr
    assert (item["storable"], item["restorable"]) == (False, True)
    assert project("add", "data.csv").code == 2
    refuse(
        project,
        "checkout",
        "data.csv",
        error="`data.csv` would be overwritten or deleted, and no store holds the bytes",
        hint="move it away; `--force` throws it away",
    )
    project.must("checkout", "--force", "data.csv")
    assert (project.root / "data.csv").read_text() == "a,1\n"


@pytest.mark.parametrize("path", ["data.csv", "images/1.png"])
def test_what_is_nowhere_here_is_not_offered(path: str, project: Project) -> None:
    owner = path.partition("/")[0]
    old = hash_bytes((project.root / path).read_bytes())
    project.write(path, "edited\n")
    lose(cache_at(project.cache), old)

    with_remote = project("status").stderr
    project.must("remote", "remove", "storage")
    without = project("status").stderr

    assert f"`mlx add {owner}` records it, `mlx pull --force {owner}` undoes it" in with_remote
    assert f"next: `mlx add {owner}` records it, `mlx diff` lists it\n" in without


def test_what_is_gone_here_and_in_the_cache_is_not_offered(project: Project) -> None:
    old = hash_bytes((project.root / "images" / "1.png").read_bytes())
    (project.root / "images" / "1.png").unlink()
    lose(cache_at(project.cache), old)

    with_remote = project("status").stderr
    project.must("remote", "remove", "storage")
    without = project("status").stderr

    assert "next: `mlx pull images` brings back what is gone, `mlx add images` records that it is" in with_remote
    assert "next: `mlx add images` records that it is, `mlx diff` lists it\n" in without


def test_a_word_that_yaml_takes_for_a_truth_value_is_not_spelled_otherwise(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE + "    params: [on]\n")

    refuse(
        project,
        "run",
        error="mlx.yaml:8: `params[0]` must be text or `file: [keys]`, not `true`",
        hint="put it in quotes, as it is written there: without them it is true or false",
    )


def test_the_doctor_says_what_is_wrong_with_a_pipeline_once(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("deps:", "dep:"))

    told = project("doctor").stdout
    apart = project("doctor", "--json").json()["findings"]

    assert told.count("mlx.yaml:6: unknown key `dep` in stage `train`") == 1
    assert [finding["name"] for finding in apart if finding["health"] == "failed"] == ["records"]


def test_the_doctor_says_what_is_wrong_between_pipelines(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE + "  again: {cmd: x, outs: [model.txt]}\n")

    findings = project("doctor", "--json").json()["findings"]

    assert [finding["name"] for finding in findings if finding["health"] == "failed"] == ["stages"]


# Bytes that would be lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "keeping"),
    [("data.csv", "add data.csv"), ("images/1.png", "add images/1.png"), ("model.txt", "run train")],
)
def test_unsaved_changes_are_not_overwritten_unless_forced(path: str, keeping: str, project: Project) -> None:
    saved = (project.root / path).read_text()
    project.write(path, "unsaved\n")

    for args in (["checkout"], ["checkout", path], ["pull"], ["pull", "--dry-run"]):
        refuse(
            project,
            *args,
            error=f"`{path}` would be overwritten or deleted, and no store holds the bytes",
            hint=f"`mlx {keeping}` keeps it; `--force` throws it away",
        )
    forced = project("checkout", "--force")

    assert (forced.code, forced.stderr) == (0, "")
    assert (project.root / path).read_text() == saved


def test_an_unsaved_new_file_is_not_deleted_unless_forced(project: Project) -> None:
    project.write("images/3.png", "unsaved\n")

    refuse(
        project,
        "checkout",
        error="`images/3.png` would be overwritten or deleted, and no store holds the bytes",
        hint="`mlx add images/3.png` keeps it; `--force` throws it away",
    )
    project.must("checkout", "--force")

    assert not (project.root / "images" / "3.png").exists()


# Objects that are not there, or not themselves -----------------------------------------------------------------------


def test_a_missing_object_names_the_pull_that_brings_it(project: Project) -> None:
    lose(cache_at(project.cache), hash_bytes(b"pixels\n"))
    (project.root / "images" / "1.png").unlink()

    refuse(
        project,
        "checkout",
        code=4,
        error="the cache lacks 1 object of `images`; all else was brought",
        hint="`mlx pull images` brings it from a remote",
    )
    assert project("pull", "images").code == 0
    assert (project.root / "images" / "1.png").read_text() == "pixels\n"


def test_an_object_that_is_nowhere_cannot_be_pulled(project: Project) -> None:
    lose_all(project.cache)
    lose_all(project.root.parent / "storage")
    (project.root / "data.csv").unlink()
    before = picture(project.root)

    result = project("pull", "data.csv")

    assert (result.code, result.stdout) == (4, "")
    assert last_said(result) == said(
        "remote `storage` lacks 1 object of `data.csv`, as does the cache",
        "`mlx push` from a clone that has it, with this commit checked out; what could be fetched is in the cache",
    )
    assert picture(project.root) == before


def test_an_input_that_is_recorded_but_not_here_names_the_pull(project: Project) -> None:
    (project.root / "data.csv").unlink()
    project.write("mlx.yaml", PIPELINE.replace("cat data", "cat  data"))
    before = picture(project.root)

    result = project("run")

    assert result.code == 4
    assert last_said(result) == said(
        "stage `train` needs `data.csv`, which is recorded but not in the workspace", "`mlx pull data.csv` brings it"
    )
    assert picture(project.root) == before


@pytest.mark.parametrize("content", [b"pixels\n", bytes(3 << 20)], ids=["small", "large"])
@pytest.mark.parametrize(
    "args", [["checkout"], ["push", "--remote", "empty"], ["cat", "images/1.png"], ["cat", "images/1.png", "-o", "new"]]
)
def test_a_damaged_object_is_found_and_put_away_and_a_fetch_heals_it(
    args: list[str], content: bytes, project: Project
) -> None:
    (project.root / "images" / "1.png").write_bytes(content)
    project.must("add", "images")
    project.must("push")
    project.must("remote", "add", "empty", "../empty")
    digest = digest_of(project, "images/1.png")
    damage(cache_at(project.cache), digest)
    (project.root / "images" / "1.png").unlink()

    result = project(*args)

    (moved,) = (project.cache / "quarantine").iterdir()
    packed = moved.name.endswith(".pack")
    assert packed == (len(content) < 100)
    spoilt = content[:-1] + bytes([content[-1] ^ 1])
    reason = "its record is not what was written" if packed else f"its bytes hash to `{hash_bytes(spoilt)[:19]}`"
    owner = "images" if args[0] == "push" else "images/1.png"
    hint = f"it is in `quarantine/` of the cache now; `mlx pull {owner}` brings a good one from a remote"
    assert last_said(result).replace("damaged: a record", "damaged: its record") == said(
        f"`{owner}`: object `{digest[:19]}` in the cache is damaged: {reason}",
        "`mlx add images` or `mlx run` makes a good one again" if args[0] == "push" else hint,
    )
    assert result.code == 5
    assert packed or moved.read_bytes() == spoilt
    assert not (project.root / "images" / "1.png").exists()
    assert not (project.root / "new").exists()
    sent = [path.read_bytes() for path in (project.root.parent / "empty" / "objects").glob("*/*")]
    assert spoilt not in sent
    assert content not in sent
    project.must("fetch", "--remote", "storage")
    assert project(*args).code == 0
    project.must("checkout")
    assert (project.root / "images" / "1.png").read_bytes() == content
    assert '"clean": true' in project("status", "--json").stdout


def test_reading_what_is_not_in_the_cache_names_it_and_the_pull(project: Project) -> None:
    lose_all(project.cache)

    for args in (["cat", "data.csv"], ["cat", "data.csv", "-o", "new"], ["cat", "data.csv", "--json"]):
        result = project(*args)
        assert result.code == 4
        assert "`data.csv` is not in the cache" in result.stderr
        assert "`mlx pull data.csv` brings it from a remote" in result.stderr
    refuse(
        project,
        "cat",
        "data.csv",
        "--rev",
        "HEAD",
        error="`data.csv` is not in the cache",
        hint="`mlx fetch --rev HEAD data.csv` brings it from a remote",
        code=4,
    )


def test_a_damaged_listing_of_a_folder_is_found(project: Project) -> None:
    tree = next(digest for digest, data in contents(project.cache).items() if data.startswith(b"MLXT"))
    damage(cache_at(project.cache), tree)
    shutil.rmtree(project.root / "images")

    result = project("checkout")

    assert result.code == 5
    assert "error: `images`: object " in result.stderr
    assert "in the cache is damaged" in result.stderr
    assert "`mlx pull images` brings a good one from a remote" in result.stderr
    assert not (project.root / "images").exists()
    project.must("pull")
    assert sorted(path.name for path in (project.root / "images").iterdir()) == ["1.png", "2.png"]


def test_a_damaged_object_of_a_remote_is_not_let_in(project: Project) -> None:
    remote = project.root.parent / "storage"
    digest = digest_of(project, "data.csv")
    place = cache_at(remote).packs.find(digest)
    assert place is not None
    damage(cache_at(remote), digest)
    lose_all(project.cache)

    result = project("fetch")

    assert result.code == 5
    assert last_said(result) == said(
        f"`data.csv`: object `{digest[:19]}` in remote `storage` is damaged: its record is not what was written "
        f"(`packs/{place.pack}.pack`)",
        "`mlx push --repair` from a clone that has it makes it good",
    )
    assert b"a,1\n" not in contents(project.cache).values()


def digest_of(project: Project, path: str) -> Digest:
    """Return the digest that `mlx` has on record for a file."""
    folder, _, _ = path.rpartition("/")
    entries = project("ls", "--json", *([folder] if folder else [])).json()["entries"]
    return parse_digest(next(entry["digest"] for entry in entries if entry["path"] == path))


# Remotes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["fetch"], ["pull"]])
def test_a_remote_that_does_not_exist(args: list[str], project: Project) -> None:
    project.must("remote", "add", "gone", "/nonexistent/remote")
    lose_all(project.cache)

    refuse(
        project,
        *args,
        "--remote",
        "gone",
        code=6,
        error="remote `gone` (`/nonexistent/remote`) does not exist",
        hint="mount it, or check its URL: `mlx remote list`",
    )


@pytest.mark.parametrize("args", [["push"], ["fetch"], ["pull"]])
def test_a_remote_that_no_setting_names(args: list[str], project: Project) -> None:
    refuse(
        project,
        *args,
        "--remote",
        "strage",
        error="there is no remote `strage` (there is: `storage`)",
        hint="`mlx remote add strage URL`",
    )


def test_a_project_without_a_remote(project: Project) -> None:
    project.must("remote", "remove", "storage")

    for args in (["push"], ["fetch"]):
        if args == ["fetch"]:
            lose_all(project.cache)
        refuse(
            project,
            *args,
            error="this project has no remote",
            hint="`mlx remote add storage URL` makes one; a folder is a URL too",
        )


def test_choosing_among_no_remotes(project: Project) -> None:
    project.must("remote", "remove", "storage")

    for command in ("default", "remove"):
        refuse(
            project,
            "remote",
            command,
            "strage",
            error="there is no remote `strage`, nor any other",
            hint="`mlx remote add strage URL`",
        )


def test_a_default_remote_that_is_still_to_come(project: Project) -> None:
    result = project.must("config", "set", "core.remote", "later")

    assert result.stderr == "note: no remote is called `later` yet: `mlx remote add later URL` makes it\n"
    assert project.must("config", "set", "core.remote", "storage").stderr == ""


def test_a_remote_below_a_regular_file(project: Project) -> None:
    place = project.root.parent / "file"
    place.write_text("x\n")
    project.must("remote", "add", "odd", "../file/remote")

    refuse(
        project,
        "push",
        "--remote",
        "odd",
        code=6,
        error=f"remote `odd` is `{place}/remote`, and there is no folder `{place}` to make it in",
        hint="mount it, or make that folder; `mlx remote list` shows the URL",
    )
    lose_all(project.cache)
    refuse(
        project,
        "fetch",
        "--remote",
        "odd",
        code=6,
        error=f"remote `odd` (`{place}/remote`) does not exist",
        hint="mount it, or check its URL: `mlx remote list`",
    )
    assert place.read_text() == "x\n"


@pytest.fixture
def powerless() -> tuple[str, ...]:
    """Return the start of a command line that permissions hold for, even when the tests are run by root."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root, and no `setpriv` to become less")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")


def test_a_remote_that_may_not_be_written(project: Project, powerless: tuple[str, ...]) -> None:
    remote = project.root.parent / "closed"
    remote.mkdir()
    project.must("remote", "add", "closed", "../closed")
    before = picture(project.root)

    remote.chmod(0o555)
    try:
        result = real(project, "push", "--remote", "closed", prefix=powerless)
    finally:
        remote.chmod(0o755)

    assert result.stderr == said(
        f"cannot write to remote `closed` (`{remote}`): permission denied", "check who owns it and its permissions"
    )
    assert (result.code, result.stdout) == (6, "")
    assert picture(project.root) == before
    assert list(remote.iterdir()) == []


def test_a_remote_that_may_not_be_read(project: Project, powerless: tuple[str, ...]) -> None:
    remote = project.root.parent / "storage"
    lose_all(project.cache)
    before = picture(project.root)

    remote.chmod(0)
    try:
        results = [real(project, *args, prefix=powerless) for args in (["fetch"], ["push"])]
    finally:
        remote.chmod(0o755)

    for result in results:
        assert result.stderr == said(
            f"cannot read from remote `storage` (`{remote}`): permission denied",
            "check who owns it and its permissions",
        )
        assert (result.code, result.stdout) == (6, "")
    assert picture(project.root) == before


def test_data_that_may_not_be_read(project: Project, powerless: tuple[str, ...]) -> None:
    secret = project.write("secret", "x\n")
    before = picture(project.root)

    secret.chmod(0)
    try:
        result = real(project, "add", "secret", prefix=powerless)
    finally:
        secret.chmod(0o644)

    assert result.code == 6
    assert result.stderr.splitlines()[0].startswith("error: cannot ")
    assert f"{secret}" in result.stderr
    assert result.stderr.splitlines()[0].endswith(": permission denied")
    assert picture(project.root) == before


def test_a_protocol_that_nobody_knows(project: Project) -> None:
    project.must("remote", "add", "odd", "odd://bucket/mlx")

    refuse(
        project,
        "push",
        "--remote",
        "odd",
        code=6,
        error="remote `odd`: mlx does not know the protocol `odd://`",
        hint="use a folder, or a URL that begins with `s3://`, `gs://`, `az://`, `ssh://`, `webdavs://` or `https://`",
    )


@pytest.mark.parametrize(
    ("protocol", "package", "extra"),
    [("s3", "obstore", "s3"), ("gs", "gcsfs", "gs"), ("az", "adlfs", "azure"), ("ssh", "paramiko", "ssh")],
)
def test_a_protocol_whose_package_is_missing(
    protocol: str, package: str, extra: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(known, protocol, raising=False)  # other tests may have loaded it
    project.must("remote", "add", "cloud", f"{protocol}://bucket/mlx")

    refuse(
        project,
        "push",
        "--remote",
        "cloud",
        code=6,
        error=f"remote `cloud` needs a package for `{protocol}://` that is missing",
        hint=f"`pip install 'mlops-cli[{extra}]'`",
    )


# Stages that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "error", "kept"),
    [
        ("echo new > model.txt; exit 3", "stage `train` failed: exit code 3", "new\n"),
        ("echo new > model.txt; kill -9 $$", "stage `train` failed: killed by SIGKILL", "new\n"),
        ("echo new > model.txt; kill -TERM $$", "stage `train` failed: killed by SIGTERM", "new\n"),
        ("no-such-program --at-all", "stage `train` failed: command not found (exit code 127)", None),
        ("./data.csv", "stage `train` failed: the command is not executable (exit code 126)", None),
    ],
)
def test_a_command_that_fails_costs_nothing(command: str, error: str, kept: str | None, project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("cat data.csv > model.txt", command))
    before = picture(project.root)
    shutil.rmtree(project.root / ".git" / "mlx" / "runs")

    result = project("run")

    failed = project.root / ".git" / "mlx" / "failed" / "main" / "train"
    assert result.code == 1
    assert last_said(result) == said(error, "`mlx logs train` shows its output")
    assert "note: the outputs that `train` had before are back\n" in result.stderr
    assert {path: data for path, data in picture(project.root).items() if "/failed/" not in path} == before
    if kept is None:
        assert not failed.exists()
    else:
        assert (failed / "model.txt").read_text() == kept
        assert f"note: what `train` wrote before it failed is in `{failed}`\n" in result.stderr


@pytest.mark.parametrize(
    ("command", "programs", "told"),
    [
        ("python train.py", [], True),
        ("true && python train.py", [], True),
        ("pythonic train.py", [], False),
        ("python train.py; no-such-program", ["python"], False),
    ],
)
def test_a_stage_that_finds_no_python_is_told_where_one_is(
    command: str, programs: list[str], told: bool, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment, path = tmp_path / "my env", tmp_path / "bin"
    for place in (environment / "python", environment / "activate", *(path / name for name in (*programs, "x"))):
        place.parent.mkdir(exist_ok=True)
        place.write_text("#!/bin/sh\n")
        place.chmod(0o755)
    (path / "git").symlink_to(str(shutil.which("git")))
    shutil.rmtree(project.root / ".git" / "mlx" / "runs")
    monkeypatch.setattr(sys, "executable", str(environment / "python"))
    project.write("mlx.yaml", PIPELINE.replace("cat data.csv > model.txt", command))

    result = project("run", env={"PATH": str(path)})

    activate = f"`. '{environment}/activate'` puts the `python` of mlx on PATH; " if told else ""
    assert result.code == 1
    assert last_said(result) == said(
        "stage `train` failed: command not found (exit code 127)", f"{activate}`mlx logs train` shows its output"
    )


@pytest.mark.parametrize("before_that", ["", "rm -r data.csv; "])
def test_an_output_that_is_not_written(before_that: str, project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("cat data.csv > model.txt", f'"{before_that}true"'))
    old = (project.root / "model.txt").read_text()
    lock = (project.root / LOCK).read_bytes()

    result = project("run")

    assert result.code == 1
    assert last_said(result) == said(
        "stage `train` did not write its output `model.txt`",
        "make the command write it, or mend `outs` in mlx.yaml:4",
    )
    assert (project.root / "model.txt").read_text() == old
    assert (project.root / LOCK).read_bytes() == lock


def test_an_output_that_holds_no_bytes(project: Project) -> None:
    project.write("mlx.yaml", PIPELINE.replace("cat data.csv > model.txt", "mkfifo model.txt"))
    old = (project.root / "model.txt").read_text()

    result = real(project, "run")

    assert result.code == 1
    assert last_said(result).startswith("error: stage `train`: `model.txt` is a FIFO, which holds no bytes to store\n")
    assert (project.root / "model.txt").read_text() == old


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_metrics_that_are_not_numbers(number: str, project: Project) -> None:
    project.write("train.sh", f"cp data.csv model.txt; echo '{{\"loss\": {number}}}' > metrics.json\n")
    text = PIPELINE.replace("cat data.csv > model.txt", "sh train.sh")
    project.write("mlx.yaml", f"{text}    metrics: [metrics.json]\n")
    old = (project.root / "model.txt").read_text()
    lock = (project.root / LOCK).read_bytes()

    result = project("run")

    assert result.code == 1
    error, hint = last_said(result).splitlines()
    assert error.startswith("error: stage `train` wrote metrics that cannot be read: metrics.json:1: ")
    assert "not a finite number" in error
    assert hint.startswith("hint: ")
    assert (project.root / "model.txt").read_text() == old
    assert (project.root / LOCK).read_bytes() == lock
    assert not (project.root / "metrics.json").exists()


@pytest.mark.parametrize("args", [["metrics", "show"], ["metrics", "diff"]])
def test_metrics_of_git_that_are_not_numbers(args: list[str], project: Project) -> None:
    project.write("mlx.yaml", f"{PIPELINE}metrics: [scores.json]\n")
    project.write("scores.json", '{\n"loss": NaN\n}\n')

    refuse(
        project,
        *args,
        error="scores.json:2: `NaN` is not a finite number",
        hint="JSON has no NaN or infinity",
    )


# Two at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["add", "data.csv"], ["checkout"], ["run"], ["pull"], ["remove", "data.csv"]])
def test_a_project_that_is_in_use_names_who_uses_it(args: list[str], project: Project) -> None:
    lock = project.root / ".git" / "mlx" / "locks" / "main.lock"
    with find_project(project.root, os.environ).lock("mlx import"):
        result = project(*args, env={"MLX_CORE_LOCK_TIMEOUT": "0"})

    assert re.fullmatch(
        rf"error: `mlx import` \(process {os.getpid()}, since \S+ \S+\) is at work and holds `{re.escape(str(lock))}`"
        r"\nhint: wait for it to finish, or stop it\n",
        result.stderr,
    )
    assert (result.code, result.stdout) == (6, "")


# A full disk ---------------------------------------------------------------------------------------------------------


def fill(disk: Path) -> Path:
    """Write until nothing more fits; returns the file that takes the room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
    assert os.statvfs(disk).f_bavail == 0
    return filler


@pytest.mark.parametrize("size", [1000, 300_000], ids=["small", "large"])
def test_a_disk_that_is_full_when_data_is_added(size: int, project: Project, tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        cache = disk / "cache"
        project.must("config", "set", "cache.dir", str(cache))
        project.must("add", "data.csv")
        (project.root / "new").mkdir()
        (project.root / "new" / "1").write_bytes(bytes(size))
        (project.root / "new" / "2").write_bytes(bytes(range(250)) * (size // 250))
        filler = fill(disk)
        what = f"`{project.root}/new/2` " if size > 100_000 else ""

        refuse(
            project,
            "add",
            "new",
            code=6,
            error=f"cannot add {what}to the cache (the cache is `{cache}`): the disk is full",
            hint="free some space and run the command again",
        )
        assert not list(cache.rglob("tmp/*"))
        filler.unlink()
        project.must("add", "new")
        assert '"state": "ok"' in project("status", "--json").stdout
        assert (project.root / "new.mlx").is_file()


def test_a_disk_that_fills_up_while_a_stage_is_stored(project: Project, tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        project.must("config", "set", "cache.dir", str(disk / "cache"))
        project.must("add", "data.csv", "images")
        project.must("run", "--force")
        text = PIPELINE.replace("cat data.csv >", "head -c 2000000 /dev/zero >")
        project.write("mlx.yaml", text)
        before = picture(project.root)

        result = project("run")

        assert result.code == 6
        assert last_said(result) == said(
            f"cannot add `{project.root}/model.txt` to the cache (the cache is `{disk / 'cache'}`): the disk is full",
            "free some space and run the command again",
        )
        after = picture(project.root)
        assert {path: data for path, data in after.items() if "/failed/" not in path} == before
        project.must("config", "set", "cache.dir", str(tmp_path / "larger"))
        project.must("add", "data.csv", "images")
        project.must("run")
        assert (project.root / "model.txt").stat().st_size == 2_000_000


def test_a_stage_that_fills_the_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        project = Project(disk / "repo", tmp_path)
        project.root.mkdir()
        project.git("init", "--quiet", "--initial-branch=main", "--template=")
        project.must("init")
        project.must("config", "set", "cache.dir", str(tmp_path / "cache"))
        fill_up = (
            "{cmd: 'cp size model.txt; head -c $(cat size) /dev/zero > big', deps: [size], outs: [model.txt, big]}"
        )
        project.write("mlx.yaml", f"mlx: 1\nstages:\n  fill: {fill_up}\n")
        project.write("size", "1000")
        project.must("run")
        project.write("size", "9000000")

        result = project("run")

        assert result.code == 1
        assert last_said(result) == said("stage `fill` failed: exit code 1", "`mlx logs fill` shows its output")
        aside = project.root / ".git" / "mlx" / "failed" / "main" / "fill"
        assert f"note: what `fill` wrote before it failed is in `{aside}`\n" in result.stderr
        # There is no room for the old outputs beside what was written: they come back when there is.
        assert "its old outputs cannot be brought back yet" in result.stderr
        shutil.rmtree(aside)
        project.write("size", "1000")
        assert "its old outputs are back" in project.must("run").stderr
        assert (project.root / "model.txt").read_text() == "1000"
        assert (project.root / "big").stat().st_size == 1000


def test_a_workspace_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        project = Project(disk / "repo", tmp_path)
        project.root.mkdir()
        project.git("init", "--quiet", "--initial-branch=main", "--template=")
        project.must("init")
        project.must("config", "set", "cache.dir", str(tmp_path / "cache"))
        project.write("data.csv", "a,1\n")
        filler = fill(disk)

        result = project("add", "data.csv")

        assert result.code == 6
        assert result.stderr.splitlines()[0].endswith(": the disk is full")
        assert result.stderr.splitlines()[1] == "hint: free some space and run the command again"
        assert not (project.root / "data.csv.mlx").exists()
        assert not list(project.root.glob(".mlx-tmp-*"))
        assert project("status").code == 0
        filler.unlink()
        project.must("add", "data.csv")
        (project.root / "data.csv").write_bytes(bytes(600_000))
        project.must("add", "data.csv")
        (project.root / "data.csv").unlink()
        filler = fill(disk)
        result = project("checkout")
        assert result.code == 6
        assert ": the disk is full" in result.stderr
        assert not (project.root / "data.csv").exists()
        filler.unlink()
        project.must("checkout")
        assert (project.root / "data.csv").stat().st_size == 600_000


@pytest.mark.parametrize("folder", ["", "sub"])
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (POINTER, "path: data.csv", "path: ../data.csv"),
        (POINTER, "mlx: 1\n", "<<<<<<< ours\nmlx: 1\n=======\nmlx: 1\n>>>>>>> theirs\n"),
        (POINTER, "size: ", "size: -"),
        (LOCK, "mlx: 1\n", "<<<<<<< ours\nmlx: 1\n=======\nmlx: 1\n>>>>>>> theirs\n"),
        ("mlx.yaml", "deps:", "depz:"),
        (CONFIG, "remotes:", "remotez:"),
    ],
)
def test_doctor_says_of_a_record_what_the_commands_say(
    file: str, old: str, new: str, folder: str, project: Project
) -> None:
    text = (project.root / file).read_text(encoding="utf-8")
    assert old in text
    project.write(file, text.replace(old, new, 1))
    (project.root / "sub").mkdir()

    error = project("checkout", "--json", cwd=project.root / folder).json()
    found = project("doctor", "--json", cwd=project.root / folder).json()["findings"]

    failed = [(finding["detail"], finding["hint"]) for finding in found if finding["health"] == "failed"]
    assert failed == [(error["message"], error["hint"])]
