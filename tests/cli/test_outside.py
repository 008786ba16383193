"""What `run`, `why` and `status` say of inputs from outside the project."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from mlops_cli import documents
from tests.conftest import InProcess

SCHEMA = Path(documents.__file__).parents[1] / "schemas/stage-show.v1.json"


def test_commands_ask_for_the_version_of_a_url_or_do_not(mlx_in_process: InProcess, repo: Path) -> None:
    mlx, data = mlx_in_process, repo.parent / "data.csv"
    data.write_text("1\n", encoding="utf-8")
    (repo / "mlx.yaml").write_text(
        "mlx: 1\nenvironment: {python: true}\n"
        f"stages:\n  s: {{cmd: cp {data} out, deps: ['{data.as_uri()}'], outs: [out]}}\n",
        encoding="utf-8",
    )
    for arguments in (["init"], ["run"]):
        assert mlx(*arguments).code == 0
    document = mlx("stage", "show", "s", "--json").json()
    (shown,) = document["stages"]
    assert (shown["urls"], shown["environment"]) == ([data.as_uri()], {"python": "full"})
    jsonschema.validate(document, json.loads(SCHEMA.read_text(encoding="utf-8")))
    data.write_text("22\n", encoding="utf-8")

    assert "changed: version" in mlx("run", "--dry-run").stdout
    assert "2 → 3 bytes" in mlx("why", "s").stdout
    for asking_nobody in (["run", "--dry-run", "--offline"], ["run", "--offline"]):
        assert mlx(*asking_nobody).stdout.endswith("nothing to do: 1 stage up to date\n")
    assert mlx("why", "--offline").stdout == "s: skip\n  nothing changed\n"
    told = mlx("status")
    assert (told.code, "s" in told.stdout.split()) == (0, False)
    assert "as its lock recorded it: `mlx run --dry-run` asks for more" in told.stderr

    data.unlink()
    failed = mlx("run")
    assert failed.code == 6
    assert f"error: stage `s`: there is nothing at `{data.as_uri()}`\n" in failed.stderr
