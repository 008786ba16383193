"""The doctor's findings."""

from __future__ import annotations

import os
import shutil

import pytest

from mlops_cli.errors import CorruptObject, UsageError
from mlops_cli.pipeline.doctor import Finding, Health, examine
from tests.objects import LARGE, damage
from tests.workspace.projects import Sandbox


def findings(box: Sandbox) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(box.root, os.environ):
        found.setdefault(finding.name, []).append(finding)
    return found


def test_healthy_project(box: Sandbox):
    box.remote().mkdir()
    box.write("data", "x")
    box.add("data")
    box.pipeline("stages:\n  s: {cmd: echo > out, outs: [out]}\n")
    box.run()
    found = findings(box)
    assert {finding.health for each in found.values() for finding in each} <= {Health.OK, Health.WARNING}
    assert [finding.detail for finding in found["records"]] == ["4 valid"]
    assert [finding.detail for finding in found["stages"]] == ["1 declared"]
    assert found["remote storage"][0].detail == "../remote, the default: nothing was pushed yet"


def test_everything_that_is_wrong_is_told(box: Sandbox):
    box.pipeline("stages:\n  s: {cmd: echo > out, outs: [out]}\n")
    box.run()
    box.write("mlx.lock/gone.yaml", box.read("mlx.lock/s.yaml"))
    box.write("bad.mlx", "mlx: 1\npath: bad\n")
    box.write("tab.mlx", "mlx: 1\n\tpath: bad\n")
    box.write(".mlx/config.yaml", "mlx: 1\nremotes: {there: {url: nosuchprotocol://x}}\n")
    (box.project().local / "state.db").write_bytes(b"garbage" * 1000)
    found = findings(box)
    assert found["state index"][0].health is Health.WARNING
    assert found["remote there"][0].health is not Health.OK
    assert {finding.detail.partition(":")[0] for finding in found["records"]} == {"bad.mlx", "tab.mlx"}
    assert all(finding.hint for each in found.values() for finding in each if finding.health is not Health.OK)
    assert found["locks"][0].detail == "`mlx.lock/gone.yaml` belongs to no stage"
    box.pipeline("stages: [no]\n")
    found = findings(box)
    assert any(finding.detail.startswith("mlx.yaml:2: ") for finding in found["records"])
    assert "stages" not in found  # it has been said


def test_cache_that_cannot_be_used(box: Sandbox):
    box.write("file", "x")
    box.configure("cache.dir", str(box.root / "file/below"))
    assert findings(box)["cache"][0].health is Health.FAILED
    shutil.rmtree(box.project().local)
    assert os.path.exists(box.root)


def test_outside_of_a_project(box: Sandbox):
    with pytest.raises(UsageError, match="is not in a Git repository"):
        examine(box.root.parent, os.environ)


BROKEN = {
    "unknown key": "mlx: 1\ncores: {}\n",
    "not yaml": "mlx: 1\n\tcore: {}\n",
    "conflict": "mlx: 1\n<<<<<<< ours\n=======\n>>>>>>> theirs\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_settings_are_a_finding_among_others(box: Sandbox, text: str):
    box.write("data", "x")
    box.add("data")
    box.pipeline("stages:\n  s: {cmd: echo > out, outs: [out]}\n")
    box.write("bad.mlx", "mlx: 1\npath: bad\n")
    box.write(".mlx/config.yaml", text)
    found = findings(box)
    (fault,) = found["settings"]
    assert fault.health is Health.FAILED
    assert fault.detail.startswith(".mlx/config.yaml:2: ")
    assert fault.hint
    assert {finding.detail.partition(":")[0] for finding in found["records"]} == {"bad.mlx"}
    assert found["stages"][0].detail == "1 declared"
    assert found["cache"][0].health is Health.OK


def test_settings_that_can_be_read_count_beside_those_that_cannot(box: Sandbox):
    box.remote().mkdir()
    clone = box.project().local / "config.yaml"
    clone.write_text("mlx: 1\ncores: {}\n")
    found = findings(box)
    assert found["settings"][0].detail.startswith(f"{clone}:2: ")
    assert found["remote storage"][0].health is Health.OK


def test_default_remote_that_is_none(box: Sandbox):
    box.configure("core.remote", "zzz")
    (finding,) = findings(box)["settings"]
    assert finding.health is Health.FAILED
    assert finding.detail == "`core.remote` is `zzz` (project (.mlx/config.yaml)), and no remote is called so"
    assert finding.hint == "`mlx remote add zzz URL`, or `mlx remote default NAME`"


def test_remote_that_nothing_was_pushed_to(box: Sandbox):
    box.remote()
    box.remote("away", "../not mounted/remote")
    found = findings(box)
    assert found["remote storage"] == [
        Finding(
            "remote storage",
            Health.OK,
            "../remote, the default: nothing was pushed yet",
        )
    ]
    assert found["remote away"][0].health is Health.WARNING


@pytest.mark.parametrize("size", [1, LARGE])
def test_damaged_objects_that_were_put_away(box: Sandbox, size: int):
    box.write("lone", "x" * size)
    box.add("lone")
    assert "quarantine" not in findings(box)
    (entry,) = box.snapshot().tracked()
    damage(box.project().cache, entry.digest)
    with pytest.raises(CorruptObject):
        box.project().cache.read(entry.digest)
    (finding,) = findings(box)["quarantine"]
    assert finding.health is Health.WARNING
    folder = box.project().cache.root / "quarantine"
    assert finding.detail == f"1 damaged object in `{folder}`"
    shutil.rmtree(folder)
    assert "quarantine" not in findings(box)


@pytest.mark.parametrize("link", ["copy", "reflink"])
def test_what_linking_comes_to(box: Sandbox, link: str):
    box.configure("cache.link", link)
    (finding,) = findings(box)["links"]
    assert finding.health is Health.OK
    wanted, _, possible = finding.detail.partition(" (possible here: ")
    if link in possible.removesuffix(")").split(", "):
        assert wanted == link
    else:
        assert wanted == "reflink, which cannot be done here: files are copied"


def test_a_state_index_that_is_in_use_is_well(box: Sandbox):
    box.write("data/a", "a")
    box.add("data")

    assert (box.project().local / "state.db").exists()
    assert [(each.health, each.detail) for each in findings(box)["state index"]] == [(Health.OK, "1 folder known")]


def test_a_cache_that_can_only_be_read_is_no_failure(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    cache = box.project().cache.root
    cache.mkdir(parents=True, exist_ok=True)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mlops_cli.pipeline.doctor.supported_modes", refuse)  # root may write to any folder
    (found,) = findings(box)["cache"]
    assert found.health is Health.WARNING
    assert "can be read, and not written to" in found.detail
