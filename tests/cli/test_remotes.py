"""What a pull would do, told before it is done."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.cli.conftest import Project
from tests.objects import stored


def forget(project: Project, *, cache: bool) -> None:
    """Delete the data from the workspace, and the objects from the cache where `cache` says so."""
    shutil.rmtree(project.root / "data" / "raw")
    (project.root / "data" / "labels.csv").unlink()
    if cache:
        shutil.rmtree(project.cache)


def restored(document: dict[str, Any]) -> dict[str, int]:
    return {item["path"]: item["added"] for item in document["restored"]}


def test_a_dry_pull_lists_what_would_come_back(project: Project) -> None:
    forget(project, cache=False)

    planned = project("pull", "--dry-run")
    document = project("pull", "--dry-run", "--json").json()

    assert planned.stdout.splitlines() == [
        "nothing to fetch: the cache has it all",
        "would bring back data/labels.csv (1 added)",
        "would bring back data/raw (7 added)",
    ]
    assert not (project.root / "data" / "raw").exists()
    assert document["restored"] == project("pull", "--json").json()["restored"]


def test_a_dry_pull_lists_what_would_be_fetched_and_come_back(project: Project) -> None:
    forget(project, cache=True)

    document = project("pull", "--dry-run", "--json").json()

    assert document["objects"] > 0
    assert {"data/labels.csv": 1, "data/raw": 7}.items() <= restored(document).items()
    assert stored(project.cache) == set()
    assert restored(document) == restored(project("pull", "--json").json())


def test_a_dry_pull_says_when_only_the_fetch_would_tell(project: Project) -> None:
    shutil.rmtree(project.cache)
    project.write("data/raw/new.png", "mine\n")

    planned = project("pull", "data/raw", "--dry-run", "--force")

    assert planned.stdout.splitlines()[1:] == ["would bring back data/raw (its listing, to be fetched, tells how much)"]


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_sent_again_is_counted_in_words_that_fit(number: int, project: Project) -> None:
    names = [f"{index}.bin" for index in range(number)]
    packs = project.root.parent / "storage" / "packs"
    before = set(packs.iterdir())
    for index, name in enumerate(names):
        (project.root / name).write_bytes(bytes([index]) * 300_000)
    project.must("add", *names)
    project.must("push", *names)
    for path in set(packs.iterdir()) - before:
        path.unlink()

    told = project.must("push", "--repair", "--dry-run", *names).stdout
    done = project.must("push", "--repair", *names).stdout

    amount = ("1 object of these", "2 objects of these")[number - 1]
    assert f"{amount} {('is', 'are')[number - 1]} gone or damaged\n" in told
    assert f"{amount} {('was', 'were')[number - 1]} gone or damaged\n" in done


# What belongs to certain remotes -------------------------------------------------------------------------------------


@pytest.fixture
def divided(project: Project) -> Project:
    """Return the project with a remote for what is below `data/raw`, with a change in it that is nowhere yet."""
    project.must("remote", "add", "private", "../private", "--paths", "data/raw/**", "--paths", "models")
    project.write("data/raw/new.png", "mine\n")
    project.write("data/labels.csv", "mine, too\n")
    project.must("add", "data/raw", "data/labels.csv")
    return project


def test_push_tells_what_went_where(divided: Project) -> None:
    planned = divided("push", "--dry-run", "--json").json()
    done = divided.must("push", "--json").json()

    assert [item["name"] for item in done["remotes"]] == ["private", "storage"]
    for item, foreseen in zip(done["remotes"], planned["remotes"], strict=True):
        assert item["objects"] == foreseen["objects"] > 0
        assert item["requests"] > 0
        assert item["paths"]
    assert (done["remote"], done["url"], done["left"]) == ("", "", [])
    assert done["objects"] == sum(item["objects"] for item in done["remotes"])
    assert divided.must("push").stdout == "nothing to push: `private` and `storage` have it all\n"


def test_push_tells_in_words_what_went_where(divided: Project) -> None:
    first, second = divided.must("push").stdout.splitlines()

    assert first.startswith("pushed ")
    assert first.endswith(" to `private`")
    assert second.endswith(" to `storage`")


def test_pull_from_one_remote_leaves_what_belongs_to_others(divided: Project) -> None:
    divided.must("push")
    forget(divided, cache=True)

    done = divided.must("pull", "--remote", "storage", "--json")

    assert "data/raw" in done.json()["left"]
    assert done.json()["notes"] == [
        f"left out, for the `paths` of the remotes say another one: {', '.join(f'`{x}`' for x in done.json()['left'])}"
    ]
    assert (divided.root / "data" / "labels.csv").exists()
    assert not (divided.root / "data" / "raw").exists()
    divided.must("pull")
    assert (divided.root / "data" / "raw" / "new.png").read_text() == "mine\n"


def test_what_belongs_elsewhere_is_refused_by_name(divided: Project) -> None:
    done = divided("push", "data/raw", "--remote", "backup")

    assert done.code == 2
    assert "`data/raw` belongs to remote `private`" in done.stderr
    assert "hint: `mlx push data/raw` sends it there" in done.stderr


def test_status_asks_every_remote(divided: Project) -> None:
    document = divided.must("status", "--remote", "--json").json()

    assert [item["name"] for item in document["remotes"]] == ["private", "storage"]
    assert document["remote"] == document["remotes"][0]
    told = divided.must("status", "--remote").stdout
    assert "not on remote `private`:\n  data/raw " in told
    assert "not on remote `storage`:\n  data/labels.csv " in told
    divided.must("push")
    told = divided.must("status", "--remote").stdout
    assert "remote `private` has it all\nremote `storage` has it all\n" in told


def test_the_patterns_of_a_remote_are_shown_and_set(divided: Project) -> None:
    listed = divided.must("remote", "list").stdout
    assert "data/raw/** models" in listed
    assert divided.must("config", "get", "remotes.private.paths").stdout == "data/raw/** models\n"

    divided.must("config", "set", "remotes.private.paths", '["data/raw", "!models"]')

    assert {item["name"]: item["paths"] for item in divided("remote", "list", "--json").json()["remotes"]} == {
        "backup": [],
        "private": ["data/raw", "!models"],
        "storage": [],
    }
    refused = divided("config", "set", "remotes.private.paths", "#data")
    assert refused.code == 2
    assert "`remotes.private.paths` holds `#data`, which names no path" in refused.stderr
    for args in (
        ("config", "set", "remotes.private.paths", "data/raw, models"),
        ("remote", "add", "--force", "private", "../private", "--paths", "data/raw, models"),
    ):
        refused = divided(*args)  # as one pattern it would name nothing, and all of it go elsewhere
        assert refused.code == 2
        assert "has a comma" in refused.stderr
    divided.must("remote", "remove", "private")
    assert "private" not in (divided.root / ".mlx" / "config.yaml").read_text()


def test_a_pattern_that_cannot_be_read_is_told_with_where_it_is(divided: Project) -> None:
    divided.must("config", "set", "remotes.private.paths", "data/a\\")

    done = divided("push")

    assert done.code == 2
    assert "remotes.private.paths" in done.stderr


# What is not there ---------------------------------------------------------------------------------------------------


def test_diff_lists_the_files_that_their_remotes_lack(divided: Project) -> None:
    told = divided.must("diff", "--remote")
    document = divided("diff", "--remote", "--check", "--json")

    assert told.stdout.splitlines() == [
        "not on remote `private` (4 listings of folders as well):",
        *[line for line in told.stdout.splitlines() if line.startswith(("+ data/raw/", "+ models/"))],
        "not on remote `storage`:",
        "+ data/labels.csv  (10 B)",
    ]
    assert "+ data/raw/new.png  (5 B)" in told.stdout
    assert told.stderr == "next: `mlx push` uploads it\n"
    assert document.code == 1
    value = document.json()
    assert [item["name"] for item in value["remotes"]] == ["private", "storage"]
    assert value["remotes"][1] == {"name": "storage", "url": "../storage", "files": 1, "size": 10, "listings": 0}
    assert [change["path"] for change in value["changes"]] == sorted(change["path"] for change in value["changes"])
    assert {change["remote"] for change in value["changes"]} == {"private", "storage"}
    divided.must("push")
    assert divided.must("diff", "--remote", "--check").stdout.splitlines() == [
        "remote `private` has it all",
        "remote `storage` has it all",
    ]


@pytest.mark.parametrize("command", [("status", "--remote"), ("diff", "--remote")])
def test_no_push_is_offered_that_refuses(command: tuple[str, ...], divided: Project) -> None:
    divided.must("push")
    divided.write("more/secret/key", "mine\n")
    divided.must("add", "more")
    divided.must("remote", "add", "vault", "../vault", "--paths", "more/secret")
    refusal = divided("push").stderr.splitlines()

    told = divided.must(*command)

    assert "`mlx push`" not in told.stderr.replace("note: `mlx push` would refuse that", "")
    assert f"note: `mlx push` would refuse that: {refusal[0].removeprefix('error: ')}\n" in told.stderr
    assert f"next: {refusal[1].removeprefix('hint: ')}\n" in told.stderr
    divided.write("lone", "lone\n")
    divided.must("add", "lone")
    assert "next: `mlx push lone` uploads what it does not refuse\n" in divided.must(*command).stderr
    divided.must("push", "lone")


def test_diff_with_a_remote_is_narrowed_by_paths(project: Project) -> None:
    project.write("data/raw/new.png", "mine\n")
    project.write("data/labels.csv", "mine, too\n")
    project.must("add", "data/raw", "data/labels.csv")

    assert project.must("diff", "--remote", "data/raw").stdout.splitlines() == [
        "not on remote `storage` (1 listing of folders as well):",
        "+ data/raw/new.png  (5 B)",
    ]
    (project.root / "data" / "raw" / "new.png").unlink()
    project.must("push")
    project.must("add", "data/raw/new.png")
    (project.root / "data" / "raw" / "a.png").unlink()
    project.must("add", "data/raw")
    assert project.must("diff", "--remote", "data/raw").stdout.splitlines() == [
        "not on remote `storage` (1 listing of folders as well):"
    ]


def test_diff_with_a_remote_lists_a_folder_that_is_nowhere(project: Project) -> None:
    project.write("data/raw/new.png", "mine\n")
    project.must("add", "data/raw")
    shutil.rmtree(project.cache)

    done = project.must("diff", "--remote", "--json").json()

    assert [change["path"] for change in done["changes"]] == ["data/raw"]
    refused = project("diff", "--remote", "v1")
    assert refused.code == 2
    assert "`--remote` compares the records of the workspace with remotes" in refused.stderr


@pytest.mark.parametrize(
    "command", [("remote", "add", "quick", "memory://quick"), ("config", "set", "remotes.quick.url", "Memory://quick")]
)
def test_a_remote_that_would_be_gone_with_the_command_is_refused(command: tuple[str, ...], project: Project) -> None:
    failed = project(*command)

    assert failed.code == 2
    assert failed.stderr == (
        f"error: `{command[-1]}` cannot be a remote: what is in the memory of a command is gone when it ends\n"
        "hint: name a bucket, as `s3://team-bucket/data`, or a folder\n"
    )
    assert "quick" not in project.must("remote", "list").stdout


def test_a_check_without_a_name_is_of_the_default_remote(project: Project) -> None:
    assert project.must("remote", "check", "--json").json()["remote"] == "storage"


@pytest.mark.parametrize("verb", ["push", "pull", "fetch"])
def test_a_remote_in_place_of_a_path_is_told_with_the_option(verb: str, project: Project) -> None:
    failed = project(verb, "storage")

    assert failed.code == 2
    assert failed.stderr == f"error: nothing tracks `storage`: it is a remote\nhint: `mlx {verb} --remote storage`\n"


@pytest.mark.parametrize("verb", ["gc", "optimize"])
def test_a_dry_run_of_tidying_a_remote_wins_over_yes(verb: str, project: Project) -> None:
    project.must("config", "set", "remotes.storage.owner", "single")

    told = project.must("remote", verb, "storage", "-n", "--yes", "--json").json()

    assert told["dry_run"] is True


@pytest.mark.parametrize(
    ("guess", "right"),
    [
        ("rm", "`mlx remote remove NAME`"),
        ("set-url", "`mlx remote add NAME URL --force`"),
        ("rename", "`mlx remote add NEW URL`, then `mlx remote remove OLD`"),
    ],
)
def test_commands_that_git_has_on_remotes_are_answered_with_those_of_mlx(
    guess: str, right: str, project: Project
) -> None:
    failed = project("remote", guess, "storage", "other")

    assert failed.code == 2
    assert failed.stderr == f"error: there is no command `mlx remote {guess}`\nhint: {right}\n"
