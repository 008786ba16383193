"""Import, update and get: from URLs and from other repositories, against real servers and real Git."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, MlxError, OutsideError, RemoteError, UsageError
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.records.pointers import Pointer, read_pointer
from mlops_cli.records.sources import RepoSource, UrlSource
from mlops_cli.store.object_store_bucket import S3Bucket
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.getting import Got, get_data
from mlops_cli.workspace.importing import PLAINLY, Imported, Manner, Updated, import_data, update
from mlops_cli.workspace.origins import Origin, RepoOrigin, UrlOrigin, read_words
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.transfers import Fetching, Pushing
from tests.crashing import killed_at
from tests.objects import lose_all
from tests.servers.s3 import s3_server
from tests.servers.ssh import SSHD, ssh_server
from tests.servers.web import web_server
from tests.workspace.projects import Sandbox, listing, make_project

FORCED, PINNED, DRY = Manner(force=True), Manner(download=False), Manner(dry_run=True)


def words(box: Sandbox, *given: str, rev: str | None = None, remote: str | None = None) -> Origin:
    return read_words(given, box.root, rev=rev, remote=remote).origin


def imported(box: Sandbox, origin: Origin, path: str, how: Manner = PLAINLY) -> Imported:
    project = box.project()
    with exclusive(project, "mlx import", box.heard, dry_run=how.dry_run):
        return import_data(project, origin, path, how)


def updated(
    box: Sandbox, *targets: str, how: Manner = PLAINLY, rev: str | None = None, local: bool = True
) -> dict[str, Updated]:
    project = box.project()
    with exclusive(project, "mlx update", box.heard, dry_run=how.dry_run):
        return {item.path: item for item in update(project, targets, how, rev=rev, local=local)}


def outcomes(box: Sandbox, *targets: str, how: Manner = PLAINLY, rev: str | None = None) -> dict[str, str]:
    return {path: item.outcome.value for path, item in updated(box, *targets, how=how, rev=rev).items()}


def pointer_at(box: Sandbox, path: str) -> Pointer:
    return read_pointer((box.root / f"{path}.mlx").read_bytes(), f"{path}.mlx")


def files_of(folder: Path) -> dict[str, str]:
    return {os.fsdecode(path): data.decode() for path, (kind, data) in listing(folder).items() if kind != "folder"}


# --- URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a folder of files elsewhere."""
    folder = tmp_path / "shared"
    (folder / "raw/sub").mkdir(parents=True)
    (folder / "raw/one").write_text("one")
    (folder / "raw/sub/two").write_text("two" * 50_000)
    (folder / "prices.csv").write_text("a,1\n")
    return folder


def test_a_file_of_a_web_server(box: Sandbox, shared: Path):
    with web_server(shared) as port:
        url = f"http://127.0.0.1:{port}/prices.csv"
        done = imported(box, words(box, url), "data/prices.csv")

        assert box.read("data/prices.csv") == "a,1\n"
        assert (done.size, done.files, done.changed, done.gitignores) == (4, 1, True, ("data/.gitignore",))
        pointer = pointer_at(box, "data/prices.csv")
        assert isinstance(pointer.source, UrlSource)
        assert (pointer.source.url, pointer.source.fetched) == (url, pointer.digest)
        assert box.clean()
        assert box.changed_in_git() == [".mlx/config.yaml", "data/.gitignore", "data/prices.csv.mlx"]

        assert not imported(box, words(box, url), "data/prices.csv").changed
        assert outcomes(box) == {"data/prices.csv": "unchanged"}

        (shared / "prices.csv").write_text("a,2\n")
        os.utime(shared / "prices.csv", (2_000_000_000, 2_000_000_000))
        assert outcomes(box, how=DRY) == {"data/prices.csv": "updated"}
        assert box.read("data/prices.csv") == "a,1\n"
        assert outcomes(box) == {"data/prices.csv": "updated"}
        assert box.read("data/prices.csv") == "a,2\n"

        os.utime(shared / "prices.csv", (2_000_000_001, 2_000_000_001))
        assert outcomes(box) == {"data/prices.csv": "same"}
        assert outcomes(box) == {"data/prices.csv": "unchanged"}
        assert box.clean()


