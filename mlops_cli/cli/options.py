"""Options that several commands share, so that one flag means one thing everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from mlops_cli.cli.completion import complete_paths, complete_remotes, complete_stages

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would happen, and change nothing")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 when anything differs")]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Go by the records where data is not here, if nothing that runs needs it"),
]
Overwrite = Annotated[bool, typer.Option("--force", "-f", help="Overwrite and delete files whose bytes no store holds")]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", metavar="N", min=0, show_default=False, help="Transfers at once (0: as fits)")
]
RemoteName = Annotated[
    str | None,
    typer.Option(
        "--remote",
        "-r",
        metavar="NAME",
        help="The remote to use (default: the default one)",
        autocompletion=complete_remotes,
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH]...", help="Tracked paths, or paths inside them", autocompletion=complete_paths),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Do not ask what the URLs that stages read have now: the locks count")
]
Stages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STAGE]...",
        help="Stages, groups (train for train@*), globs ('train@f*'), outputs or folders",
        autocompletion=complete_stages,
    ),
]
