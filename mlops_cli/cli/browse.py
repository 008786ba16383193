"""Commands that look at tracked data without checking it out: `ls`, `cat`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_paths
from mlops_cli.cli.options import Json
from mlops_cli.cli.session import session_of
from mlops_cli.cli.text import size_text, table
from mlops_cli.errors import UsageError
from mlops_cli.words import quoted

if TYPE_CHECKING:
    from mlops_cli.hashing import Digest
    from mlops_cli.store.cache import Cache
    from mlops_cli.store.trees import Entry

_AT_ONCE = 8 << 20  # bytes

Rev = Annotated[str | None, typer.Option("--rev", metavar="REV", help="As it was at a Git revision")]


def list_(
    context: typer.Context,
    path: Annotated[
        str,
        typer.Argument(metavar="[PATH]", help="A tracked path, or a folder inside one", autocompletion=complete_paths),
    ] = "",
    rev: Rev = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="Every file below")] = False,
    as_json: Json = False,
) -> None:
    """List what is tracked, or what a tracked folder holds

    The listing comes from the records and the cache; nothing is checked out.
    """
    from mlops_cli.workspace.browse import list_tracked
    from mlops_cli.workspace.snapshot import open_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    target = session.targets(project, [path])[0] if path else ""
    with open_snapshot(project, rev) as snapshot:
        listed = list_tracked(project.cache, snapshot, target, recursive=recursive)
    value = {"revision": rev, "entries": [asdict(item) for item in listed]}
    headers = ["kind", "size", "files", "digest", "path"]
    rows = [[item.kind, size_text(item.size), f"{item.files:,}", item.digest[:15], item.path] for item in listed]
    if any(item.source for item in listed):
        headers.append("from")
        rows = [[*row, _place(item.source or {})] for item, row in zip(listed, rows, strict=True)]
    output.result("ls", value, table(headers, rows))
    if not rows:
        output.say("nothing is tracked yet" if not path else f"`{path}` is empty")


def _place(source: Mapping[str, object]) -> str:
    return str(source.get("url") or " ".join(str(source[key]) for key in ("repo", "path") if key in source))


def cat(
    context: typer.Context,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A tracked file, a path inside one, or a digest", autocompletion=complete_paths
        ),
    ],
    rev: Rev = None,
    target: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write it there, not to stdout")] = "",
    as_json: Json = False,
) -> None:
    """Print the bytes of a tracked file

    With -o they are written to a new file instead; that also takes whole folders out.
    """
    from mlops_cli.workspace.browse import find_object, naming, write_copy
    from mlops_cli.workspace.snapshot import open_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    wanted = _digest(path) if path.startswith("blake3:") else session.targets(project, [path])[0]
    if not wanted:
        raise UsageError(f"`{path}` is a folder", hint="`mlx ls` lists what is tracked in it")
    with open_snapshot(project, rev) as snapshot:
        entry = find_object(project.cache, snapshot, wanted)
    value = {"path": path, "digest": entry.digest, "size": entry.size}
    if target:
        with naming(wanted, rev):
            write_copy(project.cache, entry, session.cwd / target)
        output.result("cat", {**value, "output": target}, [])
        return
    _refuse_folder(entry, path)
    with naming(wanted, rev):
        if as_json:
            output.result("cat", {**value, **_encoded(project.cache.read(entry.digest, limit=None))}, [])
        else:
            _copy_out(project.cache, entry.digest)


def _digest(text: str) -> str:
    """Return a digest or its start; UsageError when it holds anything but hexadecimal digits."""
    if set(text.removeprefix("blake3:")) <= set("0123456789abcdef"):
        return text
    raise UsageError(f"`{text}` is not a digest", hint="a digest is `blake3:` and 64 digits of 0-9 and a-f")


def _refuse_folder(entry: Entry, path: str) -> None:
    from mlops_cli.store.trees import Kind

    if entry.kind == Kind.FOLDER:
        raise UsageError(f"`{path}` is a folder", hint=f"`mlx ls {quoted(path)}` lists it; `-o DIR` writes it out")


def _copy_out(cache: Cache, digest: Digest) -> None:
    """Write an object to standard output, piece by piece: verified before a small one is shown, after a large one."""
    from mlops_cli.hashing import Hasher

    sys.stdout.flush()
    with cache.open(digest) as stream:
        if stream.seek(0, os.SEEK_END) <= _AT_ONCE:
            sys.stdout.buffer.write(cache.read(digest))
            return
        stream.seek(0)
        hasher = Hasher()
        while piece := stream.read(1 << 20):
            hasher.update(piece)
            sys.stdout.buffer.write(piece)
    if hasher.digest() != digest:
        raise cache.damaged(digest, hasher.digest())


def _encoded(data: bytes) -> dict[str, str]:
    import base64

    try:
        return {"encoding": "utf-8", "content": data.decode()}
    except UnicodeDecodeError:
        return {"encoding": "base64", "content": base64.b64encode(data).decode()}


COMMANDS = {
    "ls": command(list_, "mlx ls data/raw", "mlx ls --rev HEAD~1 --recursive"),
    "cat": command(cat, "mlx cat data/raw/0000.pgm | head -n 2", "mlx cat --rev HEAD~1 data/raw/0000.pgm -o old.pgm"),
}