def test_a_folder_of_this_machine(box: Sandbox, shared: Path):
    done = imported(box, words(box, str(shared / "raw")), "raw")
    assert files_of(box.root / "raw") == files_of(shared / "raw")
    assert (done.files, done.size) == (2, 3 + 150_000)
    assert pointer_at(box, "raw").files == 2
    assert box.clean()
    (shared / "raw/sub/two").unlink()
    (shared / "raw/three").write_text("three")
    assert outcomes(box, "raw") == {"raw": "updated"}
    assert files_of(box.root / "raw") == {"one": "one", "three": "three"}
    assert box.clean()


def test_a_folder_of_s3(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    with s3_server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = S3Bucket("there", server.make_bucket("team"))
        bucket.put("raw/one", b"one")
        bucket.put("raw/sub/two", b"two")
        done = imported(box, words(box, "s3://team/raw"), "data/raw")
        assert (done.files, done.size) == (2, 6)
        assert files_of(box.root / "data/raw") == {"one": "one", "sub/two": "two"}
        assert outcomes(box) == {"data/raw": "unchanged"}
        bucket.put("raw/sub/two", b"changed")
        assert outcomes(box) == {"data/raw": "updated"}
        assert box.read("data/raw/sub/two") == "changed"
        bucket.put("raw/one", b"one")  # the same bytes have the same ETag
        assert outcomes(box)["data/raw"] in ("unchanged", "same")
        bucket.delete(["raw/one", "raw/sub/two"])
        assert outcomes(box) == {"data/raw": "failed"}
        assert box.clean()


def test_sources_of_this_machine_are_followed_only_when_asked_for(box: Sandbox, shared: Path):
    imported(box, words(box, str(shared / "raw")), "raw")
    (shared / "raw/one").write_text("other")
    before = (box.root / "raw.mlx").read_bytes()
    assert updated(box, local=False)["raw"].outcome == "left"
    with pytest.raises(UsageError, match="`raw` is from this machine"):
        updated(box, "raw", local=False)
    assert (box.root / "raw.mlx").read_bytes() == before


def test_a_record_of_somebody_else_reads_no_file_here(box: Sandbox, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    box.write("x", "x")
    box.add("x")
    pointer = pointer_at(box, "x")
    for place in ("file://", "local://", "dir://x::file://", "hf://x::file://"):
        url = f"{place}{tmp_path}/secret"
        box.write("x.mlx", pointer._replace(source=UrlSource(url, None, pointer.digest)).to_bytes())
        assert updated(box, local=False)["x"].outcome == "left"
        assert box.read("x") == "x"


def test_what_is_there_already_is_not_replaced(box: Sandbox, shared: Path):
    origin = words(box, str(shared / "prices.csv"))
    box.write("prices.csv", "mine")
    with pytest.raises(UsageError, match=r"`prices\.csv` exists already"):
        imported(box, origin, "prices.csv")
    box.add("prices.csv")
    with pytest.raises(UsageError, match=r"`prices\.csv` is tracked already"):
        imported(box, origin, "prices.csv")
    imported(box, words(box, str(shared / "raw")), "raw")
    with pytest.raises(UsageError, match="`raw` is imported from `file://"):
        imported(box, origin, "raw")
    with pytest.raises(UsageError, match="`raw/sub/x` lies in `raw`"):
        imported(box, origin, "raw/sub/x")
    assert box.read("prices.csv") == "mine"
    assert imported(box, origin, "prices.csv", FORCED).changed
    assert box.read("prices.csv") == "a,1\n"


def test_edits_stay_unless_forced(box: Sandbox, shared: Path):
    imported(box, words(box, str(shared / "prices.csv")), "prices.csv")
    (shared / "prices.csv").write_text("new\n")
    box.write("prices.csv", "edited here")
    before = (box.root / "prices.csv.mlx").read_bytes()
    found = updated(box, "prices.csv")["prices.csv"]
    assert found.outcome == "failed"
    assert "no store holds the bytes" in found.error.message  # type: ignore[union-attr]
    assert (box.read("prices.csv"), (box.root / "prices.csv.mlx").read_bytes()) == ("edited here", before)
    box.add("prices.csv")
    found = updated(box, "prices.csv")["prices.csv"]
    assert found.error is not None
    assert "was changed here after it was imported" in found.error.message
    with pytest.raises(UsageError, match="was changed here after it was imported"):
        imported(box, words(box, str(shared / "prices.csv")), "prices.csv")
    assert outcomes(box, "prices.csv", how=FORCED) == {"prices.csv": "updated"}
    assert box.read("prices.csv") == "new\n"


def test_one_that_fails_keeps_no_other_from_its_update(box: Sandbox, shared: Path):
    imported(box, words(box, str(shared / "prices.csv")), "a")
    imported(box, words(box, str(shared / "raw")), "b")
    (shared / "prices.csv").unlink()
    (shared / "raw/one").write_text("changed")
    assert outcomes(box) == {"a": "failed", "b": "updated"}
    assert box.read("a") == "a,1\n"


def test_what_is_no_import_is_not_updated(box: Sandbox):
    box.write("data/x", "x")
    box.add("data")
    assert outcomes(box) == {}
    for target in ("data", "data/x", "absent"):
        with pytest.raises(UsageError):
            updated(box, target)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://ada:secret@host/x", "`https://host/x` has a password"),
        ("https://host/x?X-Amz-Signature=abc", "has a signature or token"),
        ("https://host/x?a=b&access_token=abc", "has a signature or token"),
        ("https://host/x?private_token=abc", "has a signature or token"),
        ("https://host/x?a=b;X-Amz-Credential=abc", "has a signature or token"),
        ("https://github_pat_secret@host/x", "`https://host/x` has a password"),
        ("ssh://-oProxyCommand=x/y", "is no place"),
    ],
)
def test_a_url_with_a_secret_is_refused(url: str, message: str, box: Sandbox):
    with pytest.raises(UsageError, match=message) as caught:
        imported(box, UrlOrigin(url), "x")
    assert "secret@" not in caught.value.message
    assert not box.exists("x.mlx")


