"""Every tracked path goes to its own remote, whole, and to no other; what two of them need is in both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.checkup import Scope
from mlops_cli.words import spelled
from mlops_cli.workspace import settings
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remotes import add_remote, list_remotes
from mlops_cli.workspace.transfers import Fetching, Pushing, Trust
from mlops_cli.workspace.unpushed import find_offer, find_unpushed
from mlops_cli.workspace.versions import Versions
from tests.objects import cache_at, lose, lose_all, stored
from tests.workspace.projects import Sandbox, clone, listing

SAME = "the same in both"


def rule(box: Sandbox, name: str, *patterns: str, url: str = "") -> Path:
    add_remote(box.project(), {}, name, url or f"../{name}", paths=patterns, replace=True)
    return box.root.parent / name


def remote_of(box: Sandbox, path: str) -> str:
    (entry,) = (entry for entry in box.snapshot().tracked() if entry.path == path)
    return Destinations(box.project()).of(entry)


def names(*contents: str) -> set[str]:
    return {hash_bytes(content.encode()).removeprefix("blake3:") for content in contents}


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    """Return a project with data for two remotes, `storage` and `private`."""
    box.remote()
    rule(box, "private", "data/private/**")
    for folder in ("public", "private"):
        box.write(f"data/{folder}/own", f"{folder} alone")
        box.write(f"data/{folder}/sub/shared", SAME)
    box.write("lone", SAME)
    box.add("data/public", "data/private", "lone")
    box.commit()
    return box


@pytest.fixture
def places(box: Sandbox) -> tuple[Path, Path]:
    """Return where the two remotes are."""
    return box.root.parent / "remote", box.root.parent / "private"


def test_each_path_goes_to_its_own_remote(box: Sandbox, places: tuple[Path, Path]) -> None:
    storage, private = places

    planned = push(box.project(), how=Pushing(dry_run=True))
    done = push(box.project())

    assert not planned.left
    assert [(each.name, each.paths, each.objects, each.size) for each in done.remotes] == [
        ("private", ("data/private",), planned.remotes[0].objects, planned.remotes[0].size),
        ("storage", ("data/public", "lone"), planned.remotes[1].objects, planned.remotes[1].size),
    ]
    assert done.objects == sum(each.objects for each in done.remotes) == 8
    assert all(each.requests and each.transferred for each in done.remotes)
    assert (done.remote, done.url) == ("", "")
    assert names("private alone") <= stored(private)
    assert names("public alone") <= stored(storage)
    assert not names("private alone") & stored(storage)
    assert not names("public alone") & stored(private)
    # The file, and the folder `sub` with it, are needed by paths of both.
    assert names(SAME) <= stored(private) & stored(storage)
    assert len(stored(private) & stored(storage)) == 2
    assert push(box.project()).objects == 0


def test_each_path_comes_from_its_own_remote(box: Sandbox, tmp_path: Path) -> None:
    push(box.project())
    other = clone(box, tmp_path / "clone")

    done = fetch(other.project())
    other.checkout()

    assert [each.name for each in done.remotes] == ["private", "storage"]
    assert listing(other.root / "data") == listing(box.root / "data")


def test_no_byte_of_the_one_is_in_any_file_of_the_other(box: Sandbox, places: tuple[Path, Path]) -> None:
    """Also where all of a pack of the cache would go up as it is: names in listings count as well."""
    push(box.project())

    found = b"".join(path.read_bytes() for path in places[0].rglob("*") if path.is_file())

    assert b"public alone" in found
    assert b"private" not in found


def test_only_the_remotes_that_are_needed_are_asked(box: Sandbox, tmp_path: Path, places: tuple[Path, Path]) -> None:
    push(box.project())
    other = clone(box, tmp_path / "clone")
    shutil.rmtree(places[1])

    assert [each.name for each in fetch(other.project(), ["data/public", "lone"]).remotes] == ["storage"]
    places[1].mkdir()
    with pytest.raises(MissingObject, match="remote `private` lacks 1 object of `data/private`") as caught:
        fetch(other.project())

    assert caught.value.hint is not None


def test_what_two_remotes_name_is_refused(box: Sandbox, places: tuple[Path, Path]) -> None:
    rule(box, "third", "private")

    with pytest.raises(UsageError) as caught:
        push(box.project())

    assert caught.value.message == "`data/private` belongs to two remotes, `private` and `third`, by their `paths`"
    assert not any(place.exists() for place in places)
    assert push(box.project(), ["lone"]).objects == 1


def test_a_named_remote_takes_what_may_go_there(box: Sandbox, places: tuple[Path, Path]) -> None:
    assert push(box.project(), how=Pushing(remote="storage")).left == ("data/private",)
    assert not places[1].exists()
    done = push(box.project(), how=Pushing(remote="private"))
    assert (done.left, done.remote) == (("data/public", "lone"), "private")
    assert not names("public alone") & stored(places[1])


def test_what_belongs_elsewhere_is_never_sent(box: Sandbox) -> None:
    backup = box.remote("backup", "../backup")

    for target in ("data/private", "data/private/own"):
        with pytest.raises(UsageError) as caught:
            push(box.project(), [target], Pushing(remote="backup"))
        assert "`data/private` belongs to remote `private`, whose `paths` name it" in caught.value.message
    assert not backup.exists()
    assert push(box.project(), ["data"], Pushing(remote="backup")).left == ("data/private",)
    assert not names("private alone") & stored(backup)
    assert (
        push(box.project(), ["lone"], Pushing(remote="private")).objects == 1
    )  # what may lie anywhere goes where one says


def test_it_may_be_brought_from_where_it_was_before(box: Sandbox, tmp_path: Path, places: tuple[Path, Path]) -> None:
    settings.change_settings(box.project(), {}, "project", {"remotes.private.paths": None})
    push(box.project(), how=Pushing(remote="storage"))
    rule(box, "private", "data/private/**")
    box.commit()
    other = clone(box, tmp_path / "clone")

    assert fetch(other.project(), how=Fetching(remote="storage")).left == ("data/private",)
    assert fetch(other.project(), ["data/private"], Fetching(remote="storage")).objects
    assert push(other.project(), ["data/private"]).remote == "private"
    assert names("private alone") <= stored(places[1])


def test_a_folder_in_which_something_belongs_elsewhere_is_refused(box: Sandbox, places: tuple[Path, Path]) -> None:
    box.write("all/x/secret.key", "secret")
    box.write("all/y", "y")
    box.add("all")
    for pattern in ("*.key", "all/x/**", "all/*/secret.key", "/all/x/secret.key", "x/"):
        rule(box, "private", "data/private/**", pattern)
        for targets in (["all"], ["all/x"], []):
            with pytest.raises(UsageError, match=r"`all/x(/secret\.key)?` belongs to remote `private`") as caught:
                push(box.project(), targets)
            assert caught.value.hint is not None
            assert "`all`" in caught.value.hint
    assert not places[0].exists()
    assert push(box.project(), ["all/y"]).objects == 1
    rule(box, "private", "data/private/**", "other/**", "all/z", "!all/x/**")
    assert push(box.project(), ["all"]).remote == "storage"


def test_what_is_there_already_is_not_looked_into(box: Sandbox) -> None:
    """A rule that comes later is about what is sent from then on."""
    box.write("all/x/secret.key", "secret")
    box.write("all/y", "y")
    box.add("all")
    push(box.project())
    rule(box, "private", "data/private/**", "*.key")
    assert push(box.project()).objects == 0
    box.write("all/y", "new")
    box.add("all")
    assert push(box.project()).objects == 2
    box.write("all/x/more.key", "secret, too")
    box.add("all")
    with pytest.raises(UsageError, match="belongs to remote `private`"):
        push(box.project())


@pytest.mark.parametrize(
    ("patterns", "path", "remote"),
    [
        (["data/private/**"], "data/private", "private"),
        (["data/private"], "data/private", "private"),
        (["/data/private/"], "data/private", "private"),
        (["private"], "data/private", "private"),
        (["data"], "data/private", "private"),
        (["data/**"], "data/private", "private"),
        (["**/private/**"], "data/private", "private"),
        (["**"], "data/private", "private"),
        (["data/*"], "data/private", "private"),
        (["private/**"], "data/private", "storage"),
        (["data/private/*"], "data/private", "storage"),
        (["data/privat"], "data/private", "storage"),
        (["data/**", "!data/private/**"], "data/private", "storage"),
        (["data/**", "!data/private/**", "data/private"], "data/private", "private"),
        (["lone/"], "lone", "storage"),
        (["lone"], "lone", "private"),
        (["l?n[a-e]"], "lone", "private"),
    ],
)
def test_patterns_are_those_of_gitignore(box: Sandbox, patterns: list[str], path: str, remote: str) -> None:
    rule(box, "private", *patterns)

    assert remote_of(box, path) == remote


def test_outputs_of_stages_have_their_remote_too(box: Sandbox, places: tuple[Path, Path]) -> None:
    box.pipeline("stages: {s: {cmd: mkdir -p out && echo made > out/x, outs: [out]}}\n")
    box.run()
    rule(box, "private", "data/private/**", "out/**")

    push(box.project())

    assert names("made\n") <= stored(places[1])
    assert not names("made\n") & stored(places[0])
    lose_all(box.project().cache.root)
    box.commit()
    assert box.reproduce().same
    assert fetch(box.project(), ["out"]).remote == "private"


def test_older_versions_go_where_their_paths_belong_now(box: Sandbox, places: tuple[Path, Path]) -> None:
    box.write("data/private/own", "newer")
    box.add("data/private")

    push(box.project(), how=Pushing(versions=Versions(("HEAD",))))

    assert names("private alone") <= stored(places[1])
    assert not names("private alone", "newer") & stored(places[0])


def unruled(box: Sandbox) -> None:
    """Check out a branch, `before`, whose settings have no patterns; those of `HEAD` are on `ruled`."""
    box.git("branch", "ruled")
    box.git("checkout", "--quiet", "-b", "before")
    settings.change_settings(box.project(), {}, "project", {"remotes.private.paths": None, "remotes.private.url": None})
    box.git("rm", "-r", "--quiet", "--cached", "data/private.mlx", ".mlx/config.yaml")
    (box.root / "data/private.mlx").unlink()
    box.commit()


@pytest.mark.parametrize("versions", [Versions(branches=True), Versions(("ruled",))])
@pytest.mark.parametrize("remote", [None, "storage"])
def test_what_the_settings_of_a_version_keep_for_another_remote_is_not_sent(
    box: Sandbox, places: tuple[Path, Path], versions: Versions, remote: str | None
) -> None:
    """The branch that is checked out may be older than the patterns: its settings would send it to the default."""
    unruled(box)

    with pytest.raises(UsageError) as caught:
        push(box.project(), how=Pushing(versions=versions, remote=remote))

    assert caught.value.message == (
        f"`data/private` belongs to remote `private` by the settings of `{'main' if versions.branches else 'ruled'}`, "
        "and those of the workspace would send it to `storage`"
    )
    assert not places[0].exists() or not names("private alone") & stored(places[0])
    assert push(box.project(), ["data/public"], Pushing(versions=versions, remote=remote)).objects


def test_a_folder_of_a_version_in_which_its_settings_keep_something_is_not_sent(
    box: Sandbox, places: tuple[Path, Path]
) -> None:
    rule(box, "private", "data/public/sub/**")
    box.commit()
    unruled(box)

    with pytest.raises(UsageError, match="`data/public/sub` belongs to remote `private` by the settings of `ruled`"):
        push(box.project(), ["data/public"], Pushing(versions=Versions(("ruled",))))

    assert not places[0].exists() or not names("public alone", SAME) & stored(places[0])


def test_what_the_workspace_names_for_a_remote_goes_there_whatever_older_settings_say(
    box: Sandbox, places: tuple[Path, Path]
) -> None:
    unruled(box)
    rule(box, "other", "data/private/**")

    push(box.project(), how=Pushing(versions=Versions(("ruled",))))

    assert names("private alone") <= stored(box.root.parent / "other")
    assert not names("private alone") & stored(places[0])


def test_status_asks_each_remote_for_its_own(box: Sandbox) -> None:
    push(box.project(), ["data"])

    found = {each.store.name: [item.path for item in each.paths] for each in find_unpushed(box.project())}

    assert found == {"private": [], "storage": []}  # `lone` is there: it is equal to another file
    box.write("data/private/own", "newer")
    box.add("data/private")
    found = {each.store.name: [item.path for item in each.paths] for each in find_unpushed(box.project())}
    assert found == {"private": ["data/private"], "storage": []}


def test_a_repair_asks_the_remotes_of_what_is_tracked(box: Sandbox) -> None:
    push(box.project())
    lose_all(box.project().cache.root)

    planned = examine(box.project(), Scope(), repair=True, dry_run=True)
    found = examine(box.project(), Scope(), repair=True)

    assert {fault.source for fault in planned.absent} == {"remote"}
    assert (found.remotes, found.exit_code, found.repaired) == (("storage", "private"), 0, 6)
    assert names("public alone", "private alone", SAME) <= stored(box.project().cache.root)


def test_a_remote_without_a_url_here_keeps_what_belongs_to_it(box: Sandbox, places: tuple[Path, Path]) -> None:
    settings.change_settings(box.project(), {}, "project", {"remotes.private.url": None})

    with pytest.raises(UsageError) as caught:
        push(box.project())

    assert caught.value.message == "the settings say what belongs to remote `private`, and not where it is"
    assert not places[0].exists()
    add_remote(box.project(), {}, "private", "../mine", clone=True)
    push(box.project())
    assert names("private alone") <= stored(box.root.parent / "mine")


def test_a_remote_with_paths_is_the_default_only_when_that_is_said(box: Sandbox) -> None:
    settings.change_settings(box.project(), {}, "project", {"core.remote": None, "remotes.storage.url": None})

    assert [remote.default for remote in list_remotes(box.project())] == [False]
    with pytest.raises(UsageError, match="no default remote"):
        push(box.project())
    assert push(box.project(), ["data/private"]).remote == "private"
    settings.change_settings(box.project(), {}, "project", {"core.remote": "private"})
    assert push(box.project()).remote == "private"
    assert push(box.project(), how=Pushing(remote="private")).left == ()


def test_nothing_to_fetch_needs_no_remote(box: Sandbox) -> None:
    settings.change_settings(box.project(), {}, "project", {"core.remote": None, "remotes.storage.url": None})

    assert fetch(box.project()).objects == 0


def test_chunks_of_a_large_file_go_with_it(box: Sandbox, places: tuple[Path, Path], tmp_path: Path) -> None:
    data = b"".join(hash_bytes(str(number).encode()).encode() for number in range(240_000))  # 17 MB
    box.write("data/private/big", data)
    box.write("data/public/big", data + b"more")
    box.add("data/private", "data/public")
    box.commit()

    push(box.project())

    shutil.rmtree(places[0])
    push(box.project(), ["data/public"], Pushing(trust=Trust.NOTHING))  # which begins a remote anew that lost all
    other = clone(box, tmp_path / "clone")
    fetch(other.project(), ["data/public"])
    other.checkout("data/public")
    assert (other.root / "data/public/big").read_bytes() == data + b"more"
    assert cache_at(other.project().cache.root).missing([hash_bytes(data + b"more")]) == set()


# What a push is offered for --------------------------------------------------------------------------------------------


def offered(box: Sandbox, *targets: str) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Return the paths that a push would send, what it would refuse, and what the user is told to do."""
    offer = find_offer(box.project(), find_unpushed(box.project(), targets))
    steps = [spelled(step) for step in offer.next_steps(targets)]
    return offer.paths, [error.message for error in offer.refused], steps


