"""Commands on stages: `stage add`, `stage list`, `stage show`."""

from __future__ import annotations

from typing import Annotated

import typer

from mlops_cli.cli.commands import Group, command
from mlops_cli.cli.completion import complete_stages
from mlops_cli.cli.groups import fold_names
from mlops_cli.cli.options import DryRun, Json, Stages
from mlops_cli.cli.output import Output
from mlops_cli.cli.selection import Full, reach_of
from mlops_cli.cli.session import session_of
from mlops_cli.cli.text import table
from mlops_cli.words import quoted

Commands = Annotated[
    list[str], typer.Option("--cmd", "-c", metavar="COMMAND", help="The command; repeat for several in a row")
]
Deps = Annotated[list[str] | None, typer.Option("--dep", "-d", metavar="PATH", help="A file, folder or glob it reads")]
Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", metavar="KEY", help="A parameter it uses, as [FILE:]KEY")
]
Outs = Annotated[list[str] | None, typer.Option("--out", "-o", metavar="PATH", help="A file or folder it writes")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", "-m", metavar="PATH", help="A metrics file it writes")]
Plots = Annotated[list[str] | None, typer.Option("--plot", metavar="PATH", help="A plot's data file it writes")]
Optionals = Annotated[
    list[str] | None, typer.Option("--optional-dep", metavar="PATH", help="A file, folder or glob that may be absent")
]
PassEnv = Annotated[
    list[str] | None, typer.Option("--pass-env", metavar="NAME", help="A variable to inherit, and no others but a few")
]
Env = Annotated[list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variable for the command")]


def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The stage's name")],
    cmd: Commands,
    deps: Deps = None,
    params: Params = None,
    outs: Outs = None,
    metrics: Metrics = None,
    plots: Plots = None,
    env: Env = None,
    optional_deps: Optionals = None,
    pass_env: PassEnv = None,
    when: Annotated[str, typer.Option("--when", metavar="CONDITION", help="When it is run at all")] = "",
    wdir: Annotated[str, typer.Option("--wdir", "-w", metavar="DIR", help="The folder to run in")] = "",
    desc: Annotated[str, typer.Option("--desc", metavar="TEXT", help="A line about it")] = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add a stage to the mlx.yaml of the current folder

    Everything that is in the file already stays as it is: comments, order and spacing.
    """
    from mlops_cli.pipeline.declare import declare_stage, parse_env, parse_params
    from mlops_cli.records.stages import NewStage, Plot
    from mlops_cli.records.stages import Output as Out

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    new = NewStage(
        name=name,
        cmd=tuple(cmd),
        deps=tuple(deps or ()),
        params=parse_params(params or []),
        outs=tuple(Out(path) for path in outs or ()),
        metrics=tuple(metrics or ()),
        plots=tuple(Plot(path) for path in plots or ()),
        env=parse_env(env or []),
        wdir=wdir,
        desc=desc,
        optional=tuple(optional_deps or ()),
        pass_env=tuple(pass_env or ()),
        when=when,
    )
    folder = session.targets(project, ["."])[0]
    file = declare_stage(project, folder, new, dry_run=dry_run)
    _show_added(output, f"{folder}:{name}" if folder else name, file, dry_run=dry_run)


def _show_added(output: Output, address: str, file: str, *, dry_run: bool) -> None:
    text = f"{'would add' if dry_run else 'added'} stage `{address}` to {file}"
    output.result("stage-add", {"dry_run": dry_run, "stage": address, "file": file}, [text])
    if not dry_run:
        output.say(f"next: mlx run {quoted(address)}")


def list_(context: typer.Context, stages: Stages = None, full: Full = False, as_json: Json = False) -> None:
    """List the stages, in run order

    A matrix of more than eight is one line, with the command of its first, unless --full.
    """
    from mlops_cli.pipeline.survey import survey_stages
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    reach = reach_of(session, project)
    survey = survey_stages(workspace_snapshot(project), stages or (), reach, output.note)
    found = [stage for address, stage in survey.graph.stages.items() if address in survey.selected.named]
    value = {"stages": [{"stage": stage.address, "cmd": list(stage.cmd), "desc": stage.desc} for stage in found]}
    names = fold_names([] if full else found)
    rows: dict[str, str] = {}
    for stage in found:
        rows.setdefault(names.get(stage.address, stage.address), stage.desc or " && ".join(stage.cmd))
    output.result("stage-list", value, table(("stage", "what"), list(rows.items())))
    if not rows:
        output.say("no stages: `mlx stage add` declares one")


def show(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="A stage, or a group such as train for train@*", autocompletion=complete_stages
        ),
    ],
    as_json: Json = False,
) -> None:
    """Show a stage as mlx understands it

    Every `${name}` is filled in, and every path is relative to the project.
    """
    from mlops_cli.documents import dump_yaml
    from mlops_cli.pipeline.declare import describe_stage
    from mlops_cli.pipeline.survey import survey_stages
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    survey = survey_stages(workspace_snapshot(project), [name], reach_of(session, project), output.note)
    named = [stage for address, stage in survey.graph.stages.items() if address in survey.selected.named]
    shown = list(map(describe_stage, named))
    lines = [line for stage in shown for line in dump_yaml(stage).decode().rstrip("\n").split("\n")]
    output.result("stage-show", {"stages": shown}, lines)


Frozen = Annotated[
    str, typer.Argument(metavar="STAGE", help="A stage, or a group (train for train@*)", autocompletion=complete_stages)
]


def freeze(context: typer.Context, name: Frozen, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Have a stage never run: its lock says what it made

    Writes `frozen: true` into its mlx.yaml; everything else there stays as it is.
    """
    _freeze(context, name, frozen=True, dry_run=dry_run, as_json=as_json)


def unfreeze(context: typer.Context, name: Frozen, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let a frozen stage run again

    Takes `frozen: true` out of its mlx.yaml; everything else there stays as it is.
    """
    _freeze(context, name, frozen=False, dry_run=dry_run, as_json=as_json)


def _freeze(context: typer.Context, name: str, *, frozen: bool, dry_run: bool, as_json: bool) -> None:
    from mlops_cli.pipeline.declare import freeze_stages

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    folder = project.relative(session.cwd)
    found = freeze_stages(project, name, frozen=frozen, folder=folder, dry_run=dry_run)
    verb = "freeze" if frozen else "unfreeze"
    value = {"dry_run": dry_run, "stages": list(found.stages), "files": list(found.files)}
    done = f"would {verb}" if dry_run else "froze" if frozen else "unfroze"
    lines = [f"{done} {address}" for address in found.stages] or [f"nothing to {verb}"]
    output.result(f"stage-{verb}", value, lines)


_ADD_EXAMPLE = """\
mlx stage add train --cmd "python train.py" -d train.py -d data/raw \\
      -p train.lr -o model.joblib -m metrics.json"""

COMMANDS = {
    "stage": Group(
        "Declare stages in mlx.yaml, and look at them",
        {
            "add": command(add, _ADD_EXAMPLE),
            "list": command(list_, "mlx stage list", "mlx stage list train --full"),
            "show": command(show, "mlx stage show train"),
            "freeze": command(freeze, "mlx stage freeze train"),
            "unfreeze": command(unfreeze, "mlx stage unfreeze train"),
        },
    )
}