def test_a_repository_with_a_secret_is_refused(box: Sandbox):
    for origin in (
        RepoOrigin("https://host/x.git?private_token=abc", "y"),
        RepoOrigin("https://host/x.git", "y", None, "https://host/x?sig=abc"),
    ):
        with pytest.raises(UsageError, match="has a signature or token"):
            imported(box, origin, "x")
        assert not box.exists("x.mlx")
    with pytest.raises(UsageError, match=r"`https://host/x\.git` has a password"):
        words(box, f"https://{'a' * 40}@host/x.git", "y")


def test_a_url_cannot_be_pinned(box: Sandbox, shared: Path):
    with pytest.raises(UsageError, match="cannot be pinned"):
        imported(box, words(box, str(shared / "prices.csv")), "x", PINNED)
    assert not box.exists("x.mlx")


def test_nothing_there_changes_nothing(box: Sandbox, shared: Path):
    with web_server(shared) as port, pytest.raises(RemoteError, match="there is nothing at"):
        imported(box, UrlOrigin(f"http://127.0.0.1:{port}/absent"), "x")
    assert not box.exists("x.mlx")
    assert not box.exists(".gitignore")


def test_a_dry_import_tells_and_changes_nothing(box: Sandbox, shared: Path):
    before = listing(box.root)
    done = imported(box, words(box, str(shared / "raw")), "raw", DRY)
    assert (done.files, done.size, done.changed) == (2, 150_003, True)
    after = {path: found for path, found in listing(box.root).items() if not path.startswith(b".git/mlx/")}
    assert after == {path: found for path, found in before.items() if not path.startswith(b".git/mlx/")}


