"""Help is complete, fits 80 columns, and every example in it works; what is not understood is answered with what is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from mlops_cli import __version__
from mlops_cli.cli import demo
from mlops_cli.cli.commands import Group
from mlops_cli.cli.main import root_command
from mlops_cli.cli.tree import SECTIONS, load_entry
from tests.cli.conftest import LEAVES, Project
from tests.command_lines import calls, fault
from tests.conftest import InProcess

WIDTH = 80
LONGEST_SUMMARY = 55
CHANGES_SOMETHING = {
    "init",
    "install",
    "resolve",
    "remote gc",
    "remote optimize",
    "accept",
    "add",
    "checkout",
    "unprotect",
    "remove",
    "move",
    "push",
    "pull",
    "evict",
    "fetch",
    "import",
    "update",
    "fsck",
    "gc",
    "run",
    "stage add",
    "stage freeze",
    "stage unfreeze",
    "remote add",
    "remote default",
    "remote remove",
    "config set",
    "config unset",
}
NAMES = [" ".join(path) for path in LEAVES]
EXAMPLES = [
    pytest.param(name, example, id=example.partition("\n")[0])
    for name in NAMES
    for entry in [load_entry(name.split()[0])]
    for example in (entry.commands[name.split()[1]] if isinstance(entry, Group) else entry).examples
]


# What must be so before an example makes sense in the finished project.
def add_images(project: Project) -> None:
    """Add images called as those of the demo, two commits ago."""
    for number in (0, 7):
        project.write(f"data/raw/{number:04}.pgm", f"P5\n8 8\n{number}\n")
    project.must("add", "data/raw")
    for message in ("Images", "No change"):
        project.git("add", ".")
        project.git("commit", "--quiet", "--allow-empty", f"--message={message}")


def add_neighbours(project: Project) -> None:
    """Make what imports are from: a file, and another project."""
    shared = project.root.parent / "shared"
    shared.mkdir()
    (shared / "prices.csv").write_text("a,1\n", encoding="utf-8")
    other = Project(project.root.parent / "data-project", project.home)
    other.root.mkdir()
    other.git("init", "--quiet", "--initial-branch=main", "--template=")
    other.must("init")
    other.write("data/raw/1.pgm", "P5\n")
    other.must("add", "data/raw")
    other.git("add", ".")
    other.git("commit", "--quiet", "--message=Images")
    other.git("tag", "v1")


def conflict(project: Project) -> None:
    """Merge two branches that both added to a tracked folder, with nothing installed that could."""
    project.git("checkout", "--quiet", "-b", "theirs")
    for branch in ("theirs", "main"):
        project.git("checkout", "--quiet", branch)
        project.must("checkout")
        project.write(f"data/raw/{branch}.png", "pixels\n")
        project.must("add", "data/raw")
        project.git("commit", "--quiet", "--all", f"--message={branch}")
    done = subprocess.run(["git", "merge", "--quiet", "theirs"], cwd=project.root, capture_output=True, check=False)
    assert done.returncode == 1


FIRST: dict[str, Callable[[Project], object]] = {
    "resolve": conflict,
    "stage add": lambda project: project.write("mlx.yaml", "mlx: 1\n"),
    "remote add": lambda project: [project.must("remote", "remove", name) for name in ("storage", "backup")],
    "add": add_images,
    "cat": add_images,
    "pull": add_images,
    "remote gc": lambda project: project.must("config", "set", "remotes.storage.owner", "single"),
    "import": add_neighbours,
    "get": add_neighbours,
    "job run": lambda project: project.must("job", "make", "prepare", "-o", "prepare.yaml"),
    "config unset": lambda project: project.must("config", "set", "cache.link", "copy"),
}


@pytest.fixture
def mlx(mlx_in_process: InProcess) -> Callable[..., Any]:
    return lambda *args, **more: mlx_in_process(*args, env={"COLUMNS": str(WIDTH), **more.pop("env", {})}, **more)


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_in_sections(mlx: Any) -> None:
    result = mlx("--help")

    assert result.code == 0
    listed = re.findall(r"^(\w+):$|^  ([a-z]+)  +\S", result.stdout, re.MULTILINE)
    names = [section or name for section, name in listed]
    assert names[names.index("Start") :] == [word for section, found in SECTIONS.items() for word in (section, *found)]


@pytest.mark.parametrize("name", ["", *dict.fromkeys(name.split()[0] for name in NAMES), *NAMES])
def test_help_fits_and_says_nothing_short(name: str, mlx: Any) -> None:
    result = mlx(*name.split(), "--help")

    assert result.code == 0
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= WIDTH
    assert "..." not in result.stdout.replace("]...", "").replace("PATH...", "").replace("STAGE...", "")
    assert mlx(*name.split(), "-h") == result


@pytest.mark.parametrize("name", [*SECTIONS, *NAMES])
def test_the_first_line_of_help_is_a_short_sentence(name: str) -> None:
    for command in SECTIONS.get(name, [name]):
        found: Any = root_command()
        for word in command.split():
            found = found.get_command(None, word)
        summary, _, rest = found.help.partition("\n")

        assert len(summary) <= LONGEST_SUMMARY
        assert re.fullmatch(r"[A-Z][^\n]*[^.\s]", summary)
        assert not rest.strip() or rest.startswith("\n")
        assert not rest or rest.rstrip().endswith(".")


@pytest.mark.parametrize("path", ["mlx", *NAMES])
def test_options_and_arguments_are_explained_in_one_style(path: str) -> None:
    command = root_command() if path == "mlx" else LEAVES[tuple(path.split())]

    for parameter in command.params:
        assert re.fullmatch(r"[A-Z`\[].*[^.]", parameter.help or ""), parameter.name
        if parameter.param_type_name == "option" and not parameter.is_flag and not parameter.count:
            assert re.fullmatch(r"[A-Z=]+", parameter.metavar or ""), parameter.name


def test_what_changes_something_has_a_dry_run() -> None:
    having = {name for name in NAMES if any("--dry-run" in p.opts for p in LEAVES[tuple(name.split())].params)}

    assert having == CHANGES_SOMETHING


def test_a_flag_means_the_same_everywhere() -> None:
    meanings: dict[str, set[str]] = {}
    for command in LEAVES.values():
        for parameter in command.params:
            short = [name for name in parameter.opts if len(name) == 2]
            long = [name for name in parameter.opts if len(name) > 2]
            for name in short:
                meanings.setdefault(name, set()).update(long)
    # `-o` of `stage add` is an output of a stage; `-f` of `logs` is that of `tail`.
    assert {name: names for name, names in meanings.items() if len(names) > 1} == {
        "-f": {"--follow", "--force"},
        "-o": {"--out", "--output"},
    }


# Examples ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_in_an_example(name: str, mlx: Any) -> None:
    lines = mlx(*name.split(), "--help").stdout.rstrip().splitlines()

    start = next(number for number, line in enumerate(lines) if line.strip() in ("Example:", "Examples:"))
    assert len(lines) > start + 1
    assert all(f"mlx {name}" in line or line.startswith("      ") for line in lines[start + 1 :])


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_works(name: str, example: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    first_two = demo._steps("digits-demo")[:2]
    monkeypatch.setattr(demo, "_steps", lambda folder: first_two)  # all of it takes half a minute
    if name in FIRST:
        FIRST[name](project)

    for words in calls(example):
        assert fault(words) is None
        result = project(*words)
        assert result.code == 0, result.stderr


# What is not understood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["remote"], ["config"], ["stage"], ["metrics"]])
def test_without_a_command_help_is_shown_and_nothing_was_done(args: list[str], mlx: Any) -> None:
    result = mlx(*args)

    assert result.code == 2
    assert result.stdout == ""
    assert result.stderr == mlx(*args, "--help").stdout


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "config set core.jobs -1",
            "`mlx config set` has no option `-1`",
            "a value that begins with `-` goes after `--`: `mlx config set … -- -1`",
        ),
        ("metrics show --md --csv", "`--md` and `--csv` are two forms of one table", "choose one of them"),
        ("params diff --md --csv", "`--md` and `--csv` are two forms of one table", "choose one of them"),
        ("graph --dot --mermaid", "`--mermaid` and `--dot` are two forms of one graph", "choose one of them"),
        ("sttus", "there is no command `mlx sttus`", "did you mean `mlx status`?"),
        ("xyzzy", "there is no command `mlx xyzzy`", "`mlx --help` lists the commands"),
        ("remote ad", "there is no command `mlx remote ad`", "did you mean `mlx remote add`?"),
        ("-q", "`mlx` needs a command", "`mlx --help` lists them"),
        ("--qiet status", "`mlx` has no option `--qiet`", "did you mean `--quiet`?"),
        ("status --chekc", "`mlx status` has no option `--chekc`", "did you mean `--check`?"),
        ("run --no-run", "`mlx run` has no option `--no-run`", "did you mean `--no-run-cache`?"),
        ("ls --revision x", "`mlx ls` has no option `--revision`", "did you mean `--rev`?"),
        ("--foo", "`mlx` has no option `--foo`", "`mlx --help` shows how to use it"),
        ("run --workers 4", "`mlx run` has no option `--workers`", "`mlx run --help` shows how to use it"),
        ("gc --force", "`mlx gc` has no option `--force`", "`mlx gc --help` shows how to use it"),
        (
            "pull --rev HEAD~1",
            "`mlx pull` has no option `--rev`",
            "`mlx fetch --rev REV` brings it into the cache; a pull is of what is checked out",
        ),
        (
            "checkout --rev HEAD~1",
            "`mlx checkout` has no option `--rev`",
            "`git checkout REV` brings the records of a revision, then `mlx checkout` its data",
        ),
        ("status -x", "`mlx status` has no option `-x`", "`mlx status --help` shows how to use it"),
        ("status -q", "`mlx status` has no option `-q`", "it goes before the command: `mlx -q status`"),
        ("remote list -v", "`mlx remote list` has no option `-v`", "it goes before the command: `mlx -v remote list`"),
        ("add", "`mlx add` needs `PATH...`", "`mlx add --help` shows how to use it"),
        ("stage add x", "`mlx stage add` needs `--cmd`", "`mlx stage add --help` shows how to use it"),
        ("init here", "`mlx init` has no use for `here`", "`mlx init --help` shows how to use it"),
        ("cat a -o", "option `-o` requires an argument", "`mlx cat --help` shows how to use it"),
        ("push -j many", "`--jobs`: `many` is not a whole number", "`mlx push --help` shows how to use it"),
        ("push -j -1", "`--jobs`: -1 is not in the range x>=0", "`mlx push --help` shows how to use it"),
        ("--color blue status", "`--color blue` is not a choice", "it is `auto`, `always` or `never`"),
        ("-C gone status", "cannot go to `gone`: no such file or directory", "give `-C` a folder that exists"),
        ("config unset --clone --user a", "`--clone` and `--user` are two places", "choose one of them"),
    ],
)
def test_what_is_not_understood_is_one_sentence_and_a_hint(line: str, message: str, hint: str, mlx: Any) -> None:
    result = mlx(*line.split())

    assert result.code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {message}\nhint: {hint}\n"


def test_a_form_of_the_answer_goes_after_the_command(mlx: Any) -> None:
    assert mlx("--version", "--json").json() == {
        "schema": "mlx/error/v1",
        "message": "`mlx` has no option `--json`",
        "hint": "it goes after a command: `mlx status --json`",
        "exit_code": 2,
    }


# Global options ------------------------------------------------------------------------------------------------------


def test_version(mlx: Any) -> None:
    result = mlx("--version")

    assert (result.code, result.stdout, result.stderr) == (0, f"mlx {__version__}\n", "")


def test_dash_c_is_where_the_command_starts(project: Project) -> None:
    result = project("-C", "data", "add", "labels.csv")

    assert result.stdout == "unchanged data/labels.csv (1 file, 8 B)\n"


def test_quiet_leaves_the_answer_and_errors(project: Project) -> None:
    loud, quiet = project("add", "labels.csv", "--dry-run"), project("-q", "add", "labels.csv")
    failing = project("-q", "add", "absent")

    assert quiet.stdout == loud.stdout.replace("would add", "added")
    assert quiet.stderr == ""
    assert failing.stderr.startswith("error: `absent` does not exist\nhint: ")


@pytest.mark.parametrize(
    ("args", "env", "colored"),
    [
        ([], {}, False),
        (["--color", "always"], {}, True),
        (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour(args: list[str], env: dict[str, str], colored: bool, project: Project) -> None:
    answer = project(*args, "diff", "v1", "HEAD", env=env)
    error = project(*args, "add", "absent", env=env)

    plain = project("diff", "v1", "HEAD").stdout
    assert answer.stdout == ("".join(f"\x1b[33m{line}\x1b[0m\n" for line in plain.splitlines()) if colored else plain)
    assert error.stderr.startswith("\x1b[31merror:\x1b[0m " if colored else "error: ")
    assert re.sub(r"\x1b\[\d+m", "", error.stderr) == project("add", "absent").stderr


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("mlx re", {"remove", "remote", "reproduce", "resolve"}),
        ("mlx remote ", {"add", "list", "default", "remove", "check", "gc", "optimize"}),
        ("mlx stage add --p", {"--param", "--pass-env", "--plot"}),
        ("mlx push --remote ", {"storage", "backup"}),
        ("mlx remote default s", {"storage"}),
        ("mlx run t", {"train", "train@forest", "train@logistic"}),
        ("mlx stage show p", {"prepare"}),
        ("mlx pull data/", {"data/labels.csv", "data/prepared", "data/raw"}),
        ("mlx -C data pull ra", {"raw"}),
        ("mlx cat ../", set()),
        ("mlx -C data cat ../", {"../models/forest.txt", "../models/logistic.txt"}),
        ("mlx config get cache", {"cache.link"}),
        ("mlx -C nowhere pull ", set()),
    ],
)
def test_the_shell_can_complete_names(line: str, names: set[str], project: Project) -> None:
    env = {"_MLX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}

    result = project(env=env)

    assert (result.code, set(result.stdout.split()), result.stderr) == (0, names, "")


def test_the_shell_is_not_told_of_errors(project: Project) -> None:
    project.write("mlx.yaml", "mlx: [")
    env = {"_MLX_COMPLETE": "complete_bash", "COMP_WORDS": "mlx run ", "COMP_CWORD": "2"}

    result = project(env=env)

    assert (result.code, result.stdout.strip(), result.stderr) == (0, "", "")