def test_a_push_is_offered_for_what_it_would_send(box: Sandbox) -> None:
    paths = ("data/private", "data/public", "lone")
    assert offered(box) == (paths, [], ["`mlx push` uploads it"])
    assert offered(box, "data/public/sub")[2] == ["`mlx push data/public/sub` uploads it"]
    push(box.project())
    assert offered(box) == ((), [], [])


def test_no_push_is_offered_for_a_folder_that_cannot_go_as_a_whole(box: Sandbox) -> None:
    rule(box, "private", "data/private/**", "data/public/own")

    paths, refused, steps = offered(box)

    with pytest.raises(UsageError) as caught:
        push(box.project())
    assert refused == [caught.value.message]
    assert steps == [caught.value.hint, "`mlx push data/private lone` uploads what it does not refuse"]
    push(box.project(), paths)
    assert offered(box)[::2] == ((), [caught.value.hint])
    assert offered(box, "data/public/sub")[2] == ["`mlx push data/public/sub` uploads it"]  # which is `storage`'s alone
    push(box.project(), ["data/public/sub"])
    assert offered(box, "data/public/sub") == ((), [], [])


def test_no_push_is_offered_for_what_is_not_here_either(box: Sandbox) -> None:
    push(box.project(), ["lone"])
    lose(box.project().cache, hash_bytes(b"public alone"))

    paths, refused, steps = offered(box)

    with pytest.raises(MissingObject) as caught:
        push(box.project(), ["data/public"])
    assert (paths, refused) == (("data/private",), [caught.value.message])
    assert steps == [caught.value.hint, "`mlx push data/private` uploads what it does not refuse"]
    assert push(box.project(), paths).objects