def test_killed_at_every_point(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever the point, no record names what is not there, and the same command completes."""
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    base = make_project(tmp_path / "base")
    origin = words(base, str(shared / "raw"))
    expected = files_of(shared / "raw")
    at, died = 0, True
    while died:
        shutil.copytree(base.root, tmp_path / f"box{at}", symlinks=True)
        box = Sandbox(tmp_path / f"box{at}")
        died = killed_at(lambda box=box: imported(box, origin, "raw"), at)  # type: ignore[misc]
        if box.exists("raw.mlx"):
            assert not box.project().cache.missing([pointer_at(box, "raw").digest])
        imported(box, origin, "raw")
        assert files_of(box.root / "raw") == expected
        assert box.clean()
        assert box.changed_in_git() == [".gitignore", ".mlx/config.yaml", "raw.mlx"]
        at += 1
    assert at > 20


# --- repositories ---------------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Sandbox:
    """Return another project, in a folder of its repository, with two versions; a remote has all of it."""
    other = make_project(tmp_path / "team", "ml")
    other.write("data/raw/one", "one")
    other.write("data/raw/sub/two", "two" * 50_000)
    other.write("data/raw/sub/run", "#!/bin/sh\n", mode=0o755)
    os.symlink("one", other.root / "data/raw/link")
    other.write("lone", "lone")
    other.write("tool.sh", "#!/bin/sh\necho\n", mode=0o755)
    other.add("data/raw", "lone")
    other.pipeline("stages:\n  make:\n    cmd: echo made > out.txt\n    outs: [out.txt]\n")
    other.run()
    other.remote("storage", "../../storage")
    other.commit("first")
    other.git("tag", "-a", "v1", "-m", "one")
    push(other.project())
    other.write("data/raw/one", "changed")
    other.add("data/raw")
    other.commit("second")
    push(other.project())
    return other


def repo(other: Sandbox) -> str:
    return str(other.root.parent)


def test_a_tracked_folder_at_a_revision(box: Sandbox, other: Sandbox):
    done = imported(box, words(box, repo(other), "ml/data/raw", "raw", rev="v1"), "raw")
    assert box.read("raw/one") == "one"
    assert listing(box.root / "raw").keys() == listing(other.root / "data/raw").keys()
    assert os.readlink(box.root / "raw/link") == "one"
    assert os.access(box.root / "raw/sub/run", os.X_OK)
    source = pointer_at(box, "raw").source
    assert isinstance(source, RepoSource)
    assert (source.path, source.rev, source.commit) == ("ml/data/raw", "v1", other.git("rev-parse", "v1^{commit}"))
    assert source.repo == other.root.parent.as_uri()
    assert done.new == source.commit
    assert box.clean()
    assert outcomes(box) == {"raw": "unchanged"}
    assert outcomes(box, "raw", rev="main") == {"raw": "updated"}
    assert box.read("raw/one") == "changed"
    assert pointer_at(box, "raw").source._asdict()["rev"] == "main"  # type: ignore[union-attr]
    other.commit("nothing new")
    assert outcomes(box) == {"raw": "same"}
    assert list((box.project().local / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("ml/data/raw/sub/two", "two" * 50_000),
        ("ml/lone", "lone"),
        ("ml/lone.mlx", "lone"),
        ("ml/out.txt", "made\n"),
        ("ml/tool.sh", "#!/bin/sh\necho\n"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_whatever_a_path_is(path: str, content: str, cached: bool, box: Sandbox, other: Sandbox):
    if path == "ml/out.txt":
        other.commit("locks")
    if not cached:
        lose_all(other.project().cache.root)
    imported(box, words(box, repo(other), path, "x"), "x")
    assert box.read("x") == content
    assert os.access(box.root / "x", os.X_OK) == (path == "ml/tool.sh")
    assert box.clean()


def test_a_pin_needs_no_bytes(box: Sandbox, other: Sandbox):
    imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw", PINNED)
    imported(box, words(box, repo(other), "ml/data/raw/sub", "sub"), "sub", PINNED)
    assert box.states() == {"raw": "not_cached", "sub": "not_cached"}
    assert pointer_at(box, "sub").files == 2
    assert not box.project().cache.root.exists() or list(box.project().cache.list()) == []
    imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw")
    assert box.states() == {"raw": "ok", "sub": "missing"}
    other.write("data/raw/new", "new")
    other.add("data/raw")
    other.commit("third")
    assert outcomes(box, "raw", how=PINNED) == {"raw": "pinned"}
    assert not box.exists("raw/new")


def test_a_pin_does_not_keep_the_rest_from_a_push(box: Sandbox, other: Sandbox):
    imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw", PINNED)
    imported(box, words(box, repo(other), "ml/lone", "lone"), "lone", PINNED)
    box.write("mine", "mine")
    box.add("mine")
    box.remote()
    assert push(box.project(), how=Pushing(reporter=box.heard)).remotes[0].paths == ("mine",)
    assert [note.partition(":")[0] for note in box.heard.notes] == ["`lone` is not pushed", "`raw` is not pushed"]
    for path in ("raw", "lone"):
        with pytest.raises(MissingObject) as caught:
            push(box.project(), [path])
        assert "the same `mlx import`" in (caught.value.hint or "")
    with pytest.raises(MissingObject):
        fetch(box.project(), how=Fetching(reporter=box.heard))
    assert "`lone` is from this machine" in box.heard.notes[-2]
    imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw")
    assert push(box.project(), how=Pushing(reporter=box.heard)).remotes[0].paths == ("mine", "raw")


def test_errors_name_the_project_that_they_are_about(box: Sandbox, other: Sandbox):
    imported(box, words(box, repo(other), "ml/data/raw/one", "one", rev="v1"), "one")
    box.write("one", "edited")
    error = updated(box, "one", rev="main")["one"].error
    assert error is not None
    assert error.message.startswith("`one` would be overwritten")
    with pytest.raises(UsageError, match="in `file://") as caught:
        imported(box, words(box, repo(other), "ml/data/raw/absent", "x"), "x")
    assert (caught.value.hint or "").startswith("there, `mlx ls")


def test_a_file_in_git_cannot_be_pinned(box: Sandbox, other: Sandbox):
    with pytest.raises(UsageError, match="cannot be pinned"):
        imported(box, words(box, repo(other), "ml/tool.sh", "x"), "x", PINNED)
    assert not box.exists("x.mlx")


def test_what_is_left_out_here_is_told(box: Sandbox, shared: Path):
    box.write(".mlxignore", "two\n")
    imported(box, words(box, str(shared / "raw")), "raw", Manner(reporter=box.heard))
    assert box.heard.notes == ["a `.mlxignore` leaves out some of `raw`: `mlx status` takes that for deleted"]
    assert box.read("raw/sub/two") == "two" * 50_000


@pytest.mark.parametrize("rev", ["v1", "main", "main~1", "HEAD", None, "full", "short"])
def test_every_kind_of_revision(rev: str | None, box: Sandbox, other: Sandbox):
    commit = other.git("rev-parse", "v1^{commit}")
    rev = {"full": commit, "short": commit[:9]}.get(rev or "", rev)
    imported(box, words(box, repo(other), "ml/data/raw/one", "one", rev=rev), "one")
    assert box.read("one") == ("changed" if rev in ("main", "HEAD", None) else "one")
    assert outcomes(box)["one"] in ("unchanged", "same")


@pytest.mark.parametrize(
    ("path", "rev", "message"),
    [
        ("ml/data/raw", "nope", "has no revision `nope`"),
        ("ml/data/raw", "0" * 40, "has no revision `0000"),
        ("ml/absent", None, "is not there"),
        ("ml/data/raw/absent", None, "`data/raw` has no `absent`|is not there"),
        ("ml", None, "is a folder in Git, and nothing tracks it"),
        ("ml/data", None, "is not tracked itself, only what it holds"),
    ],
)
def test_what_is_not_there(path: str, rev: str | None, message: str, box: Sandbox, other: Sandbox):
    with pytest.raises(UsageError, match=message):
        imported(box, words(box, repo(other), path, "x", rev=rev), "x")
    assert not box.exists("x.mlx")


@pytest.mark.parametrize(
    ("given", "rev"),
    [
        (("--upload-pack=touch x", "y", "z"), None),
        (("ext::sh -c touch% x", "y"), None),
        (("ssh://-oProxyCommand=touch/x", "y", "z"), None),
        (("https://ada:secret@host/x.git", "y"), None),
        ((".", "../x"), None),
        ((".", "/etc/passwd"), None),
        ((".", ".git/config"), None),
        ((".", "x"), "--upload-pack=touch x"),
    ],
)
def test_words_that_programs_take_for_something_else(given: tuple[str, ...], rev: str | None, box: Sandbox):
    with pytest.raises(UsageError) as caught:
        words(box, *given, rev=rev)
    assert "secret@" not in caught.value.message
    assert not box.exists("x")


def test_what_words_mean(box: Sandbox, other: Sandbox, shared: Path):
    def never(url: str) -> bool:
        raise AssertionError(url)

    def read(*given: str, rev: str | None = None) -> tuple[Origin, str | None]:
        return read_words(given, box.root, rev=rev, ask=never)

    assert read("https://h/x.csv") == (UrlOrigin("https://h/x.csv"), None)
    assert read("s3://b/x", "y") == (UrlOrigin("s3://b/x"), "y")
    assert read("git@h:x", "y") == (RepoOrigin("git@h:x", "y"), None)
    assert read("https://h/x.git", "y") == (RepoOrigin("https://h/x.git", "y"), None)
    assert read("https://h/x", "y", rev="v1") == (RepoOrigin("https://h/x", "y", "v1"), None)
    assert read("https://h/x", "y", "z") == (RepoOrigin("https://h/x", "y"), "z")
    assert read(repo(other), "y") == (RepoOrigin(other.root.parent.as_uri(), "y"), None)
    assert read(str(shared), "y") == (UrlOrigin(shared.as_uri() + "/"), "y")
    assert read_words(("https://h/x", "y"), box.root, ask=lambda _: True) == (RepoOrigin("https://h/x", "y"), None)
    assert read_words(("https://h/x", "y"), box.root, ask=lambda _: False) == (UrlOrigin("https://h/x"), "y")
    for wrong in ((repo(other),), ("absent",)):
        with pytest.raises(UsageError):
            read(*wrong)


def test_links_in_git_are_not_followed(box: Sandbox, other: Sandbox, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", other.root / "link")
    os.symlink(tmp_path / "secret", other.root / "evil.mlx")
    other.git("add", "link", "evil.mlx")
    other.git("commit", "--quiet", "-m", "links")
    for path in ("ml/link", "ml/evil", "ml/evil.mlx"):
        with pytest.raises(UsageError, match="is not there"):
            imported(box, words(box, repo(other), path, "x"), "x")


def test_another_projects_broken_record_is_told(box: Sandbox, other: Sandbox):
    other.write("lone.mlx", "mlx: 1\npath: ../lone\n")
    other.write("a.mlx", "not a record")
    other.commit("broken")
    with pytest.raises(UsageError, match=r"in `file://.*`: lone\.mlx:2: `path`"):
        imported(box, words(box, repo(other), "ml/lone", "x"), "x")
    imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw")  # others are fine


def test_objects_that_are_gone_are_told(box: Sandbox, other: Sandbox, tmp_path: Path):
    lose_all(other.project().cache.root)
    shutil.rmtree(tmp_path / "storage")
    with pytest.raises(MlxError) as caught:
        imported(box, words(box, repo(other), "ml/data/raw", "raw"), "raw")
    assert isinstance(caught.value, MissingObject | RemoteError)
    assert not box.exists("raw.mlx")
    box.remote()


def served(other: Sandbox, folder: Path) -> Path:
    """Make a bare clone of the other project that a plain web server can serve."""
    bare = folder / "team.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", other.root.parent, bare], check=True)
    subprocess.run(["git", "update-server-info"], cwd=bare, check=True)
    return bare


@pytest.fixture
def web(other: Sandbox, tmp_path: Path) -> Iterator[str]:
    """Serve the other project's repository and its remote; yield the URL of the top."""
    with web_server(tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        other.remote("storage", f"{url}/storage")
        other.commit("the remote is on the web")
        served(other, tmp_path)
        yield url


def test_over_a_network_from_the_projects_own_remote(box: Sandbox, other: Sandbox, web: str):
    lose_all(other.project().cache.root)
    origin = read_words((f"{web}/team.git", "ml/data/raw", "raw"), box.root).origin
    imported(box, origin, "raw")
    assert box.read("raw/one") == "changed"
    assert updated(box, local=False)["raw"].outcome == "unchanged"
    imported(box, RepoOrigin(f"{web}/team.git", "ml/lone", "v1", f"{web}/storage"), "lone")
    assert pointer_at(box, "lone").source._asdict()["remote"] == f"{web}/storage"  # type: ignore[union-attr]


def test_asking_git_tells_repositories_from_pages(web: str, box: Sandbox):
    assert isinstance(read_words((f"{web}/team.git", "x"), box.root).origin, RepoOrigin)
    assert isinstance(read_words((f"{web}/storage/mlx.json", "x"), box.root).origin, UrlOrigin)


def test_a_repository_elsewhere_leads_to_no_folder_here(box: Sandbox, other: Sandbox, tmp_path: Path):
    for url in ("../../storage", str(tmp_path / "storage"), f"file://{tmp_path}/storage", "x:/../../storage"):
        other.remote("storage", url)
        other.commit("a folder")
        shutil.rmtree(tmp_path / "team.git", ignore_errors=True)
        served(other, tmp_path)
        with web_server(tmp_path) as port, pytest.raises(UsageError, match="a folder where that project is"):
            imported(box, RepoOrigin(f"http://127.0.0.1:{port}/team.git", "ml/lone"), "x")
        assert not box.exists("x.mlx")


def test_a_repository_elsewhere_names_no_odd_host(box: Sandbox, other: Sandbox, tmp_path: Path):
    other.remote("storage", "ssh://x -oProxyCommand=touch%20pwned/y")
    other.commit("a host that ssh takes for an option")
    served(other, tmp_path)
    with web_server(tmp_path) as port, pytest.raises(UsageError, match="the remote of `http://"):
        imported(box, RepoOrigin(f"http://127.0.0.1:{port}/team.git", "ml/lone"), "x")


def test_a_repository_that_is_not_there(box: Sandbox, web: str, tmp_path: Path):
    for place in (f"{web}/absent.git", (tmp_path / "absent").as_uri(), "git://127.0.0.1:1/x"):
        with pytest.raises(OutsideError, match="Git cannot read"):
            imported(box, RepoOrigin(place, "x"), "x")


@pytest.mark.skipif(SSHD is None, reason="no sshd here: install `openssh-server`")
def test_over_ssh_no_blob_comes_that_is_not_read(
    box: Sandbox, other: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other.write("large.bin", os.urandom(2_000_000))
    other.git("add", "--force", "large.bin")
    other.commit("large")
    bare = served(other, tmp_path)
    for key in ("allowFilter", "allowAnySHA1InWant"):
        subprocess.run(["git", "config", f"uploadpack.{key}", "true"], cwd=bare, check=True)
    with ssh_server(tmp_path / "ssh") as server:
        options = f"-i {server.home}/.ssh/id_ed25519 -o UserKnownHostsFile={server.home}/.ssh/known_hosts"
        monkeypatch.setenv("GIT_SSH_COMMAND", f"ssh -F none {options} -o BatchMode=yes")
        monkeypatch.setenv("GIT_TRACE_PACKET", str(tmp_path / "trace"))
        origin = RepoOrigin(server.url(bare), "ml/tool.sh", "main")
        imported(box, origin, "tool.sh")
        assert box.read("tool.sh") == "#!/bin/sh\necho\n"
        with pytest.raises(UsageError, match="a folder where that project is"):
            imported(box, RepoOrigin(server.url(bare), "ml/lone"), "lone")
        lone = RepoOrigin(server.url(bare), "ml/lone", None, (tmp_path / "storage").as_uri())
        imported(box, lone, "lone")
        assert box.read("lone") == "lone"
        assert outcomes(box) == {"lone": "unchanged", "tool.sh": "unchanged"}
    trace = (tmp_path / "trace").read_text()
    assert "filter blob:none" in trace
    assert "deepen 1" in trace


# --- get ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def anywhere(tmp_path: Path) -> Path:
    """Return a folder that is in no repository."""
    folder = tmp_path / "anywhere"
    folder.mkdir()
    return folder


def got(anywhere: Path, origin: Origin, name: str) -> Got:
    return get_data(origin, anywhere / name)


def test_get_from_a_url(anywhere: Path, shared: Path):
    with web_server(shared) as port:
        done = got(anywhere, UrlOrigin(f"http://127.0.0.1:{port}/prices.csv"), "prices.csv")
    assert (done.size, done.files) == (4, 1)
    assert (anywhere / "prices.csv").read_text() == "a,1\n"
    assert (anywhere / "prices.csv").stat().st_mode & 0o777 == 0o644
    got(anywhere, UrlOrigin((shared / "raw").as_uri()), "raw")
    assert files_of(anywhere / "raw") == files_of(shared / "raw")
    assert sorted(path.name for path in anywhere.iterdir()) == ["prices.csv", "raw"]


def test_get_from_a_repository(anywhere: Path, other: Sandbox):
    done = got(anywhere, RepoOrigin(other.root.parent.as_uri(), "ml/data/raw", "v1"), "raw")
    assert (done.files, (anywhere / "raw/one").read_text()) == (4, "one")
    (anywhere / "raw/one").write_text("mine to change")
    got(anywhere, RepoOrigin(other.root.parent.as_uri(), "ml/tool.sh"), "tool.sh")
    assert os.access(anywhere / "tool.sh", os.X_OK)
    assert sorted(path.name for path in anywhere.iterdir()) == ["raw", "tool.sh"]


def test_get_replaces_nothing_and_leaves_nothing(anywhere: Path, shared: Path, other: Sandbox):
    (anywhere / "x").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        got(anywhere, UrlOrigin((shared / "raw").as_uri()), "x")
    with pytest.raises(UsageError, match="there is no folder"):
        got(anywhere / "absent", UrlOrigin((shared / "raw").as_uri()), "x")
    with pytest.raises(RemoteError):
        got(anywhere, UrlOrigin((shared / "absent").as_uri()), "y")
    with pytest.raises(UsageError):
        got(anywhere, RepoOrigin(other.root.parent.as_uri(), "ml/absent"), "y")
    assert files_of(anywhere) == {"x": "mine"}


def test_a_killed_get_leaves_what_the_next_takes_away(anywhere: Path, shared: Path):
    origin = UrlOrigin((shared / "raw").as_uri())
    at = 0
    while killed_at(lambda: got(anywhere, origin, "raw"), at):
        assert not (anywhere / "raw").exists() or files_of(anywhere / "raw") == files_of(shared / "raw")
        shutil.rmtree(anywhere / "raw", ignore_errors=True)
        got(anywhere, origin, "raw")
        assert [path.name for path in anywhere.iterdir()] == ["raw"]
        shutil.rmtree(anywhere / "raw")
        at += 1
    assert at > 5


# --- pull from a source -----------------------------------------------------------------------------------------------


def fetched(box: Sandbox, *targets: str) -> list[str]:
    """Fetch, and return the notes."""
    heard = len(box.heard.notes)
    fetch(box.project(), targets, Fetching(reporter=box.heard))
    return box.heard.notes[heard:]


def test_what_no_remote_has_comes_from_its_url(box: Sandbox, shared: Path):
    with web_server(shared) as port:
        url = f"http://127.0.0.1:{port}/prices.csv"
        imported(box, words(box, url), "prices.csv")
        box.write("mine", "mine")
        box.add("mine")
        box.remote()
        push(box.project(), ["mine"])
        lose_all(box.project().cache.root)

        assert fetched(box) == [f"`prices.csv` came from its source, `{url}`"]
        (box.root / "prices.csv").unlink()
        box.checkout()
        assert box.read("prices.csv") == "a,1\n"
        assert fetched(box) == []

        lose_all(box.project().cache.root)
        (shared / "prices.csv").write_text("a,2\n")
        os.utime(shared / "prices.csv", (2_000_000_000, 2_000_000_000))
        with pytest.raises(MissingObject):
            fetched(box)
        assert "has another version now" in box.heard.notes[-1]


def test_other_bytes_of_the_same_version_are_not_kept(box: Sandbox, shared: Path):
    with web_server(shared) as port:
        imported(box, words(box, f"http://127.0.0.1:{port}/prices.csv"), "prices.csv")
        time = (shared / "prices.csv").stat().st_mtime
        lose_all(box.project().cache.root)
        (shared / "prices.csv").write_text("b,1\n")
        os.utime(shared / "prices.csv", (time, time))
        with pytest.raises(UsageError, match="this project has no remote"):
            fetched(box)
        assert "has other bytes now than the record says" in box.heard.notes[-1]
        assert list(box.project().cache.list()) == []


def test_what_no_remote_has_comes_from_its_repository(box: Sandbox, other: Sandbox, web: str):
    origin = RepoOrigin(f"{web}/team.git", "ml/data/raw")
    imported(box, origin, "raw", PINNED)
    assert fetched(box, "raw/sub/two") == [f"`raw` came from its source, `{web}/team.git ml/data/raw`"]
    box.checkout("raw/sub/two")
    assert box.read("raw/sub/two") == "two" * 50_000
    assert not box.exists("raw/one")
    fetched(box)
    box.checkout()
    assert box.clean()


def test_a_source_of_this_machine_is_not_asked_by_a_pull(box: Sandbox, shared: Path):
    imported(box, words(box, str(shared / "prices.csv")), "prices.csv")
    lose_all(box.project().cache.root)
    with pytest.raises(UsageError, match="this project has no remote"):
        fetched(box)
